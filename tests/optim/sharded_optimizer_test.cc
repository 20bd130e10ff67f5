#include "optim/sharded_optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "comm/thread_communicator.h"
#include "core/rng.h"

namespace bitshard::optim {
namespace {

// Two tensors with 8-bit state, one with 32-bit state, one of less than a block.
core::FlatLayout Layout() {
  return *core::FlatLayout::Create({{"a", {70, 100}}, {"b", {300}}, {"c", {5000}}, {"d", {3}}});
}

ShardedOptimizerOptions Options(const std::string& name) {
  ShardedOptimizerOptions options;
  options.name = *ParseOptimizerName(name);
  options.weight_decay = 0.1;
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
        const auto norm = (*optimizer)->GradientNorm(gradients, 0.5);
        ASSERT_TRUE(norm.ok());
        ASSERT_TRUE((*optimizer)
                        ->Step({.parameters = parameters,
                                .gradients = gradients,
                                .gradient_scale = 0.5,
                                .learning_rate = 1e-2})
                        .ok());
        if (rank == 0) result.norm = *norm;
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

TEST(ShardedOptimizer, GivesTheSameBitsAtAnyWorldSizeAndPaged) {
  for (const char* name : {"adamw_8bit", "lion_8bit", "adamw_32bit"}) {
    const Result one = Train(1, Options(name), 0, 5, Start());
    for (const int world_size : {2, 3, 4})
      ExpectSame(one, Train(world_size, Options(name), 0, 5, Start()), name);
    ShardedOptimizerOptions paged = Options(std::string("paged_") + name);
    paged.paging = {
        .tier = paging::Tier::kFile, .budget_bytes = 16 << 20, .directory = ::testing::TempDir()};
    ExpectSame(one, Train(2, paged, 0, 5, Start()), std::string("paged_") + name);
    // Pages are cut so that two fit: here many of a few blocks each.
    paged.paging.budget_bytes = 8 << 10;
    ExpectSame(one, Train(2, paged, 0, 5, Start()), std::string("small pages, paged_") + name);
  }
}

TEST(ShardedOptimizer, MovesItsStateToAnotherWorldSize) {
  for (const char* name : {"adamw_8bit", "lion_32bit"}) {
    const Result whole = Train(2, Options(name), 0, 6, Start());
    const Result half = Train(2, Options(name), 0, 3, Start());
    for (const int world_size : {1, 3, 4}) {
      ExpectSame(half, Train(world_size, Options(name), 3, 3, half), "state as it was");
      ExpectSame(whole, Train(world_size, Options(name), 3, 6, half), "gone on");
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

TEST(ShardedOptimizer, KeepsSmallTensorsIn32Bits) {
  auto ranks = comm::ThreadCommunicator::Create(1);
  const core::FlatLayout layout = Layout();
  const auto optimizer = ShardedOptimizer::Create(layout, comm::ShardMap(layout, 1, 1024),
                                                  ranks[0].get(), Options("adamw_8bit"));
  ASSERT_TRUE(optimizer.ok());
  const StateSplit split = (*optimizer)->split();
  EXPECT_EQ(split.tensors_8bit, 2);
  EXPECT_EQ(split.elems_8bit, 12000);
  EXPECT_EQ(split.tensors_32bit, 2);
  EXPECT_EQ(split.elems_32bit, 303);
  EXPECT_EQ((*optimizer)->BlockStateBytes(0), 2 * 256 + 2 * 4);
  EXPECT_EQ((*optimizer)->BlockStateBytes(layout.tensor(1).blocks.begin), 2 * 1024);
}

TEST(OptimizerName, KnowsTransformersSpellings) {
  EXPECT_EQ(ParseOptimizerName("adamw_bnb_8bit")->bits, 8);
  EXPECT_TRUE(ParseOptimizerName("paged_lion_32bit")->paged);
  EXPECT_EQ(ParseOptimizerName("paged_lion_32bit")->algorithm, Algorithm::kLion);
  const auto unknown = ParseOptimizerName("adamw_8bits");
  EXPECT_NE(std::string(unknown.status().message()).find("did you mean adamw_8bit"),
            std::string::npos);
}

}  // namespace
}  // namespace bitshard::optim
