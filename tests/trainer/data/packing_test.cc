#include "trainer/data/packing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace bitshard::trainer {
namespace {

using ::testing::ElementsAre;

std::vector<std::vector<int64_t>> Contents(const Packs& packs) {
  std::vector<std::vector<int64_t>> contents;
  for (int64_t p = 0; p < packs.num_packs(); ++p) {
    contents.emplace_back(packs.pack(p).begin(), packs.pack(p).end());
  }
  return contents;
}

TEST(PackBestFitDecreasing, PutsTheLongestFirstIntoTheFullestThatHasRoom) {
  // By length: 6 (s2), 5 (s4), 4 (s1), 3 (s3), 2 (s0). 4 goes beside 6, 3 beside 5, 2 beside both.
  EXPECT_THAT(Contents(PackBestFitDecreasing(std::vector<int64_t>{2, 4, 6, 3, 5}, 10)),
              ElementsAre(ElementsAre(2, 1), ElementsAre(4, 3, 0)));
  // Best fit: 3 goes to the pack with 3 left (s1), not to the older one with 4 left (s0).
  EXPECT_THAT(Contents(PackBestFitDecreasing(std::vector<int64_t>{7, 6, 3}, 10)),
              ElementsAre(ElementsAre(0, 2), ElementsAre(1)));
}

TEST(PackBestFitDecreasing, BreaksTiesByNumber) {
  EXPECT_THAT(Contents(PackBestFitDecreasing(std::vector<int64_t>{4, 4, 4, 4}, 8)),
              ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_THAT(Contents(PackBestFitDecreasing(std::vector<int64_t>{2, 6, 6}, 8)),
              ElementsAre(ElementsAre(1, 0), ElementsAre(2)));
}

TEST(PackBestFitDecreasing, HandlesTheEdges) {
  EXPECT_EQ(PackBestFitDecreasing({}, 8).num_packs(), 0);
  EXPECT_THAT(Contents(PackBestFitDecreasing(std::vector<int64_t>{8}, 8)),
              ElementsAre(ElementsAre(0)));
  EXPECT_THAT(Contents(PackBestFitDecreasing(std::vector<int64_t>{1, 8}, 8)),
              ElementsAre(ElementsAre(1), ElementsAre(0)));
  EXPECT_DEATH(PackBestFitDecreasing(std::vector<int64_t>{9}, 8), "sample 0");
}

TEST(PackBestFitDecreasing, UsesEverySampleOnceAndOverflowsNoPack) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const int64_t capacity = std::uniform_int_distribution<int64_t>(2, 300)(random);
    std::vector<int64_t> lengths(std::uniform_int_distribution<size_t>(1, 400)(random));
    for (int64_t& length : lengths) {
      length = std::uniform_int_distribution<int64_t>(1, capacity)(random);
    }
    const Packs packs = PackBestFitDecreasing(lengths, capacity);
    std::vector<int64_t> seen = packs.samples;
    std::sort(seen.begin(), seen.end());
    for (size_t s = 0; s < seen.size(); ++s) ASSERT_EQ(seen[s], static_cast<int64_t>(s));
    ASSERT_EQ(seen.size(), lengths.size());
    std::vector<int64_t> left;
    for (const auto& pack : Contents(packs)) {
      ASSERT_FALSE(pack.empty());
      int64_t tokens = 0;
      for (const int64_t s : pack) tokens += lengths[static_cast<size_t>(s)];
      ASSERT_LE(tokens, capacity);
      left.push_back(capacity - tokens);
    }
    // A pack is begun only when its first sample fits nowhere, so no older pack has room for it.
    for (int64_t p = 1; p < packs.num_packs(); ++p) {
      const int64_t first = lengths[static_cast<size_t>(packs.pack(p)[0])];
      for (int64_t older = 0; older < p; ++older) {
        ASSERT_LT(left[static_cast<size_t>(older)], first);
      }
    }
    ASSERT_EQ(Contents(PackBestFitDecreasing(lengths, capacity)), Contents(packs));
  }
}

TEST(OneSampleAPack, KeepsTheOrder) {
  EXPECT_THAT(Contents(OneSampleAPack(3)),
              ElementsAre(ElementsAre(0), ElementsAre(1), ElementsAre(2)));
  EXPECT_EQ(OneSampleAPack(0).num_packs(), 0);
}

}  // namespace
}  // namespace bitshard::trainer
