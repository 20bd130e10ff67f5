// LAMB for one element, as bitsandbytes has it: AdamW whose update may be no longer than the
// parameter (max_unorm 1). You et al., "Large Batch Optimization for Deep Learning", 2020, scale
// the update to the parameter's norm, up and down; here it is only ever shortened.
#ifndef BITSHARD_OPTIM_RULES_LAMB_H_
#define BITSHARD_OPTIM_RULES_LAMB_H_

#include "optim/rules/adamw.h"

namespace bitshard::optim {

struct LambRule : AdamWRule {
  static constexpr RuleDefaults kDefaults = {.max_unorm = 1};
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_LAMB_H_
