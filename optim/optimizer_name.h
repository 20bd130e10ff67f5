// Optimizer names as transformers' `optim` spells them.
#ifndef BITSHARD_OPTIM_OPTIMIZER_NAME_H_
#define BITSHARD_OPTIM_OPTIMIZER_NAME_H_

#include <string>

#include "absl/status/statusor.h"
#include "optim/algorithm.h"

namespace bitshard::optim {

struct OptimizerName {
  Algorithm algorithm = Algorithm::kAdamW;
  int bits = 8;  ///< Of the state: 8 or 32.
  bool paged = false;
};

/// adamw_8bit = adamw_bnb_8bit, adamw_torch = adamw_torch_fused = adamw_32bit, paged_adamw_8bit,
/// paged_adamw_32bit, lion_8bit, lion_32bit, paged_lion_8bit, paged_lion_32bit, adam_8bit,
/// adam_32bit, paged_adam_8bit, paged_adam_32bit. Under these names every decay is decoupled, as in
/// bitsandbytes: "adam" is AdamW's rule. Errors: kConfig with the nearest known name and the list.
absl::StatusOr<OptimizerName> ParseOptimizerName(const std::string& name);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_OPTIMIZER_NAME_H_
