// Optimizers for a LibTorch training loop: torch::optim::Optimizer subclasses whose state takes 2
// bytes a parameter (Adam, AdamW) or 1 (Lion) instead of 8 or 4.
//
//   bitshard::optim::AdamW optimizer(model->parameters(),
//   bitshard::optim::OptimizerOptions().lr(1e-3)); for (...) { optimizer.zero_grad();
//   loss.backward(); optimizer.step(); }
//
// CPU tensors, float32 or bfloat16, gradients of either type; parameters may lie anywhere: all of
// them are stepped in one pass over a block table. Tensors with fewer than min_8bit_size elements
// keep 32-bit state, and so do all with bits(32). save and load work through torch::save and
// torch::load. Arithmetic: docs/numerics.md. Threads: as torch's optimizers, one thread calls step.
// Errors are thrown as c10::Error, as LibTorch does.
#ifndef BITSHARD_OPTIM_OPTIMIZER_H_
#define BITSHARD_OPTIM_OPTIMIZER_H_

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "optim/algorithm.h"

namespace bitshard::optim {

/// Hyper-parameters of a parameter group. Defaults are bitsandbytes'; Lion's constructor sets its
/// own learning rate and betas where none were given.
struct OptimizerOptions : public torch::optim::OptimizerCloneableOptions<OptimizerOptions> {
  OptimizerOptions(double lr = 1e-3);  // NOLINT: implicit, as torch's options are.
  TORCH_ARG(double, lr);
  typedef std::tuple<double, double> betas_t;
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = 0;
  /// Of the state: 8 or 32.
  TORCH_ARG(int64_t, bits) = 8;
  TORCH_ARG(int64_t, min_8bit_size) = 4096;

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override { return lr(); }
  void set_lr(const double rate) override { lr_ = rate; }
};

/// A parameter's state: codes uint8 [numel] and absmax float32 [ceil(numel / 256)] of each moment,
/// or moments float32.
struct OptimizerState : public torch::optim::OptimizerCloneableParamState<OptimizerState> {
  TORCH_ARG(int64_t, step) = 0;
  TORCH_ARG(torch::Tensor, state1) = {};
  TORCH_ARG(torch::Tensor, state2) = {};
  TORCH_ARG(torch::Tensor, absmax1) = {};
  TORCH_ARG(torch::Tensor, absmax2) = {};

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
};

/// What the three share; not used by itself.
class BlockwiseOptimizer : public torch::optim::Optimizer {
 public:
  torch::Tensor step(LossClosure closure = nullptr) override;
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

 protected:
  BlockwiseOptimizer(std::vector<torch::optim::OptimizerParamGroup> groups,
                     const OptimizerOptions& defaults, Algorithm algorithm);

 private:
  Algorithm algorithm_;
};

/// Decay is L2, added to the gradient, as in torch::optim::Adam.
class Adam : public BlockwiseOptimizer {
 public:
  explicit Adam(std::vector<torch::Tensor> parameters, const OptimizerOptions& options = {})
      : Adam(std::vector<torch::optim::OptimizerParamGroup>{torch::optim::OptimizerParamGroup(
                 std::move(parameters))},
             options) {}
  explicit Adam(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                const OptimizerOptions& options = {})
      : BlockwiseOptimizer(groups, options, Algorithm::kAdam) {}
};

/// Decay is decoupled.
class AdamW : public BlockwiseOptimizer {
 public:
  explicit AdamW(std::vector<torch::Tensor> parameters, const OptimizerOptions& options = {})
      : AdamW(std::vector<torch::optim::OptimizerParamGroup>{torch::optim::OptimizerParamGroup(
                  std::move(parameters))},
              options) {}
  explicit AdamW(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                 const OptimizerOptions& options = {})
      : BlockwiseOptimizer(groups, options, Algorithm::kAdamW) {}
};

/// Decay is decoupled. Usual settings: lr 1e-4, betas (0.9, 0.99).
class Lion : public BlockwiseOptimizer {
 public:
  explicit Lion(std::vector<torch::Tensor> parameters, const OptimizerOptions& options = {})
      : Lion(std::vector<torch::optim::OptimizerParamGroup>{torch::optim::OptimizerParamGroup(
                 std::move(parameters))},
             options) {}
  explicit Lion(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                const OptimizerOptions& options = {})
      : BlockwiseOptimizer(groups, options, Algorithm::kLion) {}
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_OPTIMIZER_H_
