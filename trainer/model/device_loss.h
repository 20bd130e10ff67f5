// Softmax cross-entropy of rows of logits on a device, as CrossEntropy of trainer/model/kernels.h
// computes it. Built only with BITSHARD_CUDA.
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_LOSS_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_LOSS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "core/dtype.h"

namespace bitshard::trainer {

/// Row i: nats[i] = log(sum(exp(logits))) - logits[target]; logits = (softmax - onehot(target)) *
/// loss_scale, in place. Device pointers.
struct DeviceCrossEntropyArgs {
  void* logits = nullptr;            ///< [rows, vocab]
  const int32_t* targets = nullptr;  ///< [rows], each in [0, vocab)
  double* nats = nullptr;            ///< [rows]
  int64_t rows = 0;
  int64_t vocab = 0;
  float loss_scale = 1;
  bool gradient = true;                      ///< false: logits are left as they are.
  core::DType type = core::DType::kFloat32;  ///< float32 or bfloat16.
  cudaStream_t stream = nullptr;
};

/// Enqueues one kernel on `stream`, none for 0 rows; nothing synchronises. The logits are read once
/// for the loss and once more for the gradient. Numerics: as trainer/model/device_kernels.h says;
/// NaN among the logits of a row makes its loss and gradient NaN. Errors: kConfig for another type;
/// kInternal when the launch is refused.
absl::Status DeviceCrossEntropy(const DeviceCrossEntropyArgs& args);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_LOSS_H_
