// A rank's step on a device against the engine of the host, bit for bit, for resident and paged
// state.
#include "optim/device_shard.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "comm/thread_communicator.h"
#include "core/cuda_stream.h"
#include "core/rng.h"
#include "optim/sharded_optimizer.h"

namespace bitshard::optim {
namespace {

constexpr int64_t kSteps = 2;

// Tails, and a tensor of less than a block. One rank has three pages of 32-bit state.
core::FlatLayout Layout() {
  return *core::FlatLayout::Create(
      {{"a", {300, 1000}}, {"b", {300}}, {"c", {401, 601}}, {"d", {3}}, {"e", {5000}}});
}

std::vector<float> Gradients(const core::FlatLayout& layout, int64_t step) {
  std::vector<float> gradients(static_cast<size_t>(layout.padded_elems()));
  for (const core::FlatTensor& tensor : layout.tensors()) {
    for (int64_t i = 0; i < tensor.numel; ++i) {
      const uint64_t element = static_cast<uint64_t>(tensor.offset() + i);
      gradients[element] =
          core::UniformFloat(
              core::Philox(9, element / 4, static_cast<uint64_t>(step)).word[element % 4]) -
          0.4f;
    }
  }
  return gradients;
}

struct Result {
  std::vector<float> parameters;
  std::vector<std::byte> state;  // Of all blocks, in order.
};

StepMoment Moment(int64_t step) {
  return {.step = step, .learning_rate = 1e-2, .gradient_scale = 0.5};
}

OptimizerSettings Settings(const std::string& name, bool is_overridden) {
  OptimizerSettings settings{.name = *ParseOptimizerName(name), .weight_decay = 0.1};
  if (is_overridden) {
    settings.overrides = {{.pattern = "*", .block_size = 128},
                          {.pattern = "a", .block_size = 64, .learning_rate_factor = 0.5},
                          {.pattern = "b", .bits = 8, .weight_decay = 0},
                          {.pattern = "e", .bits = 32}};
  }
  return settings;
}

std::vector<float> Parameters(const core::FlatLayout& layout) {
  return std::vector<float>(static_cast<size_t>(layout.padded_elems()), 0.25f);
}

Result OnTheHost(const OptimizerSettings& settings) {
  const core::FlatLayout layout = Layout();
  const comm::ShardMap shards(layout, 1, 1 << 20);
  auto ranks = comm::ThreadCommunicator::Create(1);
  ShardedOptimizerOptions options{.settings = settings};
  options.settings.name.paged = false;
  auto optimizer = ShardedOptimizer::Create(layout, shards, ranks[0].get(), options);
  EXPECT_TRUE(optimizer.ok()) << optimizer.status();
  Result result{.parameters = Parameters(layout)};
  for (int64_t step = 1; step <= kSteps; ++step) {
    EXPECT_TRUE((*optimizer)
                    ->Step({.parameters = result.parameters,
                            .gradients = Gradients(layout, step),
                            .gradient_scale = 0.5,
                            .learning_rate = 1e-2})
                    .ok());
  }
  int64_t bytes = 0;
  for (int64_t b = 0; b < layout.num_blocks(); ++b) bytes += (*optimizer)->BlockStateBytes(b);
  result.state.resize(static_cast<size_t>(bytes));
  size_t at = 0;
  for (const core::BlockRange run : shards.RunsOf(0)) {
    size_t n = 0;
    for (int64_t b = run.begin; b < run.end; ++b)
      n += static_cast<size_t>((*optimizer)->BlockStateBytes(b));
    EXPECT_TRUE((*optimizer)->ExportState(run, std::span(result.state).subspan(at, n)).ok());
    at += n;
  }
  return result;
}

struct Case {
  std::string name;
  paging::DeviceTier tier;
  bool is_overridden = false;
};

// Ranks one after another, each in an arena of its own of which its blocks are taken.
class DeviceShardTest : public testing::TestWithParam<Case> {
 protected:
  void StepAsOneOf(int world_size, const Result& want);
};
INSTANTIATE_TEST_SUITE_P(Tiers, DeviceShardTest,
                         testing::Values(Case{"adamw_8bit", paging::DeviceTier::kDevice},
                                         Case{"paged_lion_8bit", paging::DeviceTier::kPinned},
                                         Case{"paged_adam_32bit", paging::DeviceTier::kPinned},
                                         Case{"paged_adamw_32bit", paging::DeviceTier::kManaged},
                                         Case{"ademamix_8bit", paging::DeviceTier::kDevice, true},
                                         Case{"paged_lion_8bit", paging::DeviceTier::kManaged,
                                              true}),
                         [](const auto& info) {
                           return info.param.name +
                                  std::to_string(static_cast<int>(info.param.tier)) +
                                  (info.param.is_overridden ? "_overridden" : "");
                         });

void DeviceShardTest::StepAsOneOf(int world_size, const Result& want) {
  const core::FlatLayout layout = Layout();
  const comm::ShardMap shards(layout, world_size, 1 << 20);
  const auto stream = core::Stream::Create();
  ASSERT_TRUE(stream.ok()) << stream.status();
  for (int rank = 0; rank < world_size; ++rank) {
    SCOPED_TRACE(rank);
    DeviceShardOptions options{.settings = Settings(GetParam().name, GetParam().is_overridden),
                               .stream = stream->get()};
    options.paging = {.tier = GetParam().tier, .budget_bytes = 5 << 20};
    auto shard = DeviceShard::Create(layout, shards, rank, options);
    ASSERT_TRUE(shard.ok()) << shard.status();
    std::vector<float> parameters = Parameters(layout);
    float* arena = nullptr;
    float* gradients = nullptr;
    const size_t bytes = parameters.size() * sizeof(float);
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&arena), bytes), cudaSuccess);
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&gradients), bytes), cudaSuccess);
    // A device that reads pageable memory by itself may do so after the call.
    std::deque<std::vector<float>> sources;
    const auto upload = [&](float* to, const std::vector<float>& from) {
      sources.push_back(from);
      ASSERT_EQ(cudaMemcpyAsync(to, sources.back().data(), from.size() * sizeof(float),
                                cudaMemcpyDefault, stream->get()),
                cudaSuccess);
    };
    upload(arena, parameters);
    const int64_t mine = shards.NumBlocksOf(rank);
    for (int64_t step = 1; step <= kSteps; ++step) {
      const std::vector<float> all = Gradients(layout, step);
      std::vector<float> own;
      for (const core::BlockRange run : shards.RunsOf(rank)) {
        own.insert(own.end(), all.begin() + run.begin * core::kBlockElems,
                   all.begin() + run.end * core::kBlockElems);
      }
      upload(gradients, own);
      int64_t done = 0;
      const absl::Status status =
          (*shard)->Step({.parameters = arena, .gradients = gradients, .moment = Moment(step)},
                         [&](int64_t blocks) {
                           EXPECT_GT(blocks, done);
                           done = blocks;
                           return absl::OkStatus();
                         });
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(done, mine);
    }
    ASSERT_EQ(cudaMemcpyAsync(parameters.data(), arena, bytes, cudaMemcpyDefault, stream->get()),
              cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream->get()), cudaSuccess);
    for (const core::BlockRange run : shards.RunsOf(rank)) {
      const size_t first = static_cast<size_t>(run.begin * core::kBlockElems);
      const size_t elems = static_cast<size_t>(run.size() * core::kBlockElems);
      EXPECT_EQ(std::memcmp(parameters.data() + first, want.parameters.data() + first,
                            elems * sizeof(float)),
                0);
      const auto bytes_before = [&](int64_t block) {
        int64_t sum = 0;
        for (int64_t b = 0; b < block; ++b)
          sum += (*shard)->pages().BlockBytes(layout.TensorOfBlock(b));
        return static_cast<size_t>(sum);
      };
      std::vector<std::byte> state(bytes_before(run.end) - bytes_before(run.begin));
      const absl::Status status = (*shard)->ExportState(run, state);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(
          std::memcmp(state.data(), want.state.data() + bytes_before(run.begin), state.size()), 0)
          << "state of blocks " << run.begin << " to " << run.end;
      for (std::byte& byte : state) byte ^= std::byte{1};  // Not what the shard has already.
      ASSERT_TRUE((*shard)->ImportState(run, state).ok());
      std::vector<std::byte> again(state.size());
      ASSERT_TRUE((*shard)->ExportState(run, again).ok());
      EXPECT_EQ(again, state);
    }
    EXPECT_EQ(cudaFree(arena), cudaSuccess);
    EXPECT_EQ(cudaFree(gradients), cudaSuccess);
  }
}

TEST_P(DeviceShardTest, HasTheBitsOfTheHostsEngine) {
  const Result want = OnTheHost(Settings(GetParam().name, GetParam().is_overridden));
  for (const int world_size : {1, 3}) {
    SCOPED_TRACE(world_size);
    StepAsOneOf(world_size, want);
  }
}

}  // namespace
}  // namespace bitshard::optim
