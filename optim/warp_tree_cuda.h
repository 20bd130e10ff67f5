// The pairwise tree of BlockSquares (optim/step.h) over the 256 elements that a warp holds. Only
// `.cu` files include this.
//
// Level h of the tree adds elements i and i + h. Lane l holds elements 4 * l + 128 * k + j; level
// 128 is the caller's, who adds the lane's own two quads. Levels 64 and 32 pair the lane with lanes
// l ^ 16 and l ^ 8, and each time the two share the work: one keeps the lower half of the values,
// the other the upper. So a lane is left with one value, of the j that bits 4 and 3 of its number
// spell; levels 16, 8 and 4 pair lanes l ^ 4, l ^ 2 and l ^ 1, and the last two pair the four j's:
// eight exchanges instead of twenty.
#ifndef BITSHARD_OPTIM_WARP_TREE_CUDA_H_
#define BITSHARD_OPTIM_WARP_TREE_CUDA_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "core/quad.h"

namespace bitshard::optim {

__device__ inline double Square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

/// Of two values the lane keeps one and adds to it what its partner had in the same place.
__device__ inline double KeepHalf(double lower, double upper, bool keeps_upper, int partner) {
  const double received = __shfl_xor_sync(0xFFFFFFFFu, keeps_upper ? lower : upper, partner);
  return (keeps_upper ? upper : lower) + received;
}

/// The sum, in every lane. s[j]: of elements 4 * lane + j and 4 * lane + 128 + j.
__device__ inline double WarpTree(const double (&s)[core::kQuadElems], int lane) {
  constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
  const bool bit4 = (lane & 16) != 0;
  const bool bit3 = (lane & 8) != 0;
  const double first = KeepHalf(s[0], s[2], bit4, 16);
  const double second = KeepHalf(s[1], s[3], bit4, 16);
  double sum = KeepHalf(first, second, bit3, 8);
  sum += __shfl_xor_sync(kAllLanes, sum, 4);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 16);
  return sum + __shfl_xor_sync(kAllLanes, sum, 8);
}

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_WARP_TREE_CUDA_H_
