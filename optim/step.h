// One optimizer step over any number of tensors, in one pass: the block table.
//
//   std::vector<optim::StepRun> runs = {{.parameter = p, .gradient = g, .elems = n, ...}};
//   optim::Step({.algorithm = optim::Algorithm::kAdamW,
//                .hyper = {.step = 1, .learning_rate = 1e-3},
//                .runs = runs});
//
// Arithmetic: docs/numerics.md, the same bits on every SIMD target and on CUDA (optim/step_cuda.h).
#ifndef BITSHARD_OPTIM_STEP_H_
#define BITSHARD_OPTIM_STEP_H_

#include <cstdint>
#include <span>
#include <string>

#include "core/dtype.h"
#include "core/flat_layout.h"
#include "optim/algorithm.h"
#include "optim/rules/hyper.h"
#include "quant/block_codec.h"

namespace bitshard::optim {

/// One state of a run. Either 8-bit (codes and absmax) or 32-bit (values), never both.
struct RunState {
  uint8_t* codes = nullptr;  ///< [elems]
  float* absmax = nullptr;   ///< [ceil(elems / StepArgs::state_block)]
  float* values = nullptr;   ///< [elems]
};

/// The most states that a rule has.
inline constexpr int kMaxStates = 3;

/// Whether state i (from 0) can be negative: its codes are those of the signed dynamic table, else
/// of the unsigned one.
constexpr bool IsSignedState(int i) { return i != 1; }

/// Consecutive elements of one tensor that start at a block's first element; blocks of 256, the
/// last one may be shorter.
struct StepRun {
  void* parameter = nullptr;       ///< [elems] of StepArgs::parameter_type
  const void* gradient = nullptr;  ///< [elems] of StepArgs::gradient_type
  int64_t elems = 0;
  RunState states[kMaxStates];  ///< The rule's NumStates first: all 8-bit or all 32-bit.
  /// [elems], or nullptr: float32 weights, stepped in the place of a 16-bit parameter, which gets
  /// what they round to.
  float* master = nullptr;
  /// With Rounding::kStochastic: which tensor this is, and the run's first element in it, a
  /// multiple of 256. No more than that names a random number, so it is the same however a tensor
  /// is cut into runs and shards.
  int64_t tensor = 0;
  int64_t first_elem = 0;
  /// What UpdateScale gave for the tensor; rounded to float32. 1: as the rule says.
  double update_scale = 1;
  bool is_8bit() const { return states[0].codes != nullptr; }
  int64_t num_blocks() const { return (elems + core::kBlockElems - 1) / core::kBlockElems; }
};

/// How a parameter is rounded to its type, once. kStochastic: bfloat16 without master weights only;
/// up or down at random, right in the mean, so that steps smaller than half a unit in the last
/// place are not lost.
enum class Rounding { kNearestEven, kStochastic };

struct StepArgs {
  Algorithm algorithm = Algorithm::kAdamW;
  StepHyper hyper;
  core::DType parameter_type = core::DType::kFloat32;  ///< float32, bfloat16 or float16
  core::DType gradient_type = core::DType::kFloat32;   ///< float32, bfloat16 or float16
  std::span<const StepRun> runs;
  Rounding rounding = Rounding::kNearestEven;
  uint64_t seed = 0;  ///< Of kStochastic; the step's number in `hyper` is mixed in.
  int64_t state_block = core::kBlockElems;  ///< Elements that share an absmax: 64, 128 or 256.
  /// What the codes of each state stand for, where it is not the dynamic table: nullptr is that.
  const quant::CodeTable* tables[kMaxStates] = {};
};

/// Empty when the types, roundings, pointers and schedules of `args` fit together, else what does
/// not. Whether hyper-parameters are in their range is for the caller to know: HyperFault.
std::string StepArgsFault(const StepArgs& args);

/// Updates parameters and state in place. Runs must not overlap; no runs, and runs without
/// elements, are nothing to do.
/// Threads: uses core::NumThreads(), the same bits with any number; no temporary is larger than one
/// block a thread. Steps on other memory may run at the same time.
/// Errors: none that can be returned. What StepArgsFault names is the caller's bug and aborts.
/// Numerics: non-finite gradients make the state of their block NaN: check the norm first.
void Step(const StepArgs& args);

// --- norms: the pre-pass of max_unorm, LAMB and LARS, and the gradient's norm ---

/// Sums of squares over one block, in float64 by the tree of BlockSquares.
struct BlockNorms {
  double parameter = 0;  ///< Of the parameter before the step (of its master weights).
  double update = 0;     ///< Of the update that the rule would make: Rule::Update.
};

/// out[b]: block b of all runs together. Changes nothing. The algorithm must have an update norm
/// (HasUpdateNorm); update_scale is not read. Shapes: out [sum of the runs' num_blocks()]. Threads
/// and errors: as Step.
void UpdateNorms(const StepArgs& args, std::span<BlockNorms> out);
/// out[r]: those of run r, its blocks' summed in order. Holds 256 of them a thread at a time, where
/// UpdateNorms wants room for all. Shapes: out [runs].
void RunUpdateNorms(const StepArgs& args, std::span<BlockNorms> out);

/// How far max_unorm shortens a tensor's update: min(1, max_unorm * |p| / |u|), rounded to float32;
/// 1 where max_unorm is 0, and where |p| is, so that a tensor that starts at zero (LoRA's B) can
/// move at all. `norms`: of the whole tensor, summed in block order.
double UpdateScale(double max_unorm, const BlockNorms& norms);

/// Sum of squares of a block of gradients in float64: a fixed pairwise tree over 256 elements,
/// zeros after `elems`, which is at most 256.
double BlockSquares(const float* x, int64_t elems);
/// out[b] = BlockSquares of block b of x [elems]. Shapes: out [ceil(elems / 256)].
void SumSquaresByBlock(std::span<const float> x, std::span<double> out);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_STEP_H_
