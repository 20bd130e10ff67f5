#include "comm/gradient_reducer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/tree_sum.h"
#include "core/aligned_buffer.h"
#include "core/check.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/status_macros.h"

namespace bitshard::comm {
namespace {

using core::kBlockElems;
constexpr int64_t kFloatBytes = static_cast<int64_t>(sizeof(float));

// Buckets whose data may be on the way at the same time. More would hide more of a rank's lateness,
// each costs a receive buffer.
constexpr int64_t kBucketsInFlight = 4;

// Elements that a thread adds at a time: 64 KiB, so that a chain of sums stays in the second-level
// cache.
constexpr int64_t kGrainElems = 16384;

int64_t Elems(core::BlockRange range) { return range.size() * kBlockElems; }

void AddTo(float* __restrict sum, const float* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

void Add(const float* __restrict a, const float* __restrict b, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] = a[i] + b[i];
}

// Everything about a rank's part in a step that follows from sizes alone.
struct Plan {
  Plan(const core::FlatLayout& layout, const ShardMap& shards, int rank, int64_t micro_batches) {
    const int world_size = shards.world_size();
    range = MicroBatchesOf(rank, world_size, micro_batches);
    num_buffers = StackDepth(range.begin, range.end, micro_batches);
    arena_elems = layout.padded_elems();
    shard_elems = shards.NumBlocksOf(rank) * kBlockElems;
    for (int r = 0; r < world_size; ++r) {
      const MicroBatchRange run = MicroBatchesOf(r, world_size, micro_batches);
      nodes.push_back(NodesOf(run.begin, run.end, micro_batches));
      const int64_t count = static_cast<int64_t>(nodes.back().size());
      most_nodes = std::max(most_nodes, count);
      if (r == rank) my_nodes = count;
      if (r != rank) foreign_nodes += count;
    }
    for (int64_t bucket = 0; bucket < shards.num_buckets(); ++bucket) {
      int64_t& slot = slot_elems[static_cast<size_t>(bucket % kBucketsInFlight)];
      slot = std::max(slot, foreign_nodes * Elems(shards.Run(bucket, rank)));
    }
  }

  // With one rank the root of the tree lies in one buffer, and that is the result.
  bool in_place() const { return nodes.size() == 1; }
  int64_t receive_elems() const {
    int64_t elems = in_place() ? 0 : shard_elems;
    for (const int64_t slot : slot_elems) elems += slot;
    return elems;
  }

  MicroBatchRange range;
  int64_t num_buffers = 0;
  int64_t arena_elems = 0;
  int64_t shard_elems = 0;
  std::vector<std::vector<TreeNode>> nodes;  // Of each rank.
  int64_t most_nodes = 0;
  int64_t my_nodes = 0;
  int64_t foreign_nodes = 0;
  std::array<int64_t, kBucketsInFlight> slot_elems = {};
};

// One addition of the tree: part `to` += part `from`, parts numbered over all ranks' nodes from
// left to right.
struct Merge {
  size_t to;
  size_t from;
};

std::vector<Merge> MergesOf(const Plan& plan, int64_t micro_batches) {
  std::vector<Merge> merges;
  TreeStack stack(micro_batches);
  std::vector<size_t> parts;
  size_t next = 0;
  for (const std::vector<TreeNode>& nodes : plan.nodes) {
    for (const TreeNode& node : nodes) {
      parts.push_back(next++);
      for (int i = stack.Push(node); i > 0; --i) {
        merges.push_back({parts[parts.size() - 2], parts.back()});
        parts.pop_back();
      }
    }
  }
  BITSHARD_CHECK(parts.size() == 1) << parts.size() << " parts left";
  return merges;
}

class TreeReducer : public GradientReducer {
 public:
  TreeReducer(const core::FlatLayout& layout, const ShardMap& shards, Communicator* comm,
              int64_t micro_batches)
      : layout_(layout),
        shards_(shards),
        comm_(comm),
        micro_batches_(micro_batches),
        plan_(layout, shards, comm->rank(), micro_batches),
        merges_(MergesOf(plan_, micro_batches)),
        tree_(micro_batches),
        tensor_ready_(static_cast<size_t>(layout.num_tensors())),
        bucket_missing_(static_cast<size_t>(shards.num_buckets())) {
    int64_t offset = 0;
    for (int64_t bucket = 0; bucket < shards.num_buckets(); ++bucket) {
      shard_offset_.push_back(offset);
      offset += Elems(shards.Run(bucket, comm->rank()));
    }
  }

