// The optimizers there are. A new one is a rule file, an entry here and in WithRule, and an oracle.
#ifndef BITSHARD_OPTIM_ALGORITHM_H_
#define BITSHARD_OPTIM_ALGORITHM_H_

#include "optim/rules/adam.h"
#include "optim/rules/adamw.h"
#include "optim/rules/lion.h"

namespace bitshard::optim {

enum class Algorithm { kAdam, kAdamW, kLion };

/// Calls body with a default-constructed rule: body(AdamWRule()).
template <class Body>
auto WithRule(Algorithm algorithm, Body&& body) {
  switch (algorithm) {
    case Algorithm::kAdam:
      return body(AdamRule());
    case Algorithm::kLion:
      return body(LionRule());
    case Algorithm::kAdamW:
      break;
  }
  return body(AdamWRule());
}

/// Buffers of state per element: 1 or 2.
inline int NumStates(Algorithm algorithm) {
  return WithRule(algorithm, [](auto rule) { return decltype(rule)::kNumStates; });
}

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_ALGORITHM_H_
