#include "comm/tree_sum.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "comm/gradient_reducer.h"

namespace bitshard::comm {
namespace {

using ::testing::ElementsAre;

// The tree as a formula, written from its definition: halves at the largest power of two below the
// size.
std::string Formula(int64_t begin, int64_t end) {
  if (end - begin == 1) return absl::StrCat(begin);
  int64_t half = 1;
  while (half * 2 < end - begin) half *= 2;
  return absl::StrCat("(", Formula(begin, begin + half), "+", Formula(begin + half, end), ")");
}

// What a stack of formulas holds after the nodes of each rank have been pushed by a rank, then by
// an owner.
std::string FormulaByRanks(int64_t leaves, int world_size) {
  TreeStack owner(leaves);
  std::vector<std::string> at_owner;
  for (int rank = 0; rank < world_size; ++rank) {
    const MicroBatchRange range = MicroBatchesOf(rank, world_size, leaves);
    TreeStack mine(leaves);
    std::vector<std::string> parts;
    const auto push = [](TreeStack* stack, TreeNode node, std::vector<std::string>* texts,
                         const std::string& text) {
      texts->push_back(text);
      for (int i = stack->Push(node); i > 0; --i) {
        const std::string right = texts->back();
        texts->pop_back();
        texts->back() = absl::StrCat("(", texts->back(), "+", right, ")");
      }
    };
    for (int64_t leaf = range.begin; leaf < range.end; ++leaf)
      push(&mine, {0, leaf}, &parts, absl::StrCat(leaf));
    EXPECT_EQ(mine.nodes(), NodesOf(range.begin, range.end, leaves));
    for (size_t i = 0; i < parts.size(); ++i) push(&owner, mine.nodes()[i], &at_owner, parts[i]);
  }
  EXPECT_EQ(at_owner.size(), 1u);
  return at_owner.front();
}

TEST(TreeSum, EveryWorldSizeGivesTheSameTree) {
  for (int64_t leaves = 1; leaves <= 40; ++leaves) {
    for (int world_size = 1; world_size <= std::min<int64_t>(leaves, 9); ++world_size) {
      EXPECT_EQ(FormulaByRanks(leaves, world_size), Formula(0, leaves))
          << leaves << " on " << world_size;
    }
  }
}

TEST(TreeSum, RunsAreTheirMaximalNodes) {
  EXPECT_THAT(NodesOf(0, 8, 8), ElementsAre(TreeNode{3, 0}));
  EXPECT_THAT(NodesOf(2, 4, 8), ElementsAre(TreeNode{1, 1}));
  EXPECT_THAT(NodesOf(1, 7, 8),
              ElementsAre(TreeNode{0, 1}, TreeNode{1, 1}, TreeNode{1, 2}, TreeNode{0, 6}));
  EXPECT_THAT(NodesOf(0, 3, 6), ElementsAre(TreeNode{1, 0}, TreeNode{0, 2}));
  // The right half of 4-7 is empty or cut: what is left of it is one node.
  EXPECT_EQ(NodesOf(4, 6, 6).size(), 1u);
  EXPECT_EQ(NodesOf(4, 7, 7).size(), 1u);
  EXPECT_EQ(NodesOf(0, 5, 5).size(), 1u);
}

TEST(TreeSum, DepthOfAPowerOfTwoIsItsLogarithmAndTheLeaf) {
  EXPECT_EQ(StackDepth(0, 1, 1), 1);
  EXPECT_EQ(StackDepth(3, 4, 4), 1);
  EXPECT_EQ(StackDepth(0, 2, 2), 2);
  EXPECT_EQ(StackDepth(0, 4, 4), 3);
  EXPECT_EQ(StackDepth(8, 16, 16), 4);
  EXPECT_EQ(StackDepth(0, 1024, 1024), 11);
}

TEST(MicroBatches, AreContiguousAndEven) {
  for (int64_t count = 1; count <= 20; ++count) {
    for (int world_size = 1; world_size <= count; ++world_size) {
      int64_t next = 0;
      for (int rank = 0; rank < world_size; ++rank) {
        const MicroBatchRange range = MicroBatchesOf(rank, world_size, count);
        EXPECT_EQ(range.begin, next);
        EXPECT_GE(range.end - range.begin, count / world_size);
        EXPECT_LE(range.end - range.begin, (count + world_size - 1) / world_size);
        next = range.end;
      }
      EXPECT_EQ(next, count);
    }
  }
}

}  // namespace
}  // namespace bitshard::comm