  absl::Status Allocate() {
    for (int64_t i = 0; i < plan_.num_buffers; ++i) {
      BITSHARD_ASSIGN_OR_RETURN(
          auto buffer,
          core::AlignedBuffer::Create(plan_.arena_elems * kFloatBytes,
                                      i == 0 ? "gradients" : "partial sums of gradients"));
      buffers_.push_back(std::move(buffer));
    }
    if (!plan_.in_place()) {
      BITSHARD_ASSIGN_OR_RETURN(shard_, core::AlignedBuffer::Create(plan_.shard_elems * kFloatBytes,
                                                                    "the summed gradient shard"));
    }
    for (size_t i = 0; i < slots_.size(); ++i) {
      BITSHARD_ASSIGN_OR_RETURN(slots_[i],
                                core::AlignedBuffer::Create(plan_.slot_elems[i] * kFloatBytes,
                                                            "gradients of other ranks"));
    }
    BeginStep();
    return absl::OkStatus();
  }

  void BeginStep() override {
    BITSHARD_CHECK(in_flight_.empty()) << "BeginStep before FinishStep";
    tree_ = TreeStack(micro_batches_);
    stack_.clear();
    free_.clear();
    for (size_t i = buffers_.size(); i-- > 0;) free_.push_back(i);
    begun_ = 0;
    merges_of_leaf_ = 0;
    tensors_missing_ = 0;
    next_bucket_ = 0;
    exposed_seconds_ = 0;
  }

  void BeginMicroBatch() override {
    BITSHARD_CHECK(tensors_missing_ == 0) << MissingTensor();
    BITSHARD_CHECK(begun_ < plan_.range.end - plan_.range.begin)
        << "micro-batch " << begun_ << " is one too many";
    PopMerged();
    stack_.push_back(free_.back());
    free_.pop_back();
    merges_of_leaf_ = tree_.Push({0, plan_.range.begin + begun_});
    ++begun_;
    std::fill(tensor_ready_.begin(), tensor_ready_.end(), false);
    tensors_missing_ = layout_.num_tensors();
    std::fill(bucket_missing_.begin(), bucket_missing_.end(), 0);
    const std::span<float> values = leaf();
    for (int64_t i = 0; i < layout_.num_tensors(); ++i) {
      const core::FlatTensor& tensor = layout_.tensor(i);
      std::fill(values.begin() + tensor.offset() + tensor.numel,
                values.begin() + tensor.blocks.end * kBlockElems, 0.0f);
      ++bucket_missing_[static_cast<size_t>(shards_.BucketOfTensor(i))];
    }
  }

  std::span<float> leaf() override {
    return buffers_[stack_.empty() ? free_.back() : stack_.back()].as<float>();
  }

