#include "core/flat_layout.h"

#include <string>
#include <vector>

#include "core/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

FlatLayout Make(const std::vector<TensorSpec>& tensors) { return *FlatLayout::Create(tensors); }

TEST(FlatLayout, GivesEachTensorWholeBlocksOfItsOwn) {
  const FlatLayout layout =
      Make({{"a", {1}}, {"b", {256}}, {"c", {257}}, {"d", {2, 3, 100}}, {"e", {}}});
  const auto expect = [&](int64_t index, const std::string& name, int64_t numel,
                          BlockRange blocks) {
    EXPECT_EQ(layout.tensor(index).name, name);
    EXPECT_EQ(layout.tensor(index).numel, numel);
    EXPECT_EQ(layout.tensor(index).blocks, blocks);
    EXPECT_EQ(layout.tensor(index).offset(), blocks.begin * 256);
  };
  expect(0, "a", 1, {0, 1});
  expect(1, "b", 256, {1, 2});
  expect(2, "c", 257, {2, 4});
  expect(3, "d", 600, {4, 7});
  expect(4, "e", 1, {7, 8});
  EXPECT_EQ(layout.num_tensors(), 5);
  EXPECT_EQ(layout.num_blocks(), 8);
  EXPECT_EQ(layout.padded_elems(), 2048);
  EXPECT_EQ(layout.numel(), 1 + 256 + 257 + 600 + 1);
}

TEST(FlatLayout, KnowsTheOwnerOfEveryBlock) {
  const FlatLayout layout = Make({{"a", {300}}, {"b", {1}}, {"c", {1000}}});
  const std::vector<int64_t> owners = {0, 0, 1, 2, 2, 2, 2};
  ASSERT_EQ(layout.num_blocks(), static_cast<int64_t>(owners.size()));
  for (int64_t block = 0; block < layout.num_blocks(); ++block) {
    EXPECT_EQ(layout.TensorOfBlock(block), owners[static_cast<size_t>(block)]) << block;
  }
  EXPECT_DEATH(layout.TensorOfBlock(7), "check failed");
  EXPECT_DEATH(layout.TensorOfBlock(-1), "check failed");
}

TEST(FlatLayout, FindsTensorsByName) {
  const FlatLayout layout = Make({{"a", {1}}, {"b", {1}}});
  EXPECT_EQ(layout.Find("a"), 0);
  EXPECT_EQ(layout.Find("b"), 1);
  EXPECT_EQ(layout.Find("c"), -1);
}

TEST(FlatLayout, MayBeEmpty) {
  const FlatLayout layout = Make({});
  EXPECT_EQ(layout.num_blocks(), 0);
  EXPECT_EQ(layout.numel(), 0);
}

TEST(FlatLayout, RefusesImpossibleTensorsByName) {
  const std::vector<std::vector<TensorSpec>> bad = {
      {{"w", {4}}, {"w", {4}}},
      {{"w", {4, 0}}},
      {{"w", {-1}}},
      {{"w", {int64_t{1} << 40, int64_t{1} << 40}}},
      {{"w", {int64_t{1} << 62, 2}}},
  };
  for (const auto& tensors : bad) {
    const absl::Status status = FlatLayout::Create(tensors).status();
    EXPECT_EQ(ExitCode(status), 2);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("tensor w"));
  }
}

TEST(FlatLayout, RefusesTensorsThatAreTooLargeTogether) {
  const std::vector<TensorSpec> tensors = {{"v", {int64_t{1} << 62}}, {"w", {int64_t{1} << 62}}};
  const absl::Status status = FlatLayout::Create(tensors).status();
  EXPECT_EQ(ExitCode(status), 2);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("tensor w"));
}

TEST(FlatLayout, FingerprintDiffersWithNameShapeAndOrder) {
  const std::vector<std::vector<TensorSpec>> layouts = {
      {},
      {{"a", {6}}},
      {{"b", {6}}},
      {{"a", {2, 3}}},
      {{"a", {3, 2}}},
      {{"a", {6, 1}}},
      {{"a", {6}}, {"b", {6}}},
      {{"b", {6}}, {"a", {6}}},
      {{"ab", {6}}, {"", {6}}},
      // A name whose bytes are those of a dimension, so that only the ranks tell these apart.
      {{"a", {3, 8, 5, 7}}},
      {{"a", {3}}, {std::string("\5\0\0\0\0\0\0\0", 8), {7}}},
  };
  for (size_t i = 0; i < layouts.size(); ++i) {
    for (size_t k = 0; k < layouts.size(); ++k) {
      EXPECT_EQ(Make(layouts[i]).Fingerprint() == Make(layouts[k]).Fingerprint(), i == k)
          << i << " " << k;
    }
  }
}

}  // namespace
}  // namespace bitshard::core
