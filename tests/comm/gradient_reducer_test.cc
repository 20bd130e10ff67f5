#include "comm/gradient_reducer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <mutex>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/rng.h"
#include "tests/comm/world.h"

namespace bitshard::comm {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kBucketBytes = 4096;
const absl::Duration kTimeout = absl::Seconds(60);

// Odd sizes: padding, tensors of many blocks, one bucket of a single block (empty runs at three
// ranks and more).
core::FlatLayout TestLayout() {
  auto layout = core::FlatLayout::Create({{.name = "a", .shape = {100}},
                                          {.name = "b", .shape = {33, 50}},
                                          {.name = "c", .shape = {700}},
                                          {.name = "d", .shape = {5, 5, 5}},
                                          {.name = "e", .shape = {3000}},
                                          {.name = "f", .shape = {1}}});
  BITSHARD_CHECK(layout.ok()) << layout.status().ToString();
  return *std::move(layout);
}

// Magnitudes over 2^+-20, so that any other order of additions gives other bits.
float Gradient(int64_t step, int64_t micro, int64_t element) {
  const core::Philox4 random =
      core::Philox(static_cast<uint64_t>(step * 100 + micro), static_cast<uint64_t>(element), 7);
  return std::ldexp(core::UniformFloat(random.word[0]) - 0.5f,
                    static_cast<int>(random.word[1] % 41) - 20);
}

// The reference: the tree's definition as a recursion over one element.
float TreeSum(int64_t step, int64_t element, int64_t begin, int64_t end) {
  if (end - begin == 1) return Gradient(step, begin, element);
  int64_t half = 1;
  while (half * 2 < end - begin) half *= 2;
  return TreeSum(step, element, begin, begin + half) + TreeSum(step, element, begin + half, end);
}

std::vector<float> ReferenceSum(const core::FlatLayout& layout, int64_t step,
                                int64_t micro_batches) {
  std::vector<float> sum(static_cast<size_t>(layout.padded_elems()), 0.0f);
  for (const core::FlatTensor& tensor : layout.tensors()) {
    for (int64_t i = 0; i < tensor.numel; ++i) {
      sum[static_cast<size_t>(tensor.offset() + i)] =
          TreeSum(step, tensor.offset() + i, 0, micro_batches);
    }
  }
  return sum;
}

void WriteTensor(const core::FlatLayout& layout, int64_t tensor, int64_t step, int64_t micro,
                 std::span<float> leaf) {
  const int64_t offset = layout.tensor(tensor).offset();
  for (int64_t i = 0; i < layout.tensor(tensor).numel; ++i) {
    leaf[static_cast<size_t>(offset + i)] = Gradient(step, micro, offset + i);
  }
}

// Tensors in an order that differs by rank and micro-batch.
std::vector<int64_t> ReadyOrder(int64_t num_tensors, int64_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(num_tensors));
  std::iota(order.begin(), order.end(), 0);
  std::rotate(order.begin(), order.begin() + seed % num_tensors, order.end());
  return order;
}

void RunStep(const core::FlatLayout& layout, Communicator& comm, int64_t step,
             int64_t micro_batches, GradientReducer* reducer) {
  const MicroBatchRange range = MicroBatchesOf(comm.rank(), comm.world_size(), micro_batches);
  reducer->BeginStep();
  for (int64_t micro = range.begin; micro < range.end; ++micro) {
    reducer->BeginMicroBatch();
    for (const int64_t tensor : ReadyOrder(layout.num_tensors(), micro + comm.rank())) {
      WriteTensor(layout, tensor, step, micro, reducer->leaf());
      const absl::Status ready = reducer->TensorReady(tensor);
      ASSERT_TRUE(ready.ok()) << ready;
    }
  }
}

void ExpectSameBits(std::span<const float> got, const float* want, int64_t begin,
                    const std::string& what) {
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(float)), 0)
        << what << ": element " << begin + static_cast<int64_t>(i) << " is " << got[i] << ", want "
        << want[i];
  }
}

