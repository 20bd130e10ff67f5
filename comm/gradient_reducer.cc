#include "comm/gradient_reducer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "comm/internal/reduction_plan.h"
#include "core/aligned_buffer.h"
#include "core/check.h"
#include "core/parallel.h"
#include "core/status_macros.h"

namespace bitshard::comm {
namespace {

using core::kBlockElems;
using internal::Elems;
using internal::kFloatBytes;
using internal::ReductionPlan;

// Buckets whose data may be on the way at the same time. More would hide more of a rank's lateness,
// each costs a receive buffer.
constexpr int64_t kBucketsInFlight = 4;

// Elements that a thread adds at a time: 64 KiB, so that a chain of sums stays in the second-level
// cache.
constexpr int64_t kGrainElems = 16384;

void AddTo(float* __restrict sum, const float* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

void Add(const float* __restrict a, const float* __restrict b, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] = a[i] + b[i];
}

// Elements of what is received of each bucket, for the buckets that share a buffer.
using SlotElems = std::array<int64_t, kBucketsInFlight>;

SlotElems SlotsOf(const ReductionPlan& plan) {
  SlotElems slots = {};
  for (int64_t bucket = 0; bucket < plan.shards.num_buckets(); ++bucket) {
    int64_t& slot = slots[static_cast<size_t>(bucket % kBucketsInFlight)];
    slot = std::max(slot, plan.ReceiveElems(bucket));
  }
  return slots;
}

// One addition of the tree: part `to` += part `from`, parts numbered over all ranks' sums from
// left to right.
struct Merge {
  size_t to;
  size_t from;
};

std::vector<Merge> MergesOf(const ReductionPlan& plan) {
  std::vector<Merge> merges;
  std::vector<size_t> parts;
  for (size_t part = 0; part < plan.merges.size(); ++part) {
    parts.push_back(part);
    for (int i = plan.merges[part]; i > 0; --i) {
      merges.push_back({parts[parts.size() - 2], parts.back()});
      parts.pop_back();
    }
  }
  return merges;
}

class TreeReducer : public GradientReducer {
 public:
  TreeReducer(const core::FlatLayout& layout, const ShardMap& shards, Communicator* comm,
              const GradientReducerOptions& options)
      : layout_(layout),
        comm_(comm),
        plan_(layout, shards, comm->rank(), options.micro_batches_per_step, options.reduction),
        slot_elems_(SlotsOf(plan_)),
        merges_(MergesOf(plan_)),
        step_(layout, plan_) {}

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
      BITSHARD_ASSIGN_OR_RETURN(slots_[i], core::AlignedBuffer::Create(slot_elems_[i] * kFloatBytes,
                                                                       "gradients of other ranks"));
    }
    return absl::OkStatus();
  }

  void BeginStep() override {
    BITSHARD_CHECK(in_flight_.empty()) << "BeginStep before FinishStep";
    step_.Begin();
    exposed_seconds_ = 0;
  }

  void BeginMicroBatch() override {
    step_.BeginMicroBatch();
    const std::span<float> values = leaf();
    for (const core::FlatTensor& tensor : layout_.tensors()) {
      std::fill(values.begin() + tensor.offset() + tensor.numel,
                values.begin() + tensor.blocks.end * kBlockElems, 0.0f);
    }
  }

  std::span<float> leaf() override { return buffers_[step_.leaf()].as<float>(); }

  absl::Status TensorReady(int64_t index) override {
    BITSHARD_RETURN_IF_ERROR(step_.MarkReady(index));
    MergeLeaf(layout_.tensor(index).blocks);
    while (const std::optional<int64_t> bucket = step_.NextBucket())
      BITSHARD_RETURN_IF_ERROR(Send(*bucket));
    return absl::OkStatus();
  }

  absl::StatusOr<std::span<float>> FinishStep() override {
    BITSHARD_RETURN_IF_ERROR(step_.Finish());
    if (plan_.in_place()) return buffers_[step_.PartBuffer(0)].as<float>();
    while (!in_flight_.empty()) BITSHARD_RETURN_IF_ERROR(FinishOldest());
    return shard_.as<float>();
  }

  double exposed_seconds() const override { return exposed_seconds_; }

 private:
  struct BucketInFlight {
    int64_t bucket;
    std::vector<std::unique_ptr<Work>> works;
  };

