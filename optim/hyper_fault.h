// Which hyper-parameters an optimizer can be stepped with: asked by all who take them from a user,
// before anything is changed. What torch.optim and bitsandbytes refuse, NaN included, and infinite
// values, which those let through into the parameters.
#ifndef BITSHARD_OPTIM_HYPER_FAULT_H_
#define BITSHARD_OPTIM_HYPER_FAULT_H_

#include <limits>
#include <string>

#include "core/number_range.h"
#include "optim/algorithm.h"
#include "optim/rules/hyper.h"

namespace bitshard::optim {

/// The decay of an average in a step, and a momentum.
inline constexpr core::NumberRange kDecayRange = {.max = 1, .below_max = true};
/// Learning rate, eps and weight decay.
inline constexpr core::NumberRange kFactorRange = {};
/// Infinity limits no update, as 0 doesn't.
inline constexpr core::NumberRange kMaxUnormRange = {.max =
                                                         std::numeric_limits<double>::infinity()};

/// "" where the algorithm can be stepped with these values, else the first that is out of range,
/// what it is and what it may be: "beta2: got 1, want at least 0 and below 1". Names are
/// bitsandbytes': momentum is beta1 of SGD and LARS, alpha that of RMSprop, t_alpha alpha_steps.
/// Values that the algorithm does not read may be anything.
std::string HyperFault(Algorithm algorithm, const StepHyper& hyper, double max_unorm = 0);

/// The part of it that the arithmetic itself needs: AdEMAMix's beta3 grows from beta1, neither of
/// which can be 0 then.
std::string GrowthFault(Algorithm algorithm, const StepHyper& hyper);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_HYPER_FAULT_H_
