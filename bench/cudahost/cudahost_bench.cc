// Runs kernels on the stand-in for CUDA (docs/cudahost.md) and says what they take. The same source
// makes two programs, one of the checked twins and one of the plain ones; bench/cudahost/run.py
// drives both. For each line "KERNEL SEED" on stdin, one launch in the order of that seed: the
// answer is its CPU time in nanoseconds.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "comm/tree_sum_cuda.h"
#include "optim/step_cuda.h"
#include "quant/blockwise_cuda.h"
#include "quant/codebook.h"
#include "tests/cudahost/sched.h"

namespace bitshard {
namespace {

constexpr int64_t kElems = 1 << 18;
constexpr int64_t kBlocks = kElems / 256;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "cudahost_bench: %s\n", what.c_str());
  std::exit(1);
}

void Check(cudaError_t error) {
  if (error != cudaSuccess) Fail(cudaGetErrorString(error));
}

void Check(const absl::Status& status) {
  if (!status.ok()) Fail(status.ToString());
}

struct FreeDevice {
  void operator()(void* p) const { Check(cudaFree(p)); }
};

// Normally distributed values.
const std::vector<float>& Values() {
  static const std::vector<float> values = [] {
    std::vector<float> x(kElems);
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (float& e : x) e = normal(generator);
    return x;
  }();
  return values;
}

// Device memory of one launch: a test too launches on memory that no kernel has touched.
class Memory {
 public:
  template <class T>
  T* Unwritten(int64_t n) {
    void* device = nullptr;
    Check(cudaMalloc(&device, static_cast<size_t>(n) * sizeof(T)));
    buffers_.emplace_back(device);
    return static_cast<T*>(device);
  }
  float* Filled() {
    float* device = Unwritten<float>(kElems);
    Check(cudaMemcpy(device, Values().data(), kElems * sizeof(float), cudaMemcpyHostToDevice));
    return device;
  }
  template <class T>
  T* Zeros(int64_t n) {
    T* device = Unwritten<T>(n);
    Check(cudaMemset(device, 0, static_cast<size_t>(n) * sizeof(T)));
    return device;
  }

 private:
  std::vector<std::unique_ptr<void, FreeDevice>> buffers_;
};

// Launches once; what it was made for is on the device then.
using Launch = std::function<absl::Status()>;

Launch StepOf(optim::Algorithm algorithm, bool is_8bit, Memory* memory) {
  optim::StepRun run = {
      .parameter = memory->Filled(), .gradient = memory->Filled(), .elems = kElems};
  for (int i = 0; i < optim::NumStates(algorithm); ++i) {
    if (is_8bit) {
      run.states[i] = {.codes = memory->Zeros<uint8_t>(kElems),
                       .absmax = memory->Zeros<float>(kBlocks)};
    } else {
      run.states[i] = {.values = memory->Zeros<float>(kElems)};
    }
  }
  auto stepper = optim::CudaStepper::Create({.max_runs = 1});
  Check(stepper.status());
  return [=, stepper = std::shared_ptr<optim::CudaStepper>(std::move(*stepper))] {
    const std::vector<optim::StepRun> runs = {run};
    return stepper->Step(
        {.algorithm = algorithm, .hyper = {.step = 1, .learning_rate = 1e-3}, .runs = runs});
  };
}

Launch Quantize8(Memory* memory) {
  return [x = memory->Filled(), out = memory->Unwritten<uint8_t>(kElems),
          absmax = memory->Unwritten<float>(kBlocks)] {
    return quant::QuantizeBlockwiseCuda({.x = x,
                                         .n = kElems,
                                         .code = quant::SignedDynamicTable().values,
                                         .out = out,
                                         .absmax = absmax});
  };
}

Launch Dequantize8(Memory* memory) {
  return [q = memory->Zeros<uint8_t>(kElems), absmax = memory->Filled(),
          out = memory->Unwritten<float>(kElems)] {
    return quant::DequantizeBlockwiseCuda({.q = q,
                                           .n = kElems,
                                           .code = quant::SignedDynamicTable().values,
                                           .absmax = absmax,
                                           .out = out});
  };
}

Launch Quantize4(Memory* memory) {
  return [x = memory->Filled(), packed = memory->Unwritten<uint8_t>(kElems / 2),
          absmax = memory->Unwritten<float>(kElems / 64)] {
    return quant::Quantize4BitCuda({.x = x, .n = kElems, .packed = packed, .absmax = absmax});
  };
}

Launch Dequantize4(Memory* memory) {
  return [packed = memory->Zeros<uint8_t>(kElems / 2), absmax = memory->Filled(),
          out = memory->Unwritten<float>(kElems)] {
    return quant::Dequantize4BitCuda({.packed = packed, .n = kElems, .absmax = absmax, .out = out});
  };
}

Launch TreeSum(Memory* memory) {
  comm::TreeSumCudaArgs args = {.n = kElems, .out = memory->Unwritten<float>(kElems)};
  for (int i = 0; i < 8; ++i) args.parts.push_back(memory->Filled());
  args.merges = {0, 1, 0, 2, 0, 1, 0, 3};
  return [args] { return comm::TreeSumCuda(args); };
}

const std::map<std::string, std::function<Launch(Memory*)>>& Kernels() {
  using optim::Algorithm;
  static const std::map<std::string, std::function<Launch(Memory*)>> kernels = {
      {"adamw_8bit", [](Memory* memory) { return StepOf(Algorithm::kAdamW, true, memory); }},
      {"adamw_32bit", [](Memory* memory) { return StepOf(Algorithm::kAdamW, false, memory); }},
      {"lion_8bit", [](Memory* memory) { return StepOf(Algorithm::kLion, true, memory); }},
      {"quantize_8bit", Quantize8},
      {"dequantize_8bit", Dequantize8},
      {"quantize_nf4", Quantize4},
      {"dequantize_nf4", Dequantize4},
      {"tree_sum", TreeSum},
  };
  return kernels;
}

int64_t CpuNanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

int Main() {
  std::string name;
  uint64_t seed = 0;
  while (std::cin >> name >> seed) {
    const auto kernel = Kernels().find(name);
    if (kernel == Kernels().end()) Fail("no kernel " + name);
    Memory memory;
    const Launch launch = kernel->second(&memory);
    Check(cudaDeviceSynchronize());
    cudahost::SetSeed(seed);
    const int64_t begin = CpuNanoseconds();
    Check(launch());
    Check(cudaDeviceSynchronize());
    std::cout << CpuNanoseconds() - begin << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace bitshard

int main() { return bitshard::Main(); }
