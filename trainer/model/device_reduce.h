// Sums and maxima over the threads that work on a row together, in a fixed order. Only `.cu` files
// include this.
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_REDUCE_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_REDUCE_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "core/launch.h"
#include "core/numeric.h"

namespace bitshard::trainer {

inline constexpr int kWarpLanes = 32;
inline constexpr uint32_t kWholeWarp = 0xFFFFFFFFu;

/// The sum over `lanes` neighbouring lanes (a power of two), in each of them. All lanes of the warp
/// call.
__device__ inline float SumOfLanes(float x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kWholeWarp, x, offset);
  }
  return x;
}

__device__ inline float MaxOfLanes(float x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    x = core::MaxFloat(x, __shfl_xor_sync(kWholeWarp, x, offset));
  }
  return x;
}

/// The sum over the kWarps warps of a block, in each of them; `scratch` is the block's. All
/// threads call; a barrier stands between two calls with the same scratch.
template <size_t kWarps>
__device__ float SumOfBlock(float x, core::SharedArray<float, kWarps>* scratch) {
  const float warp_sum = SumOfLanes(x, kWarpLanes);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  if (lane == 0) scratch->at[threadIdx.x / kWarpLanes] = warp_sum;
  __syncthreads();
  return SumOfLanes(lane < static_cast<int>(kWarps) ? scratch->at[lane] : 0.0f, kWarpLanes);
}

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_REDUCE_H_
