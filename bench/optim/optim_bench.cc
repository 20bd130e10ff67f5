// One side of a comparison at a time, for bench/optim/run.py: this project's optimizers and codecs,
// and torch's fused AdamW and copy, in one process.
//
// First prints {"target", "threads"}. Then, for each line "<side> <elements> <repeats>" on standard
// input, runs the side and prints {"seconds": [...], "cpu_seconds": [...]}, a number a repeat; what
// a side needs is made at its first run and kept until the line "forget". BITSHARD_SIMD forces a
// SIMD target, OMP_NUM_THREADS sets the threads.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <time.h>

#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "optim/step.h"
#include "quant/blockwise.h"
#include "quant/blockwise_4bit.h"
#include "quant/codebook.h"

namespace bitshard::bench {
namespace {

using at::Tensor;
using Side = std::function<void()>;

constexpr int64_t kBlock = 256;
constexpr int64_t kNf4Block = 64;

double Seconds(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class T>
std::span<T> SpanOf(const Tensor& tensor) {
  return {tensor.data_ptr<T>(), static_cast<size_t>(tensor.numel())};
}

Tensor Normal(int64_t n, double deviation) { return at::randn({n}).mul_(deviation); }
Tensor Bytes(int64_t n, int64_t fill) { return at::full({n}, fill, at::kByte); }
Tensor Scales(int64_t n, int64_t block) { return at::zeros({quant::NumBlocks(n, block)}); }

// Sizes of the tensors: one, or the matrices of adapters, which are small and of many sizes.
std::vector<int64_t> Sizes(int64_t n, bool adapters) {
  if (!adapters) return {n};
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < 420; ++i) sizes.push_back(9000 + i * 7919 % 41001);
  return sizes;
}

int64_t AdapterElems() {
  int64_t n = 0;
  for (const int64_t size : Sizes(0, true)) n += size;
  return n;
}

Side StepOf(optim::Algorithm algorithm, const std::vector<int64_t>& sizes) {
  struct State {
    std::vector<Tensor> tensors;
    std::vector<optim::StepRun> runs;
    int64_t step = 0;
  };
  auto state = std::make_shared<State>();
  for (const int64_t n : sizes) {
    const std::vector<Tensor> t = {Normal(n, 0.02),   Normal(n, 1e-3), Bytes(n, 127),
                                   Scales(n, kBlock), Bytes(n, 0),     Scales(n, kBlock)};
    optim::StepRun run{.parameter = t[0].data_ptr(), .gradient = t[1].const_data_ptr(), .elems = n};
    run.states[0] = {.codes = t[2].data_ptr<uint8_t>(), .absmax = t[3].data_ptr<float>()};
    run.states[1] = {.codes = t[4].data_ptr<uint8_t>(), .absmax = t[5].data_ptr<float>()};
    state->runs.push_back(run);
    state->tensors.insert(state->tensors.end(), t.begin(), t.end());
  }
  return [state, algorithm] {
    optim::Step({.algorithm = algorithm,
                 .hyper = {.step = ++state->step, .learning_rate = 1e-6, .weight_decay = 0.01},
                 .runs = state->runs});
  };
}

Side TorchFusedAdamW(int64_t n) {
  const std::vector<Tensor> p = {Normal(n, 0.02)}, g = {Normal(n, 1e-3)};
  const std::vector<Tensor> m = {at::zeros({n})}, v = {at::zeros({n})};
  const std::vector<Tensor> step = {at::zeros({})};
  return [=] {
    step[0].add_(1);
    at::_fused_adamw_(p, g, m, v, {}, step, /*lr=*/1e-6, /*beta1=*/0.9, /*beta2=*/0.999,
                      /*weight_decay=*/0.01, /*eps=*/1e-8, /*amsgrad=*/false, /*maximize=*/false);
  };
}

Side TorchCopy(int64_t n) {
  const Tensor from = at::randn({n}), to = at::empty({n});
  return [=] { to.copy_(from); };
}

Side Quantize8(int64_t n, bool back) {
  const Tensor x = at::randn({n}), codes = Bytes(n, 0), absmax = Scales(n, kBlock);
  const auto quantize = [=] {
    BITSHARD_CHECK(quant::QuantizeBlockwise(SpanOf<float>(x), quant::SignedDynamicTable().values,
                                            kBlock, SpanOf<uint8_t>(codes), SpanOf<float>(absmax))
                       .ok());
  };
  if (!back) return quantize;
  quantize();
  return [=] {
    BITSHARD_CHECK(quant::DequantizeBlockwise(SpanOf<uint8_t>(codes),
                                              quant::SignedDynamicTable().values,
                                              SpanOf<float>(absmax), kBlock, SpanOf<float>(x))
                       .ok());
  };
}

Side QuantizeNf4(int64_t n, bool back) {
  const Tensor x = at::randn({n}), packed = Bytes(n / 2, 0), absmax = Scales(n, kNf4Block);
  const auto quantize = [=] {
    BITSHARD_CHECK(quant::Quantize4Bit(SpanOf<float>(x), quant::Type4Bit::kNf4, kNf4Block,
                                       SpanOf<uint8_t>(packed), SpanOf<float>(absmax))
                       .ok());
  };
  if (!back) return quantize;
  quantize();
  return [=] {
    BITSHARD_CHECK(quant::Dequantize4Bit(SpanOf<uint8_t>(packed), SpanOf<float>(absmax),
                                         quant::Type4Bit::kNf4, kNf4Block, SpanOf<float>(x))
                       .ok());
  };
}

Side Make(const std::string& name, int64_t n) {
  using optim::Algorithm;
  const std::map<std::string, std::function<Side()>> sides = {
      {"adamw_8bit", [&] { return StepOf(Algorithm::kAdamW, Sizes(n, false)); }},
      {"lion_8bit", [&] { return StepOf(Algorithm::kLion, Sizes(n, false)); }},
      {"adamw_8bit_420_tensors", [&] { return StepOf(Algorithm::kAdamW, Sizes(n, true)); }},
      {"torch_fused_adamw", [&] { return TorchFusedAdamW(n); }},
      {"torch_copy", [&] { return TorchCopy(n); }},
      {"quantize_8bit", [&] { return Quantize8(n, false); }},
      {"dequantize_8bit", [&] { return Quantize8(n, true); }},
      {"quantize_nf4", [&] { return QuantizeNf4(n, false); }},
      {"dequantize_nf4", [&] { return QuantizeNf4(n, true); }}};
  const auto at = sides.find(name);
  BITSHARD_CHECK(at != sides.end()) << "no side " << name;
  return at->second();
}

void Report(const Side& side, int64_t repeats) {
  std::ostringstream wall, cpu;
  for (int64_t i = 0; i < repeats; ++i) {
    const double wall_before = Seconds(CLOCK_MONOTONIC);
    const double cpu_before = Seconds(CLOCK_PROCESS_CPUTIME_ID);
    side();
    const char* const separator = i == 0 ? "" : ", ";
    wall << separator << Seconds(CLOCK_MONOTONIC) - wall_before;
    cpu << separator << Seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_before;
  }
  std::cout << "{\"seconds\": [" << wall.str() << "], \"cpu_seconds\": [" << cpu.str() << "]}"
            << std::endl;
}

void Serve() {
  std::map<std::pair<std::string, int64_t>, Side> sides;
  std::cout << "{\"target\": \"" << core::SimdTargetName()
            << "\", \"threads\": " << core::NumThreads()
            << ", \"adapter_elems\": " << AdapterElems() << "}" << std::endl;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string name;
    int64_t n = 0, repeats = 0;
    words >> name >> n >> repeats;
    if (name == "forget") {
      sides.clear();
      std::cout << "{}" << std::endl;
      continue;
    }
    Side& side = sides[{name, n}];
    if (side == nullptr) {
      side = Make(name, n);
      side();
    }
    Report(side, repeats);
  }
}

}  // namespace
}  // namespace bitshard::bench

int main() {
  const absl::Status simd = bitshard::core::InitSimdFromEnvironment();
  if (!simd.ok()) {
    std::cerr << "optim_bench: " << simd.message() << "\n";
    return 2;
  }
  bitshard::bench::Serve();
  return 0;
}