  // Does the additions that the leaf completes, for some of its blocks.
  void MergeLeaf(core::BlockRange blocks) {
    const std::vector<size_t> carry = step_.Carry();
    if (carry.size() == 1) return;
    core::ParallelFor(Elems(blocks), kGrainElems, [&](int64_t first, int64_t last) {
      for (int64_t begin = first; begin < last; begin += kGrainElems) {
        const int64_t n = std::min(kGrainElems, last - begin);
        for (size_t i = 1; i < carry.size(); ++i)
          AddTo(At(carry[i], blocks.begin) + begin, At(carry[i - 1], blocks.begin) + begin, n);
      }
    });
  }

  float* At(size_t buffer, int64_t block) const {
    return buffers_[buffer].as<float>().data() + block * kBlockElems;
  }

  internal::ReductionMemory Memory(int64_t bucket) const {
    const size_t slot = static_cast<size_t>(bucket % kBucketsInFlight);
    internal::ReductionMemory memory{.partials = {}, .received = slots_[slot].as<float>().data()};
    for (size_t part = 0; part < static_cast<size_t>(plan_.my_nodes); ++part)
      memory.partials.push_back(At(step_.PartBuffer(part), 0));
    return memory;
  }

  absl::Status Send(int64_t bucket) {
    if (plan_.in_place()) return absl::OkStatus();
    if (static_cast<int64_t>(in_flight_.size()) == kBucketsInFlight)
      BITSHARD_RETURN_IF_ERROR(FinishOldest());
    const internal::ReductionMemory memory = Memory(bucket);
    in_flight_.push_back({.bucket = bucket, .works = {}});
    for (int64_t node = 0; node < plan_.most_nodes; ++node) {
      internal::AllToAllPieces pieces = plan_.PiecesOf(bucket, node, memory);
      BITSHARD_ASSIGN_OR_RETURN(
          auto work,
          comm_->StartAllToAll(std::move(pieces.send), std::move(pieces.receive), pieces.name));
      in_flight_.back().works.push_back(std::move(work));
    }
    return absl::OkStatus();
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
    const int64_t piece = Elems(plan_.shards.Run(bucket, plan_.rank));
    const std::vector<float*> parts = plan_.PartsOf(bucket, Memory(bucket));
    float* out = shard_.as<float>().data() + plan_.shard_offset[static_cast<size_t>(bucket)];
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
  Communicator* const comm_;
  const ReductionPlan plan_;
  const SlotElems slot_elems_;
  const std::vector<Merge> merges_;  // Of all ranks' nodes to the root; empty with one rank.

  std::vector<core::AlignedBuffer>
      buffers_;  // The leaf and the partial sums; which is which changes.
  core::AlignedBuffer shard_;
  std::array<core::AlignedBuffer, kBucketsInFlight> slots_;

  internal::ReductionStep step_;
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

double FastReductionBound(int64_t micro_batches, int world_size) {
  constexpr double kUnit = 0x1p-24;
  const auto gamma = [](double additions) { return additions * kUnit / (1 - additions * kUnit); };
  const auto depth = [](int64_t leaves) {
    return std::ceil(std::log2(static_cast<double>(leaves)));
  };
  const int64_t own = (micro_batches + world_size - 1) / world_size;
  return gamma(depth(micro_batches)) + gamma(depth(own) + world_size - 1);
}

absl::StatusOr<std::unique_ptr<GradientReducer>> GradientReducer::Create(
    const core::FlatLayout& layout, const ShardMap& shards, Communicator* comm,
    const GradientReducerOptions& options) {
  BITSHARD_CHECK(shards.world_size() == comm->world_size())
      << shards.world_size() << " != " << comm->world_size();
  BITSHARD_RETURN_IF_ERROR(
      internal::CheckMicroBatches(options.micro_batches_per_step, comm->world_size()));
  auto reducer = std::make_unique<TreeReducer>(layout, shards, comm, options);
  BITSHARD_RETURN_IF_ERROR(reducer->Allocate());
  return reducer;
}

ReducerCost GradientReducer::Cost(const core::FlatLayout& layout, const ShardMap& shards, int rank,
                                  const GradientReducerOptions& options) {
  const ReductionPlan plan(layout, shards, rank, options.micro_batches_per_step, options.reduction);
  int64_t receive_elems = plan.in_place() ? 0 : plan.shard_elems;
  for (const int64_t slot : SlotsOf(plan)) receive_elems += slot;
  return {
      .leaf_bytes = plan.arena_elems * kFloatBytes,
      .partial_bytes = (plan.num_buffers - 1) * plan.arena_elems * kFloatBytes,
      .receive_bytes = receive_elems * kFloatBytes,
      .sent_bytes_per_step = plan.my_nodes * (plan.arena_elems - plan.shard_elems) * kFloatBytes,
      .partials_per_rank = plan.my_nodes};
}

}  // namespace bitshard::comm
