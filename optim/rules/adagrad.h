// Adagrad for one element. Duchi, Hazan and Singer, "Adaptive Subgradient Methods", 2011; as
// torch.optim.Adagrad without learning rate decay and bitsandbytes have it.
//
// Named decisions (docs/numerics.md; tests/optim/step_oracle_test.py):
//   decay        L2: added to the gradient, which enters state and update alike.
//   eps          outside the square root.
//   table        the signed one, though the state is never negative: as bitsandbytes' checkpoints.
#ifndef BITSHARD_OPTIM_RULES_ADAGRAD_H_
#define BITSHARD_OPTIM_RULES_ADAGRAD_H_

#include <cmath>

#include "core/host_device.h"
#include "optim/rules/hyper.h"

namespace bitshard::optim {

struct AdagradRule {
  static constexpr int kNumStates = 1;
  static constexpr bool kHasUpdateNorm = false;
  static constexpr RuleDefaults kDefaults = {
      .learning_rate = 1e-2, .beta1 = 0, .beta2 = 0, .eps = 1e-10};
  struct Hyper {
    float learning_rate;
    float eps;
    float weight_decay;
  };
  /// State 1 is the sum of the gradient's squares.
  struct State {
    float v = 0;
  };
  static Hyper MakeHyper(const StepHyper& h) {
    return {.learning_rate = static_cast<float>(h.learning_rate),
            .eps = static_cast<float>(h.eps),
            .weight_decay = static_cast<float>(h.weight_decay)};
  }
  static BITSHARD_HD float Apply(const Hyper& h, float g, float p, State& s) {
    if (h.weight_decay != 0.0f) g = g + (h.weight_decay * p);
    s.v = s.v + (g * g);
    return p - (h.learning_rate * (g / (sqrtf(s.v) + h.eps)));
  }
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_ADAGRAD_H_
