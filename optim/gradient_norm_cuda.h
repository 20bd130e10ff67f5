// The sums of squares under a gradient's norm, on the device: the same bits as
// optim::SumSquaresByBlock.
//
//   BITSHARD_RETURN_IF_ERROR(optim::SumSquaresByBlockCuda(
//       {.x = gradient, .elems = n, .out = squares, .stream = s}));
//
// What remains is for the host, which has to know the norm before it steps: copy the sums to it,
// add those of a tensor in index order, and give the clip factor to the step as
// StepHyper::gradient_scale. Built only with BITSHARD_CUDA.
#ifndef BITSHARD_OPTIM_GRADIENT_NORM_CUDA_H_
#define BITSHARD_OPTIM_GRADIENT_NORM_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"

namespace bitshard::optim {

/// Device pointers. Shapes: x [elems], out [ceil(elems / 256)].
struct SumSquaresCudaArgs {
  const float* x = nullptr;
  int64_t elems = 0;
  double* out = nullptr;
  cudaStream_t stream = nullptr;
};

/// out[b] = BlockSquares of block b of x. Enqueues one launch, none for elems = 0; nothing
/// synchronises. Errors: kInternal when the launch is refused.
absl::Status SumSquaresByBlockCuda(const SumSquaresCudaArgs& args);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_GRADIENT_NORM_CUDA_H_
