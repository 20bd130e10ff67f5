// One warp sums one block of 256 squares, in the pairwise tree of optim/warp_tree_cuda.h.
#include <algorithm>

#include "core/flat_layout.h"
#include "core/launch.h"
#include "core/quad.h"
#include "optim/gradient_norm_cuda.h"
#include "optim/warp_tree_cuda.h"

namespace bitshard::optim {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kBlock = core::kBlockElems;
// Enough to fill a large device; the kernel strides over what is left.
constexpr int64_t kMaxCtas = 4096;

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
