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
  int64_t num_blocks() const { return (elems + core::kBlockElems - 1) / core::kBlockElems; }
};

struct StepArgs {
  Algorithm algorithm = Algorithm::kAdamW;
  StepHyper hyper;
  core::DType parameter_type =
      core::DType::kFloat32;  ///< float32 or bfloat16; rounded to nearest even once
  core::DType gradient_type = core::DType::kFloat32;  ///< float32 or bfloat16
  std::span<const StepRun> runs;
};

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
