// Adam for one element. Kingma and Ba, "Adam", 2015, algorithm 1, in the arrangement of torch and
// bitsandbytes: both bias corrections are folded into the step size and eps, so an element takes
// one square root and one division.
//
// Named decisions (docs/numerics.md; tests/optim/rules_test.cc):
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
  float eps;           ///< eps * sqrt(1 - beta2^t)
  float weight_decay;  ///< Adam: the L2 factor. AdamW: 1 - lr * weight_decay.
};

inline AdamHyper MakeAdamHyper(const StepHyper& h) {
  const double correction1 = 1.0 - std::pow(h.beta1, static_cast<double>(h.step));
  const double correction2 = std::sqrt(1.0 - std::pow(h.beta2, static_cast<double>(h.step)));
  return {.beta1 = static_cast<float>(h.beta1),
          .one_minus_beta1 = static_cast<float>(1.0 - h.beta1),
          .beta2 = static_cast<float>(h.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - h.beta2),
          .step_size = static_cast<float>(h.learning_rate * correction2 / correction1),
          .eps = static_cast<float>(h.eps * correction2),
          .weight_decay = static_cast<float>(h.weight_decay)};
}

/// The new moments, and the parameter after the step.
BITSHARD_HD float AdamStep(const AdamHyper& h, float g, float p, AdamMoments& s) {
  s.m = (h.beta1 * s.m) + (h.one_minus_beta1 * g);
  s.v = (h.beta2 * s.v) + ((h.one_minus_beta2 * g) * g);
  return p - (h.step_size * (s.m / (sqrtf(s.v) + h.eps)));
}

struct AdamRule {
  static constexpr int kNumStates = 2;
  using Hyper = AdamHyper;
  using State = AdamMoments;
  static Hyper MakeHyper(const StepHyper& h) { return MakeAdamHyper(h); }
  static BITSHARD_HD float Apply(const Hyper& h, float g, float p, State& s) {
    if (h.weight_decay != 0.0f) g = g + (h.weight_decay * p);
    return AdamStep(h, g, p, s);
  }
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_ADAM_H_
