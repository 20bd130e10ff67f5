// The hyper-parameters of one step as a caller gives them; each rule rounds what it needs to
// float32 once.
#ifndef BITSHARD_OPTIM_RULES_HYPER_H_
#define BITSHARD_OPTIM_RULES_HYPER_H_

#include <cstdint>

namespace bitshard::optim {

/// Nothing here checks that values are in range: HyperFault (optim/hyper_fault.h) says which are
/// not.
struct StepHyper {
  int64_t step = 1;             ///< From 1.
  double learning_rate = 1e-3;  ///< At least 0.
  /// Decay of the first average in a step, in [0, 1), as beta2 and beta3 are of theirs. SGD and
  /// LARS: the momentum. RMSprop: the smoothing constant alpha.
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;          ///< At least 0; added where docs/numerics.md says for the rule.
  double weight_decay = 0;    ///< At least 0; L2 or decoupled as the rule has it.
  double gradient_scale = 1;  ///< Multiplies every gradient before the rule sees it.
  // AdEMAMix.
  double beta3 = 0.9999;  ///< Of the slow average; where `beta3_steps` warms it up, the last value.
  double alpha = 5;       ///< Weight of the slow average; the last value likewise.
  int64_t alpha_steps = 0;  ///< Steps over which alpha grows from 0; 0: no warm-up.
  /// Steps over which beta3 grows from beta1, both above 0; 0: no warm-up.
  int64_t beta3_steps = 0;
};

/// What a rule's hyper-parameters are where a user gives none: bitsandbytes' values.
struct RuleDefaults {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double max_unorm = 0;  ///< See UpdateScale in optim/step.h; 0: no limit.
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_HYPER_H_
