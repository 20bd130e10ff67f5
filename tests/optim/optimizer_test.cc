#include "optim/optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/schedulers/reduce_on_plateau_scheduler.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/optim/error_of.h"

namespace bitshard::optim {
namespace {

using ::testing::HasSubstr;
using torch::Tensor;
using torch::optim::OptimizerParamGroup;

Tensor Parameter(torch::IntArrayRef shape, uint64_t seed) {
  torch::manual_seed(seed);
  return torch::randn(shape).requires_grad_(true);
}

Tensor CopyOf(const Tensor& p) { return p.detach().clone().requires_grad_(true); }

const OptimizerState& StateOf(const torch::optim::Optimizer& optimizer, const Tensor& p) {
  return static_cast<const OptimizerState&>(*optimizer.state().at(p.unsafeGetTensorImpl()));
}

// The largest distance after 50 steps of both optimizers on copies of one parameter with the same
// gradients.
template <class Ours, class Theirs>
double DistanceFromTorch(Ours&& ours, Theirs&& theirs) {
  const Tensor start = Parameter({1000}, 1);
  Tensor a = CopyOf(start), b = CopyOf(start);
  auto our_optimizer = ours(std::vector<Tensor>{a});
  auto their_optimizer = theirs(std::vector<Tensor>{b});
  for (int i = 0; i < 50; ++i) {
    a.mutable_grad() = torch::randn_like(start);
    b.mutable_grad() = a.grad().clone();
    our_optimizer.step();
    their_optimizer.step();
  }
  EXPECT_GT((a - start).abs().max().item<double>(), 0.01);
  return (a - b).abs().max().item<double>();
}

#define OURS(Name, options) [](auto p) { return Name(p, options); }
#define TORCHS(Name, options) [](auto p) { return torch::optim::Name(p, torch::optim::options); }

// Parameters stay below 8 and are rounded once a step, the update in a few operations, so a step
// adds less than 2^-20. A term that is missing or misplaced moves them by more than 1e-3.
constexpr double kBound = 50 * 0x1p-20;

TEST(Optimizer, MatchesTorchWith32BitState) {
  EXPECT_LT(DistanceFromTorch(OURS(Adam, AdamOptions(1e-2).bits(32).weight_decay(0.1)),
                              TORCHS(Adam, AdamOptions(1e-2).weight_decay(0.1))),
            kBound);
  EXPECT_LT(
      DistanceFromTorch(
          OURS(Adam, AdamOptions(1e-2).bits(32).weight_decay(0.1).decoupled_weight_decay(true)),
          TORCHS(AdamW, AdamWOptions(1e-2).weight_decay(0.1))),
      kBound);
  EXPECT_LT(DistanceFromTorch(OURS(AdamW, AdamWOptions(1e-2).bits(32)),
                              TORCHS(AdamW, AdamWOptions(1e-2))),
            kBound);
  EXPECT_LT(DistanceFromTorch(OURS(SGD, SGDOptions(1e-2).momentum(0.9).bits(32).weight_decay(0.1)),
                              TORCHS(SGD, SGDOptions(1e-2).momentum(0.9).weight_decay(0.1))),
            kBound);
  EXPECT_LT(DistanceFromTorch(OURS(RMSprop, RMSpropOptions().bits(32).weight_decay(0.1)),
                              TORCHS(RMSprop, RMSpropOptions(1e-2).weight_decay(0.1))),
            kBound);
  EXPECT_LT(DistanceFromTorch(OURS(Adagrad, AdagradOptions().bits(32).weight_decay(0.1)),
                              TORCHS(Adagrad, AdagradOptions(1e-2).weight_decay(0.1))),
            kBound);
}

TEST(Optimizer, TrainsWith8BitStateInBlocksOfAnySize) {
  for (const int64_t block_size : {64, 128, 256}) {
    const double distance = DistanceFromTorch(
        [=](auto p) {
          return AdamW(p, AdamWOptions(1e-2).block_size(block_size).min_8bit_size(0));
        },
        TORCHS(AdamW, AdamWOptions(1e-2)));
    EXPECT_GT(distance, 1e-4);  // 8 bits are not 32,
    EXPECT_LT(distance, 0.1);   // but the parameters have moved by about 50 * 1e-2 and stay near.
  }
}

// How far one step moves parameters, and a gradient that is the same for all elements.
template <class Optimizer, class Options>
Tensor Moved(const Tensor& start, const Options& options) {
  Tensor p = CopyOf(start);
  Optimizer optimizer(std::vector<Tensor>{p}, options);
  p.mutable_grad() = torch::full_like(p, 3.0);
  optimizer.step();
  return start - p.detach();
}

TEST(Optimizer, LimitsTheUpdateOfLambAndLarsByTheParametersNorm) {
  const Tensor small = torch::full({6000}, 1e-2), norm = small.norm();
  // Adam's first update is 1 for each element, 100 times the parameter: it is cut to its norm.
  EXPECT_TRUE(torch::allclose(Moved<LAMB>(small, LAMBOptions(0.1)).norm(), 0.1 * norm));
  EXPECT_TRUE(
      torch::allclose(Moved<LARS>(small, LARSOptions(1).momentum(0.9)).norm(), 0.02 * norm));
  EXPECT_TRUE(torch::allclose(Moved<AdamW>(small, AdamWOptions(0.1).weight_decay(0).max_unorm(2)),
                              0.1 * 2 * small));
  EXPECT_TRUE(torch::allclose(Moved<AdamW>(small, AdamWOptions(0.1).weight_decay(0)),
                              torch::full({6000}, 0.1)));
}

TEST(AdEMAMix, AddsTheSlowAverageThatItsSchedulesLetIn) {
  const Tensor start = torch::zeros({100});
  // m1 / c1 = g, m2 = (1 - beta3) g, sqrt(v) / c2 = |g|.
  const auto first = [&](const AdEMAMixOptions& options) {
    return Moved<AdEMAMix>(start, options)[0].item<double>();
  };
  EXPECT_NEAR(first(AdEMAMixOptions(0.1).betas({0.9, 0.999, 0.9})), 0.1 * (1 + 5 * 0.1), 1e-6);
  EXPECT_NEAR(first(AdEMAMixOptions(0.1).betas({0.9, 0.999, 0.9}).t_alpha(10)),
              0.1 * (1 + 0.5 * 0.1), 1e-6);
  EXPECT_NEAR(first(AdEMAMixOptions(0.1).alpha(2).t_beta3(1)), 0.1 * (1 + 2 * 1e-4), 1e-6);
}

TEST(Optimizer, KeepsSmallTensorsIn32Bits) {
  Tensor large = Parameter({4096}, 4), small = Parameter({4095}, 5);
  AdamW optimizer(std::vector<Tensor>{large, small}, AdamWOptions(1e-2));
  for (const Tensor& p : {large, small}) p.mutable_grad() = torch::randn_like(p);
  optimizer.step();
  EXPECT_EQ(StateOf(optimizer, large).state1().scalar_type(), torch::kUInt8);
  EXPECT_EQ(StateOf(optimizer, small).state1().scalar_type(), torch::kFloat);
  EXPECT_EQ(optimizer.Summary(),
            "AdamW: 8-bit state for 1 tensors of 4096 elements, 32-bit for 1 of 4095; 41080 bytes");
}

TEST(Optimizer, TakesGradientsThatAreAbsentReplacedExpandedOrStrided) {
  Tensor with = Parameter({40, 30}, 6), without = Parameter({300}, 7);
  Tensor plain = CopyOf(with);
  const Tensor before = without.detach().clone();
  AdamW optimizer(std::vector<Tensor>{with, without}, AdamWOptions(1e-2));
  AdamW reference(std::vector<Tensor>{plain}, AdamWOptions(1e-2));
  const Tensor gradients[] = {torch::randn({30, 40}).t(), torch::randn({30}).expand({40, 30}),
                              torch::ones({40, 30}, torch::kBFloat16),
                              torch::ones({40, 30}, torch::kHalf)};
  for (const Tensor& gradient : gradients) {
    with.mutable_grad() = gradient;
    plain.mutable_grad() = gradient.to(torch::kFloat).contiguous();
    optimizer.step();
    reference.step();
    EXPECT_TRUE(torch::equal(with.detach(), plain.detach()));
  }
  with.mutable_grad() = torch::ones({40, 30});
  optimizer.zero_grad();
  EXPECT_FALSE(with.grad().defined());
  EXPECT_TRUE(torch::equal(before, without.detach()));
  EXPECT_EQ(optimizer.state().count(without.unsafeGetTensorImpl()), 0u);
}

TEST(Optimizer, NeverMovesTheUsersStorage) {
  const Tensor arena = torch::randn({10000});
  const Tensor before = arena.clone();
  Tensor slice = arena.slice(0, 17, 5017).detach().requires_grad_(true);
  Tensor strided = arena.slice(0, 5100, 6000, 3).detach().requires_grad_(true);
  const std::vector<Tensor> copies = {CopyOf(slice), CopyOf(strided)};
  const void* at = slice.data_ptr();
  AdamW ours(std::vector<Tensor>{slice, strided}), reference(copies);
  for (int i = 0; i < 2; ++i) {
    slice.mutable_grad() = torch::randn({5000});
    strided.mutable_grad() = torch::randn({300});
    copies[0].mutable_grad() = slice.grad();
    copies[1].mutable_grad() = strided.grad();
    ours.step();
    reference.step();
  }
  EXPECT_EQ(slice.data_ptr(), at);
  EXPECT_TRUE(torch::equal(arena.slice(0, 17, 5017), copies[0].detach()));
  EXPECT_TRUE(torch::equal(arena.slice(0, 5100, 6000, 3), copies[1].detach()));
  EXPECT_TRUE(torch::equal(arena.slice(0, 5101, 6000, 3), before.slice(0, 5101, 6000, 3)));
}

TEST(Optimizer, RefusesWhatItCannotStepAndChangesNothing) {
  Tensor good = Parameter({300}, 8), bad = Parameter({20}, 8);
  const Tensor before = good.detach().clone();
  AdamW optimizer(std::vector<Tensor>{good, bad}, AdamWOptions(1e-2));
  const auto refused = [&](const Tensor& gradient) {
    good.mutable_grad() = torch::ones({300});
    bad.mutable_grad() = gradient;
    const std::string error = ErrorOf([&] { optimizer.step(); });
    EXPECT_TRUE(torch::equal(good.detach(), before));
    EXPECT_TRUE(optimizer.state().empty());
    return error;
  };
  EXPECT_THAT(refused(torch::zeros({20}).to_sparse()),
              HasSubstr("parameter 1 of group 0: the gradient is Sparse"));
  EXPECT_THAT(refused(torch::zeros({20}, torch::kComplexFloat)), HasSubstr("ComplexFloat"));
  EXPECT_THAT(refused(torch::zeros({20}, torch::kDouble)), HasSubstr("want float32"));
  EXPECT_THAT(refused(torch::zeros({20}, torch::kMeta)), HasSubstr("is on meta"));
  EXPECT_THAT(refused(torch::zeros({19})), HasSubstr("shape is [19], the parameter's [20]"));
  EXPECT_THAT(refused(torch::zeros({4, 5})), HasSubstr("shape is [4, 5], the parameter's [20]"));
  Tensor expanded = torch::zeros({1}).expand({20}).detach().requires_grad_(true);
  expanded.mutable_grad() = torch::ones({20});
  EXPECT_THAT(ErrorOf([&] { AdamW(std::vector<Tensor>{expanded}).step(); }),
              HasSubstr("share memory"));
}

TEST(Optimizer, LetsNonFiniteGradientsThroughAsTorchDoes) {
  Tensor p = Parameter({10}, 1);
  AdamW optimizer(std::vector<Tensor>{p}, AdamWOptions(1e-2));
  p.mutable_grad() = torch::zeros({10});
  p.grad()[3] = std::numeric_limits<float>::quiet_NaN();
  optimizer.step();
  EXPECT_TRUE(torch::equal(p.detach().isnan(), p.grad().isnan()));
}

TEST(Optimizer, IsNoticedByAutograd) {
  Tensor p = Parameter({10}, 1);
  AdamW optimizer(std::vector<Tensor>{p}, AdamWOptions(1e-2));
  const Tensor loss = (p * p).sum();
  p.mutable_grad() = torch::ones({10});
  optimizer.step();
  EXPECT_THAT(ErrorOf([&] { loss.backward(); }), HasSubstr("inplace"));
}

TEST(Optimizer, CallsItsClosureWithGradientsOn) {
  Tensor p = Parameter({10}, 1);
  Lion optimizer(std::vector<Tensor>{p}, LionOptions(0.5));
  const Tensor before = p.detach().clone();
  const torch::NoGradGuard outside;
  const Tensor loss = optimizer.step([&] {
    optimizer.zero_grad();
    Tensor sum = p.sum();
    sum.backward();
    return sum;
  });
  EXPECT_TRUE(torch::equal(loss, before.sum()));
  EXPECT_TRUE(torch::equal(p.detach(), before - 0.5));
}

TEST(Optimizer, StepsEachGroupWithItsOwnOptions) {
  Tensor a = torch::zeros({5}).requires_grad_(true), b = CopyOf(a), c = CopyOf(a);
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<Tensor>{a});
  groups.emplace_back(std::vector<Tensor>{b}, std::make_unique<LionOptions>(0.25));
  Lion optimizer(groups, LionOptions(1.0));
  optimizer.add_param_group(
      OptimizerParamGroup(std::vector<Tensor>{c}, std::make_unique<LionOptions>(2.0)));
  for (const Tensor& p : {a, b, c}) p.mutable_grad() = torch::ones({5});
  optimizer.step();
  EXPECT_EQ(a[0].item<float>(), -1.0f);
  EXPECT_EQ(b[0].item<float>(), -0.25f);
  EXPECT_EQ(c[0].item<float>(), -2.0f);
  static_cast<LionOptions&>(optimizer.param_groups()[0].options()).lr() = 0;
  optimizer.step();
  EXPECT_EQ(a[0].item<float>(), -1.0f);
  static_cast<LionOptions&>(optimizer.param_groups()[1].options()).lr() = -1;
  EXPECT_THAT(ErrorOf([&] { optimizer.step(); }), HasSubstr("Lion: group 1: lr: got -1"));
  EXPECT_EQ(c[0].item<float>(), -4.0f);
}

TEST(Optimizer, RefusesAGroupOutOfRangeAndKeepsThoseItHas) {
  Tensor a = torch::zeros({5}).requires_grad_(true), b = CopyOf(a);
  AdamW optimizer(std::vector<Tensor>{a}, AdamWOptions(1e-3));
  const auto refusal = [&](std::unique_ptr<torch::optim::OptimizerOptions> options) {
    const OptimizerParamGroup group(std::vector<Tensor>{b}, std::move(options));
    const std::string error = ErrorOf([&] { optimizer.add_param_group(group); });
    EXPECT_EQ(optimizer.param_groups().size(), 1u);
    return error;
  };
  EXPECT_THAT(refusal(std::make_unique<AdamWOptions>(NAN)),
              HasSubstr("AdamW: group 1: lr: got nan, want a finite number at least 0"));
  EXPECT_THAT(refusal(std::make_unique<AdamWOptions>(AdamWOptions().betas({0.9, 2}))),
              HasSubstr("group 1: beta2: got 2"));
  EXPECT_THAT(refusal(std::make_unique<LionOptions>()), HasSubstr("group 1 has options of Lion"));
  // A group without options gets the defaults, whatever they have become.
  optimizer.defaults().set_lr(-1);
  EXPECT_THAT(ErrorOf([&] { optimizer.add_param_group(OptimizerParamGroup({b})); }),
              HasSubstr("group 1: lr: got -1"));
  EXPECT_EQ(optimizer.param_groups().size(), 1u);
  // torch's own function takes it; the step does not.
  static_cast<torch::optim::Optimizer&>(optimizer).add_param_group(OptimizerParamGroup({b}));
  a.mutable_grad() = torch::ones({5});
  EXPECT_THAT(ErrorOf([&] { optimizer.step(); }), HasSubstr("group 1: lr: got -1"));
  EXPECT_EQ(a[0].item<float>(), 0.0f);
}

TEST(Optimizer, RefusesAStepAtALearningRateThatASchedulerMadeNan) {
  Tensor p = torch::zeros({5000}).requires_grad_(true);
  p.mutable_grad() = torch::ones({5000});
  AdamW optimizer(std::vector<Tensor>{p}, AdamWOptions(0.5));
  torch::optim::StepLR scheduler(optimizer, /*step_size=*/1, /*gamma=*/NAN);
  optimizer.step();
  const Tensor before = p.detach().clone();
  scheduler.step();
  scheduler.step();  // LibTorch's StepLR begins a call late.
  EXPECT_THAT(ErrorOf([&] { optimizer.step(); }), HasSubstr("AdamW: group 0: lr: got nan"));
  EXPECT_TRUE(torch::equal(p.detach(), before));
  optimizer.param_groups()[0].options().set_lr(0.5);
  optimizer.step();
  EXPECT_TRUE(p.isfinite().all().item<bool>());
  EXPECT_FALSE(torch::equal(p.detach(), before));
}

TEST(Optimizer, FollowsLearningRateSchedulers) {
  Tensor p = torch::zeros({100}).requires_grad_(true);
  Lion optimizer(std::vector<Tensor>{p}, LionOptions(1.0));
  p.mutable_grad() = torch::ones({100});
  torch::optim::StepLR scheduler(optimizer, /*step_size=*/1, /*gamma=*/0.5);
  for (int i = 0; i < 3; ++i) {
    optimizer.step();
    scheduler.step();
  }
  // Lion moves by lr; LibTorch's StepLR begins a call late: 1, 1, 0.5.
  EXPECT_EQ(p[0].item<float>(), -2.5f);
  torch::optim::ReduceLROnPlateauScheduler plateau(optimizer,
                                                   torch::optim::ReduceLROnPlateauScheduler::min,
                                                   /*factor=*/0.1f, /*patience=*/0);
  const double rate = optimizer.param_groups()[0].options().get_lr();
  plateau.step(1.0);
  plateau.step(2.0);
  EXPECT_NEAR(optimizer.param_groups()[0].options().get_lr(), 0.1 * rate, 1e-7);
}

TEST(Optimizer, StepsMasterWeightsInThePlaceOf16BitParameters) {
  for (const auto type : {torch::kBFloat16, torch::kHalf}) {
    Tensor narrow = Parameter({5000}, 1).detach().to(type).requires_grad_(true);
    Tensor wide = narrow.detach().to(torch::kFloat).requires_grad_(true);
    AdamW master(std::vector<Tensor>{narrow}, AdamWOptions(1e-4).master_weights(true));
    AdamW reference(std::vector<Tensor>{wide}, AdamWOptions(1e-4));
    for (int i = 0; i < 5; ++i) {
      narrow.mutable_grad() = torch::randn({5000}).to(type);
      wide.mutable_grad() = narrow.grad().to(torch::kFloat);
      master.step();
      reference.step();
      EXPECT_TRUE(torch::equal(narrow.detach(), wide.detach().to(type)));
    }
    EXPECT_TRUE(torch::equal(StateOf(master, narrow).master(), wide.detach()));
    EXPECT_EQ(StateOf(master, narrow).bytes(), 5000 * (2 + 4) + 2 * 20 * 4);
  }
}

TEST(Optimizer, KeepsSmallStepsByStochasticRounding) {
  // 100 steps of 1e-5; between bfloat16's neighbours below 1 lie 2^-8.
  const auto mean = [](bool stochastic) {
    Tensor p = torch::ones({100000}, torch::kBFloat16).requires_grad_(true);
    Lion optimizer(std::vector<Tensor>{p}, LionOptions(1e-5).stochastic_rounding(stochastic));
    p.mutable_grad() = torch::ones({100000});
    for (int i = 0; i < 100; ++i) optimizer.step();
    return p.detach().to(torch::kDouble).mean().item<double>();
  };
  EXPECT_EQ(mean(false), 1.0);
  // Standard deviation of the mean: 2^-8 sqrt(100 * 0.0026 / 1e5) = 6e-6.
  EXPECT_NEAR(mean(true), 1.0 - 1e-3, 4e-5);
}

TEST(Optimizer, GivesReplacedParametersStateOfTheirOwn) {
  Lion optimizer(std::vector<Tensor>{Parameter({10}, 1)}, LionOptions(1e-2));
  for (int64_t n = 1; n < 50; ++n) {  // Freed tensors' addresses would be used again.
    Tensor& p = optimizer.param_groups()[0].params()[0];
    p = Parameter({n * 100}, 1);
    p.mutable_grad() = torch::ones({n * 100});
    optimizer.step();
    EXPECT_EQ(StateOf(optimizer, p).step(), 1);
    EXPECT_EQ(StateOf(optimizer, p).state1().numel(), n * 100);
    EXPECT_EQ(optimizer.state().size(), 1u);
  }
  Tensor p = optimizer.param_groups()[0].params()[0];
  p.set_data(torch::zeros({7}));
  p.mutable_grad() = torch::zeros({7});
  EXPECT_THAT(ErrorOf([&] { optimizer.step(); }), HasSubstr("has 7 elements, its state 4900"));
}

}  // namespace
}  // namespace bitshard::optim
