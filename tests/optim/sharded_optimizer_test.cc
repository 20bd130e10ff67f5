#include "optim/sharded_optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "comm/thread_communicator.h"
#include "core/rng.h"
#include "quant/codebook.h"

namespace bitshard::optim {
namespace {

using ::testing::HasSubstr;

// Two tensors with 8-bit state, one with 32-bit state, one of less than a block.
core::FlatLayout Layout() {
  return *core::FlatLayout::Create({{"a", {70, 100}}, {"b", {300}}, {"c", {5000}}, {"d", {3}}});
}

ShardedOptimizerOptions Options(const std::string& name) {
  ShardedOptimizerOptions options;
  options.settings.name = *ParseOptimizerName(name);
  options.settings.weight_decay = 0.1;
  return options;
}

// One of every kind: "d" keeps its 32 bits because it is small, and "a" spans ranks.
ShardedOptimizerOptions WithOverrides(const std::string& name) {
  ShardedOptimizerOptions options = Options(name);
  options.settings.overrides = {
      {.pattern = "*", .block_size = 128},
      {.pattern = "a", .block_size = 64, .learning_rate_factor = 0.5, .weight_decay = 0},
      {.pattern = "b", .bits = 8},
      {.pattern = "c", .bits = 32, .learning_rate_factor = 2},
      {.pattern = "?", .weight_decay = 0.2}};
  return options;
}

// Gradient of block element `e` in step `step`; padding is zero.
float GradientAt(const core::FlatLayout& layout, int64_t e, int64_t step) {
  const core::FlatTensor& tensor = layout.tensor(layout.TensorOfBlock(e / core::kBlockElems));
  if (e - tensor.offset() >= tensor.numel) return 0;
  const core::Philox4 random =
      core::Philox(9, static_cast<uint64_t>(e), static_cast<uint64_t>(step));
  return core::UniformFloat(random.word[0]) - 0.4f;
}

struct Result {
  std::vector<float> parameters;
  std::vector<std::byte> state;  // All blocks, in order.
  double norm = 0;
  int64_t bytes_sent = 0;  // By rank 0.
};

int64_t StateOffset(const ShardedOptimizer& optimizer, int64_t block) {
  int64_t offset = 0;
  for (int64_t b = 0; b < block; ++b) offset += optimizer.BlockStateBytes(b);
  return offset;
}

// Runs steps (first, last] on `world_size` ranks that begin with `from`, and gathers what they
// leave.
Result Train(int world_size, const ShardedOptimizerOptions& options, int64_t first, int64_t last,
             const Result& from) {
  const core::FlatLayout layout = Layout();
  const comm::ShardMap shards(layout, world_size, 8 * 1024);
  auto ranks = comm::ThreadCommunicator::Create(world_size);
  Result result = from;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      comm::Communicator* comm = ranks[static_cast<size_t>(rank)].get();
      auto optimizer = ShardedOptimizer::Create(layout, shards, comm, options);
      ASSERT_TRUE(optimizer.ok()) << optimizer.status();
      std::vector<float> parameters = from.parameters;
      const std::vector<core::BlockRange> runs = shards.RunsOf(rank);
      const auto for_each_run =
          [&](const std::function<void(core::BlockRange, int64_t, int64_t)>& body) {
            for (const core::BlockRange run : runs) {
              const int64_t begin = StateOffset(**optimizer, run.begin);
              body(run, begin, StateOffset(**optimizer, run.end) - begin);
            }
          };
      if (first > 0) {
        for_each_run([&](core::BlockRange run, int64_t begin, int64_t bytes) {
          ASSERT_TRUE((*optimizer)
                          ->ImportState(run, std::span(from.state)
                                                 .subspan(static_cast<size_t>(begin),
                                                          static_cast<size_t>(bytes)))
                          .ok());
        });
        (*optimizer)->set_step(first);
      }
      for (int64_t step = first + 1; step <= last; ++step) {
        std::vector<float> gradients;
        for (const core::BlockRange run : runs) {
          for (int64_t e = run.begin * core::kBlockElems; e < run.end * core::kBlockElems; ++e) {
            gradients.push_back(GradientAt(layout, e, step));
          }
        }
        const int64_t sent = comm->bytes_sent();
        const auto norm = (*optimizer)->GradientNorm(gradients, 0.5);
        ASSERT_TRUE(norm.ok());
        ASSERT_TRUE((*optimizer)
                        ->Step({.parameters = parameters,
                                .gradients = gradients,
                                .gradient_scale = 0.5,
                                .learning_rate = 1e-2})
                        .ok());
        if (rank == 0) result.norm = *norm;
        if (rank == 0) result.bytes_sent = comm->bytes_sent() - sent;
      }
      if (rank == 0) {
        result.parameters = parameters;
        result.state.resize(static_cast<size_t>(StateOffset(**optimizer, layout.num_blocks())));
      }
      ASSERT_TRUE(comm->Barrier().ok());
      for_each_run([&](core::BlockRange run, int64_t begin, int64_t bytes) {
        ASSERT_TRUE((*optimizer)
                        ->ExportState(run, std::span(result.state)
                                               .subspan(static_cast<size_t>(begin),
                                                        static_cast<size_t>(bytes)))
                        .ok());
      });
      ASSERT_TRUE(comm->Barrier().ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  return result;
}

Result Start() {
  return {.parameters = std::vector<float>(static_cast<size_t>(Layout().padded_elems()), 0.25f),
          .state = {}};
}

void ExpectSame(const Result& a, const Result& b, const std::string& what) {
  ASSERT_EQ(a.parameters.size(), b.parameters.size());
  EXPECT_EQ(
      0, std::memcmp(a.parameters.data(), b.parameters.data(), a.parameters.size() * sizeof(float)))
      << what;
  EXPECT_EQ(a.state, b.state) << what;
  EXPECT_EQ(a.norm, b.norm) << what;
}

void ExpectTheSameAnywhere(const ShardedOptimizerOptions& options, const std::string& what) {
  const Result one = Train(1, options, 0, 5, Start());
  for (const int world_size : {2, 3, 4})
    ExpectSame(one, Train(world_size, options, 0, 5, Start()), what);
  ShardedOptimizerOptions paged = options;
  paged.settings.name.paged = true;
  paged.paging = {
      .tier = paging::Tier::kFile, .budget_bytes = 16 << 20, .directory = ::testing::TempDir()};
  ExpectSame(one, Train(2, paged, 0, 5, Start()), "paged " + what);
  // Pages are cut so that two fit: here many of a few blocks each.
  paged.paging.budget_bytes = 8 << 10;
  ExpectSame(one, Train(2, paged, 0, 5, Start()), "small pages, paged " + what);
}

TEST(ShardedOptimizer, GivesTheSameBitsAtAnyWorldSizeAndPaged) {
  for (const char* rule :
       {"adamw", "lion", "lamb", "lars", "rmsprop", "adagrad", "sgd", "ademamix"}) {
    for (const char* bits : {"_8bit", "_32bit"})
      ExpectTheSameAnywhere(Options(std::string(rule) + bits), std::string(rule) + bits);
  }
}

TEST(ShardedOptimizer, GivesTheSameBitsAnywhereWithOverrides) {
  for (const char* name : {"lamb_8bit", "ademamix_8bit"})
    ExpectTheSameAnywhere(WithOverrides(name), std::string("overridden ") + name);
}

// How one tensor of WithOverrides is held and stepped.
struct Tensor {
  bool is_8bit;
  int64_t state_block;
  double learning_rate;
};

// Five steps of the tensor by itself, with neither pages nor ranks.
std::vector<float> SteppedAlone(const core::FlatTensor& tensor, Algorithm algorithm,
                                double max_unorm, const Tensor& held) {
  const core::FlatLayout layout = Layout();
  const size_t n = static_cast<size_t>(tensor.numel);
  std::vector<float> p(n, 0.25f), g(n), values[kMaxStates], absmax[kMaxStates];
  std::vector<uint8_t> codes[kMaxStates];
  StepRun run{.parameter = p.data(), .gradient = g.data(), .elems = tensor.numel};
  for (int i = 0; i < NumStates(algorithm); ++i) {
    values[i].assign(n, 0);
    codes[i].assign(
        n,
        (IsSignedState(i) ? quant::SignedDynamicTable() : quant::UnsignedDynamicTable()).zero_code);
    absmax[i].assign((n + 63) / 64, 0);
    if (held.is_8bit) {
      run.states[i] = {.codes = codes[i].data(), .absmax = absmax[i].data()};
    } else {
      run.states[i] = {.values = values[i].data()};
    }
  }
  const RuleDefaults defaults = DefaultsOf(algorithm);
  for (int64_t step = 1; step <= 5; ++step) {
    for (size_t i = 0; i < n; ++i)
      g[i] = GradientAt(layout, tensor.offset() + static_cast<int64_t>(i), step);
    run.update_scale = 1;
    StepArgs args{.algorithm = algorithm,
                  .hyper = {.step = step,
                            .learning_rate = held.learning_rate,
                            .beta1 = defaults.beta1,
                            .beta2 = defaults.beta2,
                            .eps = defaults.eps,
                            .weight_decay = 0.2,
                            .gradient_scale = 0.5},
                  .state_block = held.state_block};
    if (max_unorm > 0) {
      std::vector<BlockNorms> norms(static_cast<size_t>(run.num_blocks()));
      args.runs = {&run, 1};
      UpdateNorms(args, norms);
      BlockNorms sum;
      for (const BlockNorms& of_block : norms) {
        sum.parameter += of_block.parameter;
        sum.update += of_block.update;
      }
      run.update_scale = UpdateScale(max_unorm, sum);
      EXPECT_LT(run.update_scale, 1) << "the test has nothing to show";
    }
    args.runs = {&run, 1};
    Step(args);
  }
  return p;
}

TEST(ShardedOptimizer, StepsEachTensorAsItsOverridesSay) {
  const core::FlatLayout layout = Layout();
  const Tensor held[] = {
      {true, 64, 0.5e-2}, {true, 128, 1e-2}, {false, 256, 2e-2}, {false, 256, 1e-2}};
  const auto expect_alone = [&](const char* name, Algorithm algorithm, double max_unorm,
                                std::optional<double> given) {
    ShardedOptimizerOptions options = WithOverrides(name);
    options.settings.max_unorm = given;
    const Result got = Train(3, options, 0, 5, Start());
    for (size_t t = 0; t < 4; ++t) {
      const core::FlatTensor& tensor = layout.tensors()[t];
      const std::vector<float> want = SteppedAlone(tensor, algorithm, max_unorm, held[t]);
      EXPECT_EQ(std::memcmp(got.parameters.data() + tensor.offset(), want.data(),
                            want.size() * sizeof(float)),
                0)
          << name << ", tensor " << tensor.name;
    }
  };
  expect_alone("lamb_8bit", Algorithm::kLamb, 1, std::nullopt);
  expect_alone("lars_8bit", Algorithm::kLars, 0.02, std::nullopt);
  expect_alone("rmsprop_8bit", Algorithm::kRmsProp, 0.03, 0.03);
  expect_alone("lion_8bit", Algorithm::kLion, 0, std::nullopt);
}

TEST(ShardedOptimizer, MovesItsStateToAnotherWorldSize) {
  for (const auto& [what, options] : {std::pair{"adamw_8bit", Options("adamw_8bit")},
                                      std::pair{"lion_32bit", Options("lion_32bit")},
                                      std::pair{"overridden", WithOverrides("lamb_8bit")},
                                      std::pair{"three states", WithOverrides("ademamix_8bit")}}) {
    SCOPED_TRACE(what);
    const Result whole = Train(2, options, 0, 6, Start());
    const Result half = Train(2, options, 0, 3, Start());
    for (const int world_size : {1, 3, 4}) {
      ExpectSame(half, Train(world_size, options, 3, 3, half), "state as it was");
      ExpectSame(whole, Train(world_size, options, 3, 6, half), "gone on");
    }
  }
}

TEST(ShardedOptimizer, SendsWhatItSaysThatAStepSends) {
  const core::FlatLayout layout = Layout();
  for (const char* name : {"adamw_8bit", "lamb_8bit"}) {
    for (const int world_size : {1, 3}) {
      const auto planned = ShardedOptimizer::SentBytesPerStep(
          layout, comm::ShardMap(layout, world_size, 8 * 1024), 0, Options(name));
      ASSERT_TRUE(planned.ok()) << planned.status();
      EXPECT_EQ(Train(world_size, Options(name), 0, 1, Start()).bytes_sent, *planned) << name;
    }
  }
}

TEST(ShardedOptimizer, NormIsThatOfTheScaledGradient) {
  const core::FlatLayout layout = Layout();
  double squares = 0;
  for (int64_t e = 0; e < layout.padded_elems(); ++e)
    squares += std::pow(GradientAt(layout, e, 1), 2);
  EXPECT_NEAR(Train(3, Options("adamw_8bit"), 0, 1, Start()).norm, 0.5 * std::sqrt(squares), 1e-9);
}

// What decides whether a step is skipped: all ranks must see it, whoever has the element.
TEST(ShardedOptimizer, NormIsNotFiniteOnEveryRankWhereOneGradientOfOneRankIsNot) {
  constexpr int kRanks = 3;
  const core::FlatLayout layout = Layout();
  const comm::ShardMap shards(layout, kRanks, 8 * 1024);
  for (const float bad : {NAN, INFINITY}) {
    for (int guilty = 0; guilty < kRanks; ++guilty) {
      auto ranks = comm::ThreadCommunicator::Create(kRanks);
      std::vector<double> norms(kRanks, 0.0);
      std::vector<std::thread> threads;
      for (int rank = 0; rank < kRanks; ++rank) {
        threads.emplace_back([&, rank] {
          const size_t r = static_cast<size_t>(rank);
          auto optimizer =
              ShardedOptimizer::Create(layout, shards, ranks[r].get(), Options("adamw_8bit"));
          ASSERT_TRUE(optimizer.ok()) << optimizer.status();
          std::vector<float> gradients(
              static_cast<size_t>(shards.NumBlocksOf(rank) * core::kBlockElems), 1.0f);
          if (rank == guilty) gradients.back() = bad;
          norms[r] = *(*optimizer)->GradientNorm(gradients, 0.5);
        });
      }
      for (std::thread& thread : threads) thread.join();
      for (const double norm : norms) EXPECT_FALSE(std::isfinite(norm)) << guilty << " " << bad;
    }
  }
}

std::unique_ptr<ShardedOptimizer> OfOneRank(const ShardedOptimizerOptions& options) {
  static const auto* const ranks =
      new std::vector<std::unique_ptr<comm::Communicator>>(comm::ThreadCommunicator::Create(1));
  const core::FlatLayout layout = Layout();
  auto optimizer = ShardedOptimizer::Create(layout, comm::ShardMap(layout, 1, 1024),
                                            ranks->front().get(), options);
  EXPECT_TRUE(optimizer.ok()) << optimizer.status();
  return *std::move(optimizer);
}

TEST(ShardedOptimizer, KeepsSmallTensorsIn32Bits) {
  const auto optimizer = OfOneRank(Options("adamw_8bit"));
  const std::vector<StateShare> shares = optimizer->shares();
  ASSERT_EQ(shares.size(), 2u);
  EXPECT_TRUE(shares[0].form.is_8bit);
  EXPECT_EQ(shares[0].tensors, 2);
  EXPECT_EQ(shares[0].elems, 12000);
  EXPECT_FALSE(shares[1].form.is_8bit);
  EXPECT_EQ(shares[1].tensors, 2);
  EXPECT_EQ(shares[1].elems, 303);
  EXPECT_EQ(optimizer->BlockStateBytes(0), 2 * 256 + 2 * 4);
  EXPECT_EQ(optimizer->BlockStateBytes(Layout().tensor(1).blocks.begin), 2 * 1024);
}

TEST(ShardedOptimizer, HoldsEachTensorAsItsOverridesSay) {
  const auto optimizer = OfOneRank(WithOverrides("adamw_8bit"));
  const int64_t want[] = {2 * (256 + 4 * 4), 2 * (256 + 2 * 4), 2 * 1024, 2 * 1024};
  for (int64_t t = 0; t < 4; ++t)
    EXPECT_EQ(optimizer->BlockStateBytes(Layout().tensor(t).blocks.begin), want[t]) << t;
  const std::vector<StateShare> shares = optimizer->shares();
  ASSERT_EQ(shares.size(), 4u);
  EXPECT_EQ(shares[0].learning_rate_factor, 0.5);
  EXPECT_EQ(shares[0].form.state_block, 64);
  EXPECT_EQ(shares[0].weight_decay, 0.2);
  EXPECT_EQ(shares[3].tensors, 1);
}

TEST(ShardedOptimizer, RefusesAStepThatWouldMakeParametersNanAndChangesNothing) {
  const core::FlatLayout layout = Layout();
  const comm::ShardMap shards(layout, 1, 1 << 20);
  auto ranks = comm::ThreadCommunicator::Create(1);
  // The limit has a pre-pass, which comes after the check.
  ShardedOptimizerOptions options = WithOverrides("lamb_8bit");
  auto optimizer = ShardedOptimizer::Create(layout, shards, ranks[0].get(), options);
  ASSERT_TRUE(optimizer.ok()) << optimizer.status();
  const std::vector<float> before(static_cast<size_t>(layout.padded_elems()), 0.5f);
  std::vector<float> parameters = before;
  const std::vector<float> gradients(before.size(), 1.0f);
  const auto refusal = [&](double scale, double rate) {
    const absl::Status status = (*optimizer)
                                    ->Step({.parameters = parameters,
                                            .gradients = gradients,
                                            .gradient_scale = scale,
                                            .learning_rate = rate});
    EXPECT_EQ(parameters, before);
    EXPECT_EQ((*optimizer)->step(), 0);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(1, NAN), "optimizer step: lr: got nan, want a finite number at least 0");
  EXPECT_EQ(refusal(1, -1e-3), "optimizer step: lr: got -0.001, want at least 0");
  EXPECT_THAT(refusal(NAN, 1e-3), HasSubstr("gradient_scale: got nan"));
  EXPECT_THAT(refusal(1, 1e308), HasSubstr("lr: got inf"));  // Twice that for "c".
  EXPECT_TRUE((*optimizer)
                  ->Step({.parameters = parameters, .gradients = gradients, .learning_rate = 0.1})
                  .ok());
  EXPECT_NE(parameters, before);
}

TEST(TensorGroups, RefuseOverridesThatMeanNothing) {
  const core::FlatLayout layout =
      *core::FlatLayout::Create({{"layers.0.q_proj.weight", {5000}}, {"layers.0.norm", {300}}});
  const auto refusal = [&](const TensorOverride& override) {
    const auto groups = TensorGroups::Create(
        layout, {.name = *ParseOptimizerName("adamw_8bit"), .overrides = {override}});
    return groups.ok() ? "accepted" : std::string(groups.status().message());
  };
  EXPECT_EQ(
      refusal({.pattern = "*q_prj*", .bits = 32}),
      "optimizer override \"*q_prj*\": matches no tensor; the nearest is layers.0.q_proj.weight (* "
      "stands for any characters)");
  EXPECT_THAT(refusal({.pattern = "layers.0.nrom", .bits = 8}), HasSubstr("is layers.0.norm"));
  EXPECT_THAT(refusal({.pattern = "*"}), HasSubstr("changes nothing"));
  EXPECT_THAT(refusal({.pattern = "*", .bits = 4}), HasSubstr("bits: got 4, want 8 or 32"));
  EXPECT_THAT(refusal({.pattern = "*", .block_size = 32}), HasSubstr("want 64, 128 or 256"));
  EXPECT_THAT(refusal({.pattern = "*", .learning_rate_factor = -1}),
              HasSubstr("learning_rate_factor: got -1, want at least 0"));
  EXPECT_THAT(refusal({.pattern = "*", .learning_rate_factor = INFINITY}),
              HasSubstr("learning_rate_factor: got inf, want a finite number at least 0"));
  EXPECT_THAT(refusal({.pattern = "*", .weight_decay = NAN}), HasSubstr("weight_decay: got nan"));
  EXPECT_THAT(refusal({.pattern = "*", .weight_decay = -1}),
              HasSubstr("weight_decay: got -1, want at least 0"));
  EXPECT_THAT(refusal({.pattern = "*norm", .block_size = 64}), HasSubstr("32-bit state"));
  EXPECT_EQ(refusal({.pattern = "*norm", .bits = 8, .block_size = 64}), "accepted");
  const auto setting_refusal = [&](const char* name, OptimizerSettings settings) {
    settings.name = *ParseOptimizerName(name);
    const auto groups = TensorGroups::Create(layout, settings);
    return groups.ok() ? "accepted" : std::string(groups.status().message());
  };
  EXPECT_THAT(setting_refusal("lion_8bit", {.max_unorm = 1}), HasSubstr("has no norm to limit"));
  EXPECT_THAT(setting_refusal("adamw_8bit", {.max_unorm = -1}), HasSubstr("max_unorm: got -1"));
  EXPECT_THAT(setting_refusal("adamw_8bit", {.max_unorm = NAN}), HasSubstr("max_unorm: got nan"));
  EXPECT_EQ(setting_refusal("adamw_8bit", {.beta1 = 1}),
            "optimizer settings: beta1: got 1, want at least 0 and below 1");
  EXPECT_THAT(setting_refusal("sgd_8bit", {.beta1 = -1}), HasSubstr("momentum: got -1"));
  EXPECT_THAT(setting_refusal("lion_8bit", {.beta2 = NAN}), HasSubstr("beta2: got nan"));
  EXPECT_THAT(setting_refusal("adam_8bit", {.eps = -1}), HasSubstr("eps: got -1"));
  EXPECT_THAT(setting_refusal("adam_8bit", {.weight_decay = INFINITY}),
              HasSubstr("weight_decay: got inf"));
  EXPECT_THAT(setting_refusal("ademamix_8bit", {.beta3 = 1}), HasSubstr("beta3: got 1"));
  EXPECT_THAT(setting_refusal("ademamix_8bit", {.alpha = NAN}), HasSubstr("alpha: got nan"));
  EXPECT_THAT(setting_refusal("ademamix_8bit", {.alpha_steps = -1}), HasSubstr("t_alpha: got -1"));
  EXPECT_EQ(setting_refusal("ademamix_8bit", {.beta1 = 0, .beta2 = 0, .eps = 0, .alpha = -1}),
            "accepted");
  EXPECT_THAT(setting_refusal("ademamix_8bit", {.beta1 = 0, .beta3_steps = 9}),
              HasSubstr("beta1: got 0"));
  EXPECT_THAT(setting_refusal("ademamix_8bit", {.beta3 = 0, .beta3_steps = 9}),
              HasSubstr("beta3: got 0"));
  EXPECT_EQ(setting_refusal("ademamix_8bit", {.beta1 = 0, .beta3 = 0}), "accepted");
}

TEST(TensorGroups, TellApartWhatIsHeldOrSteppedOtherwise) {
  const core::FlatLayout layout =
      *core::FlatLayout::Create({{"a", {4096}}, {"b", {4095}}, {"c", {5000}}});
  const auto groups =
      TensorGroups::Create(layout, {.name = *ParseOptimizerName("adamw_8bit"),
                                    .overrides = {{.pattern = "c", .weight_decay = 0.5}}});
  ASSERT_TRUE(groups.ok()) << groups.status();
  EXPECT_TRUE(groups->forms()[0].is_8bit);
  EXPECT_FALSE(groups->forms()[1].is_8bit);
  const std::vector<StateShare> shares = groups->Shares(layout);
  ASSERT_EQ(shares.size(), 3u);
  EXPECT_EQ(shares[0].elems, 4096);
  EXPECT_EQ(shares[2].weight_decay, 0.5);
}

TEST(TensorGroups, TakeTensorsOf32BitStateTogetherWhateverTheirBlocks) {
  const core::FlatLayout layout =
      *core::FlatLayout::Create({{"x.a", {5000}}, {"x.b", {300}}, {"y.c", {200}}});
  const auto groups =
      TensorGroups::Create(layout, {.name = *ParseOptimizerName("adamw_8bit"),
                                    .overrides = {{.pattern = "x.*", .block_size = 64}}});
  ASSERT_TRUE(groups.ok()) << groups.status();
  EXPECT_EQ(groups->num_groups(), 2);
  EXPECT_EQ(groups->GroupOf(1), groups->GroupOf(2));
  EXPECT_EQ(groups->forms()[1].state_block, 256);
}

}  // namespace
}  // namespace bitshard::optim
