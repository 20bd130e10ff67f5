// The order in which gradients are summed: a fixed binary tree over the global micro-batch index.
// Pure: no data.
//
// The leaves are micro-batches 0 .. M-1. A node at level l with index i covers 2^l of them from
// i * 2^l on, cut at M; its sum is that of its left half plus that of its right half (which may be
// empty). The tree depends on M alone: whoever computes a node, in whatever process, gets the same
// bits. A rank's contiguous run of micro-batches is a few whole nodes (NodesOf); their sums are all
// that others need of it.
//
//        0-7
//     0-3   4-5        M = 6: ranks [0,3) and [3,6) send {0-1, 2} and {3, 4-5};
//   0-1 2-3  |         [0,2) [2,4) [4,6) send one node each. Every owner then adds
//   0 1 2 3 4 5        ((0 + 1) + (2 + 3)) + (4 + 5).
#ifndef BITSHARD_COMM_TREE_SUM_H_
#define BITSHARD_COMM_TREE_SUM_H_

#include <cstdint>
#include <vector>

namespace bitshard::comm {

struct TreeNode {
  int level = 0;
  int64_t index = 0;
  friend bool operator==(const TreeNode&, const TreeNode&) = default;
};

/// The sums so far, as a stack: pushing the nodes of a run from left to right merges them as a
/// binary counter carries. Level and index only; the caller keeps a buffer for each entry and does
/// what Push says.
class TreeStack {
 public:
  explicit TreeStack(int64_t num_leaves);

  /// Puts `node` on top, then merges while the two top entries are the halves of one node. Returns
  /// how often: each merge means "second from top += top, then drop the top", in this order. Nodes
  /// must be pushed from left to right, without gaps.
  int Push(TreeNode node);
  const std::vector<TreeNode>& nodes() const { return nodes_; }

 private:
  int64_t num_leaves_;
  std::vector<TreeNode> nodes_;
};

/// The maximal nodes that lie inside micro-batches [begin, end), from left to right. At most about
/// 2 log2 of the run's length; one for an aligned power-of-two run, and for [0, num_leaves).
std::vector<TreeNode> NodesOf(int64_t begin, int64_t end, int64_t num_leaves);

/// Most entries that the stack holds at a time while leaves begin .. end-1 are pushed, the one
/// being pushed counted.
int64_t StackDepth(int64_t begin, int64_t end, int64_t num_leaves);

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_TREE_SUM_H_
