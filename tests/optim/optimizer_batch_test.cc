// Parameters of one group that differ in type, step, state or rounding: each is stepped as in an
// optimizer of its own, whatever lies beside it.
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/serialize.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "optim/optimizer.h"

namespace bitshard::optim {
namespace {

using torch::Tensor;

Tensor Parameter(int64_t n, uint64_t seed, torch::ScalarType type = torch::kFloat) {
  torch::manual_seed(seed);
  return torch::randn({n}).to(type).requires_grad_(true);
}

Tensor CopyOf(const Tensor& p) { return p.detach().clone().requires_grad_(true); }

// A parameter in an optimizer beside others, and its copy in one of its own.
struct Twin {
  Tensor beside;
  Tensor alone;
  torch::ScalarType gradient_type;
  int64_t without;  // The step in which it has no gradient; -1: none.
};

// `change`: called with each optimizer before step 1 (from 0).
template <class Optimizer, class Options, class Change>
void ExpectEachAsIfAlone(std::vector<Twin> twins, const Options& options, Change&& change) {
  std::vector<Tensor> parameters;
  std::vector<std::unique_ptr<Optimizer>> optimizers;
  for (const Twin& twin : twins) {
    parameters.push_back(twin.beside);
    optimizers.push_back(std::make_unique<Optimizer>(std::vector<Tensor>{twin.alone}, options));
  }
  optimizers.push_back(std::make_unique<Optimizer>(parameters, options));
  for (int64_t step = 0; step < 3; ++step) {
    for (Twin& twin : twins) {
      twin.beside.mutable_grad() =
          step == twin.without ? Tensor() : torch::randn_like(twin.beside).to(twin.gradient_type);
      twin.alone.mutable_grad() = twin.beside.grad();
    }
    for (const auto& optimizer : optimizers) {
      if (step == 1) change(static_cast<Options&>(optimizer->param_groups()[0].options()));
      optimizer->step();
    }
    for (size_t i = 0; i < twins.size(); ++i) {
      EXPECT_TRUE(torch::equal(twins[i].beside.detach(), twins[i].alone.detach()))
          << "parameter " << i << " in step " << step;
    }
  }
}

Twin MakeTwin(int64_t n, torch::ScalarType type, torch::ScalarType gradient_type,
              int64_t without = -1) {
  Tensor p = Parameter(n, static_cast<uint64_t>(n), type);
  return {p, CopyOf(p), gradient_type, without};
}

std::vector<Twin> OfAllTypes() {
  return {MakeTwin(700, torch::kFloat, torch::kFloat),
          MakeTwin(300, torch::kBFloat16, torch::kFloat),
          MakeTwin(301, torch::kBFloat16, torch::kBFloat16),
          MakeTwin(302, torch::kHalf, torch::kFloat),
          MakeTwin(303, torch::kFloat, torch::kBFloat16),
          MakeTwin(304, torch::kFloat, torch::kFloat, /*without=*/0),
          MakeTwin(305, torch::kFloat, torch::kFloat, /*without=*/1),
          MakeTwin(900, torch::kFloat, torch::kFloat)};
}

TEST(OptimizerBatch, StepsEachParameterAsIfAlone) {
  const auto keep = [](auto&) {};
  ExpectEachAsIfAlone<AdamW>(OfAllTypes(), AdamWOptions(1e-2).min_8bit_size(0), keep);
  ExpectEachAsIfAlone<AdamW>(OfAllTypes(), AdamWOptions(1e-2).master_weights(true), keep);
  // Each tensor's limit comes from its own norms.
  ExpectEachAsIfAlone<LAMB>(OfAllTypes(), LAMBOptions(0.5).max_unorm(0.1), keep);
}

TEST(OptimizerBatch, KeepsBlocksThatStateWasMadeWith) {
  ExpectEachAsIfAlone<AdamW>(OfAllTypes(), AdamWOptions(1e-2).min_8bit_size(0).block_size(64),
                             [](AdamWOptions& options) { options.block_size(256); });
}

TEST(OptimizerBatch, KeepsMasterWeightsWhereOthersAreRoundedAtRandom) {
  Tensor first = Parameter(300, 1, torch::kBFloat16), second = Parameter(301, 1, torch::kBFloat16);
  Tensor wide = first.detach().to(torch::kFloat).requires_grad_(true);
  AdamW optimizer(std::vector<Tensor>{second, first}, AdamWOptions(1e-2).master_weights(true));
  AdamW reference(std::vector<Tensor>{wide}, AdamWOptions(1e-2));
  const Tensor none;
  for (int step = 0; step < 3; ++step) {
    if (step == 1) {
      static_cast<AdamWOptions&>(optimizer.param_groups()[0].options())
          .master_weights(false)
          .stochastic_rounding(true);
    }
    // In the last step both are at their second one.
    second.mutable_grad() = step == 0 ? none : torch::ones({301}, torch::kBFloat16);
    first.mutable_grad() = step == 1 ? none : torch::randn({300}).to(torch::kBFloat16);
    wide.mutable_grad() = step == 1 ? none : first.grad().to(torch::kFloat);
    optimizer.step();
    reference.step();
    EXPECT_TRUE(torch::equal(first.detach(), wide.detach().to(torch::kBFloat16)));
  }
}

TEST(OptimizerBatch, DropsMasterWeightsOfAParameterThatBecomesFloat32) {
  Tensor p = Parameter(300, 1, torch::kBFloat16);
  AdamW optimizer(std::vector<Tensor>{p}, AdamWOptions(1e-2).master_weights(true));
  p.mutable_grad() = torch::ones({300}, torch::kBFloat16);
  optimizer.step();
  p.mutable_grad() = Tensor();
  p.set_data(p.detach().to(torch::kFloat));
  const Tensor before = p.detach().clone();
  p.mutable_grad() = torch::ones({300});
  optimizer.step();
  EXPECT_GT((p.detach() - before).abs().min().item<double>(), 1e-3);
}

// bfloat16 parameters of one value after one step, all with the same gradient.
std::vector<Tensor> RoundedAtRandom(int64_t seed, const std::vector<bool>& with_gradient) {
  std::vector<Tensor> parameters;
  for (size_t i = 0; i < with_gradient.size(); ++i)
    parameters.push_back(torch::ones({1000}, torch::kBFloat16).requires_grad_(true));
  Lion optimizer(parameters, LionOptions(1e-3).stochastic_rounding(true).seed(seed));
  for (size_t i = 0; i < with_gradient.size(); ++i) {
    if (with_gradient[i]) parameters[i].mutable_grad() = torch::ones({1000});
  }
  optimizer.step();
  return parameters;
}

TEST(OptimizerBatch, RoundsByTheSeedAndAParametersNumber) {
  const std::vector<Tensor> both = RoundedAtRandom(1, {true, true});
  EXPECT_FALSE(torch::equal(both[0], both[1]));
  EXPECT_TRUE(torch::equal(both[1], RoundedAtRandom(1, {false, true})[1]));
  EXPECT_FALSE(torch::equal(both[0], RoundedAtRandom(2, {true, true})[0]));
}

TEST(OptimizerBatch, ReadsTensorsThatAreNegatedLater) {
  const Tensor base = torch::randn({500});
  Tensor plain = base.neg().requires_grad_(true);
  Tensor lazy = torch::_neg_view(base.clone()).detach().requires_grad_(true);
  ASSERT_TRUE(lazy.is_neg());
  AdamW a(std::vector<Tensor>{plain}, AdamWOptions(1e-2));
  AdamW b(std::vector<Tensor>{lazy}, AdamWOptions(1e-2));
  for (int step = 0; step < 2; ++step) {
    const Tensor gradient = torch::randn({500});
    plain.mutable_grad() = gradient.neg();
    lazy.mutable_grad() = torch::_neg_view(gradient);
    a.step();
    b.step();
    EXPECT_TRUE(torch::equal(plain.detach(), lazy.detach()));
  }
}

TEST(OptimizerBatch, StepsInferenceTensors) {
  Tensor p;
  {
    const c10::InferenceMode inference;
    p = torch::ones({5});
  }
  Lion optimizer(std::vector<Tensor>{p}, LionOptions(0.5));
  p.mutable_grad() = torch::ones({5});
  optimizer.step();
  EXPECT_EQ(p[0].item<float>(), 0.5f);
}

TEST(OptimizerBatch, StepsInferenceTensorsThatAreNotContiguous) {
  Tensor p;
  {
    const c10::InferenceMode inference;
    p = torch::ones({6, 5}).t();
  }
  Tensor other = torch::ones({3});
  Lion optimizer(std::vector<Tensor>{other, p}, LionOptions(0.5));
  for (Tensor* tensor : {&other, &p}) tensor->mutable_grad() = torch::ones(tensor->sizes());
  optimizer.step();
  EXPECT_TRUE(torch::equal(p, torch::full({5, 6}, 0.5)));
}

TEST(OptimizerBatch, StepsInInferenceModeAndAfterwards) {
  Tensor p = Parameter(5000, 3), twin = CopyOf(p);
  AdamW inside(std::vector<Tensor>{p}, AdamWOptions(1e-2));
  AdamW outside(std::vector<Tensor>{twin}, AdamWOptions(1e-2));
  for (int step = 0; step < 3; ++step) {
    p.mutable_grad() = torch::randn({5000});
    twin.mutable_grad() = p.grad();
    outside.step();
    const c10::InferenceMode inference(step == 0);
    inside.step();
  }
  EXPECT_TRUE(torch::equal(p.detach(), twin.detach()));
  std::stringstream file;
  torch::save(inside, file);
  torch::load(outside, file);
  EXPECT_EQ(inside.Summary(), outside.Summary());
}

TEST(OptimizerBatch, TakesParametersWithoutElements) {
  Tensor none = torch::zeros({0, 7}).requires_grad_(true), p = Parameter(300, 1), twin = CopyOf(p);
  for (const int64_t bits : {8, 32}) {
    LAMB beside(std::vector<Tensor>{none, p}, LAMBOptions(1e-2).bits(bits).min_8bit_size(0));
    LAMB alone(std::vector<Tensor>{twin}, LAMBOptions(1e-2).bits(bits).min_8bit_size(0));
    for (int step = 0; step < 2; ++step) {
      none.mutable_grad() = torch::zeros({0, 7});
      p.mutable_grad() = torch::randn({300});
      twin.mutable_grad() = p.grad();
      beside.step();
      alone.step();
      std::stringstream file;
      torch::save(beside, file);
      torch::load(beside, file);
    }
    EXPECT_TRUE(torch::equal(p.detach(), twin.detach()));
  }
}

TEST(OptimizerBatch, LeavesOutParametersThatAreUndefined) {
  Tensor p = Parameter(10, 1);
  const Tensor before = p.detach().clone();
  Lion optimizer(std::vector<Tensor>{p, Parameter(10, 2)}, LionOptions(0.5));
  optimizer.param_groups()[0].params()[1] = Tensor();
  p.mutable_grad() = torch::ones({10});
  optimizer.step();
  EXPECT_TRUE(torch::equal(p.detach(), before - 0.5));
}

}  // namespace
}  // namespace bitshard::optim
