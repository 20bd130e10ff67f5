// SGD with momentum for one element, as torch.optim.SGD without dampening and bitsandbytes have it.
// Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
//
// Named decisions (docs/numerics.md; tests/optim/step_oracle_test.py):
//   decay        L2: added to the gradient.
//   first step   the momentum is the gradient.
//   learning rate  multiplies the momentum when it is applied, not when it is gathered.
#ifndef BITSHARD_OPTIM_RULES_SGD_H_
#define BITSHARD_OPTIM_RULES_SGD_H_

#include "core/host_device.h"
#include "optim/rules/hyper.h"

namespace bitshard::optim {

struct SgdRule {
  static constexpr int kNumStates = 1;
  static constexpr bool kHasUpdateNorm = true;
  static constexpr RuleDefaults kDefaults = {.beta1 = 0.9, .beta2 = 0, .eps = 0};
  struct Hyper {
    float momentum;
    float learning_rate;
    float weight_decay;
    bool is_first;
  };
  /// State 1 is the momentum (signed).
  struct State {
    float m = 0;
  };
  static Hyper MakeHyper(const StepHyper& h) {
    return {.momentum = static_cast<float>(h.beta1),
            .learning_rate = static_cast<float>(h.learning_rate),
            .weight_decay = static_cast<float>(h.weight_decay),
            .is_first = h.step == 1};
  }
  static BITSHARD_HD float Apply(const Hyper& h, float g, float p, State& s) {
    Update(h, g, p, s);
    return p - (h.learning_rate * s.m);
  }
  static BITSHARD_HD float Update(const Hyper& h, float g, float p, State& s) {
    if (h.weight_decay != 0.0f) g = g + (h.weight_decay * p);
    s.m = h.is_first ? g : (h.momentum * s.m) + g;
    return s.m;
  }
  static BITSHARD_HD void ScaleUpdate(float scale, Hyper& h) {
    h.learning_rate = h.learning_rate * scale;
  }
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_SGD_H_
