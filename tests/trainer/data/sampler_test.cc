#include "trainer/data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "tests/trainer/data/cache_bytes.h"

namespace bitshard::trainer {
namespace {

using ::testing::ElementsAre;

TEST(EpochOrder, IsAPermutationThatSeedAndEpochChange) {
  for (const int64_t n : {1, 2, 3, 1000}) {
    std::vector<int64_t> order = EpochOrder(7, 3, n);
    EXPECT_EQ(order, EpochOrder(7, 3, n));
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(order[static_cast<size_t>(i)], i);
  }
  EXPECT_NE(EpochOrder(7, 3, 1000), EpochOrder(7, 4, 1000));
  EXPECT_NE(EpochOrder(7, 3, 1000), EpochOrder(8, 3, 1000));
}

TEST(EpochOrder, DrawsEveryPermutationAboutEquallyOften) {
  std::map<std::vector<int64_t>, int> counts;
  for (int64_t epoch = 0; epoch < 2400; ++epoch) ++counts[EpochOrder(1, epoch, 4)];
  ASSERT_EQ(counts.size(), 24u);
  // 100 each expected, standard deviation 9.8: five of them.
  for (const auto& [order, count] : counts) {
    EXPECT_GT(count, 50);
    EXPECT_LT(count, 150);
  }
}

// The order of the data is part of what makes a run repeatable: a change here changes every run.
TEST(EpochOrder, StaysAsItIs) {
  EXPECT_THAT(EpochOrder(42, 0, 8), ElementsAre(0, 5, 2, 7, 4, 1, 6, 3));
  EXPECT_THAT(EpochOrder(42, 1, 8), ElementsAre(7, 1, 0, 6, 3, 2, 4, 5));
}

TEST(PackSampler, UsesEveryPackOnceAnEpochAndRunsOnIntoTheNext) {
  PackSampler sampler({.seed = 5, .num_packs = 7, .micro_batch_size = 2, .global_batch_size = 4});
  std::vector<int64_t> all;
  for (int64_t step = 1; step <= 7; ++step) {
    for (int64_t index = 0; index < 2; ++index) {
      const std::vector<int64_t> packs = sampler.MicroBatchPacks(step, index);
      ASSERT_EQ(packs.size(), 2u);
      all.insert(all.end(), packs.begin(), packs.end());
    }
  }
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    const std::vector<int64_t> order(all.begin() + 7 * epoch, all.begin() + 7 * (epoch + 1));
    EXPECT_EQ(order, EpochOrder(5, epoch, 7));
  }
}

TEST(PackSampler, DoesNotDependOnWhatWasAskedBefore) {
  const SamplerOptions options = {
      .seed = 9, .num_packs = 5, .micro_batch_size = 3, .global_batch_size = 6};
  PackSampler forward(options);
  std::map<std::pair<int64_t, int64_t>, std::vector<int64_t>> expected;
  for (int64_t step = 1; step <= 12; ++step) {
    for (int64_t index = 0; index < 2; ++index)
      expected[{step, index}] = forward.MicroBatchPacks(step, index);
  }
  PackSampler backward(options);
  for (int64_t step = 12; step >= 1; --step) {
    EXPECT_EQ(backward.MicroBatchPacks(step, 1), (expected[{step, 1}]));
    EXPECT_EQ(PackSampler(options).MicroBatchPacks(step, 0), (expected[{step, 0}]));
  }
}

TEST(PackSampler, CountsEpochsAndSteps) {
  const PackSampler sampler(
      {.seed = 1, .num_packs = 10, .micro_batch_size = 1, .global_batch_size = 4});
  EXPECT_EQ(sampler.EpochAfter(5), 2.0);
  EXPECT_EQ(sampler.StepsForEpochs(1), 3);
  EXPECT_EQ(sampler.StepsForEpochs(2), 5);
  EXPECT_EQ(sampler.StepsForEpochs(0.35), 1);
  EXPECT_EQ(sampler.StepsForEpochs(0.45), 2);
}

TEST(SequentialMicroBatchPacks, EndsWithASmallerOne) {
  EXPECT_THAT(SequentialMicroBatchPacks(5, 2, 0), ElementsAre(0, 1));
  EXPECT_THAT(SequentialMicroBatchPacks(5, 2, 2), ElementsAre(4));
}

class MicroBatchTest : public ::testing::Test {
 protected:
  void Load(const std::vector<SampleWords>& samples) {
    auto cache = TokenCache::Open(folder_.Write("c", CacheBytes(samples)));
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }
  TestFolder folder_;
  std::unique_ptr<TokenCache> cache_;
};

TEST_F(MicroBatchTest, ShiftsTargetsWithinEachSample) {
  Load({{5, 6, 7 | kTrained, 8 | kTrained}, {9, 0 | kTrained, 3}});
  const Packs packs = {.samples = {1, 0}, .starts = {0, 2}};
  const std::vector<int64_t> ids = {0};
  const MicroBatch batch = BuildMicroBatch(*cache_, packs, ids);
  EXPECT_THAT(batch.tokens, ElementsAre(9, 0, 3, 5, 6, 7, 8));
  EXPECT_THAT(batch.targets, ElementsAre(0, -1, -1, -1, 7, 8, -1));
  EXPECT_THAT(batch.starts, ElementsAre(0, 3, 7));
  EXPECT_THAT(batch.sample_ids, ElementsAre(1, 0));
  EXPECT_EQ(batch.num_trained(), 3);
}

TEST_F(MicroBatchTest, JoinsPacksInTheOrderAsked) {
  Load(SamplesOfLengths({2, 3, 4}));
  const Packs packs = {.samples = {2, 0, 1}, .starts = {0, 1, 3}};
  const MicroBatch batch = BuildMicroBatch(*cache_, packs, std::vector<int64_t>{1, 0});
  EXPECT_THAT(batch.sample_ids, ElementsAre(0, 1, 2));
  EXPECT_THAT(batch.starts, ElementsAre(0, 2, 5, 9));
}

TEST_F(MicroBatchTest, CountsWhatItBuilds) {
  Load(SamplesOfLengths({2, 30, 4, 17, 9}));
  const Packs packs = PackBestFitDecreasing(cache_->SampleLengths(), 32);
  int64_t tokens = 0;
  for (int64_t pack = 0; pack < packs.num_packs(); ++pack) {
    const MicroBatch batch = BuildMicroBatch(*cache_, packs, std::vector<int64_t>{pack});
    tokens += batch.num_tokens();
    EXPECT_EQ(batch.num_tokens() - batch.num_trained(), batch.num_samples());
  }
  EXPECT_EQ(tokens, 2 + 30 + 4 + 17 + 9);
}

}  // namespace
}  // namespace bitshard::trainer
