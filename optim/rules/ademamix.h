// AdEMAMix for one element. Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better,
// Faster, Older", 2024, algorithm 1 with the schedulers of its appendix: Adam with a second, slow
// average of the gradient, which has no bias correction.
//
// Named decisions (docs/numerics.md; tests/optim/step_oracle_test.py):
//   decay        decoupled, before the update.
//   eps          outside the square root, added to the corrected one.
//   schedules    alpha grows linearly from 0; beta3 from beta1 so that the average's half-life
//                grows linearly. With a schedule for beta3, beta1 must be above 0.
#ifndef BITSHARD_OPTIM_RULES_ADEMAMIX_H_
#define BITSHARD_OPTIM_RULES_ADEMAMIX_H_

#include <algorithm>
#include <cmath>

#include "core/host_device.h"
#include "optim/rules/hyper.h"

namespace bitshard::optim {

/// Weight of the slow average in step h.step.
inline double AdEmaMixAlpha(const StepHyper& h) {
  if (h.alpha_steps <= 0) return h.alpha;
  const double t = static_cast<double>(h.step);
  return std::min(t * h.alpha / static_cast<double>(h.alpha_steps), h.alpha);
}

/// Decay of the slow average in step h.step.
inline double AdEmaMixBeta3(const StepHyper& h) {
  if (h.beta3_steps <= 0) return h.beta3;
  const double s = static_cast<double>(h.step) / static_cast<double>(h.beta3_steps);
  const double log1 = std::log(h.beta1), log3 = std::log(h.beta3);
  return std::min(std::exp(log1 * log3 / ((1.0 - s) * log3 + s * log1)), h.beta3);
}

struct AdEmaMixRule {
  static constexpr int kNumStates = 3;
  static constexpr bool kHasUpdateNorm = false;
  static constexpr RuleDefaults kDefaults = {.weight_decay = 1e-2};
  struct Hyper {
    float beta1, one_minus_beta1;
    float beta2, one_minus_beta2;
    float beta3, one_minus_beta3;
    float alpha;
    float correction1;  ///< 1 / (1 - beta1^t)
    float correction2;  ///< 1 / sqrt(1 - beta2^t)
    float learning_rate;
    float eps;
    float decay;  ///< 1 - lr * weight_decay
  };
  /// State 1 is the fast average (signed), state 2 the mean square (never negative), state 3 the
  /// slow average (signed).
  struct State {
    float fast = 0;
    float v = 0;
    float slow = 0;
  };
  static Hyper MakeHyper(const StepHyper& h) {
    const double t = static_cast<double>(h.step);
    const double beta3 = AdEmaMixBeta3(h);
    return {.beta1 = static_cast<float>(h.beta1),
            .one_minus_beta1 = static_cast<float>(1.0 - h.beta1),
            .beta2 = static_cast<float>(h.beta2),
            .one_minus_beta2 = static_cast<float>(1.0 - h.beta2),
            .beta3 = static_cast<float>(beta3),
            .one_minus_beta3 = static_cast<float>(1.0 - beta3),
            .alpha = static_cast<float>(AdEmaMixAlpha(h)),
            .correction1 = static_cast<float>(1.0 / (1.0 - std::pow(h.beta1, t))),
            .correction2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(h.beta2, t))),
            .learning_rate = static_cast<float>(h.learning_rate),
            .eps = static_cast<float>(h.eps),
            .decay = static_cast<float>(1.0 - h.learning_rate * h.weight_decay)};
  }
  static BITSHARD_HD float Apply(const Hyper& h, float g, float p, State& s) {
    s.fast = (h.beta1 * s.fast) + (h.one_minus_beta1 * g);
    s.v = (h.beta2 * s.v) + ((h.one_minus_beta2 * g) * g);
    s.slow = (h.beta3 * s.slow) + (h.one_minus_beta3 * g);
    const float mixed = (s.fast * h.correction1) + (h.alpha * s.slow);
    return (p * h.decay) - (h.learning_rate * (mixed / ((sqrtf(s.v) * h.correction2) + h.eps)));
  }
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_ADEMAMIX_H_
