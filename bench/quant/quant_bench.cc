// Bytes moved per second by blockwise quantisation, with memcpy in the same run as the measure of
// what the machine gives. BITSHARD_SIMD forces a SIMD target, OMP_NUM_THREADS sets the threads.
//   quant_bench --benchmark_min_time=0.5
#include <benchmark/benchmark.h>

#include <cstring>
#include <iostream>
#include <random>
#include <vector>

#include "core/check.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "quant/blockwise.h"
#include "quant/codebook.h"

namespace bitshard::quant {
namespace {

std::vector<float> Normal(int64_t n) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& e : x) e = normal(generator);
  return x;
}

void Count(benchmark::State& state, int64_t n, int64_t bytes_per_call) {
  state.SetItemsProcessed(state.iterations() * n);
  state.SetBytesProcessed(state.iterations() * bytes_per_call);
}

// Reads and writes n floats, split over the threads as the other loops are.
void Memcpy(benchmark::State& state) {
  const int64_t n = state.range(0);
  const std::vector<float> from = Normal(n);
  std::vector<float> to(from.size());
  for (auto _ : state) {
    core::ParallelFor(n, 1 << 15, [&](int64_t begin, int64_t end) {
      std::memcpy(to.data() + begin, from.data() + begin,
                  static_cast<size_t>(end - begin) * sizeof(float));
    });
    benchmark::ClobberMemory();
  }
  Count(state, n, 8 * n);
}

void Quantize8(benchmark::State& state, const CodeTable& table) {
  const int64_t n = state.range(0);
  const std::vector<float> x = Normal(n);
  std::vector<uint8_t> q(x.size());
  std::vector<float> absmax(static_cast<size_t>(NumBlocks(n, 256)));
  for (auto _ : state) BITSHARD_CHECK(QuantizeBlockwise(x, table.values, 256, q, absmax).ok());
  Count(state, n, 4 * n + Dynamic8Bytes(n, 256));
}

void Dequantize8(benchmark::State& state, const CodeTable& table) {
  const int64_t n = state.range(0);
  std::vector<float> x = Normal(n);
  std::vector<uint8_t> q(x.size());
  std::vector<float> absmax(static_cast<size_t>(NumBlocks(n, 256)));
  BITSHARD_CHECK(QuantizeBlockwise(x, table.values, 256, q, absmax).ok());
  for (auto _ : state) BITSHARD_CHECK(DequantizeBlockwise(q, table.values, absmax, 256, x).ok());
  Count(state, n, 4 * n + Dynamic8Bytes(n, 256));
}

void QuantizeWeight(benchmark::State& state, Type4Bit type) {
  const int64_t n = state.range(0);
  const std::vector<float> x = Normal(n);
  Tensor4Bit tensor;
  for (auto _ : state) BITSHARD_CHECK(QuantizeTensor4Bit(x, type, 64, true, &tensor).ok());
  Count(state, n, 4 * n + tensor.bytes());
}

void DequantizeWeight(benchmark::State& state) {
  const int64_t n = state.range(0);
  std::vector<float> x = Normal(n);
  Tensor4Bit tensor;
  BITSHARD_CHECK(QuantizeTensor4Bit(x, Type4Bit::kNf4, 64, true, &tensor).ok());
  for (auto _ : state) BITSHARD_CHECK(DequantizeTensor4Bit(tensor, 0, x).ok());
  Count(state, n, 4 * n + tensor.bytes());
}

void DequantizeWeightToBf16(benchmark::State& state) {
  const int64_t n = state.range(0);
  const std::vector<float> x = Normal(n);
  std::vector<uint16_t> out(x.size());
  Tensor4Bit tensor;
  BITSHARD_CHECK(QuantizeTensor4Bit(x, Type4Bit::kNf4, 64, true, &tensor).ok());
  for (auto _ : state) BITSHARD_CHECK(DequantizeTensor4BitToBf16(tensor, 0, out).ok());
  Count(state, n, 2 * n + tensor.bytes());
}

void Register() {
  const auto sizes = [](benchmark::internal::Benchmark* b) {
    b->Arg(1 << 16)->Arg(1 << 24)->UseRealTime()->Unit(benchmark::kMicrosecond);
  };
  sizes(benchmark::RegisterBenchmark("memcpy", Memcpy));
  sizes(benchmark::RegisterBenchmark("quantize8_signed", Quantize8, SignedDynamicTable()));
  sizes(benchmark::RegisterBenchmark("quantize8_unsigned", Quantize8, UnsignedDynamicTable()));
  sizes(benchmark::RegisterBenchmark("dequantize8_signed", Dequantize8, SignedDynamicTable()));
  sizes(benchmark::RegisterBenchmark("dequantize8_unsigned", Dequantize8, UnsignedDynamicTable()));
  sizes(benchmark::RegisterBenchmark("quantize_nf4", QuantizeWeight, Type4Bit::kNf4));
  sizes(benchmark::RegisterBenchmark("quantize_fp4", QuantizeWeight, Type4Bit::kFp4));
  sizes(benchmark::RegisterBenchmark("dequantize_nf4_f32", DequantizeWeight));
  sizes(benchmark::RegisterBenchmark("dequantize_nf4_bf16", DequantizeWeightToBf16));
}

}  // namespace
}  // namespace bitshard::quant

int main(int argc, char** argv) {
  const absl::Status status = bitshard::core::InitSimdFromEnvironment();
  if (!status.ok()) {
    std::cerr << status << "\n";
    return 2;
  }
  benchmark::AddCustomContext("simd_target", bitshard::core::SimdTargetName());
  benchmark::AddCustomContext("threads", std::to_string(bitshard::core::NumThreads()));
  bitshard::quant::Register();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
