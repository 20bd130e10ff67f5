// A tensor with everything that a step reads and writes, on the host and on the device, for tests
// that step both and compare the bits.
#ifndef BITSHARD_TESTS_OPTIM_STEP_TENSOR_H_
#define BITSHARD_TESTS_OPTIM_STEP_TENSOR_H_

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/numeric.h"
#include "optim/step.h"
#include "quant/codebook.h"
#include "tests/core/device_array.h"

namespace bitshard::optim {

/// Floats of any type as bytes.
inline std::vector<uint8_t> ToBytes(core::DType type, const std::vector<float>& x) {
  const size_t width = static_cast<size_t>(core::ByteSize(type));
  std::vector<uint8_t> bytes(x.size() * width);
  for (size_t i = 0; i < x.size(); ++i) {
    uint32_t bits = core::FloatBits(x[i]);
    if (type == core::DType::kBFloat16) bits = core::Bf16FromFloat(x[i]);
    if (type == core::DType::kFloat16) bits = core::Fp16FromFloat(x[i]);
    std::memcpy(bytes.data() + i * width, &bits, width);
  }
  return bytes;
}

inline float FloatAt(core::DType type, const std::vector<uint8_t>& bytes, size_t i) {
  const size_t width = static_cast<size_t>(core::ByteSize(type));
  uint32_t bits = 0;
  std::memcpy(&bits, bytes.data() + i * width, width);
  if (type == core::DType::kBFloat16) return core::FloatFromBf16(static_cast<uint16_t>(bits));
  if (type == core::DType::kFloat16) return core::FloatFromFp16(static_cast<uint16_t>(bits));
  return core::FloatFromBits(bits);
}

struct StepTensorOptions {
  size_t elems = 256;
  core::DType parameter_type = core::DType::kFloat32;
  core::DType gradient_type = core::DType::kFloat32;
  bool is_8bit = true;
  bool has_master = false;
  size_t state_block = 256;  ///< Elements that share an absmax.
  size_t shift = 0;          ///< Elements that device arrays are off alignment.
  int64_t id = 0;
};

class StepTensor {
 public:
  StepTensor(const StepTensorOptions& options, std::mt19937* random, cudaStream_t stream)
      : options_(options), stream_(stream) {
    const size_t n = options.elems;
    const size_t scales = (n + options.state_block - 1) / options.state_block;
    std::vector<float> p(n);
    for (float& x : p) x = std::normal_distribution<float>()(*random);
    parameter_.host = ToBytes(options.parameter_type, p);
    if (options.has_master) master_.host = p;
    for (int i = 0; i < kMaxStates; ++i) {
      if (options.is_8bit) {
        const quant::CodeTable& table =
            IsSignedState(i) ? quant::SignedDynamicTable() : quant::UnsignedDynamicTable();
        states_[i].codes.host.assign(n, table.zero_code);
        states_[i].absmax.host.assign(scales, 0.0f);
      } else {
        states_[i].values.host.assign(n, 0.0f);
      }
    }
    const size_t width = static_cast<size_t>(core::ByteSize(options.parameter_type));
    parameter_.Send(stream, options.shift * width);
    master_.Send(stream, options.shift);
    for (State& state : states_) {
      state.codes.Send(stream, options.shift);
      state.absmax.Send(stream, options.shift);
      state.values.Send(stream, options.shift);
    }
    NewGradient(random);
  }

  /// Ordinary values, and in blocks of their own what breaks things: zeros, denormals, NaN,
  /// infinity, sizes far apart.
  void NewGradient(std::mt19937* random) {
    std::vector<float> g(options_.elems);
    for (size_t i = 0; i < g.size(); ++i) {
      const size_t block = i / 256;
      g[i] = std::normal_distribution<float>()(*random);
      if (block % 8 == 1) g[i] = 0.0f;
      if (block % 8 == 2) g[i] *= 1e-40f;
      if (block % 8 == 3 && i % 256 == 77) g[i] = std::nanf("");
      if (block % 8 == 4 && i % 256 == 200) g[i] = -HUGE_VALF;
      if (block % 8 == 5) g[i] *= i % 3 == 0 ? 1e-12f : 1e8f;
      if (block % 8 == 6 && i % 2 == 0) g[i] = -0.0f;
    }
    gradient_.host = ToBytes(options_.gradient_type, g);
    gradient_.Send(stream_,
                   options_.shift * static_cast<size_t>(core::ByteSize(options_.gradient_type)));
  }

