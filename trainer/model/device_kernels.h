// The decoder's operations between matrix products, on a device: those of trainer/model/kernels.h
// and trainer/model/dropout.h, with the same formulas and rounding points. Built only with
// BITSHARD_CUDA.
//
//   BITSHARD_RETURN_IF_ERROR(DeviceRmsNorm({.x = x, .weight = weight, .y = y,
//       .inverse_rms = inverse, .rows = rows, .n = hidden, .eps = eps,
//       .type = core::DType::kBFloat16, .stream = stream}));
//
// Pointers are device pointers. `type` is that of all activations of a call (void pointers):
// float32 or bfloat16; arithmetic is float32, each result is rounded once. Weights, biases, tables
// of angles and saved inverses are float32. Shapes are row-major. Any alignment and size is right;
// arrays at multiples of 16 bytes whose rows are multiples of 16 bytes are faster. Outputs alias
// inputs only where it says so.
//
// Every function enqueues one kernel on `stream` and returns before it has run; nothing is
// allocated, nothing synchronises; 0 rows or elements enqueue nothing. Rows are independent of each
// other. The same arguments give the same bits on any device (trainer/model/device_math.h): no
// sum depends on the order in which threads run. Against the CPU's kernels: the same bits, except
// where exp or a sum along a row is involved, whose last bits differ; tests state the bounds.
// Errors: kConfig for a type that is neither; kInternal when a launch is refused.
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_KERNELS_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "core/dtype.h"
#include "trainer/model/dropout_key.h"

namespace bitshard::trainer {

/// out [rows, n] = from[index[i]]: embeddings of tokens, rows of hidden states that have a target.
struct DeviceGatherArgs {
  const void* from = nullptr;      ///< [any, n]
  const int32_t* index = nullptr;  ///< [rows]
  void* out = nullptr;             ///< [rows, n]
  int64_t rows = 0;
  int64_t n = 0;
  core::DType type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status DeviceGather(const DeviceGatherArgs& args);

/// to[index[i]] = from [rows, n]: the way back. No row is named twice; others of `to` stay.
struct DeviceScatterArgs {
  const void* from = nullptr;
  const int32_t* index = nullptr;  ///< [rows]
  void* to = nullptr;              ///< [any, n]
  int64_t rows = 0;
  int64_t n = 0;
  core::DType type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status DeviceScatter(const DeviceScatterArgs& args);

/// y [rows, n] = x / sqrt(mean(x^2) + eps) * weight [n]; inverse_rms [rows] is kept for the
/// backward pass. y may be x.
struct DeviceRmsNormArgs {
  const void* x = nullptr;
  const float* weight = nullptr;
  void* y = nullptr;
  float* inverse_rms = nullptr;
  int64_t rows = 0;
  int64_t n = 0;
  float eps = 0;
  core::DType type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status DeviceRmsNorm(const DeviceRmsNormArgs& args);

/// dx [rows, n] = (add, or 0) + gradient of DeviceRmsNorm with respect to x, for the gradient dy of
/// its output. dx may be add or dy.
struct DeviceRmsNormBackwardArgs {
  const void* x = nullptr;
  const float* weight = nullptr;
  const float* inverse_rms = nullptr;
  const void* dy = nullptr;
  const void* add = nullptr;  ///< May be nullptr.
  void* dx = nullptr;
  int64_t rows = 0;
  int64_t n = 0;
  core::DType type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status DeviceRmsNormBackward(const DeviceRmsNormBackwardArgs& args);

/// Rotary embedding in place; inverse: its backward pass.
struct DeviceRopeArgs {
  void* x = nullptr;                   ///< [rows, heads * head_dim]
  const int32_t* positions = nullptr;  ///< [rows]
  const float* cosine = nullptr;       ///< [positions, head_dim / 2]
  const float* sine = nullptr;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  bool inverse = false;
  core::DType type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status DeviceRope(const DeviceRopeArgs& args);

/// out [n] = silu(gate) * up. out may be gate or up.
struct DeviceSwiGluArgs {
  const void* gate = nullptr;
  const void* up = nullptr;
  void* out = nullptr;
  int64_t n = 0;
  core::DType type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status DeviceSwiGlu(const DeviceSwiGluArgs& args);

/// d_gate and d_up [n] from d_out; they may be gate and up.
struct DeviceSwiGluBackwardArgs {
  const void* gate = nullptr;
  const void* up = nullptr;
  const void* d_out = nullptr;
  void* d_gate = nullptr;
  void* d_up = nullptr;
  int64_t n = 0;
  core::DType type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status DeviceSwiGluBackward(const DeviceSwiGluBackwardArgs& args);

/// Adds bias [n] to every row of y [rows, n].
struct DeviceAddBiasArgs {
  void* y = nullptr;
  const float* bias = nullptr;
  int64_t rows = 0;
  int64_t n = 0;
  core::DType type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status DeviceAddBias(const DeviceAddBiasArgs& args);

/// y [n] = x in another type, rounded to nearest even.
struct DeviceConvertArgs {
  const void* x = nullptr;
  core::DType x_type = core::DType::kFloat32;
  void* y = nullptr;
  core::DType y_type = core::DType::kBFloat16;
  int64_t n = 0;
  cudaStream_t stream = nullptr;
};
absl::Status DeviceConvert(const DeviceConvertArgs& args);

/// The mask of trainer/model/dropout.h, from two numbers for each row: which token of its sample it
/// is, and the sample's global number.
struct DeviceDropoutArgs {
  DropoutKey key;
  const int32_t* positions = nullptr;   ///< [rows]
  const int64_t* sample_ids = nullptr;  ///< [rows]
  const void* x = nullptr;              ///< [rows, n]
  void* y = nullptr;
  int64_t rows = 0;
  int64_t n = 0;
  core::DType type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
/// y = mask * x / (1 - p). y may be x.
absl::Status DeviceDropout(const DeviceDropoutArgs& args);
/// y += mask * x / (1 - p): the backward pass.
absl::Status DeviceAddDropout(const DeviceDropoutArgs& args);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_KERNELS_H_
