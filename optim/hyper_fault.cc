#include "optim/hyper_fault.h"

#include <cstdint>

#include "absl/strings/str_cat.h"

namespace bitshard::optim {
namespace {

const char* FirstDecayName(Algorithm algorithm) {
  if (HasMomentum(algorithm)) return "momentum";
  return algorithm == Algorithm::kRmsProp ? "alpha" : "beta1";
}

std::string CountFault(const char* name, int64_t value, int64_t min) {
  return value >= min ? "" : absl::StrCat(name, ": got ", value, ", want at least ", min);
}

}  // namespace

std::string GrowthFault(Algorithm algorithm, const StepHyper& hyper) {
  if (algorithm != Algorithm::kAdEmaMix || hyper.beta3_steps <= 0) return "";
  for (const auto& [name, value] : {std::pair{"beta1", hyper.beta1}, {"beta3", hyper.beta3}}) {
    if (value > 0) continue;
    return absl::StrCat(name, ": got ", value, ", want above 0: beta3 grows from beta1 over ",
                        hyper.beta3_steps, " steps (t_beta3)");
  }
  return "";
}

std::string HyperFault(Algorithm algorithm, const StepHyper& hyper, double max_unorm) {
  const bool is_mix = algorithm == Algorithm::kAdEmaMix;
  const struct {
    const char* name;
    bool is_read;
    double value;
    core::NumberRange range;
  } values[] = {{"lr", true, hyper.learning_rate, kFactorRange},
                {FirstDecayName(algorithm), HasBeta1(algorithm), hyper.beta1, kDecayRange},
                {"beta2", HasBeta2(algorithm), hyper.beta2, kDecayRange},
                {"beta3", is_mix, hyper.beta3, kDecayRange},
                {"alpha", is_mix, hyper.alpha, core::kFinite},
                {"eps", HasEps(algorithm), hyper.eps, kFactorRange},
                {"weight_decay", true, hyper.weight_decay, kFactorRange},
                {"max_unorm", true, max_unorm, kMaxUnormRange},
                {"gradient_scale", true, hyper.gradient_scale, core::kFinite}};
  for (const auto& [name, is_read, value, range] : values) {
    const std::string fault = is_read ? core::RangeFault(value, range) : "";
    if (!fault.empty()) return absl::StrCat(name, ": ", fault);
  }
  std::string fault = CountFault("step", hyper.step, 1);
  if (fault.empty() && is_mix) fault = CountFault("t_alpha", hyper.alpha_steps, 0);
  if (fault.empty() && is_mix) fault = CountFault("t_beta3", hyper.beta3_steps, 0);
  return fault.empty() ? GrowthFault(algorithm, hyper) : fault;
}

}  // namespace bitshard::optim
