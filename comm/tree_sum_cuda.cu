// A thread sums four neighbouring elements through the whole tree; the partial sums are a stack of
// its own.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "comm/tree_sum_cuda.h"
#include "core/check.h"
#include "core/error.h"
#include "core/launch.h"
#include "core/quad.h"

namespace bitshard::comm {
namespace {

using core::DType;
using core::Quad;

constexpr int kThreads = 256;
// Enough to fill a large device; every kernel strides over what is left.
constexpr int64_t kMaxCtas = 4096;

struct Tree {
  const float* part[kMaxTreeParts];
  uint8_t merges[kMaxTreeParts];  // After each part.
  int num_parts;
};

__device__ Quad LoadSome(DType type, const void* x, int64_t i, int count) {
  return count == core::kQuadElems ? core::LoadQuad(type, x, i) : core::LoadPart(type, x, i, count);
}

__device__ Quad Add(const Quad& a, const Quad& b) {
  return {{a.at[0] + b.at[0], a.at[1] + b.at[1], a.at[2] + b.at[2], a.at[3] + b.at[3]}};
}

__global__ void __launch_bounds__(kThreads)
    TreeSumKernel(Tree tree, int64_t n, bool aligned, float* out) {
  const int64_t stride = int64_t{gridDim.x} * kThreads * core::kQuadElems;
  int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * core::kQuadElems;
  for (; i < n; i += stride) {
    const int count = core::QuadCount(n - i);
    Quad below[kMaxTreeDepth];  // Under the top, which stays in registers.
    int depth = 0;
    Quad top = {};
    for (int part = 0; part < tree.num_parts; ++part) {
      if (part > 0) below[depth++] = top;
      top = aligned ? LoadSome(DType::kFloat32, tree.part[part], i, count)
                    : core::LoadPart(DType::kFloat32, tree.part[part], i, count);
      for (int merge = 0; merge < tree.merges[part]; ++merge) top = Add(below[--depth], top);
    }
    if (aligned && count == core::kQuadElems) {
      core::StoreQuad(DType::kFloat32, out, i, top);
    } else {
      core::StorePart(DType::kFloat32, out, i, top, count);
    }
  }
}

dim3 Grid(int64_t n) {
  constexpr int64_t kPerCta = int64_t{kThreads} * core::kQuadElems;
  return dim3(static_cast<unsigned>(std::min(kMaxCtas, (n + kPerCta - 1) / kPerCta)));
}

bool IsAligned(const float* p) { return core::IsQuadAligned(DType::kFloat32, p); }

// The deepest that the stack gets. A merge needs two parts on it, and one is left at the end.
int CheckedDepth(const TreeSumCudaArgs& args) {
  int depth = 0, deepest = 0;
  for (const int merges : args.merges) {
    ++depth;
    deepest = std::max(deepest, depth);
    BITSHARD_CHECK(merges >= 0 && merges < depth) << merges << " merges of " << depth << " parts";
    depth -= merges;
  }
  BITSHARD_CHECK(depth == 1 && args.merges.size() == args.parts.size())
      << depth << " parts left of " << args.parts.size();
  return deepest;
}

}  // namespace

absl::Status TreeSumCuda(const TreeSumCudaArgs& args) {
  const int depth = CheckedDepth(args);
  if (args.parts.size() > kMaxTreeParts || depth > kMaxTreeDepth) {
    return core::ConfigError(absl::StrCat(
        "sum of gradients: ", args.parts.size(), " partial sums, ", depth,
        " of them open at a time, want at most ", kMaxTreeParts, " and ", kMaxTreeDepth));
  }
  if (args.n == 0) return absl::OkStatus();
  Tree tree = {};
  tree.num_parts = static_cast<int>(args.parts.size());
  std::copy(args.parts.begin(), args.parts.end(), tree.part);
  std::copy(args.merges.begin(), args.merges.end(), tree.merges);
  const bool aligned =
      IsAligned(args.out) && std::all_of(args.parts.begin(), args.parts.end(), IsAligned);
  return core::Launch("tree sum", TreeSumKernel, Grid(args.n), dim3(kThreads), 0, args.stream, tree,
                      args.n, aligned, args.out);
}

}  // namespace bitshard::comm
