// Optimizers for a LibTorch training loop: torch::optim::Optimizer subclasses whose state takes 1
// byte a parameter and moment instead of 4.
//
//   bitshard::optim::AdamW optimizer(model->parameters(), bitshard::optim::AdamWOptions(1e-3));
//   for (...) {
//     optimizer.zero_grad();
//     loss.backward();
//     optimizer.step();
//   }
//
// CPU tensors, float32, bfloat16 or float16, gradients of any of the three; parameters may lie
// anywhere: those of a group are stepped in one pass over a block table. Arithmetic:
// docs/numerics.md. What is as in torch::optim and what is not: docs/libtorch.md. Threads: as
// torch's optimizers, one thread at a time uses one; a step runs on core::NumThreads()
// OpenMP threads, with the same bits for any number of them. Errors are thrown as c10::Error, as
// LibTorch does; a step that throws has changed no parameter and no state.
#ifndef BITSHARD_OPTIM_OPTIMIZER_H_
#define BITSHARD_OPTIM_OPTIMIZER_H_

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "optim/algorithm.h"
#include "optim/torch_options.h"

namespace bitshard::optim {

/// A parameter's state. 8-bit moments: codes uint8 [numel] and absmax float32 [ceil(numel /
/// block_size)]; 32-bit moments: float32 [numel] without absmax. Of moments that a rule lacks, both
/// are undefined, and so is `master` [numel] without master weights. Elements are in the order of
/// the contiguous parameter.
struct OptimizerState : public torch::optim::OptimizerCloneableParamState<OptimizerState> {
  TORCH_ARG(int64_t, step) = 0;
  TORCH_ARG(int64_t, block_size) = core::kBlockElems;
  TORCH_ARG(torch::Tensor, state1) = {};
  TORCH_ARG(torch::Tensor, state2) = {};
  TORCH_ARG(torch::Tensor, state3) = {};
  TORCH_ARG(torch::Tensor, absmax1) = {};
  TORCH_ARG(torch::Tensor, absmax2) = {};
  TORCH_ARG(torch::Tensor, absmax3) = {};
  TORCH_ARG(torch::Tensor, master) = {};

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  /// Of all its tensors.
  int64_t bytes() const;

  using Owner = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  /// The parameter. While the state refers to it, no other tensor can get its address, by which
  /// LibTorch finds states.
  Owner owner = Owner(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>());
};

/// What the optimizers share; not used by itself.
class BlockwiseOptimizer : public torch::optim::Optimizer {
 public:
  /// Steps every parameter that has a gradient. `closure` is called first, with gradients on.
  /// Returns what it returned; an undefined tensor without one.
  /// Errors: c10::Error - a parameter or gradient that is sparse, not on the CPU, of another type
  /// or shape, or overlaps itself; options out of range, as a learning rate that has become NaN;
  /// state of another number of elements. Each names group and parameter.
  torch::Tensor step(LossClosure closure = nullptr) override;
  /// As torch's, but options out of range or of another class are refused before anything is
  /// changed (c10::Error). It hides torch's, which is not virtual: called through
  /// torch::optim::Optimizer, that takes them, and the next step refuses them.
  void add_param_group(const torch::optim::OptimizerParamGroup& group);
  /// For torch::save and torch::load: options and state by group and place in it; the parameters
  /// are the model's to save. load replaces all options and all state, and checks everything
  /// before it changes anything.
  /// Errors: c10::Error - an archive of another optimizer, algorithm, number of groups or
  /// parameters, with options out of range or state that does not fit its parameter.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
  /// How many tensors and elements have what state, and its bytes, in one line. Parameters that
  /// never had a gradient have none.
  std::string Summary() const;

 protected:
  BlockwiseOptimizer(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                     std::unique_ptr<BlockwiseOptions> defaults);

 private:
  struct Pending;
  std::string NameOf(size_t group) const;
  const BlockwiseOptions& OfOwnClass(const torch::optim::OptimizerOptions& options,
                                     const std::string& where) const;
  const BlockwiseOptions& OptionsOf(size_t group) const;
  std::vector<Pending> CheckedParameters();

  Algorithm algorithm_;
};

/// The constructors that torch's optimizers have. Parameters are shared, not copied; they must be
/// leaves, and what they are is looked at in each step. `options` are those of groups that bring
/// none. Errors: c10::Error - options out of range, or of another class.
template <class Options>
class OptimizerOf : public BlockwiseOptimizer {
 public:
  explicit OptimizerOf(std::vector<torch::Tensor> parameters, const Options& options = {})
      : OptimizerOf(
            std::vector<torch::optim::OptimizerParamGroup>{
                torch::optim::OptimizerParamGroup(std::move(parameters))},
            options) {}
  explicit OptimizerOf(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                       const Options& options = {})
      : BlockwiseOptimizer(groups, std::make_unique<Options>(options)) {}
};

using Adam = OptimizerOf<AdamOptions>;
using AdamW = OptimizerOf<AdamWOptions>;
using Lion = OptimizerOf<LionOptions>;
using LAMB = OptimizerOf<LAMBOptions>;
using LARS = OptimizerOf<LARSOptions>;
using SGD = OptimizerOf<SGDOptions>;
using RMSprop = OptimizerOf<RMSpropOptions>;
using Adagrad = OptimizerOf<AdagradOptions>;
using AdEMAMix = OptimizerOf<AdEMAMixOptions>;

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_OPTIMIZER_H_
