// The hyper-parameters of one step as a caller gives them; each rule rounds what it needs to
// float32 once.
#ifndef BITSHARD_OPTIM_RULES_HYPER_H_
#define BITSHARD_OPTIM_RULES_HYPER_H_

#include <cstdint>

namespace bitshard::optim {

struct StepHyper {
  int64_t step = 1;  ///< From 1.
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double gradient_scale = 1;  ///< Multiplies every gradient before the rule sees it.
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RULES_HYPER_H_
