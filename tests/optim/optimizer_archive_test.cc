// torch::save and torch::load of the torch::optim classes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/optim/adamw.h>
#include <torch/serialize.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "optim/optimizer.h"

namespace bitshard::optim {
namespace {

using ::testing::HasSubstr;
using torch::Tensor;

std::vector<Tensor> Parameters() {
  torch::manual_seed(1);
  return {torch::randn({5000}).requires_grad_(true),
          torch::randn({60, 80}).to(torch::kBFloat16).requires_grad_(true),
          torch::randn({30}).requires_grad_(true), torch::randn({20}).requires_grad_(true)};
}

std::vector<Tensor> CopiesOf(const std::vector<Tensor>& parameters) {
  std::vector<Tensor> copies;
  for (const Tensor& p : parameters) copies.push_back(p.detach().clone().requires_grad_(true));
  return copies;
}

// The last parameter never has a gradient.
void StepWith(torch::optim::Optimizer& optimizer, const std::vector<Tensor>& parameters, int seed) {
  torch::manual_seed(static_cast<uint64_t>(seed));
  for (size_t i = 0; i + 1 < parameters.size(); ++i)
    parameters[i].mutable_grad() = torch::randn_like(parameters[i]);
  optimizer.step();
}

template <class Optimizer, class Options>
void ExpectGoesOnAsIfNeverStopped(const Options& options, const Options& others) {
  const std::vector<Tensor> whole = Parameters(), stopped = CopiesOf(whole);
  Optimizer one(whole, options), first(stopped, options);
  for (int i = 0; i < 6; ++i) StepWith(one, whole, i);
  for (int i = 0; i < 3; ++i) StepWith(first, stopped, i);
  std::stringstream file;
  torch::save(first, file);
  const std::vector<Tensor> resumed = CopiesOf(stopped);  // As if in another process.
  Optimizer second(resumed, others);
  StepWith(second, resumed, 7);
  for (size_t i = 0; i < stopped.size(); ++i) resumed[i].detach().copy_(stopped[i].detach());
  torch::load(second, file);
  for (int i = 3; i < 6; ++i) StepWith(second, resumed, i);
  for (size_t i = 0; i < whole.size(); ++i)
    EXPECT_TRUE(torch::equal(whole[i].detach(), resumed[i].detach())) << i;
  EXPECT_EQ(one.Summary(), second.Summary());
}

TEST(Archive, LetsEveryAlgorithmGoOnAsIfNeverStopped) {
  ExpectGoesOnAsIfNeverStopped<Adam>(AdamOptions(1e-3).weight_decay(0.1), AdamOptions(5.0));
  ExpectGoesOnAsIfNeverStopped<AdamW>(AdamWOptions(1e-3).master_weights(true), AdamWOptions());
  ExpectGoesOnAsIfNeverStopped<AdamW>(AdamWOptions(1e-3).stochastic_rounding(true).seed(3),
                                      AdamWOptions().seed(4));
  ExpectGoesOnAsIfNeverStopped<AdamW>(AdamWOptions(1e-3).block_size(64), AdamWOptions().bits(32));
  ExpectGoesOnAsIfNeverStopped<Lion>(LionOptions(1e-3), LionOptions());
  ExpectGoesOnAsIfNeverStopped<LAMB>(LAMBOptions(1e-3).max_unorm(0.5), LAMBOptions());
  ExpectGoesOnAsIfNeverStopped<LARS>(LARSOptions(1e-3).momentum(0.9), LARSOptions(1).momentum(0.5));
  ExpectGoesOnAsIfNeverStopped<SGD>(SGDOptions(1e-3).momentum(0.9), SGDOptions(1).momentum(0.5));
  ExpectGoesOnAsIfNeverStopped<RMSprop>(RMSpropOptions(1e-3), RMSpropOptions());
  ExpectGoesOnAsIfNeverStopped<Adagrad>(AdagradOptions(1e-3).bits(32), AdagradOptions());
  ExpectGoesOnAsIfNeverStopped<AdEMAMix>(AdEMAMixOptions(1e-3).t_alpha(4).t_beta3(5),
                                         AdEMAMixOptions());
}

// What loading an archive of `saved` into `optimizer` says.
std::string LoadError(const torch::optim::Optimizer& saved, torch::optim::Optimizer& optimizer) {
  torch::serialize::OutputArchive out;
  saved.save(out);
  std::stringstream file;
  out.save_to(file);
  torch::serialize::InputArchive in;
  in.load_from(file);
  try {
    optimizer.load(in);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST(Archive, IsRefusedWhereItDoesNotFitAndChangesNothing) {
  const std::vector<Tensor> parameters = Parameters();
  AdamW optimizer(parameters, AdamWOptions(1e-3));
  StepWith(optimizer, parameters, 1);
  const std::string before = optimizer.Summary();

  Lion lion(parameters, LionOptions());
  StepWith(lion, parameters, 1);
  EXPECT_THAT(LoadError(lion, optimizer), HasSubstr("AdamW: the archive was saved from Lion"));

  torch::optim::AdamW torchs(parameters, torch::optim::AdamWOptions(1e-3));
  StepWith(torchs, parameters, 1);
  EXPECT_THAT(LoadError(torchs, optimizer), HasSubstr("saved from one of torch::optim's"));

  AdamW fewer(std::vector<Tensor>{parameters[0]}, AdamWOptions(7.0));
  EXPECT_THAT(LoadError(fewer, optimizer),
              HasSubstr("group 0: the archive has 1 parameters, the optimizer 4"));

  AdamW grown(parameters, AdamWOptions(7.0));
  grown.add_param_group(torch::optim::OptimizerParamGroup(std::vector<Tensor>{torch::randn({3})}));
  EXPECT_THAT(LoadError(grown, optimizer), HasSubstr("has 2 parameter groups, the optimizer 1"));

  std::vector<Tensor> other = Parameters();
  other[2] = torch::randn({31}).requires_grad_(true);
  AdamW larger(other, AdamWOptions(7.0));
  StepWith(larger, other, 1);
  EXPECT_THAT(LoadError(larger, optimizer),
              HasSubstr("parameter 2 of group 0: the archive's state is of 31 elements, the "
                        "parameter has 30"));

  EXPECT_EQ(optimizer.Summary(), before);
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 1e-3);
  EXPECT_EQ(LoadError(optimizer, optimizer), "no error");
}

TEST(Archive, OfAnOptimizerWithoutStateLeavesNone) {
  const std::vector<Tensor> parameters = Parameters();
  AdamW fresh(parameters, AdamWOptions(7.0)), optimizer(parameters, AdamWOptions(1e-3));
  StepWith(optimizer, parameters, 1);
  EXPECT_EQ(LoadError(fresh, optimizer), "no error");
  EXPECT_TRUE(optimizer.state().empty());
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 7.0);
}

// What loading says of an archive in which the state of a parameter was changed by `change`.
template <class Change>
std::string ErrorOfChanged(size_t parameter, Change&& change) {
  const std::vector<Tensor> parameters = Parameters();
  AdamW saved(parameters, AdamWOptions(1e-3)), optimizer(parameters, AdamWOptions(1e-3));
  StepWith(saved, parameters, 1);
  change(
      static_cast<OptimizerState&>(*saved.state().at(parameters[parameter].unsafeGetTensorImpl())));
  const std::string error = LoadError(saved, optimizer);
  EXPECT_TRUE(error == "no error" || optimizer.state().empty());
  return error;
}

TEST(Archive, IsRefusedWhereAStateIsNotWhole) {
  EXPECT_EQ(ErrorOfChanged(0, [](OptimizerState&) {}), "no error");
  EXPECT_THAT(ErrorOfChanged(0, [](OptimizerState& s) { s.block_size(100); }),
              HasSubstr("parameter 0 of group 0: blocks of 100 elements in the archive"));
  EXPECT_THAT(ErrorOfChanged(0, [](OptimizerState& s) { s.step(-1); }), HasSubstr("step -1"));
  EXPECT_THAT(ErrorOfChanged(0, [](OptimizerState& s) { s.state2(Tensor()); }),
              HasSubstr("state 2 is not what the rule needs"));
  EXPECT_THAT(ErrorOfChanged(0, [](OptimizerState& s) { s.state2(torch::zeros({5000})); }),
              HasSubstr("state 2 is not"));
  EXPECT_THAT(ErrorOfChanged(0, [](OptimizerState& s) { s.absmax1(torch::zeros({19})); }),
              HasSubstr("state 1 is not"));
  EXPECT_THAT(ErrorOfChanged(0, [](OptimizerState& s) { s.state3(s.state1()); }),
              HasSubstr("state 3 is not"));
  EXPECT_THAT(ErrorOfChanged(2, [](OptimizerState& s) { s.absmax2(torch::zeros({1})); }),
              HasSubstr("parameter 2 of group 0: the archive's state 2 is not"));
  EXPECT_THAT(ErrorOfChanged(1, [](OptimizerState& s) { s.master(torch::zeros({3})); }),
              HasSubstr("the archive's master weights are not float32 [4800]"));
}

// What loading says of an archive, written by hand, of an AdamW with one parameter and no state.
std::string ErrorOfWritten(const char* format, double rate) {
  torch::serialize::OutputArchive out, group, options;
  AdamWOptions(rate).serialize(options);
  group.write("options", options);
  group.write("parameters", c10::IValue(int64_t{1}));
  out.write("format", c10::IValue(format));
  out.write("algorithm", c10::IValue("AdamW"));
  out.write("groups", c10::IValue(int64_t{1}));
  out.write("group0", group);
  std::stringstream file;
  out.save_to(file);
  torch::serialize::InputArchive in;
  in.load_from(file);
  AdamW optimizer(std::vector<Tensor>{torch::zeros({3})}, AdamWOptions(1e-3));
  try {
    optimizer.load(in);
  } catch (const c10::Error& thrown) {
    EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 1e-3);
    return thrown.what_without_backtrace();
  }
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), rate);
  return "no error";
}

TEST(Archive, IsRefusedOfAnotherFormatOrWithOptionsOutOfRange) {
  EXPECT_EQ(ErrorOfWritten("bitshard.optim.1", 0.5), "no error");
  EXPECT_THAT(ErrorOfWritten("bitshard.optim.0", 0.5),
              HasSubstr("the archive holds no optimizer of this bitshard"));
  EXPECT_THAT(ErrorOfWritten("bitshard.optim.1", -1),
              HasSubstr("AdamW: group 0 of the archive: lr: got -1"));
  EXPECT_THAT(ErrorOfWritten("bitshard.optim.1", std::numeric_limits<double>::quiet_NaN()),
              HasSubstr("AdamW: group 0 of the archive: lr: got nan"));
}

TEST(Archive, ReplacesOptionsThatHaveGoneOutOfRange) {
  AdamW optimizer(std::vector<Tensor>{torch::zeros({3})}, AdamWOptions(1e-3));
  std::stringstream file;
  torch::save(optimizer, file);
  optimizer.param_groups()[0].options().set_lr(-1);
  torch::load(optimizer, file);
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 1e-3);
}

}  // namespace
}  // namespace bitshard::optim
