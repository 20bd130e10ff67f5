#include "comm/tree_sum.h"

#include <algorithm>

#include "core/check.h"

namespace bitshard::comm {

TreeStack::TreeStack(int64_t num_leaves) : num_leaves_(num_leaves) {
  BITSHARD_CHECK(num_leaves >= 1) << num_leaves;
}

int TreeStack::Push(TreeNode node) {
  BITSHARD_CHECK(node.index << node.level < num_leaves_)
      << "level " << node.level << ", index " << node.index;
  nodes_.push_back(node);
  int merges = 0;
  while (true) {
    TreeNode& top = nodes_.back();
    const bool covers_all = (int64_t{1} << top.level) >= num_leaves_;
    if (covers_all) break;
    if (top.index % 2 == 0) {
      // A left half whose right half is empty is its parent already: no addition.
      if ((top.index + 1) << top.level < num_leaves_) break;
      top = {top.level + 1, top.index / 2};
    } else {
      if (nodes_.size() < 2 || nodes_[nodes_.size() - 2] != TreeNode{top.level, top.index - 1})
        break;
      nodes_.pop_back();
      TreeNode& merged = nodes_.back();
      merged = {merged.level + 1, merged.index / 2};
      ++merges;
    }
  }
  return merges;
}

std::vector<TreeNode> NodesOf(int64_t begin, int64_t end, int64_t num_leaves) {
  TreeStack stack(num_leaves);
  for (int64_t leaf = begin; leaf < end; ++leaf) stack.Push({0, leaf});
  return stack.nodes();
}

int64_t StackDepth(int64_t begin, int64_t end, int64_t num_leaves) {
  TreeStack stack(num_leaves);
  int64_t depth = 0;
  for (int64_t leaf = begin; leaf < end; ++leaf) {
    depth = std::max(depth, static_cast<int64_t>(stack.nodes().size()) + 1);
    stack.Push({0, leaf});
  }
  return depth;
}

}  // namespace bitshard::comm
