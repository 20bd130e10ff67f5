// What surrounds a step: the norms that max_unorm compares, how they shorten an update, and which
// arguments are refused. The arithmetic itself: step_oracle_test.py.
#include "optim/step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace bitshard::optim {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<float> Normal(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& value : x) value = normal(random);
  return x;
}

double SumOfSquares(std::span<const float> x) {
  return std::accumulate(x.begin(), x.end(), 0.0,
                         [](double sum, float v) { return sum + static_cast<double>(v) * v; });
}

// A float32 tensor with one 32-bit state: for rules of one state.
struct OneStateTensor {
  explicit OneStateTensor(size_t n, uint32_t seed = 1)
      : p(Normal(n, seed)), g(Normal(n, seed + 1)), state(n, 0.0f) {}
  StepRun Run() {
    StepRun run{
        .parameter = p.data(), .gradient = g.data(), .elems = static_cast<int64_t>(p.size())};
    run.states[0].values = state.data();
    return run;
  }
  std::vector<float> p, g, state;
};

StepArgs Args(Algorithm algorithm, std::span<const StepRun> runs) {
  return {.algorithm = algorithm,
          .hyper = {.learning_rate = 0.5, .beta1 = 0.9, .eps = 1e-8},
          .runs = runs};
}

TEST(UpdateScale, ShortensToTheLimitAndNeverLengthens) {
  // |p| = 2, |u| = 4.
  EXPECT_EQ(UpdateScale(0.5, {.parameter = 4, .update = 16}), 0.25);
  EXPECT_EQ(UpdateScale(2, {.parameter = 4, .update = 16}), 1);
  EXPECT_EQ(UpdateScale(3, {.parameter = 4, .update = 16}), 1);
  EXPECT_EQ(UpdateScale(0.02, {.parameter = 1, .update = 1}), static_cast<double>(0.02f));
}

TEST(UpdateScale, IsOneWithoutALimit) {
  EXPECT_EQ(UpdateScale(0, {.parameter = 1, .update = 1e30}), 1);
  EXPECT_EQ(UpdateScale(0, {.parameter = kNan, .update = kNan}), 1);
}

TEST(UpdateScale, IsOneWhereANormIsZeroOrNaN) {
  EXPECT_EQ(UpdateScale(0.1, {.parameter = 0, .update = 9}), 1);
  EXPECT_EQ(UpdateScale(0.1, {.parameter = 9, .update = 0}), 1);
  EXPECT_EQ(UpdateScale(0.1, {.parameter = 0, .update = 0}), 1);
  EXPECT_EQ(UpdateScale(0.1, {.parameter = kNan, .update = 9}), 1);
  EXPECT_EQ(UpdateScale(0.1, {.parameter = 9, .update = kNan}), 1);
}

TEST(UpdateScale, IsZeroWhereTheUpdateIsInfinite) {
  EXPECT_EQ(UpdateScale(0.1, {.parameter = 9, .update = kInf}), 0);
}

TEST(BlockSquares, AddElementsOfBothHalvesFirst) {
  // Half a unit of 2^54 is 2: beside it 1 is lost, and 3, the sum of elements 1, 65 and 129, is 4.
  std::vector<float> x(256, 0.0f);
  x[0] = 0x1p27f;
  x[1] = x[65] = x[129] = 1;
  EXPECT_EQ(BlockSquares(x.data(), 256), 0x1p54 + 4);
}

TEST(UpdateNorms, AreOfEachBlockOfAllRuns) {
  OneStateTensor a(600, 1), b(100, 5);
  const std::vector<StepRun> runs = {a.Run(), b.Run()};
  std::vector<BlockNorms> norms(4);  // 256, 256, 88, and 100.
  UpdateNorms(Args(Algorithm::kSgd, runs), norms);
  // SGD's first update is the gradient.
  const std::span<const float> pa = a.p, ga = a.g;
  const size_t starts[] = {0, 256, 512, 600};
  for (size_t i = 0; i < 3; ++i) {
    const size_t count = starts[i + 1] - starts[i];
    const double p = SumOfSquares(pa.subspan(starts[i], count)),
                 g = SumOfSquares(ga.subspan(starts[i], count));
    EXPECT_NEAR(norms[i].parameter, p, 1e-13 * p);
    EXPECT_NEAR(norms[i].update, g, 1e-13 * g);
  }
  EXPECT_NEAR(norms[3].parameter, SumOfSquares(b.p), 1e-13 * norms[3].parameter);
  EXPECT_NEAR(norms[3].update, SumOfSquares(b.g), 1e-13 * norms[3].update);
}

