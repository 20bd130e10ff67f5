// Options of the torch::optim classes in optim/optimizer.h, one class each, with bitsandbytes'
// names and defaults. Set and read as LibTorch's:
//
//   optim::AdamWOptions(3e-4).betas({0.9, 0.95}).weight_decay(0.1).bits(32)
//
// Values out of range, NaN and infinite ones too, are refused (c10::Error that names option, value
// and range) where an optimizer is made with them, by add_param_group, at each step (whoever set
// them, as a learning rate scheduler) and by load. What the range is stands at each option, and in
// optim/hyper_fault.h for all.
#ifndef BITSHARD_OPTIM_TORCH_OPTIONS_H_
#define BITSHARD_OPTIM_TORCH_OPTIONS_H_

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>

#include "core/flat_layout.h"
#include "optim/algorithm.h"
#include "optim/rules/hyper.h"

namespace bitshard::optim {

/// Every value that options hold; an algorithm's class has names for those that mean something to
/// it. What they mean is said there.
struct OptionValues {
  StepHyper hyper;  ///< But `step` and `gradient_scale`, which no option sets.
  double max_unorm = 0;
  int64_t bits = 8;
  int64_t min_8bit_size = 4096;
  int64_t block_size = core::kBlockElems;
  bool decoupled_weight_decay = false;
  bool master_weights = false;
  bool stochastic_rounding = false;
  int64_t seed = 0;
};

/// What the options of every algorithm are. Made through the classes below.
class BlockwiseOptions : public torch::optim::OptimizerOptions {
 public:
  Algorithm algorithm() const { return algorithm_; }
  /// The rule that steps: AdamW's for Adam with decoupled_weight_decay.
  Algorithm rule() const;
  const OptionValues& values() const { return values_; }
  void set_values(const OptionValues& values) { values_ = values; }
  double get_lr() const override { return values_.hyper.learning_rate; }
  void set_lr(const double rate) override { values_.hyper.learning_rate = rate; }
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;

  /// Throws c10::Error that begins with `where` and names the first value that is out of range.
  void Check(const std::string& where) const;

 protected:
  explicit BlockwiseOptions(Algorithm algorithm);
  OptionValues values_;

 private:
  Algorithm algorithm_;
};

// One option: set (returns the options, for chains), read, and a reference to it, as TORCH_ARG.
#define BITSHARD_OPTION(Self, Type, name, member) \
  Self& name(const Type& value) {                 \
    member = value;                               \
    return static_cast<Self&>(*this);             \
  }                                               \
  const Type& name() const { return member; }     \
  Type& name() { return member; }

// Decays of the first and the second average, each in [0, 1).
#define BITSHARD_BETAS_OPTION(Self)                             \
  Self& betas(const std::tuple<double, double>& value) {        \
    std::tie(values_.hyper.beta1, values_.hyper.beta2) = value; \
    return *this;                                               \
  }                                                             \
  std::tuple<double, double> betas() const { return {values_.hyper.beta1, values_.hyper.beta2}; }

/// What every algorithm has.
template <class Self>
class CommonOptions : public BlockwiseOptions {
 public:
  /// At least 0, finite. What schedulers change.
  BITSHARD_OPTION(Self, double, lr, values_.hyper.learning_rate)
  /// At least 0, finite; how it enters is said at each class. L2: added to the gradient, times the
  /// parameter. Decoupled: the parameter is multiplied by 1 - lr * weight_decay.
  BITSHARD_OPTION(Self, double, weight_decay, values_.hyper.weight_decay)
  /// Of the state: 8 or 32. A parameter's state is made in its first step and stays as it was made.
  BITSHARD_OPTION(Self, int64_t, bits, values_.bits)
  /// Tensors with fewer elements keep 32-bit state.
  BITSHARD_OPTION(Self, int64_t, min_8bit_size, values_.min_8bit_size)
  /// Elements of 8-bit state that share a scale: 64, 128 or 256.
  BITSHARD_OPTION(Self, int64_t, block_size, values_.block_size)
  /// Keeps float32 weights (4 bytes a parameter) for bfloat16 and float16 parameters, and steps
  /// those; the parameter is what they round to. Taken from the parameter in its first step.
  BITSHARD_OPTION(Self, bool, master_weights, values_.master_weights)
  /// Rounds bfloat16 parameters up or down at random, right in the mean, keyed by seed, step and
  /// the parameter's number among all of the optimizer's. Not with master_weights.
  BITSHARD_OPTION(Self, bool, stochastic_rounding, values_.stochastic_rounding)
  /// Of stochastic_rounding; nothing else is random.
  BITSHARD_OPTION(Self, int64_t, seed, values_.seed)

  std::unique_ptr<torch::optim::OptimizerOptions> clone() const override {
    return std::make_unique<Self>(static_cast<const Self&>(*this));
  }