// Two steps of `micro_batches` on a world; every rank's blocks must have the bits of the reference
// tree.
void CheckSums(int world_size, int64_t micro_batches) {
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, world_size, kBucketBytes);
  const std::string what = absl::StrCat(micro_batches, " micro-batches on ", world_size, " ranks");
  RunOnThreads(world_size, kTimeout, [&](Communicator& comm) {
    const GradientReducerOptions options{.micro_batches_per_step = micro_batches};
    auto reducer = GradientReducer::Create(layout, shards, &comm, options);
    ASSERT_TRUE(reducer.ok()) << reducer.status();
    const ReducerCost cost = GradientReducer::Cost(layout, shards, comm.rank(), options);
    for (int64_t step = 0; step < 2; ++step) {
      const int64_t sent_before = comm.bytes_sent();
      RunStep(layout, comm, step, micro_batches, reducer->get());
      auto sums = (*reducer)->FinishStep();
      ASSERT_TRUE(sums.ok()) << sums.status();
      const std::vector<float> want = ReferenceSum(layout, step, micro_batches);
      size_t at = 0;
      for (const core::BlockRange run : shards.RunsOf(comm.rank())) {
        const size_t elems = static_cast<size_t>(run.size() * core::kBlockElems);
        ExpectSameBits(sums->subspan(at, elems),
                       &want[static_cast<size_t>(run.begin * core::kBlockElems)],
                       run.begin * core::kBlockElems, what);
        at += elems;
      }
      EXPECT_EQ(sums->size(), at);
      EXPECT_EQ(comm.bytes_sent() - sent_before, cost.sent_bytes_per_step) << what;
    }
  });
}

TEST(GradientReducer, SumsHaveTheBitsOfTheTreeAtAnyWorldSize) {
  for (int64_t micro_batches = 1; micro_batches <= 9; ++micro_batches) {
    for (int world_size = 1; world_size <= std::min<int64_t>(micro_batches, 6); ++world_size) {
      CheckSums(world_size, micro_batches);
    }
  }
}

TEST(GradientReducer, ManyMicroBatchesUseEveryPartialBuffer) {
  CheckSums(1, 37);
  CheckSums(3, 37);
  CheckSums(2, 64);
}

TEST(GradientReducer, SendsABucketBeforeTheNextOneIsReady) {
  const core::FlatLayout layout = TestLayout();
  const ShardMap shards(layout, 2, kBucketBytes);
  ASSERT_GE(shards.num_buckets(), 3);
  RunOnThreads(2, kTimeout, [&](Communicator& comm) {
    auto reducer = GradientReducer::Create(layout, shards, &comm, {.micro_batches_per_step = 4});
    ASSERT_TRUE(reducer.ok());
    (*reducer)->BeginStep();
    for (int64_t micro = 0; micro < 2; ++micro) {
      (*reducer)->BeginMicroBatch();
      std::fill((*reducer)->leaf().begin(), (*reducer)->leaf().end(), 1.0f);
      for (int64_t tensor = 0; tensor < layout.num_tensors(); ++tensor) {
        const int64_t bucket = shards.BucketOfTensor(tensor);
        const bool fills =
            tensor + 1 == layout.num_tensors() || shards.BucketOfTensor(tensor + 1) != bucket;
        const int64_t before = comm.bytes_sent();
        ASSERT_TRUE((*reducer)->TensorReady(tensor).ok());
        const int64_t want =
            micro == 1 && fills ? shards.Run(bucket, 1 - comm.rank()).size() * core::kBlockElems * 4
                                : 0;
        EXPECT_EQ(comm.bytes_sent() - before, want)
            << "micro-batch " << micro << ", tensor " << tensor;
      }
    }
    ASSERT_TRUE((*reducer)->FinishStep().ok());
  });
}

