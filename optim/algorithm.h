// The optimizers there are. A new one is a rule file, an entry here and in WithRule, and an oracle.
#ifndef BITSHARD_OPTIM_ALGORITHM_H_
#define BITSHARD_OPTIM_ALGORITHM_H_

#include "optim/rules/adagrad.h"
#include "optim/rules/adam.h"
#include "optim/rules/adamw.h"
#include "optim/rules/ademamix.h"
#include "optim/rules/lamb.h"
#include "optim/rules/lars.h"
#include "optim/rules/lion.h"
#include "optim/rules/rmsprop.h"
#include "optim/rules/sgd.h"

namespace bitshard::optim {

enum class Algorithm { kAdam, kAdamW, kLion, kLamb, kLars, kRmsProp, kAdagrad, kSgd, kAdEmaMix };

/// Calls body with a default-constructed rule: body(AdamWRule()).
template <class Body>
auto WithRule(Algorithm algorithm, Body&& body) {
  switch (algorithm) {
    case Algorithm::kAdam:
      return body(AdamRule());
    case Algorithm::kLion:
      return body(LionRule());
    case Algorithm::kLamb:
      return body(LambRule());
    case Algorithm::kLars:
      return body(LarsRule());
    case Algorithm::kRmsProp:
      return body(RmsPropRule());
    case Algorithm::kAdagrad:
      return body(AdagradRule());
    case Algorithm::kSgd:
      return body(SgdRule());
    case Algorithm::kAdEmaMix:
      return body(AdEmaMixRule());
    case Algorithm::kAdamW:
      break;
  }
  return body(AdamWRule());
}

/// Buffers of state per element: 1 to 3.
inline int NumStates(Algorithm algorithm) {
  return WithRule(algorithm, [](auto rule) { return decltype(rule)::kNumStates; });
}

/// Whether max_unorm (UpdateScale in optim/step.h) means something for it.
inline bool HasUpdateNorm(Algorithm algorithm) {
  return WithRule(algorithm, [](auto rule) { return decltype(rule)::kHasUpdateNorm; });
}

inline RuleDefaults DefaultsOf(Algorithm algorithm) {
  return WithRule(algorithm, [](auto rule) { return decltype(rule)::kDefaults; });
}

// What a rule does without has the default 0 in RuleDefaults.

/// SGD and LARS: the momentum; RMSprop: the smoothing constant.
inline bool HasBeta1(Algorithm algorithm) { return DefaultsOf(algorithm).beta1 != 0; }
inline bool HasBeta2(Algorithm algorithm) { return DefaultsOf(algorithm).beta2 != 0; }
inline bool HasEps(Algorithm algorithm) { return DefaultsOf(algorithm).eps != 0; }
/// Whether beta1 is a momentum.
inline bool HasMomentum(Algorithm algorithm) {
  return algorithm == Algorithm::kSgd || algorithm == Algorithm::kLars;
}

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_ALGORITHM_H_
