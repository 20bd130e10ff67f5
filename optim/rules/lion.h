// Lion for one element. Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023,
// algorithm 2.
//
// Named decisions (docs/numerics.md; tests/optim/step_oracle_test.py):
//   decay        decoupled, before the update.
//   sign(0)      0, for both zeros: an element without gradient and momentum does not move. (LoRA's
//                A has exactly zero gradient in the first step, since B starts at zero.)
//   non-finite   propagates into the state; the engine skips such steps.
//   steps        none of its constants depends on the step.
#ifndef BITSHARD_OPTIM_RULES_LION_H_
#define BITSHARD_OPTIM_RULES_LION_H_

#include "core/host_device.h"
#include "core/numeric.h"
#include "optim/rules/hyper.h"

namespace bitshard::optim {

struct LionRule {
  static constexpr int kNumStates = 1;
  static constexpr bool kHasUpdateNorm = false;
  static constexpr RuleDefaults kDefaults = {.learning_rate = 1e-4, .beta2 = 0.99, .eps = 0};
  struct Hyper {
    float beta1, one_minus_beta1;
    float beta2, one_minus_beta2;
    float learning_rate;
    float decay;  ///< 1 - lr * weight_decay
  };
  /// State 1 is the momentum (signed).
  struct State {
    float m = 0;
  };
  static Hyper MakeHyper(const StepHyper& h) {
    return {.beta1 = static_cast<float>(h.beta1),
            .one_minus_beta1 = static_cast<float>(1.0 - h.beta1),
            .beta2 = static_cast<float>(h.beta2),
            .one_minus_beta2 = static_cast<float>(1.0 - h.beta2),
            .learning_rate = static_cast<float>(h.learning_rate),
            .decay = static_cast<float>(1.0 - h.learning_rate * h.weight_decay)};
  }
  static BITSHARD_HD float Apply(const Hyper& h, float g, float p, State& s) {
    const float update = (h.beta1 * s.m) + (h.one_minus_beta1 * g);
    p = (p * h.decay) - (h.learning_rate * core::Sign0(update));
    s.m = (h.beta2 * s.m) + (h.one_minus_beta2 * g);
    return p;
  }
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_LION_H_
