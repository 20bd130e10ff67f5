// One warp sums one block of 256 squares in the pairwise tree of BlockSquares, whose level h adds
// elements i and i + h.
//
// Lane l loads elements 4 * l + 128 * k + j. Level 128 adds its own two quads. Levels 64 and 32
// pair it with lanes l ^ 16 and l ^ 8, and each time the two share the work: one keeps the lower
// half of the values, the other the upper. So a lane is left with one value, of the j that bits 4
// and 3 of its number spell; levels 16, 8 and 4 pair lanes l ^ 4, l ^ 2 and l ^ 1, and the last two
// pair the four j's: eight exchanges instead of twenty.
#include <algorithm>

#include "core/flat_layout.h"
#include "core/launch.h"
#include "core/quad.h"
#include "optim/gradient_norm_cuda.h"

namespace bitshard::optim {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kBlock = core::kBlockElems;
// Enough to fill a large device; the kernel strides over what is left.
constexpr int64_t kMaxCtas = 4096;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

__device__ double Square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

// Of two values the lane keeps one and adds to it what its partner had in the same place.
__device__ double KeepHalf(double lower, double upper, bool keeps_upper, int partner) {
  const double received = __shfl_xor_sync(kAllLanes, keeps_upper ? lower : upper, partner);
  return (keeps_upper ? upper : lower) + received;
}

// The sum, in every lane.
__device__ double WarpTree(const double (&s)[core::kQuadElems], int lane) {
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

__global__ void __launch_bounds__(kThreads)
    SumSquaresKernel(const float* x, int64_t elems, bool aligned, double* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t stride = int64_t{gridDim.x} * kWarps;
  int64_t block = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  for (; block * kBlock < elems; block += stride) {
    const int64_t lower = block * kBlock + core::kQuadElems * lane;
    const int64_t upper = lower + kBlock / 2;
    core::Quad a, b;
    if (aligned && (block + 1) * kBlock <= elems) {
      a = core::LoadQuad(core::DType::kFloat32, x, lower);
      b = core::LoadQuad(core::DType::kFloat32, x, upper);
    } else {
      a = core::LoadPart(core::DType::kFloat32, x, lower, core::QuadCount(elems - lower));
      b = core::LoadPart(core::DType::kFloat32, x, upper, core::QuadCount(elems - upper));
    }
    double s[core::kQuadElems];
    BITSHARD_UNROLL
    for (int j = 0; j < core::kQuadElems; ++j) s[j] = Square(a.at[j]) + Square(b.at[j]);
    const double sum = WarpTree(s, lane);
    if (lane == 0) out[block] = sum;
  }
}

}  // namespace

absl::Status SumSquaresByBlockCuda(const SumSquaresCudaArgs& args) {
  if (args.elems == 0) return absl::OkStatus();
  const int64_t blocks = (args.elems + kBlock - 1) / kBlock;
  const int64_t ctas = std::min(kMaxCtas, (blocks + kWarps - 1) / kWarps);
  return core::Launch("gradient norm", SumSquaresKernel, dim3(static_cast<unsigned>(ctas)),
                      dim3(kThreads), 0, args.stream, args.x, args.elems,
                      core::IsQuadAligned(core::DType::kFloat32, args.x), args.out);
}

}  // namespace bitshard::optim
