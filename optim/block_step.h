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

/// The hyper-parameters of a run: max_unorm shortens the update of a whole tensor.
template <class Rule>
BITSHARD_HD ElementHyper<Rule> ForRun(ElementHyper<Rule> h, double update_scale) {
  if constexpr (Rule::kHasUpdateNorm) Rule::ScaleUpdate(static_cast<float>(update_scale), h.rule);
  return h;
}

namespace detail {

/// Calls body(state) with the rule's state in the place of the floats that it has.
template <class Rule, class Body>
BITSHARD_HD float WithState(float* s1, float* s2, float* s3, Body&& body) {
  float result;
  if constexpr (Rule::kNumStates == 3) {
    typename Rule::State state{*s1, *s2, *s3};
    result = body(state);
    const auto& [a, b, c] = state;
    *s1 = a;
    *s2 = b;
    *s3 = c;
  } else if constexpr (Rule::kNumStates == 2) {
    typename Rule::State state{*s1, *s2};
    result = body(state);
    const auto& [a, b] = state;
    *s1 = a;
    *s2 = b;
  } else {
    typename Rule::State state{*s1};
    result = body(state);
    const auto& [a] = state;
    *s1 = a;
  }
  return result;
}

}  // namespace detail

/// One element: returns the new parameter; *s1 .. *s3 become the new, unquantised state. Those that
/// the rule does not have are neither read nor written.
template <class Rule>
BITSHARD_HD float StepElement(const ElementHyper<Rule>& h, float gradient, float p, float* s1,
                              float* s2, float* s3) {
  const float g = gradient * h.gradient_scale;
  return detail::WithState<Rule>(
      s1, s2, s3, [&](typename Rule::State& state) { return Rule::Apply(h.rule, g, p, state); });
}

/// The element of the update whose norm max_unorm limits; the state becomes the new one.
template <class Rule>
BITSHARD_HD float UpdateElement(const ElementHyper<Rule>& h, float gradient, float p, float* s1,
                                float* s2, float* s3) {
  const float g = gradient * h.gradient_scale;
  return detail::WithState<Rule>(
      s1, s2, s3, [&](typename Rule::State& state) { return Rule::Update(h.rule, g, p, state); });
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
