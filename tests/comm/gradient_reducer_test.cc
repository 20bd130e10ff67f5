#include "comm/gradient_reducer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <latch>

#include "absl/time/clock.h"
#include "core/error.h"
#include "tests/comm/reducer_reference.h"
#include "tests/comm/world.h"

namespace bitshard::comm {
namespace {

using ::testing::HasSubstr;

const absl::Duration kTimeout = absl::Seconds(60);

void CheckSumsOnThreads(int world_size, int64_t micro_batches) {
  RunOnThreads(world_size, kTimeout, [&](Communicator& comm) { CheckSums(comm, micro_batches); });
}

TEST(GradientReducer, SumsHaveTheBitsOfTheTreeAtAnyWorldSize) {
  for (int64_t micro_batches = 1; micro_batches <= 9; ++micro_batches) {
    for (int world_size = 1; world_size <= std::min<int64_t>(micro_batches, 6); ++world_size) {
      CheckSumsOnThreads(world_size, micro_batches);
    }
  }
}

TEST(GradientReducer, ManyMicroBatchesUseEveryPartialBuffer) {
  CheckSumsOnThreads(1, 37);
  CheckSumsOnThreads(3, 37);
  CheckSumsOnThreads(2, 64);
}

TEST(GradientReducer, FastSumsStayWithinTheBoundAndSendOneSum) {
  for (const int64_t micro_batches : {1, 3, 6, 8, 9, 37}) {
    for (int world_size = 1; world_size <= std::min<int64_t>(micro_batches, 6); ++world_size) {
      RunOnThreads(world_size, kTimeout,
                   [&](Communicator& comm) { CheckFastSums(comm, micro_batches); });
    }
  }
}

// 3 ranks of 2, 2 and 1 micro-batches have two levels of additions below three ranks' sums.
TEST(GradientReducer, FastBoundCountsTheAdditions) {
  const auto near = [](double additions) { return additions * 0x1p-24; };
  EXPECT_NEAR(FastReductionBound(1, 1), 0, 0);
  EXPECT_NEAR(FastReductionBound(8, 1), near(3 + 3), 1e-11);
  EXPECT_NEAR(FastReductionBound(8, 2), near(3 + 2 + 1), 1e-11);
  EXPECT_NEAR(FastReductionBound(5, 3), near(3 + 1 + 2), 1e-11);
  EXPECT_NEAR(FastReductionBound(64, 64), near(6 + 0 + 63), 1e-10);
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

// Bytes that malloc has given out.
int64_t AllocatedBytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

TEST(GradientReducer, AllocatesWhatItsCostSays) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer's malloc keeps no such counts";
#endif
  const auto layout = core::FlatLayout::Create({{.name = "a", .shape = {700, 500}},
                                                {.name = "b", .shape = {300000}},
                                                {.name = "c", .shape = {10, 100}}});
  ASSERT_TRUE(layout.ok());
  for (const int world_size : {1, 2, 5}) {
    for (const int64_t micro_batches : {5, 8, 11}) {
      const ShardMap shards(*layout, world_size, 1 << 20);
      const auto ranks = ThreadCommunicator::Create(world_size);
      Communicator* const comm = ranks.back().get();
      for (const Reduction reduction : {Reduction::kOrdered, Reduction::kFast}) {
        const GradientReducerOptions options{.micro_batches_per_step = micro_batches,
                                             .reduction = reduction};
        const ReducerCost cost = GradientReducer::Cost(*layout, shards, comm->rank(), options);
        const int64_t want = cost.leaf_bytes + cost.partial_bytes + cost.receive_bytes;
        const int64_t before = AllocatedBytes();
        const auto reducer = GradientReducer::Create(*layout, shards, comm, options);
        ASSERT_TRUE(reducer.ok());
        const int64_t allocated = AllocatedBytes() - before;
        // Beside the buffers: page rounding of up to ten of them, and a few small tables.
        EXPECT_GE(allocated, want);
        EXPECT_LE(allocated, want + 64 * 1024)
            << micro_batches << " micro-batches on " << world_size << " ranks";
      }
    }
  }
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
  std::latch done(1);
  RunOnThreads(2, absl::Milliseconds(200), [&](Communicator& comm) {
    if (comm.rank() == 1) return done.wait();
    auto reducer = GradientReducer::Create(layout, ShardMap(layout, 2, 4 * kBucketBytes), &comm,
                                           {.micro_batches_per_step = 2});
    EXPECT_TRUE(reducer.ok());
    RunStep(layout, comm, 0, 2, reducer->get());
    const absl::Status status = (*reducer)->FinishStep().status();
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kPeer);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("\"gradient bucket 0\": rank 1 did not arrive within 200ms"));
    done.count_down();
  });
}

}  // namespace
}  // namespace bitshard::comm
