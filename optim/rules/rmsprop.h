// RMSprop for one element. Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012; as
// torch.optim.RMSprop without momentum and bitsandbytes have it.
//
// Named decisions (docs/numerics.md; tests/optim/step_oracle_test.py):
//   decay        L2: added to the gradient, which enters state and update alike.
//   eps          outside the square root.
//   table        the signed one, though the state is never negative: as bitsandbytes' checkpoints.
#ifndef BITSHARD_OPTIM_RULES_RMSPROP_H_
#define BITSHARD_OPTIM_RULES_RMSPROP_H_

#include <cmath>

#include "core/host_device.h"
#include "optim/rules/hyper.h"

namespace bitshard::optim {

struct RmsPropRule {
  static constexpr int kNumStates = 1;
  static constexpr bool kHasUpdateNorm = true;
  static constexpr RuleDefaults kDefaults = {.learning_rate = 1e-2, .beta1 = 0.99, .beta2 = 0};
  struct Hyper {
    float alpha, one_minus_alpha;
    float learning_rate;
    float eps;
    float weight_decay;
  };
  /// State 1 is the mean square of the gradient.
  struct State {
    float v = 0;
  };
  static Hyper MakeHyper(const StepHyper& h) {
    return {.alpha = static_cast<float>(h.beta1),
            .one_minus_alpha = static_cast<float>(1.0 - h.beta1),
            .learning_rate = static_cast<float>(h.learning_rate),
            .eps = static_cast<float>(h.eps),
            .weight_decay = static_cast<float>(h.weight_decay)};
  }
  static BITSHARD_HD float Apply(const Hyper& h, float g, float p, State& s) {
    const float update = Update(h, g, p, s);
    return p - (h.learning_rate * update);
  }
  static BITSHARD_HD float Update(const Hyper& h, float g, float p, State& s) {
    if (h.weight_decay != 0.0f) g = g + (h.weight_decay * p);
    s.v = (h.alpha * s.v) + ((h.one_minus_alpha * g) * g);
    return g / (sqrtf(s.v) + h.eps);
  }
  static BITSHARD_HD void ScaleUpdate(float scale, Hyper& h) {
    h.learning_rate = scale * h.learning_rate;
  }
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_RMSPROP_H_
