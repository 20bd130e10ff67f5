// When the device engine tells that blocks are stepped, and what it gathers then: with pages that
// end in the middle of tensors and of buckets, and a bucket that ends one block after a page.
#include "optim/device_optimizer.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/core/device_array.h"

namespace bitshard::optim {
namespace {

using core::kBlockElems;

constexpr float kBefore = 0.25f;
constexpr int64_t kBucketBytes = 1 << 18;  // 256 blocks: each tensor is a bucket.

// Blocks of 32-bit state in a page.
int64_t BlocksOfPage() {
  const core::FlatLayout layout = *core::FlatLayout::Create({{"x", {20000, kBlockElems}}});
  const StatePages pages(layout, comm::ShardMap(layout, 1, kBucketBytes), 0,
                         {.num_states = 2, .forms = {StateForm{.is_8bit = false}}});
  return pages.segments()[0].blocks.size();
}

// With 2 ranks the second bucket ends one block after a page of each.
core::FlatLayout Layout() {
  const int64_t second = 2 * (BlocksOfPage() + 1) - 1400;
  return *core::FlatLayout::Create({{"a", {1400, kBlockElems}},
                                    {"b", {second, kBlockElems}},
                                    {"c", {1800, kBlockElems}},
                                    {"d", {600, kBlockElems}},
                                    {"e", {3}}});
}

DeviceShardOptions ShardOptions(cudaStream_t stream) {
  return {.settings = {.name = *ParseOptimizerName("paged_adamw_32bit")},
          .paging = {.tier = paging::DeviceTier::kPinned, .budget_bytes = 5 << 20},
          .stream = stream};
}

// Global numbers of a rank's blocks.
std::vector<int64_t> BlocksOf(const comm::ShardMap& shards, int rank) {
  std::vector<int64_t> blocks;
  for (const core::BlockRange run : shards.RunsOf(rank)) {
    for (int64_t b = run.begin; b < run.end; ++b) blocks.push_back(b);
  }
  return blocks;
}

bool IsStepped(const std::vector<float>& arena, int64_t block) {
  return arena[static_cast<size_t>(block * kBlockElems)] != kBefore;
}

// A step of one of `world_size` ranks, whose arena and gradients it holds.
struct Rank {
  Rank(int world_size, int rank)
      : shards(layout, world_size, kBucketBytes),
        blocks(BlocksOf(shards, rank)),
        arena(std::vector<float>(static_cast<size_t>(layout.padded_elems()), kBefore),
              stream.get()),
        gradients(std::vector<float>(blocks.size() * kBlockElems, 0.5f), stream.get()) {}

  const core::FlatLayout layout = Layout();
  const core::TestStream stream;
  const comm::ShardMap shards;
  const std::vector<int64_t> blocks;
  const core::DeviceArray<float> arena;
  const core::DeviceArray<float> gradients;
};

TEST(DeviceShard, TellsHowManyOfItsBlocksAreStepped) {
  for (const int world_size : {1, 2, 3}) {
    SCOPED_TRACE(world_size);
    const Rank rank(world_size, world_size - 1);
    auto shard = DeviceShard::Create(rank.layout, rank.shards, world_size - 1,
                                     ShardOptions(rank.stream.get()));
    ASSERT_TRUE(shard.ok()) << shard.status();
    int calls = 0;
    const auto done = [&](int64_t count) {
      ++calls;
      const std::vector<float> now = rank.arena.Get();
      for (size_t i = 0; i < rank.blocks.size(); ++i) {
        EXPECT_EQ(IsStepped(now, rank.blocks[i]), static_cast<int64_t>(i) < count)
            << "block " << i << " of this rank, told that " << count << " are stepped";
      }
      return testing::Test::HasFailure() ? absl::InternalError("see above") : absl::OkStatus();
    };
    const absl::Status status = (*shard)->Step({.parameters = rank.arena.data(),
                                                .gradients = rank.gradients.data(),
                                                .moment = {.step = 1, .learning_rate = 1e-2}},
                                               done);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(calls, (*shard)->pages().num_pages());
    EXPECT_GT(calls, 1);
  }
}

TEST(DeviceShard, RefusesAMomentThatWouldMakeParametersNanAndStepsAfterThat) {
  const Rank rank(1, 0);
  auto shard = DeviceShard::Create(rank.layout, rank.shards, 0, ShardOptions(rank.stream.get()));
  ASSERT_TRUE(shard.ok()) << shard.status();
  DeviceShardStep step{.parameters = rank.arena.data(),
                       .gradients = rank.gradients.data(),
                       .moment = {.step = 1, .learning_rate = NAN}};
  const auto done = [](int64_t) { return absl::OkStatus(); };
  const std::string want = "optimizer step: lr: got nan, want a finite number at least 0";
  EXPECT_EQ((*shard)->Step(step, done).message(), want);
  EXPECT_EQ((*shard)->UpdateNorms(step, nullptr).message(), want);
  for (const int64_t block : rank.blocks) EXPECT_FALSE(IsStepped(rank.arena.Get(), block));
  step.moment.learning_rate = 1e-2;
  EXPECT_TRUE((*shard)->Step(step, done).ok());
  for (const int64_t block : rank.blocks) EXPECT_TRUE(IsStepped(rank.arena.Get(), block));
}

class Done : public comm::Work {
 public:
  absl::Status Wait() override { return absl::OkStatus(); }
};

// Says what was given to it; nothing is sent.
class Listener : public comm::DeviceCommunicator {
 public:
  struct Gather {
    std::string name;
    std::vector<std::span<const std::byte>> send;
    std::vector<std::span<std::byte>> receive;
    std::vector<float> sent;   // What the own part held where the gather stands on its stream.
    std::vector<float> arena;  // The same of everything.
  };