  absl::Status TensorReady(int64_t index) override {
    BITSHARD_CHECK(index >= 0 && index < layout_.num_tensors()) << index;
    const size_t tensor = static_cast<size_t>(index);
    if (tensors_missing_ == 0 || tensor_ready_[tensor]) {
      return absl::InternalError(absl::StrCat("gradient of ", layout_.tensor(index).name,
                                              " was given twice in one micro-batch"));
    }
    tensor_ready_[tensor] = true;
    --tensors_missing_;
    MergeLeaf(layout_.tensor(index).blocks);
    const int64_t bucket = shards_.BucketOfTensor(index);
    --bucket_missing_[static_cast<size_t>(bucket)];
    if (begun_ < plan_.range.end - plan_.range.begin) return absl::OkStatus();
    // Buckets go in index order, which is the same on every rank, however tensors become ready.
    while (next_bucket_ < shards_.num_buckets() &&
           bucket_missing_[static_cast<size_t>(next_bucket_)] == 0) {
      BITSHARD_RETURN_IF_ERROR(Send(next_bucket_));
      ++next_bucket_;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::span<float>> FinishStep() override {
    if (tensors_missing_ > 0) return absl::InternalError(MissingTensor());
    const int64_t expected = plan_.range.end - plan_.range.begin;
    if (begun_ != expected) {
      return absl::InternalError(
          absl::StrCat("FinishStep after ", begun_, " of ", expected, " micro-batches"));
    }
    PopMerged();
    if (plan_.in_place()) return buffers_[stack_.front()].as<float>();
    while (!in_flight_.empty()) BITSHARD_RETURN_IF_ERROR(FinishOldest());
    return shard_.as<float>();
  }

  double exposed_seconds() const override { return exposed_seconds_; }

 private:
  struct BucketInFlight {
    int64_t bucket;
    std::vector<std::unique_ptr<Work>> works;
  };

  std::string MissingTensor() const {
    const auto missing = std::find(tensor_ready_.begin(), tensor_ready_.end(), false);
    return absl::StrCat("micro-batch ", plan_.range.begin + begun_ - 1, ": ", tensors_missing_,
                        " tensors have no gradient, ",
                        layout_.tensor(missing - tensor_ready_.begin()).name, " first");
  }

  // Buffers whose content was merged into the one below while the last micro-batch's tensors became
  // ready.
  void PopMerged() {
    for (; merges_of_leaf_ > 0; --merges_of_leaf_) {
      free_.push_back(stack_.back());
      stack_.pop_back();
    }
  }

  // Does the additions that the leaf completes, for some of its blocks.
  void MergeLeaf(core::BlockRange blocks) {
    if (merges_of_leaf_ == 0) return;
    core::ParallelFor(Elems(blocks), kGrainElems, [&](int64_t first, int64_t last) {
      for (int64_t begin = first; begin < last; begin += kGrainElems) {
        const int64_t n = std::min(kGrainElems, last - begin);
        for (int i = 0; i < merges_of_leaf_; ++i) {
          const size_t top = stack_.size() - 1 - static_cast<size_t>(i);
          AddTo(At(stack_[top - 1], blocks.begin) + begin, At(stack_[top], blocks.begin) + begin,
                n);
        }
      }
    });
  }

  float* At(size_t buffer, int64_t block) const {
    return buffers_[buffer].as<float>().data() + block * kBlockElems;
  }

  // This rank's partial sums of the step, from left to right: the stack without what was merged
  // away.
  size_t PartBuffer(int64_t part) const { return stack_[static_cast<size_t>(part)]; }

  // Starts one all-to-all for each node of the rank that has most; the others send nothing in the
  // last ones.
  absl::Status Send(int64_t bucket) {
    if (plan_.in_place()) return absl::OkStatus();
    if (static_cast<int64_t>(in_flight_.size()) == kBucketsInFlight)
      BITSHARD_RETURN_IF_ERROR(FinishOldest());
    const size_t world = static_cast<size_t>(comm_->world_size());
    const size_t self = static_cast<size_t>(comm_->rank());
    const size_t piece = static_cast<size_t>(Elems(shards_.Run(bucket, comm_->rank())));
    std::span<float> slot = Slot(bucket).as<float>();
    std::vector<float*> next(world);  // where the rank's next node goes
    for (size_t r = 0; r < world; ++r) {
      next[r] = slot.data();
      if (r != self) slot = slot.subspan(plan_.nodes[r].size() * piece);
    }
    in_flight_.push_back({.bucket = bucket, .works = {}});
    for (int64_t node = 0; node < plan_.most_nodes; ++node) {
      std::vector<std::span<const std::byte>> send(world);
      std::vector<std::span<std::byte>> receive(world);
      for (size_t r = 0; r < world; ++r) {
        if (r == self) continue;
        const core::BlockRange run = shards_.Run(bucket, static_cast<int>(r));
        if (node < plan_.my_nodes) {
          send[r] = std::as_bytes(
              std::span(At(PartBuffer(node), run.begin), static_cast<size_t>(Elems(run))));
        }
        if (node < static_cast<int64_t>(plan_.nodes[r].size())) {
          receive[r] = std::as_writable_bytes(std::span(next[r], piece));
          next[r] += piece;
        }
      }
      std::string name = absl::StrCat("gradient bucket ", bucket);
      if (plan_.most_nodes > 1) absl::StrAppend(&name, " part ", node);
      BITSHARD_ASSIGN_OR_RETURN(auto work,
                                comm_->StartAllToAll(std::move(send), std::move(receive), name));
      in_flight_.back().works.push_back(std::move(work));
    }
    return absl::OkStatus();
  }

  const core::AlignedBuffer& Slot(int64_t bucket) const {
    return slots_[static_cast<size_t>(bucket % kBucketsInFlight)];
  }

  absl::Status FinishOldest() {
    const auto started = std::chrono::steady_clock::now();
    for (const std::unique_ptr<Work>& work : in_flight_.front().works)
      BITSHARD_RETURN_IF_ERROR(work->Wait());
    exposed_seconds_ +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    SumOwnRun(in_flight_.front().bucket);
    in_flight_.pop_front();
    return absl::OkStatus();
  }

  void SumOwnRun(int64_t bucket) {
    const core::BlockRange run = shards_.Run(bucket, comm_->rank());
    const int64_t piece = Elems(run);
    std::vector<float*> parts;
    float* received = Slot(bucket).as<float>().data();
    for (size_t r = 0; r < plan_.nodes.size(); ++r) {
      for (size_t node = 0; node < plan_.nodes[r].size(); ++node) {
        if (static_cast<int>(r) == comm_->rank()) {
          parts.push_back(At(PartBuffer(static_cast<int64_t>(node)), run.begin));
        } else {
          parts.push_back(received);
          received += piece;
        }
      }
    }
    float* out = shard_.as<float>().data() + shard_offset_[static_cast<size_t>(bucket)];
    core::ParallelFor(piece, kGrainElems, [&](int64_t first, int64_t last) {
      for (int64_t begin = first; begin < last; begin += kGrainElems) {
        const int64_t n = std::min(kGrainElems, last - begin);
        for (size_t i = 0; i + 1 < merges_.size(); ++i) {
          AddTo(parts[merges_[i].to] + begin, parts[merges_[i].from] + begin, n);
        }
        Add(parts[merges_.back().to] + begin, parts[merges_.back().from] + begin, out + begin, n);
      }
    });
  }

  const core::FlatLayout layout_;
  const ShardMap shards_;
  Communicator* const comm_;
  const int64_t micro_batches_;
  const Plan plan_;
  const std::vector<Merge> merges_;    // Of all ranks' nodes to the root; empty with one rank.
  std::vector<int64_t> shard_offset_;  // Of each bucket's own run, in elements.

  std::vector<core::AlignedBuffer>
      buffers_;  // The leaf and the partial sums; which is which changes.
  core::AlignedBuffer shard_;
  std::array<core::AlignedBuffer, kBucketsInFlight> slots_;

  TreeStack tree_;
  std::vector<size_t>
      stack_;  // Buffers of the tree's entries before the leaf's merges, the leaf's on top.
  std::vector<size_t> free_;
  int64_t begun_ = 0;  // Micro-batches of this step.
  int merges_of_leaf_ = 0;
  std::vector<bool> tensor_ready_;
  int64_t tensors_missing_ = 0;
  std::vector<int64_t> bucket_missing_;
  int64_t next_bucket_ = 0;
  std::deque<BucketInFlight> in_flight_;
  double exposed_seconds_ = 0;
};

}  // namespace

MicroBatchRange MicroBatchesOf(int rank, int world_size, int64_t micro_batches_per_step) {
  BITSHARD_CHECK(rank >= 0 && rank < world_size) << rank << " of " << world_size;
  const int64_t each = micro_batches_per_step / world_size;
  const int64_t longer = micro_batches_per_step % world_size;
  const int64_t begin = each * rank + std::min<int64_t>(rank, longer);
  return {begin, begin + each + (rank < longer ? 1 : 0)};
}

absl::StatusOr<std::unique_ptr<GradientReducer>> GradientReducer::Create(
    const core::FlatLayout& layout, const ShardMap& shards, Communicator* comm,
    const GradientReducerOptions& options) {
  BITSHARD_CHECK(shards.world_size() == comm->world_size())
      << shards.world_size() << " != " << comm->world_size();
  if (options.micro_batches_per_step < comm->world_size()) {
    return core::ConfigError(absl::StrCat("a step has ", options.micro_batches_per_step,
                                          " micro-batches for ", comm->world_size(),
                                          " ranks: start fewer ranks, or raise global_batch_size "
                                          "or lower micro_batch_size, so that each rank has one"));
  }
  auto reducer =
      std::make_unique<TreeReducer>(layout, shards, comm, options.micro_batches_per_step);
  BITSHARD_RETURN_IF_ERROR(reducer->Allocate());
  return reducer;
}

ReducerCost GradientReducer::Cost(const core::FlatLayout& layout, const ShardMap& shards, int rank,
                                  const GradientReducerOptions& options) {
  const Plan plan(layout, shards, rank, options.micro_batches_per_step);
  return {
      .leaf_bytes = plan.arena_elems * kFloatBytes,
      .partial_bytes = (plan.num_buffers - 1) * plan.arena_elems * kFloatBytes,
      .receive_bytes = plan.receive_elems() * kFloatBytes,
      .sent_bytes_per_step = plan.my_nodes * (plan.arena_elems - plan.shard_elems) * kFloatBytes,
      .partials_per_rank = plan.my_nodes};
}

}  // namespace bitshard::comm
