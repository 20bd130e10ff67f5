// Adam for one element. Kingma and Ba, "Adam", 2015, algorithm 1, in the arrangement of torch and
// bitsandbytes: both bias corrections are folded into the step size and eps, so an element takes
// one square root and one division.
//
// Named decisions (docs/numerics.md; tests/optim/step_oracle_test.py):
//   decay        L2: added to the gradient (torch::optim::Adam). The decoupled form is AdamW.
//   eps          outside the square root, scaled by sqrt(1 - beta2^t).
//   non-finite   propagates; the engine skips a step whose gradient norm is not finite.
//   steps        counted from 1.
#ifndef BITSHARD_OPTIM_RULES_ADAM_H_
#define BITSHARD_OPTIM_RULES_ADAM_H_

#include <cmath>

#include "core/host_device.h"
#include "optim/rules/hyper.h"

namespace bitshard::optim {

/// State 1 is the first moment (signed), state 2 the second (never negative).
struct AdamMoments {
  float m = 0;
  float v = 0;
};

/// What every Adam shares. Host scalars, each computed in double and rounded once.
struct AdamHyper {
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float step_size;     ///< lr * sqrt(1 - beta2^t) / (1 - beta1^t)
  float scaled_eps;    ///< eps * sqrt(1 - beta2^t)
  float weight_decay;  ///< Adam: the L2 factor. AdamW: 1 - lr * weight_decay.
  // Of the update whose norm max_unorm limits.
  float correction1;  ///< 1 / (1 - beta1^t)
  float correction2;  ///< 1 / (1 - beta2^t)
  float eps;
};

inline AdamHyper MakeAdamHyper(const StepHyper& h) {
  const double left1 = 1.0 - std::pow(h.beta1, static_cast<double>(h.step));
  const double left2 = 1.0 - std::pow(h.beta2, static_cast<double>(h.step));
  const double root2 = std::sqrt(left2);
  return {.beta1 = static_cast<float>(h.beta1),
          .one_minus_beta1 = static_cast<float>(1.0 - h.beta1),
          .beta2 = static_cast<float>(h.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - h.beta2),
          .step_size = static_cast<float>(h.learning_rate * root2 / left1),
          .scaled_eps = static_cast<float>(h.eps * root2),
          .weight_decay = static_cast<float>(h.weight_decay),
          .correction1 = static_cast<float>(1.0 / left1),
          .correction2 = static_cast<float>(1.0 / left2),
          .eps = static_cast<float>(h.eps)};
}

BITSHARD_HD void UpdateAdamMoments(const AdamHyper& h, float g, AdamMoments& s) {
  s.m = (h.beta1 * s.m) + (h.one_minus_beta1 * g);
  s.v = (h.beta2 * s.v) + ((h.one_minus_beta2 * g) * g);
}

/// The new moments, and the parameter after the step.
BITSHARD_HD float AdamStep(const AdamHyper& h, float g, float p, AdamMoments& s) {
  UpdateAdamMoments(h, g, s);
  return p - (h.step_size * (s.m / (sqrtf(s.v) + h.scaled_eps)));
}

/// The new moments, and the update with both bias corrections in their places.
BITSHARD_HD float AdamUpdate(const AdamHyper& h, float g, AdamMoments& s) {
  UpdateAdamMoments(h, g, s);
  return (s.m * h.correction1) / (sqrtf(s.v * h.correction2) + h.eps);
}

struct AdamRule {
  static constexpr int kNumStates = 2;
  static constexpr bool kHasUpdateNorm = true;
  static constexpr RuleDefaults kDefaults = {};
  using Hyper = AdamHyper;
  using State = AdamMoments;
  static Hyper MakeHyper(const StepHyper& h) { return MakeAdamHyper(h); }
  static BITSHARD_HD float Apply(const Hyper& h, float g, float p, State& s) {
    return AdamStep(h, Decayed(h, g, p), p, s);
  }
  static BITSHARD_HD float Update(const Hyper& h, float g, float p, State& s) {
    return AdamUpdate(h, Decayed(h, g, p), s);
  }
  static BITSHARD_HD void ScaleUpdate(float scale, Hyper& h) { h.step_size = h.step_size * scale; }

 private:
  static BITSHARD_HD float Decayed(const Hyper& h, float g, float p) {
    return h.weight_decay != 0.0f ? g + (h.weight_decay * p) : g;
  }
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_ADAM_H_