 protected:
  explicit CommonOptions(Algorithm algorithm) : BlockwiseOptions(algorithm) {}
};

// The defaults of each class stand above it. eps is at least 0, finite, and stands beside the root
// of the second average (docs/numerics.md); max_unorm is at least 0, and 0 or infinity is no limit.

/// lr 1e-3, betas (0.9, 0.999), eps 1e-8, no decay. Decay is L2, added to the gradient, as in
/// torch::optim::Adam, unless it is decoupled (bitsandbytes' Adam: that of AdamW).
class AdamOptions : public CommonOptions<AdamOptions> {
 public:
  AdamOptions(double rate = 1e-3) : CommonOptions(Algorithm::kAdam) { lr(rate); }  // NOLINT
  BITSHARD_BETAS_OPTION(AdamOptions)
  BITSHARD_OPTION(AdamOptions, double, eps, values_.hyper.eps)
  BITSHARD_OPTION(AdamOptions, bool, decoupled_weight_decay, values_.decoupled_weight_decay)
  /// An update's norm is at most this many times the parameter's; 0: no limit.
  BITSHARD_OPTION(AdamOptions, double, max_unorm, values_.max_unorm)
};

/// lr 1e-3, betas (0.9, 0.999), eps 1e-8, decoupled decay 0.01.
class AdamWOptions : public CommonOptions<AdamWOptions> {
 public:
  AdamWOptions(double rate = 1e-3) : CommonOptions(Algorithm::kAdamW) { lr(rate); }  // NOLINT
  BITSHARD_BETAS_OPTION(AdamWOptions)
  BITSHARD_OPTION(AdamWOptions, double, eps, values_.hyper.eps)
  BITSHARD_OPTION(AdamWOptions, double, max_unorm, values_.max_unorm)
};

/// lr 1e-4, betas (0.9, 0.99), no decay; decay is decoupled.
class LionOptions : public CommonOptions<LionOptions> {
 public:
  LionOptions(double rate = 1e-4) : CommonOptions(Algorithm::kLion) { lr(rate); }  // NOLINT
  BITSHARD_BETAS_OPTION(LionOptions)
};

/// As Adam with decoupled decay; max_unorm 1.
class LAMBOptions : public CommonOptions<LAMBOptions> {
 public:
  LAMBOptions(double rate = 1e-3) : CommonOptions(Algorithm::kLamb) { lr(rate); }  // NOLINT
  BITSHARD_BETAS_OPTION(LAMBOptions)
  BITSHARD_OPTION(LAMBOptions, double, eps, values_.hyper.eps)
  BITSHARD_OPTION(LAMBOptions, double, max_unorm, values_.max_unorm)
};

/// momentum must be given, above 0 and below 1; no decay, max_unorm 0.02; decay is L2.
class LARSOptions : public CommonOptions<LARSOptions> {
 public:
  LARSOptions(double rate) : CommonOptions(Algorithm::kLars) { lr(rate).momentum(0); }  // NOLINT
  BITSHARD_OPTION(LARSOptions, double, momentum, values_.hyper.beta1)
  BITSHARD_OPTION(LARSOptions, double, max_unorm, values_.max_unorm)
};

/// momentum must be given, above 0 (without it there is no state: torch::optim::SGD) and below 1;
/// no decay; decay is L2.
class SGDOptions : public CommonOptions<SGDOptions> {
 public:
  SGDOptions(double rate) : CommonOptions(Algorithm::kSgd) { lr(rate).momentum(0); }  // NOLINT
  BITSHARD_OPTION(SGDOptions, double, momentum, values_.hyper.beta1)
  BITSHARD_OPTION(SGDOptions, double, max_unorm, values_.max_unorm)
};

/// lr 1e-2, alpha (the smoothing constant, in [0, 1)) 0.99, eps 1e-8, no decay; decay is L2.
class RMSpropOptions : public CommonOptions<RMSpropOptions> {
 public:
  RMSpropOptions(double rate = 1e-2) : CommonOptions(Algorithm::kRmsProp) { lr(rate); }  // NOLINT
  BITSHARD_OPTION(RMSpropOptions, double, alpha, values_.hyper.beta1)
  BITSHARD_OPTION(RMSpropOptions, double, eps, values_.hyper.eps)
  BITSHARD_OPTION(RMSpropOptions, double, max_unorm, values_.max_unorm)
};

/// lr 1e-2, eps 1e-10, no decay; decay is L2.
class AdagradOptions : public CommonOptions<AdagradOptions> {
 public:
  AdagradOptions(double rate = 1e-2) : CommonOptions(Algorithm::kAdagrad) { lr(rate); }  // NOLINT
  BITSHARD_OPTION(AdagradOptions, double, eps, values_.hyper.eps)
};

/// lr 1e-3, betas (0.9, 0.999, 0.9999) of the fast average, the square and the slow average, each
/// in [0, 1), alpha (the slow average's weight, finite) 5, eps 1e-8, decoupled decay 0.01.
class AdEMAMixOptions : public CommonOptions<AdEMAMixOptions> {
 public:
  AdEMAMixOptions(double rate = 1e-3) : CommonOptions(Algorithm::kAdEmaMix) { lr(rate); }  // NOLINT
  AdEMAMixOptions& betas(const std::tuple<double, double, double>& value) {
    std::tie(values_.hyper.beta1, values_.hyper.beta2, values_.hyper.beta3) = value;
    return *this;
  }
  std::tuple<double, double, double> betas() const {
    return {values_.hyper.beta1, values_.hyper.beta2, values_.hyper.beta3};
  }
  BITSHARD_OPTION(AdEMAMixOptions, double, eps, values_.hyper.eps)
  BITSHARD_OPTION(AdEMAMixOptions, double, alpha, values_.hyper.alpha)
  /// At least 0: steps over which alpha grows from 0 and beta3 from beta1 (both betas then above
  /// 0); 0: they are what they are.
  BITSHARD_OPTION(AdEMAMixOptions, int64_t, t_alpha, values_.hyper.alpha_steps)
  BITSHARD_OPTION(AdEMAMixOptions, int64_t, t_beta3, values_.hyper.beta3_steps)
};

#undef BITSHARD_OPTION
#undef BITSHARD_BETAS_OPTION

/// "AdamW", as the class is called.
const char* ClassNameOf(Algorithm algorithm);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_TORCH_OPTIONS_H_