  StepRun HostRun() {
    return Run([](auto& part) { return part.host.empty() ? nullptr : part.host.data(); });
  }
  StepRun DeviceRun() {
    return Run([](auto& part) { return part.host.empty() ? nullptr : part.device->data(); });
  }

  /// Of the next runs: how far max_unorm shortens the update.
  void set_update_scale(double scale) { update_scale_ = scale; }

  /// Fails the test at the first element whose bits differ.
  void ExpectSame(const std::string& what) {
    const std::string where = what + ", tensor " + std::to_string(options_.id);
    const std::vector<uint8_t> got = parameter_.device->Get();
    for (size_t i = 0; i < options_.elems; ++i) {
      const float ours = FloatAt(options_.parameter_type, got, i);
      const float want = FloatAt(options_.parameter_type, parameter_.host, i);
      if (!SameFloat(ours, want)) {
        ADD_FAILURE() << where << ": parameter " << i << " is " << ours << ", want " << want;
        return;
      }
    }
    for (int i = 0; i < kMaxStates; ++i) {
      const std::string number = std::to_string(i);
      states_[i].codes.ExpectSame(where + ": code of state " + number);
      states_[i].absmax.ExpectSame(where + ": absmax of state " + number);
      states_[i].values.ExpectSame(where + ": state " + number);
    }
    master_.ExpectSame(where + ": master");
  }

 private:
  // All NaNs are the same: which one an operation gives is not IEEE's to say.
  static bool SameFloat(float a, float b) {
    return core::FloatBits(a) == core::FloatBits(b) || (std::isnan(a) && std::isnan(b));
  }
  static bool Same(float a, float b) { return SameFloat(a, b); }
  static bool Same(uint8_t a, uint8_t b) { return a == b; }

  template <class T>
  struct Part {
    std::vector<T> host;
    std::unique_ptr<core::DeviceArray<T>> device;
    void Send(cudaStream_t stream, size_t shift) {
      if (host.empty()) return;
      if (device == nullptr) {
        device = std::make_unique<core::DeviceArray<T>>(host, stream, shift);
      } else {
        device->Set(host);
      }
    }
    void ExpectSame(const std::string& where) {
      if (host.empty()) return;
      const std::vector<T> got = device->Get();
      for (size_t i = 0; i < host.size(); ++i) {
        if (Same(got[i], host[i])) continue;
        ADD_FAILURE() << where << " " << i << " is " << +got[i] << ", want " << +host[i];
        return;
      }
    }
  };

  template <class Pointer>
  StepRun Run(Pointer&& pointer) {
    StepRun run{.parameter = pointer(parameter_),
                .gradient = pointer(gradient_),
                .elems = static_cast<int64_t>(options_.elems),
                .master = pointer(master_),
                .tensor = options_.id,
                .update_scale = update_scale_};
    for (int i = 0; i < kMaxStates; ++i) {
      run.states[i] = {.codes = pointer(states_[i].codes),
                       .absmax = pointer(states_[i].absmax),
                       .values = pointer(states_[i].values)};
    }
    return run;
  }

  const StepTensorOptions options_;
  cudaStream_t stream_;
  double update_scale_ = 1;
  // As many as a rule may have; those that it does not have stay as they are.
  struct State {
    Part<uint8_t> codes;
    Part<float> absmax, values;
  };
  Part<uint8_t> parameter_, gradient_;
  State states_[kMaxStates];
  Part<float> master_;
};

}  // namespace bitshard::optim

#endif  // BITSHARD_TESTS_OPTIM_STEP_TENSOR_H_