TEST(RunUpdateNorms, AreTheBlocksNormsInOrderHoweverManyAreHeldAtATime) {
  // More blocks than all threads hold at a time, in runs that end with a part of a block.
  std::vector<OneStateTensor> tensors;
  for (const size_t n : {1u << 19, 1u, 0u, 1000u, (1u << 19) + 77u})
    tensors.emplace_back(n, static_cast<uint32_t>(n));
  std::vector<StepRun> runs;
  int64_t blocks = 0;
  for (OneStateTensor& tensor : tensors) {
    runs.push_back(tensor.Run());
    blocks += runs.back().num_blocks();
  }
  const StepArgs args = Args(Algorithm::kRmsProp, runs);
  std::vector<BlockNorms> of_blocks(static_cast<size_t>(blocks)), of_runs(runs.size(), {7, 7});
  UpdateNorms(args, of_blocks);
  RunUpdateNorms(args, of_runs);
  auto block = of_blocks.begin();
  for (size_t r = 0; r < runs.size(); ++r) {
    BlockNorms want;
    for (int64_t i = 0; i < runs[r].num_blocks(); ++i, ++block) {
      want.parameter += block->parameter;
      want.update += block->update;
    }
    EXPECT_EQ(of_runs[r].parameter, want.parameter) << r;
    EXPECT_EQ(of_runs[r].update, want.update) << r;
  }
}

TEST(UpdateNorms, ChangeNothing) {
  OneStateTensor a(300);
  const OneStateTensor before = a;
  const StepRun run = a.Run();
  std::vector<BlockNorms> norms(2);
  UpdateNorms(Args(Algorithm::kRmsProp, std::span(&run, 1)), norms);
  EXPECT_EQ(a.p, before.p);
  EXPECT_EQ(a.g, before.g);
  EXPECT_EQ(a.state, before.state);
}

TEST(UpdateNorms, HoldTheCoupledDecayThatTheUpdateHolds) {
  OneStateTensor a(256);
  std::fill(a.g.begin(), a.g.end(), 0.0f);
  const StepRun run = a.Run();
  StepArgs args = Args(Algorithm::kLars, std::span(&run, 1));
  args.hyper.weight_decay = 0.25;
  std::vector<BlockNorms> norms(1);
  UpdateNorms(args, norms);
  EXPECT_DOUBLE_EQ(norms[0].update, norms[0].parameter / 16);
}

TEST(UpdateNorms, MeasureMasterWeightsInThePlaceOfParameters) {
  OneStateTensor a(256);
  std::vector<uint16_t> narrow(256, 0);
  StepRun run = a.Run();
  run.master = a.p.data();
  run.parameter = narrow.data();
  StepArgs args = Args(Algorithm::kSgd, std::span(&run, 1));
  args.parameter_type = core::DType::kBFloat16;
  std::vector<BlockNorms> norms(1);
  UpdateNorms(args, norms);
  EXPECT_NEAR(norms[0].parameter, SumOfSquares(a.p), 1e-13 * norms[0].parameter);
}

TEST(UpdateNorms, AreNaNOnlyInTheBlockOfANaN) {
  OneStateTensor a(512);
  a.g[300] = static_cast<float>(kNan);
  const StepRun run = a.Run();
  std::vector<BlockNorms> norms(2);
  UpdateNorms(Args(Algorithm::kRmsProp, std::span(&run, 1)), norms);
  EXPECT_TRUE(std::isfinite(norms[0].update));
  EXPECT_TRUE(std::isnan(norms[1].update));
  EXPECT_TRUE(std::isfinite(norms[1].parameter));
}

TEST(Step, MovesATensorOfZerosUnderALimit) {
  OneStateTensor a(256);
  std::fill(a.p.begin(), a.p.end(), 0.0f);
  StepRun run = a.Run();
  std::vector<BlockNorms> norms(1);
  UpdateNorms(Args(Algorithm::kLars, std::span(&run, 1)), norms);
  run.update_scale = UpdateScale(0.02, norms[0]);
  Step(Args(Algorithm::kLars, std::span(&run, 1)));
  for (size_t i = 0; i < a.p.size(); ++i) EXPECT_EQ(a.p[i], -0.5f * a.g[i]) << i;
}

TEST(Step, TakesTheScaleIntoTheUpdateButNotTheDecay) {
  OneStateTensor a(256);
  std::vector<float> v(256, 0.0f);
  const std::vector<float> before = a.p;
  StepRun run = a.Run();
  run.states[1].values = v.data();
  run.update_scale = 0;
  StepArgs args = Args(Algorithm::kLamb, std::span(&run, 1));
  args.hyper.weight_decay = 0.5;
  Step(args);
  for (size_t i = 0; i < a.p.size(); ++i) EXPECT_EQ(a.p[i], 0.75f * before[i]) << i;
}

TEST(Step, KeepsANaNInItsBlockAndThereForGood) {
  OneStateTensor a(512);
  a.g[300] = static_cast<float>(kNan);
  std::vector<uint8_t> codes(512, 127);
  std::vector<float> absmax(2, 0.0f);
  StepRun run = a.Run();
  run.states[0] = {.codes = codes.data(), .absmax = absmax.data()};
  StepArgs args = Args(Algorithm::kSgd, std::span(&run, 1));
  Step(args);
  EXPECT_TRUE(std::isfinite(absmax[0]));
  EXPECT_TRUE(std::isnan(absmax[1]));
  EXPECT_EQ(std::count_if(a.p.begin(), a.p.end(), [](float x) { return std::isnan(x); }), 1);
  a.g[300] = 1;
  args.hyper.step = 2;
  Step(args);
  EXPECT_TRUE(
      std::all_of(a.p.begin(), a.p.begin() + 256, [](float x) { return std::isfinite(x); }));
  EXPECT_TRUE(std::all_of(a.p.begin() + 256, a.p.end(), [](float x) { return std::isnan(x); }));
}

