#include "comm/shard_map.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/check.h"

namespace bitshard::comm {
namespace {

constexpr int64_t kBlockBytes = core::kBlockElems * 4;

core::FlatLayout LayoutOfBlocks(const std::vector<int64_t>& blocks) {
  std::vector<core::TensorSpec> specs;
  for (size_t i = 0; i < blocks.size(); ++i) {
    specs.push_back({.name = absl::StrCat("t", i), .shape = {blocks[i] * core::kBlockElems}});
  }
  auto layout = core::FlatLayout::Create(specs);
  BITSHARD_CHECK(layout.ok()) << layout.status().ToString();
  return *std::move(layout);
}

std::vector<core::BlockRange> Buckets(const ShardMap& map) {
  std::vector<core::BlockRange> buckets;
  for (int64_t b = 0; b < map.num_buckets(); ++b) buckets.push_back(map.bucket(b));
  return buckets;
}

using Ranges = std::vector<core::BlockRange>;

TEST(ShardMap, BucketsEndAtTheFirstTensorThatFillsThem) {
  const ShardMap map(LayoutOfBlocks({3, 3, 3, 3, 3, 1}), 2, 6 * kBlockBytes);
  EXPECT_EQ(Buckets(map), (Ranges{{0, 6}, {6, 12}, {12, 15}, {15, 16}}));
  EXPECT_EQ(map.BucketOfTensor(0), 0);
  EXPECT_EQ(map.BucketOfTensor(3), 1);
  EXPECT_EQ(map.BucketOfTensor(4), 2);
  EXPECT_EQ(map.BucketOfTensor(5), 3);
}

TEST(ShardMap, ALargerTensorIsABucketOfItsOwn) {
  const ShardMap map(LayoutOfBlocks({1, 20, 1, 1}), 2, 8 * kBlockBytes);
  EXPECT_EQ(Buckets(map), (Ranges{{0, 1}, {1, 21}, {21, 22}, {22, 23}}));
}

TEST(ShardMap, TheLastBucketIsSmall) {
  const std::vector<int64_t> ones(100, 1);
  const ShardMap map(LayoutOfBlocks(ones), 2, 16 * kBlockBytes);
  EXPECT_EQ(map.bucket(0).size(), 16);
  EXPECT_EQ(map.bucket(map.num_buckets() - 1), (core::BlockRange{98, 100}));
  EXPECT_EQ(map.bucket(map.num_buckets() - 2), (core::BlockRange{96, 98}));
}

TEST(ShardMap, OneTensorIsOneBucketHoweverLarge) {
  EXPECT_EQ(Buckets(ShardMap(LayoutOfBlocks({1000}), 3, 1)), (Ranges{{0, 1000}}));
  EXPECT_EQ(ShardMap(LayoutOfBlocks({}), 3, 1).num_buckets(), 0);
}

TEST(ShardMap, RunsCoverEachBucketOnceForAnyWorldSize) {
  const core::FlatLayout layout = LayoutOfBlocks({1, 30, 7, 2, 2, 1, 1, 5, 1});
  for (int world_size = 1; world_size <= 9; ++world_size) {
    const ShardMap map(layout, world_size, 8 * kBlockBytes);
    EXPECT_EQ(Buckets(map), Buckets(ShardMap(layout, 1, 8 * kBlockBytes)))
        << "limits depend on the world size";
    int64_t owned = 0;
    int empty_runs = 0;
    for (int64_t b = 0; b < map.num_buckets(); ++b) {
      int64_t next = map.bucket(b).begin;
      for (int rank = 0; rank < world_size; ++rank) {
        const core::BlockRange run = map.Run(b, rank);
        EXPECT_EQ(run.begin, next);
        EXPECT_GE(run.size(), map.bucket(b).size() / world_size);
        EXPECT_LE(run.size(), map.bucket(b).size() / world_size + 1);
        EXPECT_EQ(run, map.RunsOf(rank)[static_cast<size_t>(b)]);
        empty_runs += run.size() == 0;
        next = run.end;
      }
      EXPECT_EQ(next, map.bucket(b).end);
    }
    for (int rank = 0; rank < world_size; ++rank) owned += map.NumBlocksOf(rank);
    EXPECT_EQ(owned, layout.num_blocks());
    EXPECT_EQ(empty_runs > 0, world_size > 1) << "the one-block bucket leaves runs empty";
  }
}

}  // namespace
}  // namespace bitshard::comm
