// AdamW for one element. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019,
// algorithm 2.
//
// Named decisions (docs/numerics.md; tests/optim/step_oracle_test.py):
//   decay        decoupled, before the update: p = p * (1 - lr * weight_decay).
//   all others   as Adam.
#ifndef BITSHARD_OPTIM_RULES_ADAMW_H_
#define BITSHARD_OPTIM_RULES_ADAMW_H_

#include "core/host_device.h"
#include "optim/rules/adam.h"

namespace bitshard::optim {

struct AdamWRule {
  static constexpr int kNumStates = 2;
  static constexpr bool kHasUpdateNorm = true;
  static constexpr RuleDefaults kDefaults = {.weight_decay = 1e-2};
  using Hyper = AdamHyper;
  using State = AdamMoments;
  static Hyper MakeHyper(const StepHyper& h) {
    Hyper hyper = MakeAdamHyper(h);
    hyper.weight_decay = static_cast<float>(1.0 - h.learning_rate * h.weight_decay);
    return hyper;
  }
  static BITSHARD_HD float Apply(const Hyper& h, float g, float p, State& s) {
    return AdamStep(h, g, p * h.weight_decay, s);  // Times 1 where there is no decay: no change.
  }
  static BITSHARD_HD float Update(const Hyper& h, float g, float, State& s) {
    return AdamUpdate(h, g, s);
  }
  static BITSHARD_HD void ScaleUpdate(float scale, Hyper& h) { h.step_size = h.step_size * scale; }
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_ADAMW_H_
