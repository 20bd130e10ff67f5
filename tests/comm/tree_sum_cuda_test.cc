// Sums of gradients on the device against the tree as comm/tree_sum.h defines it, bit for bit.
#include "comm/tree_sum_cuda.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "comm/tree_sum.h"
#include "core/numeric.h"
#include "tests/core/device_array.h"

namespace bitshard::comm {
namespace {

using Values = std::vector<float>;

// By the definition: a node is its left half plus its right half.
Values SumOf(TreeNode node, const std::vector<Values>& leaves) {
  if (node.level == 0) return leaves[static_cast<size_t>(node.index)];
  const TreeNode left = {node.level - 1, 2 * node.index},
                 right = {node.level - 1, 2 * node.index + 1};
  Values sum = SumOf(left, leaves);
  if (right.index << right.level >= static_cast<int64_t>(leaves.size())) return sum;
  const Values added = SumOf(right, leaves);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += added[i];
  return sum;
}

Values Random(size_t n, std::mt19937* random) {
  Values x(n);
  for (float& e : x)
    e = std::normal_distribution<float>()(*random) * (((*random)() % 4 == 0) ? 1e5f : 1.0f);
  return x;
}

// Sums what ranks of `each` micro-batches send, on the device.
void ExpectTreeOf(int64_t num_leaves, int64_t each, size_t n, size_t shift) {
  core::TestStream stream;
  std::mt19937 random(static_cast<uint32_t>(num_leaves));
  std::vector<Values> leaves;
  for (int64_t i = 0; i < num_leaves; ++i) leaves.push_back(Random(n, &random));
  TreeStack stack(num_leaves);
  std::vector<std::unique_ptr<core::DeviceArray<float>>> parts;
  TreeSumCudaArgs args = {.n = static_cast<int64_t>(n), .stream = stream.get()};
  for (int64_t begin = 0; begin < num_leaves; begin += each) {
    for (const TreeNode node : NodesOf(begin, std::min(begin + each, num_leaves), num_leaves)) {
      parts.push_back(
          std::make_unique<core::DeviceArray<float>>(SumOf(node, leaves), stream.get(), shift));
      args.parts.push_back(parts.back()->data());
      args.merges.push_back(stack.Push(node));
    }
  }
  args.out = parts[0]->data();  // In place, as the reducer does it.
  const absl::Status status = TreeSumCuda(args);
  ASSERT_TRUE(status.ok()) << status;
  const Values got = parts[0]->Get(), want = SumOf(stack.nodes()[0], leaves);
  for (size_t i = 0; i < n; ++i) {
    ASSERT_EQ(core::FloatBits(got[i]), core::FloatBits(want[i]))
        << num_leaves << " leaves, " << each << " a rank, element " << i << " of " << n;
  }
}

TEST(TreeSumCuda, AddsInTheOrderOfTheTreeForEveryNumberOfLeavesAndRanks) {
  for (int64_t num_leaves = 1; num_leaves <= 17; ++num_leaves) {
    for (int64_t each = 1; each <= num_leaves; each += 1 + each / 2)
      ExpectTreeOf(num_leaves, each, 70, 0);
  }
}

TEST(TreeSumCuda, SumsAnyLengthAtAnyAlignment) {
  for (const size_t n : {1u, 3u, 4u, 5u, 1023u, 1024u, 1025u, 5000u}) {
    for (const size_t shift : {0u, 1u}) ExpectTreeOf(6, 2, n, shift);
  }
}

TEST(TreeSumCuda, CompletesSeveralNodesWithOneLeaf) {
  core::TestStream stream;
  std::mt19937 random(2);
  const Values a = Random(300, &random), b = Random(300, &random), c = Random(300, &random);
  const core::DeviceArray<float> low(a, stream.get()), middle(b, stream.get()),
      leaf(c, stream.get());
  ASSERT_TRUE(TreeSumCuda({.parts = {low.data(), middle.data(), leaf.data()},
                           .merges = {0, 0, 2},
                           .n = 300,
                           .out = low.data(),
                           .stream = stream.get()})
                  .ok());
  Values want(300);
  for (size_t i = 0; i < 300; ++i) want[i] = a[i] + (b[i] + c[i]);
  EXPECT_EQ(low.Get(), want);
  EXPECT_EQ(middle.Get(), b) << "a part that is not the result was written";
}

TEST(TreeSumCuda, RefusesMorePartsThanALaunchCanName) {
  const float* part = nullptr;
  std::vector<int> merges(kMaxTreeParts + 1, 1);
  merges[0] = 0;
  const absl::Status status = TreeSumCuda(
      {.parts = std::vector<const float*>(kMaxTreeParts + 1, part), .merges = merges, .n = 1});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("257 partial sums"));
}

}  // namespace
}  // namespace bitshard::comm
