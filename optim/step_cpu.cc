#include <algorithm>
#include <type_traits>
#include <vector>

#include "core/check.h"
#include "core/numeric.h"
#include "core/parallel.h"
#include "optim/block_step.h"
#include "optim/step.h"

#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/step_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "quant/block_codec-inl.h"

#ifndef BITSHARD_OPTIM_STEP_CPU_ONCE_
#define BITSHARD_OPTIM_STEP_CPU_ONCE_
namespace bitshard::optim {

// bfloat16 as bits, so that a parameter's type is a C++ type.
struct Bf16 {
  uint16_t bits;
};

// Blocks [begin, end) of all runs together.
struct BlockSlice {
  const StepArgs* args;
  const int64_t* first_block;  // [runs + 1]: blocks before each run.
  int64_t begin;
  int64_t end;
};

}  // namespace bitshard::optim
#endif  // BITSHARD_OPTIM_STEP_CPU_ONCE_

HWY_BEFORE_NAMESPACE();
namespace bitshard::optim {
namespace HWY_NAMESPACE {
namespace codec = quant::HWY_NAMESPACE;

constexpr int64_t kBlock = core::kBlockElems;

HWY_INLINE float Widen(float x) { return x; }
HWY_INLINE float Widen(Bf16 x) { return core::FloatFromBf16(x.bits); }
HWY_INLINE void Round(float x, float* y) { *y = x; }
HWY_INLINE void Round(float x, Bf16* y) { y->bits = core::Bf16FromFloat(x); }

// A whole block: the constant trip count is what lets the compiler vectorise the scalar rule.
template <class Rule, class P, class G>
HWY_INLINE void ApplyWhole(const ElementHyper<Rule>& h, P* HWY_RESTRICT p, const G* HWY_RESTRICT g,
                           float* HWY_RESTRICT s1, float* HWY_RESTRICT s2) {
  for (int64_t i = 0; i < kBlock; ++i)
    Round(StepElement<Rule>(h, Widen(g[i]), Widen(p[i]), s1 + i, s2 + i), p + i);
}

template <class Rule, class P, class G>
HWY_INLINE void ApplyPart(const ElementHyper<Rule>& h, P* HWY_RESTRICT p, const G* HWY_RESTRICT g,
                          float* HWY_RESTRICT s1, float* HWY_RESTRICT s2, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    Round(StepElement<Rule>(h, Widen(g[i]), Widen(p[i]), s1 + i, s2 + i), p + i);
}

template <class Rule, class P, class G>
HWY_INLINE void Apply(const ElementHyper<Rule>& h, P* p, const G* g, float* s1, float* s2,
                      int64_t n) {
  if (n == kBlock) {
    ApplyWhole<Rule>(h, p, g, s1, s2);
  } else {
    ApplyPart<Rule>(h, p, g, s1, s2, n);
  }
}

// Blocks [first, last) of one run.
template <class Rule, class P, class G>
void StepBlocks(const ElementHyper<Rule>& h, const StepRun& run, int64_t first, int64_t last) {
  constexpr bool kTwo = Rule::kNumStates == 2;
  const codec::DynamicCoder<true> signed_coder;
  const codec::DynamicCoder<false> unsigned_coder;
  HWY_ALIGN float s1[kBlock];
  HWY_ALIGN float s2[kBlock];
  for (int64_t block = first; block < last; ++block) {
    const int64_t at = block * kBlock;
    const int64_t n = std::min(kBlock, run.elems - at);
    P* p = static_cast<P*>(run.parameter) + at;
    const G* g = static_cast<const G*>(run.gradient) + at;
    if (run.codes1 == nullptr) {
      Apply<Rule>(h, p, g, run.state1 + at, kTwo ? run.state2 + at : s2, n);
      continue;
    }
    codec::DecodeBlock(signed_coder, run.codes1 + at, n, run.absmax1[block], s1);
    if constexpr (kTwo)
      codec::DecodeBlock(unsigned_coder, run.codes2 + at, n, run.absmax2[block], s2);
    Apply<Rule>(h, p, g, s1, s2, n);
    run.absmax1[block] = codec::EncodeBlock(signed_coder, s1, n, run.codes1 + at);
    if constexpr (kTwo)
      run.absmax2[block] = codec::EncodeBlock(unsigned_coder, s2, n, run.codes2 + at);
  }
}

template <class Rule, class P, class G>
void StepSliceOf(const BlockSlice& slice) {
  const ElementHyper<Rule> h = MakeElementHyper<Rule>(slice.args->hyper);
  const auto runs = slice.args->runs;
  const int64_t* after =
      std::upper_bound(slice.first_block, slice.first_block + runs.size(), slice.begin);
  for (size_t r = static_cast<size_t>(after - slice.first_block) - 1; r < runs.size(); ++r) {
    const int64_t start = slice.first_block[r];
    if (start >= slice.end) break;
    const int64_t first = std::max(slice.begin, start) - start;
    const int64_t last = std::min(slice.end, slice.first_block[r + 1]) - start;
    if (first < last) StepBlocks<Rule, P, G>(h, runs[r], first, last);
  }
}

void StepSlice(const BlockSlice& slice) {
  const bool p16 = slice.args->parameter_type == core::DType::kBFloat16;
  const bool g16 = slice.args->gradient_type == core::DType::kBFloat16;
  WithRule(slice.args->algorithm, [&](auto rule) {
    using Rule = decltype(rule);
    if (p16 && g16) return StepSliceOf<Rule, Bf16, Bf16>(slice);
    if (p16) return StepSliceOf<Rule, Bf16, float>(slice);
    if (g16) return StepSliceOf<Rule, float, Bf16>(slice);
    return StepSliceOf<Rule, float, float>(slice);
  });
}

double BlockSquaresOf(const float* x, int64_t elems) {
  HWY_ALIGN double s[kBlock];
  for (int64_t i = 0; i < elems; ++i) s[i] = static_cast<double>(x[i]) * static_cast<double>(x[i]);
  std::fill(s + elems, s + kBlock, 0.0);
  for (int64_t half = kBlock / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) s[i] += s[i + half];
  }
  return s[0];
}

}  // namespace HWY_NAMESPACE
}  // namespace bitshard::optim
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bitshard::optim {
namespace {
HWY_EXPORT(StepSlice);
HWY_EXPORT(BlockSquaresOf);

bool IsFloatOrBf16(core::DType type) {
  return type == core::DType::kFloat32 || type == core::DType::kBFloat16;
}

// Blocks that a thread takes at least: enough work to be worth waking it.
constexpr int64_t kGrainBlocks = 16;
}  // namespace

void Step(const StepArgs& args) {
  BITSHARD_CHECK(IsFloatOrBf16(args.parameter_type) && IsFloatOrBf16(args.gradient_type))
      << core::Name(args.parameter_type) << " " << core::Name(args.gradient_type);
  std::vector<int64_t> first_block = {0};
  first_block.reserve(args.runs.size() + 1);
  for (const StepRun& run : args.runs) first_block.push_back(first_block.back() + run.num_blocks());
  core::ParallelFor(first_block.back(), kGrainBlocks, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(StepSlice)
    ({.args = &args, .first_block = first_block.data(), .begin = begin, .end = end});
  });
}

double BlockSquares(const float* x, int64_t elems) {
  return HWY_DYNAMIC_DISPATCH(BlockSquaresOf)(x, elems);
}

void SumSquaresByBlock(std::span<const float> x, std::span<double> out) {
  const int64_t elems = static_cast<int64_t>(x.size());
  core::ParallelFor(static_cast<int64_t>(out.size()), kGrainBlocks,
                    [&](int64_t begin, int64_t end) {
                      for (int64_t block = begin; block < end; ++block) {
                        const int64_t at = block * core::kBlockElems;
                        out[static_cast<size_t>(block)] =
                            BlockSquares(x.data() + at, std::min(core::kBlockElems, elems - at));
                      }
                    });
}

}  // namespace bitshard::optim
#endif  // HWY_ONCE
