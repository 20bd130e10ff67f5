// The step of one block: decode the state, apply the rule to each element, find the new absmax,
// encode. What stands here is what CPU and CUDA share; their files hold only loops and the absmax
// reduction.
#ifndef BITSHARD_OPTIM_BLOCK_STEP_H_
#define BITSHARD_OPTIM_BLOCK_STEP_H_

#include <cstdint>

#include "core/host_device.h"
#include "core/rng.h"
#include "optim/rules/hyper.h"

namespace bitshard::optim {

/// A rule's hyper-parameters and the gradient's scale, ready for elements.
template <class Rule>
struct ElementHyper {
  typename Rule::Hyper rule;
  float gradient_scale;
};

template <class Rule>
ElementHyper<Rule> MakeElementHyper(const StepHyper& h) {
  return {.rule = Rule::MakeHyper(h), .gradient_scale = static_cast<float>(h.gradient_scale)};
}

/// One element of a two-state rule: returns the new parameter; *s1 and *s2 become the new,
/// unquantised state. For a one-state rule *s2 is neither read nor written.
template <class Rule>
BITSHARD_HD float StepElement(const ElementHyper<Rule>& h, float gradient, float p, float* s1,
                              float* s2) {
  const float g = gradient * h.gradient_scale;
  if constexpr (Rule::kNumStates == 2) {
    typename Rule::State state{*s1, *s2};
    const float updated = Rule::Apply(h.rule, g, p, state);
    *s1 = state.m;
    *s2 = state.v;
    return updated;
  } else {
    typename Rule::State state{*s1};
    const float updated = Rule::Apply(h.rule, g, p, state);
    *s1 = state.m;
    return updated;
  }
}

// --- stochastic rounding ---

/// The stream of random numbers of one tensor in one step.
BITSHARD_HD uint64_t RoundingKey(uint64_t seed, int64_t step, int64_t tensor) {
  return core::RngKey(seed, core::RngPurpose::kStochasticRounding, static_cast<uint64_t>(step),
                      static_cast<uint64_t>(tensor));
}

/// Words of the tensor's elements 4 * quad .. 4 * quad + 3.
BITSHARD_HD core::Philox4 RoundingWords(uint64_t key, int64_t quad) {
  return core::Philox(key, static_cast<uint64_t>(quad), 0);
}

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_BLOCK_STEP_H_
