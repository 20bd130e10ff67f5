// LARS for one element, as bitsandbytes has it: SGD with momentum whose momentum may be no longer
// than a 50th of the parameter (max_unorm 0.02). You et al., "Large Batch Training of Convolutional
// Networks", 2017, scale the gradient before it enters the momentum.
#ifndef BITSHARD_OPTIM_RULES_LARS_H_
#define BITSHARD_OPTIM_RULES_LARS_H_

#include "optim/rules/sgd.h"

namespace bitshard::optim {

struct LarsRule : SgdRule {
  static constexpr RuleDefaults kDefaults = {.beta1 = 0.9, .beta2 = 0, .eps = 0, .max_unorm = 0.02};
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_LARS_H_
