// The options classes, and options by the names of parameters.
#include "optim/torch_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/optim/adamw.h>
#include <torch/serialize/archive.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <memory>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "optim/optimizer.h"
#include "optim/param_groups.h"
#include "tests/optim/error_of.h"

namespace bitshard::optim {
namespace {

using ::testing::HasSubstr;
using torch::Tensor;
using torch::optim::OptimizerParamGroup;

Tensor Parameter(int64_t n, uint64_t seed) {
  torch::manual_seed(seed);
  return torch::randn({n}).requires_grad_(true);
}

TEST(Options, AreAsInBitsandbytes) {
  EXPECT_EQ(AdamOptions().weight_decay(), 0);
  EXPECT_EQ(AdamWOptions().weight_decay(), 1e-2);
  EXPECT_EQ(AdamWOptions().betas(), std::make_tuple(0.9, 0.999));
  EXPECT_EQ(LionOptions().lr(), 1e-4);
  EXPECT_EQ(LionOptions().betas(), std::make_tuple(0.9, 0.99));
  EXPECT_EQ(LAMBOptions().max_unorm(), 1);
  EXPECT_EQ(LAMBOptions().weight_decay(), 0);
  EXPECT_EQ(LARSOptions(1).max_unorm(), 0.02);
  EXPECT_EQ(RMSpropOptions().lr(), 1e-2);
  EXPECT_EQ(RMSpropOptions().alpha(), 0.99);
  EXPECT_EQ(AdagradOptions().eps(), 1e-10);
  EXPECT_EQ(AdEMAMixOptions().betas(), std::make_tuple(0.9, 0.999, 0.9999));
  EXPECT_EQ(AdEMAMixOptions().alpha(), 5);
  EXPECT_EQ(AdEMAMixOptions().weight_decay(), 1e-2);
}

TEST(Options, AreRefusedOutOfRangeAndForOtherAlgorithms) {
  const std::vector<Tensor> p = {Parameter(10, 9)};
  EXPECT_THAT(ErrorOf([&] { AdamW(p, AdamWOptions(-1)); }), HasSubstr("AdamW: lr: got -1"));
  EXPECT_THAT(ErrorOf([&] { AdamW(p, AdamWOptions().eps(-1)); }), HasSubstr("eps: got -1"));
  EXPECT_THAT(ErrorOf([&] { AdamW(p, AdamWOptions().weight_decay(-1)); }),
              HasSubstr("weight_decay: got -1"));
  EXPECT_THAT(ErrorOf([&] { AdamW(p, AdamWOptions().max_unorm(-1)); }),
              HasSubstr("max_unorm: got -1"));
  EXPECT_THAT(ErrorOf([&] { AdamW(p, AdamWOptions().bits(4)); }), HasSubstr("bits: got 4"));
  EXPECT_THAT(ErrorOf([&] { AdamW(p, AdamWOptions().block_size(100)); }),
              HasSubstr("block_size: got 100, want 64, 128 or 256"));
  EXPECT_THAT(ErrorOf([&] {
                AdamW(p, AdamWOptions().betas({1, 0.9}));
              }),
              HasSubstr("AdamW: beta1: got 1, want at least 0 and below 1"));
  EXPECT_THAT(ErrorOf([&] { Lion(p, LionOptions().betas({0.9, 1})); }), HasSubstr("beta2: got 1"));
  EXPECT_THAT(ErrorOf([&] {
                Lion(p, LionOptions().betas({-0.1, 0.9}));
              }),
              HasSubstr("beta1: got -0.1"));
  EXPECT_THAT(ErrorOf([&] {
                AdEMAMix(p, AdEMAMixOptions().betas({0.9, 0.9, 1}));
              }),
              HasSubstr("beta3: got 1"));
  EXPECT_THAT(ErrorOf([&] { RMSprop(p, RMSpropOptions().alpha(1)); }), HasSubstr("alpha: got 1"));
  EXPECT_THAT(ErrorOf([&] { AdEMAMix(p, AdEMAMixOptions().alpha(NAN)); }),
              HasSubstr("AdEMAMix: alpha: got nan, want a finite number"));
  EXPECT_THAT(ErrorOf([&] { AdEMAMix(p, AdEMAMixOptions().t_alpha(-1)); }),
              HasSubstr("t_alpha: got -1, want at least 0"));
  // Decoupled, it is stepped as AdamW.
  EXPECT_THAT(ErrorOf([&] {
                Adam(p, AdamOptions().decoupled_weight_decay(true).betas({0.9, NAN}));
              }),
              HasSubstr("Adam: beta2: got nan"));
  EXPECT_THAT(ErrorOf([&] {
                AdEMAMix(p, AdEMAMixOptions().betas({0, 0.9, 0.9}).t_beta3(5));
              }),
              HasSubstr("beta1: got 0, want above 0: beta3 grows from beta1 over 5 steps"));
  EXPECT_THAT(ErrorOf([&] { SGD(p, SGDOptions(0.1)); }), HasSubstr("torch::optim::SGD serves"));
  EXPECT_THAT(ErrorOf([&] { SGD(p, SGDOptions(0.1).momentum(1)); }), HasSubstr("momentum: got 1"));
  EXPECT_THAT(ErrorOf([&] { LARS(p, LARSOptions(0.1)); }), HasSubstr("LARS: momentum: got 0"));
  EXPECT_THAT(
      ErrorOf([&] { AdamW(p, AdamWOptions().master_weights(true).stochastic_rounding(true)); }),
      HasSubstr("want one of them"));
  const auto with = [&](auto options) {
    std::vector<OptimizerParamGroup> groups;
    groups.emplace_back(p, std::move(options));
    return ErrorOf([&] { AdamW optimizer(groups); });
  };
  EXPECT_THAT(with(std::make_unique<LionOptions>()), HasSubstr("group 0 has options of Lion"));
  EXPECT_THAT(with(std::make_unique<torch::optim::AdamWOptions>()),
              HasSubstr("options of another library"));
  // Also where every group has options of its own.
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(p, std::make_unique<AdamWOptions>(1e-3));
  EXPECT_THAT(ErrorOf([&] { AdamW(groups, AdamWOptions(-1)); }), HasSubstr("AdamW: lr: got -1"));
}

TEST(Options, AreRefusedWhereTheyWouldMakeEveryParameterNan) {
  const std::vector<Tensor> p = {Parameter(10, 9)};
  for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    EXPECT_THAT(ErrorOf([&] { Lion(p, LionOptions(bad)); }), HasSubstr("Lion: lr: got"));
    EXPECT_THAT(ErrorOf([&] { SGD(p, SGDOptions(0.1).momentum(bad)); }), HasSubstr("momentum"));
    EXPECT_THAT(ErrorOf([&] { LARS(p, LARSOptions(0.1).momentum(bad)); }), HasSubstr("momentum"));
    EXPECT_THAT(ErrorOf([&] { Adagrad(p, AdagradOptions().eps(bad)); }), HasSubstr("eps: got"));
    EXPECT_THAT(ErrorOf([&] { LAMB(p, LAMBOptions().weight_decay(bad)); }),
                HasSubstr("LAMB: weight_decay: got"));
  }
  EXPECT_THAT(ErrorOf([&] { LAMB(p, LAMBOptions().max_unorm(NAN)); }), HasSubstr("max_unorm"));
  EXPECT_NO_THROW(LAMB(p, LAMBOptions().max_unorm(INFINITY)));  // No limit, as in bitsandbytes.
  EXPECT_NO_THROW(AdEMAMix(p, AdEMAMixOptions().alpha(-1)));    // As in bitsandbytes.
  EXPECT_NO_THROW(AdamW(p, AdamWOptions(0).betas({0, 0}).eps(0).weight_decay(0)));
}

TEST(Options, ComeBackFromAnArchive) {
  AdEMAMixOptions saved, loaded;
  // A value of its own for each, so that two that change places are found out.
  saved.set_values({.hyper = {.learning_rate = 0.11,
                              .beta1 = 0.12,
                              .beta2 = 0.13,
                              .eps = 0.14,
                              .weight_decay = 0.15,
                              .beta3 = 0.16,
                              .alpha = 0.17,
                              .alpha_steps = 18,
                              .beta3_steps = 19},
                    .max_unorm = 0.20,
                    .bits = 32,
                    .min_8bit_size = 22,
                    .block_size = 64,
                    .decoupled_weight_decay = true,
                    .master_weights = true,
                    .stochastic_rounding = true,
                    .seed = 23});
  torch::serialize::OutputArchive out;
  saved.serialize(out);
  std::stringstream file;
  out.save_to(file);
  torch::serialize::InputArchive in;
  in.load_from(file);
  loaded.serialize(in);
  const auto all = [](const BlockwiseOptions& options) {
    const OptionValues& v = options.values();
    const StepHyper& h = v.hyper;
    return std::make_tuple(h.learning_rate, h.beta1, h.beta2, h.eps, h.weight_decay, h.beta3,
                           h.alpha, h.alpha_steps, h.beta3_steps, v.max_unorm, v.bits,
                           v.min_8bit_size, v.block_size, v.decoupled_weight_decay,
                           v.master_weights, v.stochastic_rounding, v.seed);
  };
  EXPECT_EQ(all(loaded), all(saved));
}

TEST(ParamGroups, OverrideOptionsOfNamesThatMatch) {
  torch::OrderedDict<std::string, Tensor> named;
  for (const char* name : {"embed.weight", "layers.0.weight", "layers.0.bias", "layers.1.bias"})
    named.insert(name, Parameter(8, 1));
  const AdamWOptions options = AdamWOptions(1e-3).weight_decay(0.1);
  const auto groups =
      ParamGroups(named, options,
                  {{.pattern = "*.bias", .lr = 1e-2, .weight_decay = 0},
                   {.pattern = "layers.1.*", .lr = 5e-2, .bits = 8, .block_size = 64},
                   {.pattern = "embed.weight", .bits = 32}});
  ASSERT_EQ(groups.size(), 4u);
  const auto of = [&](size_t i) -> const AdamWOptions& {
    return static_cast<const AdamWOptions&>(groups[i].options());
  };
  EXPECT_TRUE(groups[0].params()[0].is_same(named["embed.weight"]));
  EXPECT_EQ(of(0).bits(), 32);
  EXPECT_EQ(of(1).weight_decay(), 0.1);
  EXPECT_TRUE(groups[2].params()[0].is_same(named["layers.0.bias"]));
  EXPECT_EQ(of(2).lr(), 1e-2);
  EXPECT_EQ(of(3).lr(), 5e-2);  // The last that gives a value,
  EXPECT_EQ(of(3).weight_decay(), 0);
  EXPECT_EQ(of(3).block_size(), 64);
  EXPECT_EQ(of(0).min_8bit_size(), 0);     // What is named gets the bits that were given,
  EXPECT_EQ(of(2).min_8bit_size(), 4096);  // and nothing else does.
  EXPECT_NO_THROW(AdamW(groups, options));
  EXPECT_THAT(
      ErrorOf([&] { ParamGroups(named, options, {{.pattern = "layer.*", .bits = 8}}); }),
      HasSubstr("the pattern \"layer.*\" matches no tensor; the nearest is layers.0.weight"));
  // All of them are small.
  EXPECT_THAT(ErrorOf([&] { ParamGroups(named, options, {{.pattern = "*", .block_size = 64}}); }),
              HasSubstr("the pattern \"*\": block_size: all parameters that it names have 32-bit"));
  EXPECT_THAT(ErrorOf([&] { ParamGroups(named, options, {{.pattern = "*"}}); }),
              HasSubstr("without a value"));
}

}  // namespace
}  // namespace bitshard::optim
