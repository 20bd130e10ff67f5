// One optimizer step over any number of tensors, in one pass: the block table.
//
//   std::vector<optim::StepRun> runs = {{.parameter = p, .gradient = g, .elems = n, .codes1 = ...,
//   ...}}; optim::Step({.algorithm = optim::Algorithm::kAdamW, .hyper = {.step = 1, .learning_rate
//   = 1e-3}, .runs = runs});
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

namespace bitshard::optim {

/// Consecutive elements of one tensor that start at a block's first element; blocks of 256, the
/// last one may be shorter. State is either 8-bit (codes and absmax) or 32-bit (state), never both;
/// the second state is unused by one-state rules.
struct StepRun {
  void* parameter = nullptr;       ///< [elems] of StepArgs::parameter_type
  const void* gradient = nullptr;  ///< [elems] of StepArgs::gradient_type
  int64_t elems = 0;
  uint8_t* codes1 = nullptr;  ///< [elems] signed dynamic codes
  uint8_t* codes2 = nullptr;  ///< [elems] unsigned dynamic codes
  float* absmax1 = nullptr;   ///< [ceil(elems / 256)]
  float* absmax2 = nullptr;
  float* state1 = nullptr;  ///< [elems], where codes1 is nullptr
  float* state2 = nullptr;
  /// [elems], or nullptr: float32 weights, stepped in the place of a 16-bit parameter, which gets
  /// what they round to.
  float* master = nullptr;
  /// With Rounding::kStochastic: which tensor this is, and the run's first element in it, a
  /// multiple of 256. No more than that names a random number, so it is the same however a tensor
  /// is cut into runs and shards.
  int64_t tensor = 0;
  int64_t first_elem = 0;
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
};

/// Empty when the types, roundings and pointers of `args` fit together, else what does not.
std::string StepArgsFault(const StepArgs& args);

/// Updates parameters and state in place. Runs must not overlap.
/// Threads: uses core::NumThreads(); no temporary is larger than one block a thread. Non-finite
/// gradients make the state of their block NaN: check the norm first.
void Step(const StepArgs& args);

/// Sum of squares of a block of gradients in float64: a fixed pairwise tree over 256 elements,
/// zeros after `elems`.
double BlockSquares(const float* x, int64_t elems);
/// out[b] = BlockSquares of block b of x [elems].
void SumSquaresByBlock(std::span<const float> x, std::span<double> out);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_STEP_H_
