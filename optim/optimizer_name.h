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

/// [paged_]RULE_8bit and [paged_]RULE_32bit, where RULE is adam, adamw, lion, lamb, lars, rmsprop,
/// adagrad, sgd or ademamix; and transformers' other spellings: adamw, adamw_bnb_8bit, adamw_torch,
/// adamw_torch_fused, ademamix, adagrad, sgd, rmsprop, rmsprop_bnb, rmsprop_bnb_8bit,
/// rmsprop_bnb_32bit. Under these names Adam's decay is decoupled, as in bitsandbytes: "adam" is
/// AdamW's rule. Errors: kConfig with the nearest known name and the list.
absl::StatusOr<OptimizerName> ParseOptimizerName(const std::string& name);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_OPTIMIZER_NAME_H_
