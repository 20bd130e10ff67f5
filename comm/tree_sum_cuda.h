// The ordered sums of comm/tree_sum.h over device buffers: what the reproducible reduction adds, in
// its order.
//
//   // Leaf [2] completes two nodes: [1] += [2], [0] += [1].
//   BITSHARD_RETURN_IF_ERROR(comm::TreeSumCuda({.parts = {low, middle, leaf}, .merges = {0, 0, 2},
//   .n = n,
//                                               .out = low, .stream = stream}));
//
// Pointers are device pointers. It enqueues one launch on `stream` and returns before
// it has run; n = 0 enqueues nothing. Built only with BITSHARD_CUDA.
#ifndef BITSHARD_COMM_TREE_SUM_CUDA_H_
#define BITSHARD_COMM_TREE_SUM_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace bitshard::comm {

/// Parts from left to right, and after each of them how often "second from top += top, then drop
/// the top" is done: what TreeStack::Push returned for it. One part is left at the end. Shapes:
/// each part [n], out [n]. `out` may be one of the parts; no part is written otherwise.
struct TreeSumCudaArgs {
  std::vector<const float*> parts;
  std::vector<int> merges;
  int64_t n = 0;
  float* out = nullptr;
  cudaStream_t stream = nullptr;
};

inline constexpr int kMaxTreeParts =
    256;  ///< They travel as kernel arguments, of which there are 4 KB.
inline constexpr int kMaxTreeDepth = 24;  ///< Parts on the stack: enough for 2^22 micro-batches.

/// Each addition is one float32 operation: the same bits as the loops of the CPU. One pass: every
/// part is read once. Errors: kInvalidArgument for more than kMaxTreeParts parts; kInternal when
/// the launch is refused.
absl::Status TreeSumCuda(const TreeSumCudaArgs& args);

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_TREE_SUM_CUDA_H_