class StepArgsFaultTest : public ::testing::Test {
 protected:
  StepArgsFaultTest()
      : tensor_(256), run_(tensor_.Run()), args_(Args(Algorithm::kSgd, {&run_, 1})) {}
  void ExpectFault(const std::string& part) {
    const std::string fault = StepArgsFault(args_);
    EXPECT_NE(fault.find(part), std::string::npos)
        << "got '" << fault << "', want '" << part << "'";
  }
  OneStateTensor tensor_;
  StepRun run_;
  StepArgs args_;
};

TEST_F(StepArgsFaultTest, IsEmptyForWhatFits) {
  EXPECT_EQ(StepArgsFault(args_), "");
  for (const int64_t state_block : {64, 128, 256}) {
    args_.state_block = state_block;
    EXPECT_EQ(StepArgsFault(args_), "");
  }
  args_.parameter_type = core::DType::kBFloat16;
  run_.master = tensor_.g.data();
  EXPECT_EQ(StepArgsFault(args_), "");
  run_.master = nullptr;
  run_.first_elem = 512;
  args_.rounding = Rounding::kStochastic;
  EXPECT_EQ(StepArgsFault(args_), "");
}

TEST_F(StepArgsFaultTest, NamesTypesThatAreNotFloats) {
  args_.parameter_type = core::DType::kUInt8;
  ExpectFault("parameters are uint8 and gradients float32, want float32, bfloat16 or float16");
  args_.parameter_type = core::DType::kFloat32;
  args_.gradient_type = core::DType::kUInt8;
  ExpectFault("gradients uint8");
}

TEST_F(StepArgsFaultTest, NamesABlockOfAnotherSize) {
  for (const int64_t state_block : {0, 32, 100, 512}) {
    args_.state_block = state_block;
    ExpectFault("blocks of " + std::to_string(state_block) +
                " elements of state, want 64, 128 or 256");
  }
}

TEST_F(StepArgsFaultTest, NamesAScheduleThatGrowsFromNothing) {
  run_.states[1] = run_.states[2] = run_.states[0];
  args_.algorithm = Algorithm::kAdEmaMix;
  args_.hyper.beta3_steps = 10;
  EXPECT_EQ(StepArgsFault(args_), "");
  args_.hyper.beta1 = 0;
  ExpectFault("beta1: got 0, want above 0: beta3 grows from beta1 over 10 steps");
  args_.hyper = {.beta1 = 0.9, .beta3 = 0, .beta3_steps = 10};
  ExpectFault("beta3: got 0, want above 0");
  args_.hyper.beta3_steps = 0;
  EXPECT_EQ(StepArgsFault(args_), "");
}

TEST_F(StepArgsFaultTest, NamesStochasticRoundingOfOtherTypes) {
  args_.rounding = Rounding::kStochastic;
  ExpectFault("stochastic rounding of float32 parameters, want bfloat16");
  args_.parameter_type = core::DType::kFloat16;
  ExpectFault("stochastic rounding of float16 parameters, want bfloat16");
}

TEST_F(StepArgsFaultTest, NamesMasterWeightsThatHaveNoPlace) {
  run_.master = tensor_.g.data();
  ExpectFault("master weights beside");
  args_.parameter_type = core::DType::kBFloat16;
  args_.rounding = Rounding::kStochastic;
  ExpectFault("master weights beside");
}

TEST_F(StepArgsFaultTest, NamesStateThatIsMissingOrOfBothKinds) {
  std::vector<uint8_t> codes(256);
  float absmax = 0;
  args_.algorithm = Algorithm::kAdamW;  // Two states, and the run has one.
  ExpectFault("a run without all of its state");
  run_.states[1] = {.codes = codes.data(), .absmax = &absmax};
  ExpectFault("a run without all of its state, or with both 8-bit and 32-bit state");
  args_.algorithm = Algorithm::kSgd;
  run_.states[0].codes = codes.data();
  run_.states[0].absmax = &absmax;  // And values.
  ExpectFault("both 8-bit and 32-bit state");
  run_.states[0] = {.codes = codes.data()};
  ExpectFault("a run without all of its state");
  run_.elems = 0;
  EXPECT_EQ(StepArgsFault(args_), "");
}

TEST_F(StepArgsFaultTest, NamesAFirstElementInsideABlock) {
  args_.parameter_type = core::DType::kBFloat16;
  args_.rounding = Rounding::kStochastic;
  run_.first_elem = 100;
  ExpectFault("a run's first_elem is 100, want a multiple of 256");
}

}  // namespace
}  // namespace bitshard::optim
