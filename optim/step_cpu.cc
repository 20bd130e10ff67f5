#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
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

// Stands in the place of both types where parameters and gradients are of any type and pass through
// float32 buffers of one block: whatever StepArgs allows, for a little more time.
struct Buffered {};

// Blocks [begin, end) of all runs together.
struct BlockSlice {
  const StepArgs* args;
  const int64_t* first_block;  // [runs + 1]: blocks before each run.
  bool buffered;
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

// Elements at .. at + n - 1 of an array of any float type.
void WidenBlock(core::DType type, const void* from, int64_t at, int64_t n, float* HWY_RESTRICT to) {
  const uint16_t* bits = static_cast<const uint16_t*>(from) + at;
  if (type == core::DType::kFloat32) {
    std::copy_n(static_cast<const float*>(from) + at, n, to);
  } else if (type == core::DType::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) to[i] = core::FloatFromBf16(bits[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = core::FloatFromFp16(bits[i]);
  }
}

void RoundBlock(core::DType type, const float* HWY_RESTRICT from, int64_t n, void* to, int64_t at) {
  uint16_t* bits = static_cast<uint16_t*>(to) + at;
  if (type == core::DType::kFloat32) {
    std::copy_n(from, n, static_cast<float*>(to) + at);
  } else if (type == core::DType::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) bits[i] = core::Bf16FromFloat(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) bits[i] = core::Fp16FromFloat(from[i]);
  }
}

void RoundBlockStochastic(uint64_t key, int64_t first_elem, const float* from, int64_t n,
                          uint16_t* to) {
  for (int64_t i = 0; i < n; i += 4) {
    const core::Philox4 random = RoundingWords(key, (first_elem + i) / 4);
    for (int64_t j = i; j < std::min(n, i + 4); ++j)
      to[j] = core::Bf16FromFloatStochastic(from[j], random.word[j - i]);
  }
}

template <class Rule>
void ApplyBuffered(const ElementHyper<Rule>& h, const StepArgs& args, const StepRun& run,
                   int64_t at, int64_t n, float* s1, float* s2) {
  HWY_ALIGN float g[kBlock];
  HWY_ALIGN float narrow[kBlock];
  WidenBlock(args.gradient_type, run.gradient, at, n, g);
  float* p = run.master != nullptr ? run.master + at : narrow;
  if (run.master == nullptr) WidenBlock(args.parameter_type, run.parameter, at, n, p);
  Apply<Rule>(h, p, g, s1, s2, n);
  if (args.rounding == Rounding::kStochastic) {
    RoundBlockStochastic(RoundingKey(args.seed, args.hyper.step, run.tensor), run.first_elem + at,
                         p, n, static_cast<uint16_t*>(run.parameter) + at);
  } else {
    RoundBlock(args.parameter_type, p, n, run.parameter, at);
  }
}

template <class Rule, class P, class G>
HWY_INLINE void ApplyTo(const ElementHyper<Rule>& h, const StepArgs& args, const StepRun& run,
                        int64_t at, int64_t n, float* s1, float* s2) {
  if constexpr (std::is_same_v<P, Buffered>) {
    ApplyBuffered<Rule>(h, args, run, at, n, s1, s2);
  } else {
    Apply<Rule>(h, static_cast<P*>(run.parameter) + at, static_cast<const G*>(run.gradient) + at,
                s1, s2, n);
  }
}

// Blocks [first, last) of one run.
template <class Rule, class P, class G>
void StepBlocks(const ElementHyper<Rule>& h, const StepArgs& args, const StepRun& run,
                int64_t first, int64_t last) {
  constexpr bool kTwo = Rule::kNumStates == 2;
  const codec::DynamicCoder<true> signed_coder;
  const codec::DynamicCoder<false> unsigned_coder;
  HWY_ALIGN float s1[kBlock];
  HWY_ALIGN float s2[kBlock];
  for (int64_t block = first; block < last; ++block) {
    const int64_t at = block * kBlock;
    const int64_t n = std::min(kBlock, run.elems - at);
    if (run.codes1 == nullptr) {
      ApplyTo<Rule, P, G>(h, args, run, at, n, run.state1 + at, kTwo ? run.state2 + at : s2);
      continue;
    }
    codec::DecodeBlock(signed_coder, run.codes1 + at, n, run.absmax1[block], s1);
    if constexpr (kTwo)
      codec::DecodeBlock(unsigned_coder, run.codes2 + at, n, run.absmax2[block], s2);
    ApplyTo<Rule, P, G>(h, args, run, at, n, s1, s2);
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
    if (first < last) StepBlocks<Rule, P, G>(h, *slice.args, runs[r], first, last);
  }
}

void StepSlice(const BlockSlice& slice) {
  const bool p16 = slice.args->parameter_type == core::DType::kBFloat16;
  const bool g16 = slice.args->gradient_type == core::DType::kBFloat16;
  WithRule(slice.args->algorithm, [&](auto rule) {
    using Rule = decltype(rule);
    if (slice.buffered) return StepSliceOf<Rule, Buffered, Buffered>(slice);
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

bool IsFloat(core::DType type) {
  return type == core::DType::kFloat32 || type == core::DType::kBFloat16 ||
         type == core::DType::kFloat16;
}

// What the direct loops have no instance for.
bool NeedsBuffers(const StepArgs& args) {
  const auto is_fp16 = [](core::DType type) { return type == core::DType::kFloat16; };
  return is_fp16(args.parameter_type) || is_fp16(args.gradient_type) ||
         args.rounding == Rounding::kStochastic ||
         std::any_of(args.runs.begin(), args.runs.end(),
                     [](const StepRun& run) { return run.master != nullptr; });
}

// Blocks that a thread takes at least: enough work to be worth waking it.
constexpr int64_t kGrainBlocks = 16;
}  // namespace

std::string StepArgsFault(const StepArgs& args) {
  const bool stochastic = args.rounding == Rounding::kStochastic;
  if (!IsFloat(args.parameter_type) || !IsFloat(args.gradient_type)) {
    return absl::StrCat("parameters are ", core::Name(args.parameter_type), " and gradients ",
                        core::Name(args.gradient_type), ", want float32, bfloat16 or float16");
  }
  if (stochastic && args.parameter_type != core::DType::kBFloat16) {
    return absl::StrCat("stochastic rounding of ", core::Name(args.parameter_type),
                        " parameters, want bfloat16");
  }
  for (const StepRun& run : args.runs) {
    if (run.master != nullptr && (stochastic || args.parameter_type == core::DType::kFloat32))
      return "master weights beside stochastic rounding or float32 parameters: want one of them";
    if ((run.codes1 == nullptr) == (run.state1 == nullptr) && run.elems > 0)
      return "a run without state, or with both 8-bit and 32-bit state";
    if (stochastic && run.first_elem % core::kBlockElems != 0)
      return absl::StrCat("a run's first_elem is ", run.first_elem, ", want a multiple of 256");
  }
  return "";
}

void Step(const StepArgs& args) {
  BITSHARD_CHECK(StepArgsFault(args).empty()) << StepArgsFault(args);
  const bool buffered = NeedsBuffers(args);
  std::vector<int64_t> first_block = {0};
  first_block.reserve(args.runs.size() + 1);
  for (const StepRun& run : args.runs) first_block.push_back(first_block.back() + run.num_blocks());
  core::ParallelFor(first_block.back(), kGrainBlocks, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(StepSlice)
    ({.args = &args,
      .first_block = first_block.data(),
      .buffered = buffered,
      .begin = begin,
      .end = end});
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
