// The step on the device against the step on the CPU, bit for bit. On the stand-in each launch runs
// its blocks and threads in another order, so the twenty steps of a case are twenty orders.
#include "optim/step_cuda.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "optim/gradient_norm_cuda.h"
#include "tests/core/device_array.h"
#include "tests/optim/step_tensor.h"

namespace bitshard::optim {
namespace {

using core::DType;
using ::testing::HasSubstr;

constexpr DType kFloats[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr Algorithm kAlgorithms[] = {Algorithm::kAdam, Algorithm::kAdamW, Algorithm::kLion};

struct Case {
  Algorithm algorithm = Algorithm::kAdamW;
  DType parameter_type = DType::kFloat32;
  DType gradient_type = DType::kFloat32;
  Rounding rounding = Rounding::kNearestEven;
  bool has_master = false;
  int steps = 2;
  std::vector<size_t> sizes = {1, 3, 255, 256, 257, 2300};

  std::string Name() const {
    return "rule " + std::to_string(static_cast<int>(algorithm)) + ", " +
           core::Name(parameter_type) + " from " + core::Name(gradient_type) +
           (has_master ? ", master" : "") +
           (rounding == Rounding::kStochastic ? ", stochastic" : "");
  }
};

using Tensors = std::vector<std::unique_ptr<StepTensor>>;

// Each size with 8-bit and with 32-bit state, and the same off alignment.
Tensors MakeTensors(const Case& c, std::mt19937* random, cudaStream_t stream) {
  Tensors tensors;
  for (const size_t elems : c.sizes) {
    for (const size_t shift : {0u, 1u}) {
      for (const bool is_8bit : {true, false}) {
        tensors.push_back(std::make_unique<StepTensor>(
            StepTensorOptions{.elems = elems,
                              .parameter_type = c.parameter_type,
                              .gradient_type = c.gradient_type,
                              .is_8bit = is_8bit,
                              .has_master = c.has_master,
                              .shift = shift,
                              .id = static_cast<int64_t>(tensors.size())},
            random, stream));
      }
    }
  }
  return tensors;
}

StepArgs ArgsOf(const Case& c, int step, const std::vector<StepRun>& runs) {
  return {
      .algorithm = c.algorithm,
      .hyper = {.step = step, .learning_rate = 1e-2, .weight_decay = 0.1, .gradient_scale = 0.5},
      .parameter_type = c.parameter_type,
      .gradient_type = c.gradient_type,
      .runs = runs,
      .rounding = c.rounding,
      .seed = 11};
}

std::vector<StepRun> HostRuns(Tensors& tensors) {
  std::vector<StepRun> runs;
  for (auto& tensor : tensors) runs.push_back(tensor->HostRun());
  return runs;
}

std::vector<StepRun> DeviceRuns(Tensors& tensors) {
  std::vector<StepRun> runs;
  for (auto& tensor : tensors) runs.push_back(tensor->DeviceRun());
  return runs;
}

std::unique_ptr<CudaStepper> MakeStepper(int64_t max_runs, cudaStream_t stream) {
  auto stepper = CudaStepper::Create({.max_runs = max_runs, .stream = stream});
  EXPECT_TRUE(stepper.ok()) << stepper.status();
  return std::move(*stepper);
}

void ExpectSameSteps(const Case& c) {
  SCOPED_TRACE(c.Name());
  core::TestStream stream;
  std::mt19937 random(3);
  Tensors tensors = MakeTensors(c, &random, stream.get());
  const auto stepper = MakeStepper(static_cast<int64_t>(tensors.size()), stream.get());
  for (int step = 1; step <= c.steps; ++step) {
    Step(ArgsOf(c, step, HostRuns(tensors)));
    const absl::Status status = stepper->Step(ArgsOf(c, step, DeviceRuns(tensors)));
    ASSERT_TRUE(status.ok()) << status;
    for (auto& tensor : tensors) tensor->ExpectSame("step " + std::to_string(step));
    if (testing::Test::HasFailure()) return;
    for (auto& tensor : tensors) tensor->NewGradient(&random);
  }
}

TEST(StepCuda, GivesTheBitsOfTheCpuForEveryRuleInTwentyOrders) {
  for (const Algorithm algorithm : kAlgorithms)
    ExpectSameSteps({.algorithm = algorithm, .steps = 20});
}

TEST(StepCuda, GivesTheBitsOfTheCpuForEveryPairOfTypes) {
  for (const Algorithm algorithm : kAlgorithms) {
    for (const DType parameter_type : kFloats) {
      for (const DType gradient_type : kFloats)
        ExpectSameSteps({.algorithm = algorithm,
                         .parameter_type = parameter_type,
                         .gradient_type = gradient_type});
    }
  }
}

TEST(StepCuda, StepsMasterWeights) {
  for (const Algorithm algorithm : kAlgorithms) {
    for (const DType type : {DType::kBFloat16, DType::kFloat16}) {
      ExpectSameSteps({.algorithm = algorithm,
                       .parameter_type = type,
                       .gradient_type = type,
                       .has_master = true,
                       .steps = 3});
    }
  }
}

TEST(StepCuda, RoundsStochasticallyAsTheCpu) {
  for (const Algorithm algorithm : kAlgorithms) {
    for (const DType gradient_type : kFloats) {
      ExpectSameSteps({.algorithm = algorithm,
                       .parameter_type = DType::kBFloat16,
                       .gradient_type = gradient_type,
                       .rounding = Rounding::kStochastic,
                       .steps = 3});
    }
  }
}

TEST(StepCuda, StepsHundredsOfTensorsInOneLaunch) {
  Case c = {.steps = 2, .sizes = {}};
  for (size_t elems = 1; elems < 700; elems += 13) c.sizes.push_back(elems);
  ExpectSameSteps(c);
}

// More blocks than the device has warps, so that each takes several, across the bounds of tensors.
TEST(StepCuda, StepsMoreBlocksThanThereAreWarps) {
  int multiprocessors = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0),
            cudaSuccess);
  const size_t warps = static_cast<size_t>(multiprocessors) * 64;
  if (warps > 10000)
    GTEST_SKIP() << multiprocessors << " multiprocessors would take too large a tensor";
  const std::vector<size_t> sizes = {warps * 256 / 3, 300};
  ExpectSameSteps({.steps = 1, .sizes = sizes});
  // Each tensor has random numbers of its own.
  ExpectSameSteps({.parameter_type = DType::kBFloat16,
                   .rounding = Rounding::kStochastic,
                   .steps = 1,
                   .sizes = sizes});
}

TEST(StepCuda, CutsOfATensorRoundWithTheSameRandomNumbers) {
  core::TestStream stream;
  std::mt19937 random(5);
  const Case c = {
      .parameter_type = DType::kBFloat16, .rounding = Rounding::kStochastic, .sizes = {2300}};
  Tensors tensors = MakeTensors(c, &random, stream.get());
  const auto stepper = MakeStepper(8, stream.get());
  std::vector<StepRun> halves;
  for (StepRun run : DeviceRuns(tensors)) {
    StepRun second = run;
    run.elems = 1024;
    halves.push_back(run);
    second.elems -= 1024;
    second.first_elem = 1024;
    second.parameter = static_cast<uint16_t*>(second.parameter) + 1024;
    second.gradient = static_cast<const float*>(second.gradient) + 1024;
    for (RunState& state : second.states) {
      if (state.codes != nullptr) {
        state.codes += 1024;
        state.absmax += 4;
      } else if (state.values != nullptr) {
        state.values += 1024;
      }
    }
    halves.push_back(second);
  }
  Step(ArgsOf(c, 1, HostRuns(tensors)));
  ASSERT_TRUE(stepper->Step(ArgsOf(c, 1, halves)).ok());
  for (auto& tensor : tensors) tensor->ExpectSame("cut in two");
}

// Tables replace each other faster than the device takes them.
TEST(StepCuda, SendsTheTableOfEachStepInItsTurn) {
  core::TestStream stream;
  std::mt19937 random(4);
  const Case c = {.sizes = {256, 300}};
  Tensors tensors = MakeTensors(c, &random, stream.get());
  const auto stepper = MakeStepper(2, stream.get());
  const std::vector<StepRun> host = HostRuns(tensors), device = DeviceRuns(tensors);
  for (size_t call = 0; call < 40; ++call) {
    const size_t at = call * 3 % (tensors.size() - 1);
    const int step = static_cast<int>(call) + 1;
    Step(ArgsOf(c, step, {host[at], host[at + 1]}));
    const absl::Status status = stepper->Step(ArgsOf(c, step, {device[at], device[at + 1]}));
    ASSERT_TRUE(status.ok()) << status;
  }
  for (auto& tensor : tensors) tensor->ExpectSame("after 40 calls");
}

TEST(StepCuda, RefusesWhatDoesNotFitTogether) {
  core::TestStream stream;
  std::mt19937 random(4);
  Tensors tensors = MakeTensors({.sizes = {16}}, &random, stream.get());
  const auto stepper = MakeStepper(1, stream.get());
  const std::vector<StepRun> runs = DeviceRuns(tensors);
  const auto message = [&](const StepArgs& args) {
    return std::string(stepper->Step(args).message());
  };
  EXPECT_THAT(message(ArgsOf({}, 1, runs)), HasSubstr("got 4 runs, want at most max_runs, 1"));
  EXPECT_THAT(message(ArgsOf({.gradient_type = DType::kInt8}, 1, {})), HasSubstr("gradients int8"));
  EXPECT_THAT(message(ArgsOf({.rounding = Rounding::kStochastic}, 1, {})),
              HasSubstr("stochastic rounding of float32"));
  EXPECT_THAT(message(ArgsOf({}, 1, {StepRun{.elems = 1}})), HasSubstr("without state"));
  EXPECT_TRUE(stepper->Step(ArgsOf({}, 1, {})).ok());
  EXPECT_EQ(CudaStepper::Create({.max_runs = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(GradientNormCuda, SumsEachBlockAsTheCpu) {
  core::TestStream stream;
  std::mt19937 random(9);
  for (const size_t elems : {1u, 2u, 127u, 128u, 129u, 255u, 256u, 257u, 1000u, 5120u}) {
    std::vector<float> x(elems);
    for (float& e : x)
      e = std::normal_distribution<float>()(random) * (random() % 2 == 0 ? 1.0f : 1e6f);
    std::vector<double> want((elems + 255) / 256);
    SumSquaresByBlock(x, want);
    for (const size_t shift : {0u, 1u}) {
      const core::DeviceArray<float> device(x, stream.get(), shift);
      const core::DeviceArray<double> out(std::vector<double>(want.size(), -1.0), stream.get());
      const absl::Status status = SumSquaresByBlockCuda({.x = device.data(),
                                                         .elems = static_cast<int64_t>(elems),
                                                         .out = out.data(),
                                                         .stream = stream.get()});
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(out.Get(), want) << elems << " elements, shifted by " << shift;
    }
  }
}

}  // namespace
}  // namespace bitshard::optim
