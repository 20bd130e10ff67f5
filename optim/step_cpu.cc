#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/numeric.h"
#include "core/parallel.h"
#include "optim/block_step.h"
#include "optim/hyper_fault.h"
#include "optim/step.h"

#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/step_cpu.cc"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "quant/block_codec-inl.h"

#ifndef BITSHARD_OPTIM_STEP_CPU_ONCE_
#define BITSHARD_OPTIM_STEP_CPU_ONCE_
namespace bitshard::optim {

// Blocks [begin, end) of all runs together.
struct BlockSlice {
  const StepArgs* args;
  const int64_t* first_block;  // [runs + 1]: blocks before each run.
  bool buffered;
  BlockNorms* norms;    // Fill them, and step nothing. Or nullptr.
  int64_t norms_begin;  // The block that norms[0] is of.
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

// Elements that go through decoding and the rule together. In small pieces the loads of the one
// overlap with the arithmetic of the other, which gains AVX2 5 to 8%. The decoder of AVX-512 holds
// its tables in registers: there it has the whole block to itself.
constexpr int64_t kPiece = HWY_TARGET == HWY_AVX2 ? codec::kChunkElems : kBlock;

// How many blocks before its step a block's lines are asked for.
constexpr int64_t kBlocksAhead = 2;

// The three states of a block in float32.
struct States {
  float* s1;
  float* s2;
  float* s3;
};

// The constant trip count is what lets the compiler vectorise the scalar rule. The hyper-parameters
// are a copy, which no store can change, so that conditions on them leave the loop.
template <class Rule>
HWY_INLINE void ApplyPiece(const ElementHyper<Rule>& hyper, float* HWY_RESTRICT p,
                           const float* HWY_RESTRICT g, float* HWY_RESTRICT s1,
                           float* HWY_RESTRICT s2, float* HWY_RESTRICT s3) {
  const ElementHyper<Rule> h = hyper;
  for (int64_t i = 0; i < kPiece; ++i)
    p[i] = StepElement<Rule>(h, g[i], p[i], s1 + i, s2 + i, s3 + i);
}

template <class Rule>
HWY_INLINE void Apply(const ElementHyper<Rule>& h, float* p, const float* g, const States& s,
                      int64_t n) {
  int64_t i = 0;
  for (; i + kPiece <= n; i += kPiece)
    ApplyPiece<Rule>(h, p + i, g + i, s.s1 + i, s.s2 + i, s.s3 + i);
  for (; i < n; ++i) p[i] = StepElement<Rule>(h, g[i], p[i], s.s1 + i, s.s2 + i, s.s3 + i);
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

// Gradient and parameter of a block pass through float32 buffers where they are of other types.
template <class Rule>
void ApplyBuffered(const ElementHyper<Rule>& h, const StepArgs& args, const StepRun& run,
                   int64_t at, int64_t n, const States& s) {
  HWY_ALIGN float g[kBlock];
  HWY_ALIGN float narrow[kBlock];
  WidenBlock(args.gradient_type, run.gradient, at, n, g);
  float* p = run.master != nullptr ? run.master + at : narrow;
  if (run.master == nullptr) WidenBlock(args.parameter_type, run.parameter, at, n, p);
  Apply<Rule>(h, p, g, s, n);
  if (args.rounding == Rounding::kStochastic) {
    RoundBlockStochastic(RoundingKey(args.seed, args.hyper.step, run.tensor), run.first_elem + at,
                         p, n, static_cast<uint16_t*>(run.parameter) + at);
  } else {
    RoundBlock(args.parameter_type, p, n, run.parameter, at);
  }
}

template <class Rule>
void ApplyTo(const ElementHyper<Rule>& h, const BlockSlice& slice, const StepRun& run, int64_t at,
             int64_t n, const States& s) {
  if (slice.buffered) return ApplyBuffered<Rule>(h, *slice.args, run, at, n, s);
  Apply<Rule>(h, static_cast<float*>(run.parameter) + at,
              static_cast<const float*>(run.gradient) + at, s, n);
}

double SquaresOf(const float* x, int64_t elems);

// What a step would do, without doing it: s is the state before, and scratch after.
template <class Rule>
BlockNorms NormsOf(const ElementHyper<Rule>& h, const StepArgs& args, const StepRun& run,
                   int64_t at, int64_t n, const States& s) {
  HWY_ALIGN float g[kBlock];
  HWY_ALIGN float p[kBlock];
  HWY_ALIGN float u[kBlock];
  WidenBlock(args.gradient_type, run.gradient, at, n, g);
  if (run.master != nullptr) {
    std::copy_n(run.master + at, n, p);
  } else {
    WidenBlock(args.parameter_type, run.parameter, at, n, p);
  }
  for (int64_t i = 0; i < n; ++i)
    u[i] = UpdateElement<Rule>(h, g[i], p[i], s.s1 + i, s.s2 + i, s.s3 + i);
  return {.parameter = SquaresOf(p, n), .update = SquaresOf(u, n)};
}

// One 8-bit state of a block: `state_block` elements share an absmax.
struct BlockState {
  uint8_t* codes;                 // [n]
  float* absmax;                  // [ceil(n / state_block)]
  const quant::CodeTable* table;  // nullptr: the coder's own.
  int64_t n;
  int64_t state_block;
};

template <class Coder>
HWY_INLINE void Decode(const Coder& coder, const BlockState& s, float* HWY_RESTRICT out) {
  for (int64_t at = 0; at < s.n; at += s.state_block) {
    const int64_t n = std::min(s.state_block, s.n - at);
    const float absmax = s.absmax[at / s.state_block];
    if (HWY_LIKELY(s.table == nullptr)) {
      codec::DecodeBlock(coder, s.codes + at, n, absmax, out + at);
    } else {
      for (int64_t i = at; i < at + n; ++i) out[i] = s.table->values[s.codes[i]] * absmax;
    }
  }
}

inline float EncodeByTable(const quant::CodeTable& table, const float* x, int64_t n,
                           uint8_t* codes) {
  uint32_t max_bits = 0;
  for (int64_t i = 0; i < n; ++i) max_bits = quant::MaxAbsBits(max_bits, x[i]);
  const quant::BlockScale scale = quant::ScaleOfBlock(max_bits);
  const quant::TableCodec codec{&table};
  for (int64_t i = 0; i < n; ++i) {
    codes[i] =
        scale.coded() ? codec.Encode(quant::Normalize(x[i], scale.reciprocal)) : codec.zero_code();
  }
  return scale.absmax;
}

template <class Coder>
HWY_INLINE void Encode(const Coder& coder, const float* HWY_RESTRICT x, const BlockState& s) {
  for (int64_t at = 0; at < s.n; at += s.state_block) {
    const int64_t n = std::min(s.state_block, s.n - at);
    s.absmax[at / s.state_block] = HWY_LIKELY(s.table == nullptr)
                                       ? codec::EncodeBlock(coder, x + at, n, s.codes + at)
                                       : EncodeByTable(*s.table, x + at, n, s.codes + at);
  }
}

// Asks for the gradient and parameter of a piece that will be stepped soon: the processor's own
// prefetcher stops at the end of a page. At 16M parameters a step takes a tenth less (Zen 3). Codes
// come without being asked for.
HWY_INLINE void PrefetchPiece(const StepRun& run, int64_t at) {
  constexpr int64_t kLineFloats = 16;
  for (int64_t i = at; i < at + kPiece; i += kLineFloats) {
    hwy::Prefetch(static_cast<const float*>(run.gradient) + i);
    hwy::Prefetch(static_cast<const float*>(run.parameter) + i);
  }
}

// The usual block: all of it there, one absmax for each state, the coders' own tables, and no
// conversions. Every state is decoded and stepped piece by piece. `soon` is a later whole block of
// the run, or the same one.
template <class Rule, class SignedCoder, class UnsignedCoder>
HWY_INLINE void StepWholeBlock(const ElementHyper<Rule>& h, const StepRun& run, int64_t block,
                               int64_t soon, const SignedCoder& signed_coder,
                               const UnsignedCoder& unsigned_coder, const States& s) {
  constexpr int kStates = Rule::kNumStates;
  const int64_t at = block * kBlock;
  float* const p = static_cast<float*>(run.parameter) + at;
  const float* const g = static_cast<const float*>(run.gradient) + at;
  uint8_t* codes[3];
  float* absmax[3];
  for (int i = 0; i < kStates; ++i) {
    codes[i] = run.states[i].codes + at;
    absmax[i] = run.states[i].absmax + block;
  }
  for (int64_t i = 0; i < kBlock; i += kPiece) {
    PrefetchPiece(run, soon * kBlock + i);
    codec::DecodeBlock(signed_coder, codes[0] + i, kPiece, *absmax[0], s.s1 + i);
    if constexpr (kStates > 1)
      codec::DecodeBlock(unsigned_coder, codes[1] + i, kPiece, *absmax[1], s.s2 + i);
    if constexpr (kStates > 2)
      codec::DecodeBlock(signed_coder, codes[2] + i, kPiece, *absmax[2], s.s3 + i);
    ApplyPiece<Rule>(h, p + i, g + i, s.s1 + i, s.s2 + i, s.s3 + i);
  }
  *absmax[0] = codec::EncodeBlock(signed_coder, s.s1, kBlock, codes[0]);
  if constexpr (kStates > 1)
    *absmax[1] = codec::EncodeBlock(unsigned_coder, s.s2, kBlock, codes[1]);
  if constexpr (kStates > 2) *absmax[2] = codec::EncodeBlock(signed_coder, s.s3, kBlock, codes[2]);
}

// Blocks [first, last) of one run, of which `before` come before it.
template <class Rule>
void StepBlocks(const ElementHyper<Rule>& h, const BlockSlice& slice, const StepRun& run,
                int64_t first, int64_t last, int64_t before) {
  constexpr int kStates = Rule::kNumStates;
  const StepArgs& args = *slice.args;
  const codec::DynamicCoder<true> signed_coder;
  const codec::DynamicCoder<false> unsigned_coder;
  HWY_ALIGN float s1[kBlock];
  HWY_ALIGN float s2[kBlock];
  HWY_ALIGN float s3[kBlock];
  const States decoded = {s1, s2, s3};
  const bool is_usual = run.is_8bit() && slice.norms == nullptr && !slice.buffered &&
                        args.state_block == kBlock &&
                        std::all_of(args.tables, args.tables + kStates,
                                    [](const auto* table) { return table == nullptr; });
  const auto block_state = [&](int i, int64_t at, int64_t n) {
    const RunState& state = run.states[i];
    return BlockState{state.codes + at, state.absmax + at / args.state_block, args.tables[i], n,
                      args.state_block};
  };
  for (int64_t block = first; block < last; ++block) {
    const int64_t at = block * kBlock;
    const int64_t n = std::min(kBlock, run.elems - at);
    if (is_usual && n == kBlock) {
      const int64_t soon = std::min(block + kBlocksAhead, run.elems / kBlock - 1);
      StepWholeBlock<Rule>(h, run, block, soon, signed_coder, unsigned_coder, decoded);
      continue;
    }
    if (!run.is_8bit() && slice.norms == nullptr) {
      ApplyTo<Rule>(h, slice, run, at, n,
                    {run.states[0].values + at, kStates > 1 ? run.states[1].values + at : s2,
                     kStates > 2 ? run.states[2].values + at : s3});
      continue;
    }
    if (run.is_8bit()) {
      Decode(signed_coder, block_state(0, at, n), s1);
      if constexpr (kStates > 1) Decode(unsigned_coder, block_state(1, at, n), s2);
      if constexpr (kStates > 2) Decode(signed_coder, block_state(2, at, n), s3);
    } else {
      std::copy_n(run.states[0].values + at, n, s1);
      if constexpr (kStates > 1) std::copy_n(run.states[1].values + at, n, s2);
      if constexpr (kStates > 2) std::copy_n(run.states[2].values + at, n, s3);
    }
    if (slice.norms != nullptr) {
      if constexpr (Rule::kHasUpdateNorm)
        slice.norms[before + block - slice.norms_begin] =
            NormsOf<Rule>(h, args, run, at, n, decoded);
      continue;
    }
    ApplyTo<Rule>(h, slice, run, at, n, decoded);
    Encode(signed_coder, s1, block_state(0, at, n));
    if constexpr (kStates > 1) Encode(unsigned_coder, s2, block_state(1, at, n));
    if constexpr (kStates > 2) Encode(signed_coder, s3, block_state(2, at, n));
  }
}

template <class Rule>
void StepSliceOf(const BlockSlice& slice) {
  const ElementHyper<Rule> hyper = MakeElementHyper<Rule>(slice.args->hyper);
  const auto runs = slice.args->runs;
  const int64_t* after =
      std::upper_bound(slice.first_block, slice.first_block + runs.size(), slice.begin);
  for (size_t r = static_cast<size_t>(after - slice.first_block) - 1; r < runs.size(); ++r) {
    const int64_t start = slice.first_block[r];
    if (start >= slice.end) break;
    const int64_t first = std::max(slice.begin, start) - start;
    const int64_t last = std::min(slice.end, slice.first_block[r + 1]) - start;
    if (first >= last) continue;
    StepBlocks<Rule>(ForRun<Rule>(hyper, runs[r].update_scale), slice, runs[r], first, last, start);
  }
}

void StepSlice(const BlockSlice& slice) {
  WithRule(slice.args->algorithm, [&](auto rule) { StepSliceOf<decltype(rule)>(slice); });
}

double SquaresOf(const float* x, int64_t elems) {
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
HWY_EXPORT(SquaresOf);

bool IsFloat(core::DType type) {
  return type == core::DType::kFloat32 || type == core::DType::kBFloat16 ||
         type == core::DType::kFloat16;
}

// Whether anything but float32 parameters and gradients, rounded to nearest, is to be stepped.
bool NeedsBuffers(const StepArgs& args) {
  return args.parameter_type != core::DType::kFloat32 ||
         args.gradient_type != core::DType::kFloat32;
}

// Whether the first `count` states are there, all of them 8-bit or all 32-bit.
bool HasStates(const StepRun& run, int count) {
  return std::all_of(run.states, run.states + count, [&](const RunState& state) {
    return (state.codes != nullptr) == run.is_8bit() &&
           (state.absmax != nullptr) == run.is_8bit() && (state.values != nullptr) != run.is_8bit();
  });
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
  if (args.state_block != 64 && args.state_block != 128 && args.state_block != 256)
    return absl::StrCat("blocks of ", args.state_block, " elements of state, want 64, 128 or 256");
  const std::string growth = GrowthFault(args.algorithm, args.hyper);
  if (!growth.empty()) return growth;
  if (stochastic && args.parameter_type != core::DType::kBFloat16) {
    return absl::StrCat("stochastic rounding of ", core::Name(args.parameter_type),
                        " parameters, want bfloat16");
  }
  for (const StepRun& run : args.runs) {
    if (run.master != nullptr && (stochastic || args.parameter_type == core::DType::kFloat32))
      return "master weights beside stochastic rounding or float32 parameters: want one of them";
    if (run.elems > 0 && !HasStates(run, NumStates(args.algorithm)))
      return "a run without all of its state, or with both 8-bit and 32-bit state";
    if (stochastic && run.first_elem % core::kBlockElems != 0)
      return absl::StrCat("a run's first_elem is ", run.first_elem, ", want a multiple of 256");
  }
  return "";
}

namespace {

// The blocks of all runs together, run after run.
class BlockTable {
 public:
  explicit BlockTable(const StepArgs& args) : args_(args), first_block_{0} {
    BITSHARD_CHECK(StepArgsFault(args).empty()) << StepArgsFault(args);
    first_block_.reserve(args.runs.size() + 1);
    for (const StepRun& run : args.runs)
      first_block_.push_back(first_block_.back() + run.num_blocks());
  }
  int64_t num_blocks() const { return first_block_.back(); }
  /// Blocks before run r.
  int64_t first_block(size_t r) const { return first_block_[r]; }

  void Step() const { ForBlocks(0, num_blocks(), nullptr); }
  /// out[b - begin]: of block b. Changes nothing.
  void Norms(int64_t begin, int64_t end, BlockNorms* out) const { ForBlocks(begin, end, out); }

 private:
  void ForBlocks(int64_t first, int64_t last, BlockNorms* norms) const {
    core::ParallelFor(last - first, kGrainBlocks, [&](int64_t begin, int64_t end) {
      HWY_DYNAMIC_DISPATCH(StepSlice)
      ({.args = &args_,
        .first_block = first_block_.data(),
        .buffered = NeedsBuffers(args_),
        .norms = norms,
        .norms_begin = first,
        .begin = first + begin,
        .end = first + end});
    });
  }

  const StepArgs& args_;
  std::vector<int64_t> first_block_;
};

// Norms that are held at a time, for each thread: 4 KB of them, of 256 KB of parameters.
constexpr int64_t kNormsAThread = 256;

}  // namespace

void Step(const StepArgs& args) { BlockTable(args).Step(); }

void UpdateNorms(const StepArgs& args, std::span<BlockNorms> out) {
  BITSHARD_CHECK(HasUpdateNorm(args.algorithm));
  if (out.empty()) return;
  const BlockTable table(args);
  BITSHARD_CHECK(std::ssize(out) == table.num_blocks()) << out.size();
  table.Norms(0, table.num_blocks(), out.data());
}

void RunUpdateNorms(const StepArgs& args, std::span<BlockNorms> out) {
  BITSHARD_CHECK(HasUpdateNorm(args.algorithm) && out.size() == args.runs.size()) << out.size();
  const BlockTable table(args);
  std::fill(out.begin(), out.end(), BlockNorms());
  std::vector<BlockNorms> part(static_cast<size_t>(
      std::min(table.num_blocks(), kNormsAThread * static_cast<int64_t>(core::NumThreads()))));
  size_t run = 0;
  for (int64_t begin = 0; begin < table.num_blocks(); begin += std::ssize(part)) {
    const int64_t end = std::min(table.num_blocks(), begin + std::ssize(part));
    table.Norms(begin, end, part.data());
    for (int64_t block = begin; block < end; ++block) {
      while (block >= table.first_block(run + 1)) ++run;
      out[run].parameter += part[static_cast<size_t>(block - begin)].parameter;
      out[run].update += part[static_cast<size_t>(block - begin)].update;
    }
  }
}

double UpdateScale(double max_unorm, const BlockNorms& norms) {
  if (max_unorm == 0 || norms.parameter == 0) return 1;
  const double scale = max_unorm * std::sqrt(norms.parameter) / std::sqrt(norms.update);
  return scale < 1 ? static_cast<float>(scale) : 1;  // 1 where both are zero or one is NaN.
}

double BlockSquares(const float* x, int64_t elems) {
  return HWY_DYNAMIC_DISPATCH(SquaresOf)(x, elems);
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