TEST(GradientReducer, CostsAsLittleAsTheTreeAllows) {
  const core::FlatLayout layout = TestLayout();
  const int64_t arena = layout.padded_elems() * 4;
  const auto cost = [&](int world_size, int rank, int64_t micro_batches) {
    return GradientReducer::Cost(layout, ShardMap(layout, world_size, kBucketBytes), rank,
                                 {.micro_batches_per_step = micro_batches});
  };
  // One micro-batch a rank: no partial. One rank: nothing is received, nothing copied.
  EXPECT_EQ(cost(2, 0, 2).leaf_bytes, arena);
  EXPECT_EQ(cost(2, 0, 2).partial_bytes, 0);
  EXPECT_EQ(cost(1, 0, 8).partial_bytes, 3 * arena);
  EXPECT_EQ(cost(1, 0, 8).receive_bytes, 0);
  EXPECT_EQ(cost(1, 0, 8).sent_bytes_per_step, 0);
  // An aligned run sends as much as a ring's reduce-scatter: everything but its own shard.
  const ShardMap two(layout, 2, kBucketBytes);
  EXPECT_EQ(cost(2, 1, 8).partials_per_rank, 1);
  EXPECT_EQ(cost(2, 1, 8).sent_bytes_per_step, two.NumBlocksOf(0) * core::kBlockElems * 4);
  EXPECT_EQ(cost(2, 0, 6).partials_per_rank, 2);
  EXPECT_EQ(cost(2, 0, 6).sent_bytes_per_step, 2 * two.NumBlocksOf(1) * core::kBlockElems * 4);
}

TEST(GradientReducer, RefusesMoreRanksThanMicroBatches) {
  const core::FlatLayout layout = TestLayout();
  RunOnThreads(2, kTimeout, [&](Communicator& comm) {
    const auto reducer = GradientReducer::Create(layout, ShardMap(layout, 2, kBucketBytes), &comm,
                                                 {.micro_batches_per_step = 1});
    EXPECT_EQ(core::KindOf(reducer.status()), core::ErrorKind::kConfig);
    EXPECT_THAT(std::string(reducer.status().message()), HasSubstr("1 micro-batches for 2 ranks"));
  });
}

TEST(GradientReducer, NamesAMissingOrRepeatedTensor) {
  const core::FlatLayout layout = TestLayout();
  RunOnThreads(1, kTimeout, [&](Communicator& comm) {
    auto reducer = GradientReducer::Create(layout, ShardMap(layout, 1, kBucketBytes), &comm,
                                           {.micro_batches_per_step = 1});
    ASSERT_TRUE(reducer.ok());
    (*reducer)->BeginStep();
    EXPECT_THAT(std::string((*reducer)->FinishStep().status().message()),
                HasSubstr("0 of 1 micro-batches"));
    (*reducer)->BeginMicroBatch();
    ASSERT_TRUE((*reducer)->TensorReady(0).ok());
    EXPECT_THAT(std::string((*reducer)->TensorReady(0).message()),
                HasSubstr("gradient of a was given twice"));
    const absl::Status missing = (*reducer)->FinishStep().status();
    EXPECT_EQ(missing.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(missing.message()), HasSubstr("5 tensors have no gradient, b first"));
  });
}

TEST(GradientReducer, LateRankIsNamed) {
  const core::FlatLayout layout = TestLayout();
  RunOnThreads(2, absl::Milliseconds(200), [&](Communicator& comm) {
    auto reducer = GradientReducer::Create(layout, ShardMap(layout, 2, 4 * kBucketBytes), &comm,
                                           {.micro_batches_per_step = 2});
    ASSERT_TRUE(reducer.ok());
    if (comm.rank() == 1) return absl::SleepFor(absl::Milliseconds(600));
    RunStep(layout, comm, 0, 2, reducer->get());
    const absl::Status status = (*reducer)->FinishStep().status();
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kPeer);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("\"gradient bucket 0\": rank 1 did not arrive within 200ms"));
  });
}

}  // namespace
}  // namespace bitshard::comm
