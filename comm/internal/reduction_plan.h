// What a gradient reducer does in a step, without the gradients: who sends which sums of the tree,
// which buffer holds what, which buckets are complete. The same wherever the gradients lie.
#ifndef BITSHARD_COMM_INTERNAL_REDUCTION_PLAN_H_
#define BITSHARD_COMM_INTERNAL_REDUCTION_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "comm/gradient_reducer.h"
#include "comm/shard_map.h"
#include "comm/tree_sum.h"
#include "core/flat_layout.h"

namespace bitshard::comm::internal {

inline constexpr int64_t kFloatBytes = static_cast<int64_t>(sizeof(float));

inline int64_t Elems(core::BlockRange range) { return range.size() * core::kBlockElems; }

/// kConfig when a rank would have no micro-batch.
absl::Status CheckMicroBatches(int64_t micro_batches_per_step, int world_size);

/// Where a rank's sums lie, in memory of the host or of a device.
struct ReductionMemory {
  std::vector<float*> partials;  ///< Arenas of its partial sums, from left to right.
  float* received = nullptr;     ///< Other ranks' sums of the own run: rank by rank, node by node.
};

/// What an all-to-all is given.
struct AllToAllPieces {
  std::vector<std::span<const std::byte>> send;
  std::vector<std::span<std::byte>> receive;
  std::string name;
};

/// Everything about a rank's part in a step that follows from sizes alone. In Reduction::kFast a
/// rank has a tree of its own, over its micro-batches, and the roots are leaves of a tree over
/// ranks.
struct ReductionPlan {
  ReductionPlan(const core::FlatLayout& layout, const ShardMap& shard_map, int my_rank,
                int64_t micro_batches, Reduction reduction);

  /// With one rank the root of the tree lies in one buffer, and that is the result.
  bool in_place() const { return nodes.size() == 1; }
  /// Elements of what other ranks send of a bucket.
  int64_t ReceiveElems(int64_t bucket) const {
    return foreign_nodes * Elems(shards.Run(bucket, rank));
  }
  /// All-to-all number `node` of a bucket, of most_nodes: ranks that have fewer nodes send nothing
  /// in the last ones.
  AllToAllPieces PiecesOf(int64_t bucket, int64_t node, const ReductionMemory& memory) const;
  /// The sums of all ranks' nodes for the own run of a bucket, from left to right.
  std::vector<float*> PartsOf(int64_t bucket, const ReductionMemory& memory) const;

  ShardMap shards;
  int rank = 0;
  MicroBatchRange range;    ///< Of the step, what this rank has.
  int64_t first_leaf = 0;   ///< Where that begins in the tree that this rank adds up,
  int64_t num_leaves = 0;   ///< and all leaves of that tree.
  int64_t num_buffers = 0;  ///< The leaf and the partial sums.
  int64_t arena_elems = 0;
  int64_t shard_elems = 0;
  std::vector<int64_t> shard_offset;         ///< Of each bucket's own run, in elements.
  std::vector<std::vector<TreeNode>> nodes;  ///< Of each rank, from left to right.
  std::vector<int> merges;  ///< After each of all ranks' nodes, as TreeStack::Push says.
  int64_t most_nodes = 0;
  int64_t my_nodes = 0;
  int64_t foreign_nodes = 0;
};

/// The leaves of a step, and the buffers that hold them and their partial sums.
class ReductionStep {
 public:
  ReductionStep(const core::FlatLayout& layout, const ReductionPlan& plan);

  size_t num_buffers() const { return num_buffers_; }
  void Begin();
  void BeginMicroBatch();
  /// Number of the leaf's buffer.
  size_t leaf() const { return stack_.empty() ? free_.back() : stack_.back(); }
  /// Errors: kInternal when the tensor was given before in this micro-batch.
  absl::Status MarkReady(int64_t tensor);
  /// Buffers of the additions that the leaf completes: the leaf's, then the one that it is added
  /// to, then the one that the sum is added to ... The leaf's alone when there are none.
  std::vector<size_t> Carry() const;
  /// The next bucket, in index order, whose part of this rank is complete; none before the last
  /// micro-batch. The order is the same on every rank, however tensors become ready.
  std::optional<int64_t> NextBucket();
  /// Errors: kInternal when micro-batches or tensors are missing.
  absl::Status Finish();
  /// Number of the buffer of this rank's partial sum `part`, from left to right: the stack without
  /// what was merged away.
  size_t PartBuffer(size_t part) const { return stack_[part]; }

 private:
  int64_t num_micro_batches() const { return range_.end - range_.begin; }
  std::string MissingTensor() const;
  void PopMerged();

  const core::FlatLayout layout_;
  const ShardMap shards_;
  const MicroBatchRange range_;
  const int64_t first_leaf_;
  const int64_t num_leaves_;
  const size_t num_buffers_;

  TreeStack tree_;
  // Buffers of the tree's entries before the leaf's merges, the leaf's on top.
  std::vector<size_t> stack_;
  std::vector<size_t> free_;
  int64_t begun_ = 0;  // Micro-batches of this step.
  int merges_of_leaf_ = 0;
  std::vector<bool> tensor_ready_;
  int64_t tensors_missing_ = 0;
  std::vector<int64_t> bucket_missing_;
  int64_t next_bucket_ = 0;
};

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_REDUCTION_PLAN_H_
