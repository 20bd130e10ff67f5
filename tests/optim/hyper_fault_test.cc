// What torch 2.x and bitsandbytes 0.50.2 refuse is refused, what they take is taken, but infinite
// values: torch/optim/adam.py, bitsandbytes/optim/optimizer.py (Optimizer1State, Optimizer2State).
#include "optim/hyper_fault.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace bitshard::optim {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Algorithm kAll[] = {Algorithm::kAdam,    Algorithm::kAdamW, Algorithm::kLion,
                              Algorithm::kLamb,    Algorithm::kLars,  Algorithm::kRmsProp,
                              Algorithm::kAdagrad, Algorithm::kSgd,   Algorithm::kAdEmaMix};

// By which name the algorithm reads the member; "" where it doesn't.
std::string NameOf(Algorithm algorithm, double StepHyper::*member) {
  const bool is_mix = algorithm == Algorithm::kAdEmaMix;
  const bool has_momentum = algorithm == Algorithm::kSgd || algorithm == Algorithm::kLars;
  const bool has_one_average = has_momentum || algorithm == Algorithm::kRmsProp;
  const bool has_averages = algorithm != Algorithm::kAdagrad;
  if (member == &StepHyper::learning_rate) return "lr";
  if (member == &StepHyper::weight_decay) return "weight_decay";
  if (member == &StepHyper::eps) return has_momentum || algorithm == Algorithm::kLion ? "" : "eps";
  if (member == &StepHyper::beta1 && has_momentum) return "momentum";
  if (member == &StepHyper::beta1 && has_one_average) return "alpha";
  if (member == &StepHyper::beta1) return has_averages ? "beta1" : "";
  if (member == &StepHyper::beta2) return has_averages && !has_one_average ? "beta2" : "";
  if (member == &StepHyper::beta3) return is_mix ? "beta3" : "";
  return is_mix ? "alpha" : "";
}

// Each of `values` in the member, of every algorithm that reads it, begins `fault` with its name.
void ExpectRefused(double StepHyper::*member, const std::vector<double>& values,
                   const std::string& wanted) {
  for (const Algorithm algorithm : kAll) {
    const std::string name = NameOf(algorithm, member);
    for (const double value : values) {
      StepHyper hyper;
      hyper.*member = value;
      const std::string fault = HyperFault(algorithm, hyper);
      if (name.empty()) {
        EXPECT_EQ(fault, "") << static_cast<int>(algorithm);
      } else {
        EXPECT_THAT(fault, StartsWith(name + ": got ")) << static_cast<int>(algorithm);
        EXPECT_THAT(fault, HasSubstr(wanted)) << static_cast<int>(algorithm);
      }
    }
  }
}

void ExpectTaken(double StepHyper::*member, const std::vector<double>& values) {
  for (const Algorithm algorithm : kAll) {
    for (const double value : values) {
      StepHyper hyper;
      hyper.*member = value;
      EXPECT_EQ(HyperFault(algorithm, hyper), "") << static_cast<int>(algorithm);
    }
  }
}

TEST(HyperFault, NamesRatesEpsAndDecayBelowZeroOrNotFinite) {
  for (const auto member : {&StepHyper::learning_rate, &StepHyper::eps, &StepHyper::weight_decay}) {
    ExpectRefused(member, {-1, -1e-300, kNan, kInfinity, -kInfinity}, "at least 0");
    ExpectTaken(member, {0, 1e-300, 0.1, 1e5, 1e30});
  }
}

TEST(HyperFault, NamesDecaysOutsideOfZeroToBelowOne) {
  for (const auto member : {&StepHyper::beta1, &StepHyper::beta2, &StepHyper::beta3}) {
    ExpectRefused(member, {-0.1, 1, 1.5, kNan, kInfinity}, "at least 0 and below 1");
    ExpectTaken(member, {0, 0.5, 0.999999});
  }
}

TEST(HyperFault, NamesWeightsOfTheSlowAverageThatAreNotFinite) {
  ExpectRefused(&StepHyper::alpha, {kNan, kInfinity, -kInfinity}, "want a finite number");
  ExpectTaken(&StepHyper::alpha, {-2, 0, 1e4});
}

TEST(HyperFault, NamesLimitsBelowZeroButNotInfiniteOnes) {
  for (const Algorithm algorithm : kAll) {
    EXPECT_EQ(HyperFault(algorithm, {}, -1), "max_unorm: got -1, want at least 0");
    EXPECT_EQ(HyperFault(algorithm, {}, kNan), "max_unorm: got nan, want a number at least 0");
    EXPECT_EQ(HyperFault(algorithm, {}, 0), "");
    EXPECT_EQ(HyperFault(algorithm, {}, kInfinity), "");
  }
}

TEST(HyperFault, NamesWhatAStepCannotBeginWith) {
  for (const Algorithm algorithm : kAll) {
    EXPECT_EQ(HyperFault(algorithm, {.step = 0}), "step: got 0, want at least 1");
    EXPECT_EQ(HyperFault(algorithm, {.gradient_scale = kNan}),
              "gradient_scale: got nan, want a finite number");
    EXPECT_EQ(HyperFault(algorithm, {.gradient_scale = kInfinity}),
              "gradient_scale: got inf, want a finite number");
    EXPECT_EQ(HyperFault(algorithm, {.gradient_scale = -1}), "");
  }
}

TEST(HyperFault, NamesSchedulesOfAdEmaMixAloneThatCannotBe) {
  const Algorithm mix = Algorithm::kAdEmaMix;
  EXPECT_EQ(HyperFault(mix, {.alpha_steps = -1}), "t_alpha: got -1, want at least 0");
  EXPECT_EQ(HyperFault(mix, {.beta3_steps = -2}), "t_beta3: got -2, want at least 0");
  EXPECT_EQ(HyperFault(mix, {.beta1 = 0, .beta3_steps = 5}),
            "beta1: got 0, want above 0: beta3 grows from beta1 over 5 steps (t_beta3)");
  EXPECT_THAT(HyperFault(mix, {.beta3 = 0, .beta3_steps = 5}), StartsWith("beta3: got 0"));
  EXPECT_EQ(HyperFault(mix, {.beta1 = 0, .beta3 = 0, .alpha_steps = 5}), "");
  EXPECT_EQ(HyperFault(mix, {.alpha_steps = 9, .beta3_steps = 9}), "");
  EXPECT_EQ(HyperFault(Algorithm::kAdamW, {.beta1 = 0, .alpha_steps = -1, .beta3_steps = 5}), "");
}

}  // namespace
}  // namespace bitshard::optim
