#include "comm/internal/reduction_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"

namespace bitshard::comm::internal {

absl::Status CheckMicroBatches(int64_t micro_batches_per_step, int world_size) {
  if (micro_batches_per_step >= world_size) return absl::OkStatus();
  return core::ConfigError(absl::StrCat("a step has ", micro_batches_per_step,
                                        " micro-batches for ", world_size,
                                        " ranks: start fewer ranks, or raise global_batch_size or "
                                        "lower micro_batch_size, so that each rank has one"));
}

ReductionPlan::ReductionPlan(const core::FlatLayout& layout, const ShardMap& shard_map, int my_rank,
                             int64_t micro_batches, Reduction reduction)
    : shards(shard_map),
      rank(my_rank),
      range(MicroBatchesOf(rank, shards.world_size(), micro_batches)),
      arena_elems(layout.padded_elems()),
      shard_elems(shards.NumBlocksOf(rank) * core::kBlockElems) {
  const bool fast = reduction == Reduction::kFast;
  const int64_t own = range.end - range.begin;
  first_leaf = fast ? 0 : range.begin;
  num_leaves = fast ? own : micro_batches;
  num_buffers = StackDepth(first_leaf, first_leaf + own, num_leaves);
  TreeStack stack(fast ? shards.world_size() : micro_batches);
  for (int r = 0; r < shards.world_size(); ++r) {
    const MicroBatchRange run = MicroBatchesOf(r, shards.world_size(), micro_batches);
    nodes.push_back(fast ? std::vector<TreeNode>{{0, r}}
                         : NodesOf(run.begin, run.end, micro_batches));
    for (const TreeNode& node : nodes.back()) merges.push_back(stack.Push(node));
    const int64_t count = static_cast<int64_t>(nodes.back().size());
    most_nodes = std::max(most_nodes, count);
    if (r == rank) my_nodes = count;
    if (r != rank) foreign_nodes += count;
  }
  BITSHARD_CHECK(stack.nodes().size() == 1) << stack.nodes().size() << " parts left";
  int64_t offset = 0;
  for (int64_t bucket = 0; bucket < shards.num_buckets(); ++bucket) {
    shard_offset.push_back(offset);
    offset += Elems(shards.Run(bucket, rank));
  }
}

std::vector<float*> ReductionPlan::PartsOf(int64_t bucket, const ReductionMemory& memory) const {
  const core::BlockRange run = shards.Run(bucket, rank);
  std::vector<float*> parts;
  float* received = memory.received;
  for (size_t r = 0; r < nodes.size(); ++r) {
    for (size_t node = 0; node < nodes[r].size(); ++node) {
      if (static_cast<int>(r) == rank) {
        parts.push_back(memory.partials[node] + run.begin * core::kBlockElems);
      } else {
        parts.push_back(received);
        received += Elems(run);
      }
    }
  }
  return parts;
}

AllToAllPieces ReductionPlan::PiecesOf(int64_t bucket, int64_t node,
                                       const ReductionMemory& memory) const {
  AllToAllPieces result;
  const size_t piece = static_cast<size_t>(Elems(shards.Run(bucket, rank)));
  const std::vector<float*> parts = PartsOf(bucket, memory);
  size_t first = 0;  // Of the rank's parts.
  for (size_t r = 0; r < nodes.size(); ++r) {
    std::span<const float> send;
    std::span<float> receive;
    if (static_cast<int>(r) != rank) {
      const core::BlockRange run = shards.Run(bucket, static_cast<int>(r));
      if (node < my_nodes) {
        send = {memory.partials[static_cast<size_t>(node)] + run.begin * core::kBlockElems,
                static_cast<size_t>(Elems(run))};
      }
      if (node < static_cast<int64_t>(nodes[r].size()))
        receive = {parts[first + static_cast<size_t>(node)], piece};
    }
    result.send.push_back(std::as_bytes(send));
    result.receive.push_back(std::as_writable_bytes(receive));
    first += nodes[r].size();
  }
  result.name = absl::StrCat("gradient bucket ", bucket);
  if (most_nodes > 1) absl::StrAppend(&result.name, " part ", node);
  return result;
}

ReductionStep::ReductionStep(const core::FlatLayout& layout, const ReductionPlan& plan)
    : layout_(layout),
      shards_(plan.shards),
      range_(plan.range),
      first_leaf_(plan.first_leaf),
      num_leaves_(plan.num_leaves),
      num_buffers_(static_cast<size_t>(plan.num_buffers)),
      tree_(num_leaves_),
      tensor_ready_(static_cast<size_t>(layout.num_tensors())),
      bucket_missing_(static_cast<size_t>(shards_.num_buckets())) {
  Begin();
}

void ReductionStep::Begin() {
  tree_ = TreeStack(num_leaves_);
  stack_.clear();
  free_.clear();
  for (size_t i = num_buffers_; i-- > 0;) free_.push_back(i);
  begun_ = 0;
  merges_of_leaf_ = 0;
  tensors_missing_ = 0;
  next_bucket_ = 0;
}

void ReductionStep::BeginMicroBatch() {
  BITSHARD_CHECK(tensors_missing_ == 0) << MissingTensor();
  BITSHARD_CHECK(begun_ < num_micro_batches()) << "micro-batch " << begun_ << " is one too many";
  PopMerged();
  stack_.push_back(free_.back());
  free_.pop_back();
  merges_of_leaf_ = tree_.Push({0, first_leaf_ + begun_});
  ++begun_;
  std::fill(tensor_ready_.begin(), tensor_ready_.end(), false);
  tensors_missing_ = layout_.num_tensors();
  std::fill(bucket_missing_.begin(), bucket_missing_.end(), 0);
  for (int64_t i = 0; i < layout_.num_tensors(); ++i)
    ++bucket_missing_[static_cast<size_t>(shards_.BucketOfTensor(i))];
}

absl::Status ReductionStep::MarkReady(int64_t tensor) {
  BITSHARD_CHECK(tensor >= 0 && tensor < layout_.num_tensors()) << tensor;
  if (tensors_missing_ == 0 || tensor_ready_[static_cast<size_t>(tensor)]) {
    return absl::InternalError(absl::StrCat("gradient of ", layout_.tensor(tensor).name,
                                            " was given twice in one micro-batch"));
  }
  tensor_ready_[static_cast<size_t>(tensor)] = true;
  --tensors_missing_;
  --bucket_missing_[static_cast<size_t>(shards_.BucketOfTensor(tensor))];
  return absl::OkStatus();
}

std::vector<size_t> ReductionStep::Carry() const {
  return {stack_.rbegin(), stack_.rbegin() + merges_of_leaf_ + 1};
}

std::optional<int64_t> ReductionStep::NextBucket() {
  if (begun_ < num_micro_batches() || next_bucket_ == shards_.num_buckets() ||
      bucket_missing_[static_cast<size_t>(next_bucket_)] > 0)
    return std::nullopt;
  return next_bucket_++;
}

absl::Status ReductionStep::Finish() {
  if (tensors_missing_ > 0) return absl::InternalError(MissingTensor());
  if (begun_ != num_micro_batches()) {
    return absl::InternalError(
        absl::StrCat("FinishStep after ", begun_, " of ", num_micro_batches(), " micro-batches"));
  }
  PopMerged();
  return absl::OkStatus();
}

std::string ReductionStep::MissingTensor() const {
  const auto missing = std::find(tensor_ready_.begin(), tensor_ready_.end(), false);
  return absl::StrCat("micro-batch ", range_.begin + begun_ - 1, ": ", tensors_missing_,
                      " tensors have no gradient, ",
                      layout_.tensor(missing - tensor_ready_.begin()).name, " first");
}

// Buffers whose content was merged into the one below while the tensors became ready.
void ReductionStep::PopMerged() {
  for (; merges_of_leaf_ > 0; --merges_of_leaf_) {
    free_.push_back(stack_.back());
    stack_.pop_back();
  }
}

}  // namespace bitshard::comm::internal
