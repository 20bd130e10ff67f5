// The step on the device against the step on the CPU, bit for bit. On the stand-in each launch runs
// its blocks and threads in another order, so the twenty steps of a case are twenty orders.
#include "optim/step_cuda.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
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
constexpr Algorithm kAlgorithms[] = {Algorithm::kAdam,    Algorithm::kAdamW, Algorithm::kLion,
                                     Algorithm::kLamb,    Algorithm::kLars,  Algorithm::kRmsProp,
                                     Algorithm::kAdagrad, Algorithm::kSgd,   Algorithm::kAdEmaMix};

struct Case {
  Algorithm algorithm = Algorithm::kAdamW;
  DType parameter_type = DType::kFloat32;
  DType gradient_type = DType::kFloat32;
  Rounding rounding = Rounding::kNearestEven;
  bool has_master = false;
  size_t state_block = 256;
  bool is_limited = false;  // By max_unorm: norms are found and each step is shortened by them.
  int steps = 2;
  std::vector<size_t> sizes = {1, 3, 255, 256, 257, 2300};

  std::string Name() const {
    return "rule " + std::to_string(static_cast<int>(algorithm)) + ", " +
           core::Name(parameter_type) + " from " + core::Name(gradient_type) +
           (has_master ? ", master" : "") + ", blocks of " + std::to_string(state_block) +
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
                              .state_block = c.state_block,
                              .shift = shift,
                              .id = static_cast<int64_t>(tensors.size())},
            random, stream));
      }
    }
  }
  return tensors;
}

StepArgs ArgsOf(const Case& c, int step, const std::vector<StepRun>& runs) {
  return {.algorithm = c.algorithm,
          .hyper = {.step = step,
                    .learning_rate = 1e-2,
                    .weight_decay = 0.1,
                    .gradient_scale = 0.5,
                    .alpha_steps = 10,
                    .beta3_steps = 10},
          .parameter_type = c.parameter_type,
          .gradient_type = c.gradient_type,
          .runs = runs,
          .rounding = c.rounding,
          .seed = 11,
          .state_block = static_cast<int64_t>(c.state_block)};
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

// Compares the norms of the updates of the step that comes, and gives each tensor its scale.
void ExpectSameNorms(const Case& c, int step, Tensors& tensors, CudaStepper* stepper,
                     cudaStream_t stream) {
  const std::vector<StepRun> host = HostRuns(tensors);
  int64_t blocks = 0;
  for (const StepRun& run : host) blocks += run.num_blocks();
  std::vector<BlockNorms> want(static_cast<size_t>(blocks));
  UpdateNorms(ArgsOf(c, step, host), want);
  // On the device the last run's norms come first.
  std::vector<int64_t> first_norm;
  int64_t end = blocks;
  for (const StepRun& run : host) first_norm.push_back(end -= run.num_blocks());
  const core::DeviceArray<double> out(std::vector<double>(want.size() * 2, -1.0), stream);
  const absl::Status status = stepper->UpdateNorms(ArgsOf(c, step, DeviceRuns(tensors)), first_norm,
                                                   reinterpret_cast<BlockNorms*>(out.data()));
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<double> got = out.Get();
  const auto same = [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); };
  auto from = want.begin();
  for (size_t r = 0; r < host.size(); ++r) {
    BlockNorms sum;
    for (int64_t b = 0; b < host[r].num_blocks(); ++b, ++from) {
      const size_t at = static_cast<size_t>(first_norm[r] + b) * 2;
      ASSERT_TRUE(same(got[at], from->parameter) && same(got[at + 1], from->update))
          << "step " << step << ", run " << r << ", block " << b << ": " << got[at] << " and "
          << got[at + 1] << ", want " << from->parameter << " and " << from->update;
      sum.parameter += from->parameter;
      sum.update += from->update;
    }
    tensors[r]->set_update_scale(UpdateScale(0.01, sum));
  }
}

void ExpectSameSteps(const Case& c) {
  SCOPED_TRACE(c.Name());
  core::TestStream stream;
  std::mt19937 random(3);
  Tensors tensors = MakeTensors(c, &random, stream.get());
  const auto stepper = MakeStepper(static_cast<int64_t>(tensors.size()), stream.get());
  for (int step = 1; step <= c.steps; ++step) {
    if (c.is_limited) {
      ExpectSameNorms(c, step, tensors, stepper.get(), stream.get());
      if (testing::Test::HasFailure()) return;
    }
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

TEST(StepCuda, GivesTheNormsOfUpdatesOfTheCpuInTwentyOrders) {
  for (const Algorithm algorithm : kAlgorithms) {
    if (HasUpdateNorm(algorithm))
      ExpectSameSteps({.algorithm = algorithm, .is_limited = true, .steps = 20});
  }
}

TEST(StepCuda, TakesNormsOfEveryTypeAndOfMasterWeights) {
  for (const DType type : {DType::kBFloat16, DType::kFloat16}) {
    for (const bool has_master : {false, true}) {
      ExpectSameSteps({.algorithm = Algorithm::kLamb,
                       .parameter_type = type,
                       .gradient_type = type,
                       .has_master = has_master,
                       .is_limited = true});
    }
  }
}

// 1 to 4 blocks of state in the last block of 256, whole and not.
TEST(StepCuda, StepsSmallerBlocksOfState) {
  for (const Algorithm algorithm : kAlgorithms) {
    for (const size_t state_block : {64u, 128u}) {
      ExpectSameSteps({.algorithm = algorithm,
                       .state_block = state_block,
                       .is_limited = HasUpdateNorm(algorithm),
                       .steps = 3,
                       .sizes = {1, 63, 64, 65, 127, 128, 129, 193, 255, 256, 300, 2300}});
    }
  }
}

// What the kernels of the rules share, which types are loaded and stored how, is shown with three.
constexpr Algorithm kSomeAlgorithms[] = {Algorithm::kAdamW, Algorithm::kLion, Algorithm::kAdEmaMix};

TEST(StepCuda, GivesTheBitsOfTheCpuForEveryPairOfTypes) {
  for (const Algorithm algorithm : kSomeAlgorithms) {
    for (const DType parameter_type : kFloats) {
      for (const DType gradient_type : kFloats)
        ExpectSameSteps({.algorithm = algorithm,
                         .parameter_type = parameter_type,
                         .gradient_type = gradient_type});
    }
  }
}

TEST(StepCuda, StepsMasterWeights) {
  for (const Algorithm algorithm : kSomeAlgorithms) {
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
  for (const Algorithm algorithm : kSomeAlgorithms) {
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
  EXPECT_THAT(message(ArgsOf({}, 1, {StepRun{.elems = 1}})), HasSubstr("without all of its state"));
  const quant::CodeTable table = quant::SignedDynamicTable();
  StepArgs with_table = ArgsOf({}, 1, {});
  with_table.tables[0] = &table;
  EXPECT_THAT(message(with_table), HasSubstr("dynamic tables"));
  EXPECT_THAT(
      std::string(stepper->UpdateNorms(ArgsOf({.algorithm = Algorithm::kLion}, 1, {}), {}, nullptr)
                      .message()),
      HasSubstr("has none"));
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