  Listener(const Rank& of, int rank) : of_(of), rank_(rank) {}
  const std::vector<Gather>& gathers() const { return gathers_; }

  int rank() const override { return rank_; }
  int world_size() const override { return of_.shards.world_size(); }
  int64_t bytes_sent() const override { return 0; }
  void set_timeout(absl::Duration) override {}
  absl::Status status() override { return absl::OkStatus(); }
  absl::Status Finalize() override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<comm::Work>> StartAllToAll(
      const std::vector<std::span<const std::byte>>& send,
      const std::vector<std::span<std::byte>>& receive, const std::string& name,
      cudaStream_t stream) override {
    const std::span<const std::byte> mine = send[rank_ == 0 ? 1 : 0];
    gathers_.push_back({name, send, receive, Copy(mine, stream),
                        Copy(std::as_bytes(std::span(
                                 of_.arena.data(), static_cast<size_t>(of_.layout.padded_elems()))),
                             stream)});
    return std::make_unique<Done>();
  }
  absl::StatusOr<std::unique_ptr<comm::Work>> StartAllGather(std::span<const std::byte>,
                                                             std::span<std::byte>,
                                                             const std::string& name,
                                                             cudaStream_t) override {
    return absl::UnimplementedError(name);
  }
  absl::StatusOr<std::unique_ptr<comm::Work>> StartReduceScatter(std::span<const float>,
                                                                 std::span<float>,
                                                                 const std::string& name,
                                                                 cudaStream_t) override {
    return absl::UnimplementedError(name);
  }

 private:
  static std::vector<float> Copy(std::span<const std::byte> device, cudaStream_t stream) {
    std::vector<float> host(device.size() / sizeof(float));
    if (host.empty()) return host;
    EXPECT_EQ(
        cudaMemcpyAsync(host.data(), device.data(), device.size(), cudaMemcpyDeviceToHost, stream),
        cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    return host;
  }

  const Rank& of_;
  const int rank_;
  std::vector<Gather> gathers_;
};

void ExpectGatherOf(const Rank& rank, int self, int64_t bucket, const Listener::Gather& gather) {
  SCOPED_TRACE(absl::StrCat("rank ", self, " of ", rank.shards.world_size(), ", bucket ", bucket));
  EXPECT_EQ(gather.name, absl::StrCat("parameters of bucket ", bucket));
  const auto begin_of = [&](core::BlockRange run) {
    return reinterpret_cast<const std::byte*>(rank.arena.data() + run.begin * kBlockElems);
  };
  for (int r = 0; r < rank.shards.world_size(); ++r) {
    const size_t at = static_cast<size_t>(r);
    if (r == self) {
      EXPECT_TRUE(gather.send[at].empty() && gather.receive[at].empty());
      continue;
    }
    const core::BlockRange own = rank.shards.Run(bucket, self), other = rank.shards.Run(bucket, r);
    EXPECT_EQ(gather.send[at].data(), begin_of(own));
    EXPECT_EQ(gather.send[at].size(), size_t(own.size() * kBlockElems) * sizeof(float));
    EXPECT_EQ(gather.receive[at].data(), begin_of(other));
    EXPECT_EQ(gather.receive[at].size(), size_t(other.size() * kBlockElems) * sizeof(float));
  }
  for (size_t e = 0; e < gather.sent.size(); e += kBlockElems)
    EXPECT_NE(gather.sent[e], kBefore) << "block " << e / kBlockElems << " was sent too early";
}

TEST(DeviceOptimizer, GathersABucketOnceItsBlocksAreSteppedWhileOthersAreNot) {
  for (const int world_size : {2, 3}) {
    for (int self = 0; self < world_size; ++self) {
      const Rank rank(world_size, self);
      Listener comm(rank, self);
      auto optimizer =
          DeviceOptimizer::Create(rank.layout, rank.shards, &comm, ShardOptions(rank.stream.get()));
      ASSERT_TRUE(optimizer.ok()) << optimizer.status();
      const absl::Status status = (*optimizer)
                                      ->Step({.parameters = rank.arena.data(),
                                              .gradients = rank.gradients.data(),
                                              .learning_rate = 1e-2});
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(static_cast<int64_t>(comm.gathers().size()), rank.shards.num_buckets());
      for (int64_t bucket = 0; bucket < rank.shards.num_buckets(); ++bucket)
        ExpectGatherOf(rank, self, bucket, comm.gathers()[static_cast<size_t>(bucket)]);
      EXPECT_FALSE(IsStepped(comm.gathers()[0].arena, rank.blocks.back()));
      const std::vector<float> after = rank.arena.Get();
      for (const int64_t block : rank.blocks) EXPECT_TRUE(IsStepped(after, block)) << block;
    }
  }
}

}  // namespace
}  // namespace bitshard::optim
