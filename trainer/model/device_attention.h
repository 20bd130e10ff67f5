// Causal attention inside each sample on a device, with grouped key/value heads, as
// trainer/model/attention.h computes it. Scores exist a tile at a time, in shared memory; memory
// beside the arguments is not needed. Built only with BITSHARD_CUDA.
// Dao, "FlashAttention-2", 2023; Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018.
//
//   const DeviceAttentionArgs forward = {.shape = shape, .positions = positions, .q = q, ...};
//   BITSHARD_RETURN_IF_ERROR(DeviceAttention(forward));
//   BITSHARD_RETURN_IF_ERROR(DeviceAttentionBackward({.forward = forward, .d_out = d_out, ...}));
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_ATTENTION_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_ATTENTION_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "core/dtype.h"
#include "trainer/model/attention_shape.h"

namespace bitshard::trainer {

/// The largest head that the kernels have room for in shared memory.
inline constexpr int64_t kMaxDeviceHeadDim = 256;

/// Device pointers. Rows are those of samples laid one after another; which token of its sample a
/// row is, says positions: the sample of row i begins at row i - positions[i].
struct DeviceAttentionArgs {
  AttentionShape shape;
  const int32_t* positions = nullptr;  ///< [rows]
  const void* q = nullptr;             ///< [rows, heads * head_dim]
  const void* k = nullptr;             ///< [rows, kv_heads * head_dim]
  const void* v = nullptr;             ///< [rows, kv_heads * head_dim]
  void* out = nullptr;                 ///< [rows, heads * head_dim]
  float* log_sum_exp = nullptr;        ///< [heads, rows] of the scaled scores.
  int64_t rows = 0;
  core::DType type = core::DType::kFloat32;  ///< Of q, k, v, out and gradients: float32, bfloat16.
  cudaStream_t stream = nullptr;
};

/// Enqueues one kernel on `stream`, none for 0 rows; nothing synchronises. No output aliases an
/// input. Numerics: float32 in the order of keys, whatever the order of threads; NaN reaches the
/// rows that see it. Errors: kConfig for another type or a head_dim above kMaxDeviceHeadDim;
/// kInternal when the launch is refused.
absl::Status DeviceAttention(const DeviceAttentionArgs& args);

/// dq, dk, dv from d_out and what the forward pass left. They alias nothing: the keys' gradients
/// and the queries' are made by kernels that each read all of q, k, v.
struct DeviceAttentionBackwardArgs {
  DeviceAttentionArgs forward;
  const void* d_out = nullptr;  ///< [rows, heads * head_dim]
  float* dots = nullptr;        ///< Scratch [heads, rows].
  void* dq = nullptr;           ///< [rows, heads * head_dim]
  void* dk = nullptr;           ///< [rows, kv_heads * head_dim]
  void* dv = nullptr;           ///< [rows, kv_heads * head_dim]
};

/// Enqueues three kernels on the stream of `forward`; the rest as DeviceAttention.
absl::Status DeviceAttentionBackward(const DeviceAttentionBackwardArgs& args);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_ATTENTION_H_
