#include "comm/device_gradient_reducer.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/internal/device_memory.h"
#include "comm/internal/reduction_plan.h"
#include "comm/tree_sum_cuda.h"
#include "core/check.h"
#include "core/cuda_status.h"
#include "core/cuda_stream.h"
#include "core/error.h"
#include "core/stall_meter.h"
#include "core/status_macros.h"

namespace bitshard::comm {
namespace {

using core::kBlockElems;
using internal::DeviceFloats;
using internal::Elems;
using internal::kFloatBytes;
using internal::ReductionPlan;

// The longest run of a bucket: a reduce-scatter's runs have one length.
int64_t MostElems(const ReductionPlan& plan, int64_t bucket) {
  int64_t most = 0;
  for (int r = 0; r < plan.shards.world_size(); ++r)
    most = std::max(most, Elems(plan.shards.Run(bucket, r)));
  return most;
}

// Of what the bucket on the way needs, in kFast its terms of all ranks.
int64_t ReceiveElems(const ReductionPlan& plan, Reduction reduction) {
  int64_t most = 0;
  for (int64_t bucket = 0; bucket < plan.shards.num_buckets(); ++bucket) {
    most = std::max(most, reduction == Reduction::kFast
                              ? MostElems(plan, bucket) * plan.shards.world_size()
                              : plan.ReceiveElems(bucket));
  }
  return most;
}

// In kFast a block more: see SendFast.
int64_t ShardElems(const ReductionPlan& plan, Reduction reduction) {
  return plan.shard_elems + (reduction == Reduction::kFast ? kBlockElems : 0);
}

absl::Status CheckParts(const ReductionPlan& plan) {
  if (plan.merges.size() <= kMaxTreeParts) return absl::OkStatus();
  return core::ConfigError(absl::StrCat(
      "the ranks send ", plan.merges.size(), " partial sums of gradients, one launch adds at most ",
      kMaxTreeParts, ": give each rank a power of two of micro-batches, so that it sends one"));
}

class TreeReducer : public DeviceGradientReducer {
 public:
  TreeReducer(const core::FlatLayout& layout, const ShardMap& shards, DeviceCommunicator* comm,
              const DeviceGradientReducerOptions& options)
      : layout_(layout),
        comm_(comm),
        options_(options),
        plan_(layout, shards, comm->rank(), options.micro_batches_per_step, options.reduction),
        step_(layout, plan_) {}
  // An error shows where the communicator is asked next.
  ~TreeReducer() override {
    if (sending_.get() != nullptr) (void)sending_.Synchronize();
    (void)BITSHARD_CUDA_STATUS(cudaStreamSynchronize(options_.stream));
  }

  absl::Status Init();
  void BeginStep() override {
    BITSHARD_CHECK(!in_flight_) << "BeginStep before FinishStep";
    step_.Begin();
  }
  void BeginMicroBatch() override { step_.BeginMicroBatch(); }
  float* leaf() override { return buffers_[step_.leaf()].get(); }
  absl::Status TensorReady(int64_t index) override;
  absl::StatusOr<const float*> FinishStep() override;
  double exposed_seconds() override { return waits_.Seconds(); }

 private:
  bool fast() const { return options_.reduction == Reduction::kFast; }
  float* ShardOf(int64_t bucket) const {
    return shard_.get() + plan_.shard_offset[static_cast<size_t>(bucket)];
  }
  absl::Status MergeLeaf(core::BlockRange blocks);
  absl::Status Send(int64_t bucket);
  absl::Status SendOrdered(int64_t bucket);
  absl::Status SendFast(int64_t bucket);

  const core::FlatLayout layout_;
  DeviceCommunicator* const comm_;
  const DeviceGradientReducerOptions options_;
  const ReductionPlan plan_;
  internal::ReductionStep step_;
  std::vector<DeviceFloats> buffers_;  // The leaf and the partial sums; which is which changes.
  DeviceFloats shard_;
  // Of the bucket that is on the way. One is enough: the next collective starts when the sums of
  // this one have read it, which takes the device a small part of what the network takes.
  DeviceFloats received_;
  core::Stream sending_;
  core::Event done_;
  core::StallMeter waits_;  // Of the stream of the options, for what is sent.
  bool in_flight_ = false;  // Buckets were sent that the stream of the options does not wait for.
};

absl::Status TreeReducer::Init() {
  if (!fast()) BITSHARD_RETURN_IF_ERROR(CheckParts(plan_));
  for (size_t i = 0; i < step_.num_buffers(); ++i) {
    BITSHARD_ASSIGN_OR_RETURN(
        DeviceFloats buffer,
        internal::AllocateFloats(plan_.arena_elems,
                                 i == 0 ? "gradients" : "partial sums of gradients",
                                 options_.stream));
    buffers_.push_back(std::move(buffer));
  }
  if (plan_.in_place()) return absl::OkStatus();
  BITSHARD_ASSIGN_OR_RETURN(received_,
                            internal::AllocateFloats(ReceiveElems(plan_, options_.reduction),
                                                     "gradients of other ranks", options_.stream));
  BITSHARD_ASSIGN_OR_RETURN(shard_,
                            internal::AllocateFloats(ShardElems(plan_, options_.reduction),
                                                     "the summed gradient shard", options_.stream));
  BITSHARD_ASSIGN_OR_RETURN(sending_, core::Stream::Create());
  BITSHARD_ASSIGN_OR_RETURN(done_, core::Event::Create());
  return absl::OkStatus();
}

absl::Status TreeReducer::TensorReady(int64_t index) {
  BITSHARD_RETURN_IF_ERROR(step_.MarkReady(index));
  BITSHARD_RETURN_IF_ERROR(MergeLeaf(layout_.tensor(index).blocks));
  while (const std::optional<int64_t> bucket = step_.NextBucket())
    BITSHARD_RETURN_IF_ERROR(Send(*bucket));
  return absl::OkStatus();
}

absl::StatusOr<const float*> TreeReducer::FinishStep() {
  BITSHARD_RETURN_IF_ERROR(step_.Finish());
  if (plan_.in_place()) return buffers_[step_.PartBuffer(0)].get();
  // The next step's gradients too wait for what the sends read.
  BITSHARD_RETURN_IF_ERROR(done_.Record(sending_.get()));
  BITSHARD_RETURN_IF_ERROR(waits_.Wait(options_.stream, done_));
  in_flight_ = false;
  return shard_.get();
}

// Does the additions that the leaf completes, for some of its blocks.
absl::Status TreeReducer::MergeLeaf(core::BlockRange blocks) {
  const std::vector<size_t> carry = step_.Carry();
  if (carry.size() == 1) return absl::OkStatus();
  float* const out = buffers_[carry.back()].get() + blocks.begin * kBlockElems;
  TreeSumCudaArgs sum{.parts = {},
                      .merges = std::vector<int>(carry.size(), 0),
                      .n = Elems(blocks),
                      .out = out,
                      .stream = options_.stream};
  for (size_t i = carry.size(); i-- > 0;)
    sum.parts.push_back(buffers_[carry[i]].get() + blocks.begin * kBlockElems);
  sum.merges.back() = static_cast<int>(carry.size()) - 1;
  return TreeSumCuda(sum);
}

// On a stream of its own, so that backward goes on.
absl::Status TreeReducer::Send(int64_t bucket) {
  if (plan_.in_place()) return absl::OkStatus();
  in_flight_ = true;
  BITSHARD_RETURN_IF_ERROR(done_.Record(options_.stream));
  BITSHARD_RETURN_IF_ERROR(done_.MakeWait(sending_.get()));
  return fast() ? SendFast(bucket) : SendOrdered(bucket);
}

absl::Status TreeReducer::SendOrdered(int64_t bucket) {
  internal::ReductionMemory memory{.partials = {}, .received = received_.get()};
  for (size_t part = 0; part < static_cast<size_t>(plan_.my_nodes); ++part)
    memory.partials.push_back(buffers_[step_.PartBuffer(part)].get());
  for (int64_t node = 0; node < plan_.most_nodes; ++node) {
    const internal::AllToAllPieces pieces = plan_.PiecesOf(bucket, node, memory);
    BITSHARD_RETURN_IF_ERROR(
        comm_->StartAllToAll(pieces.send, pieces.receive, pieces.name, sending_.get()).status());
  }
  const std::vector<float*> parts = plan_.PartsOf(bucket, memory);
  return TreeSumCuda({.parts = {parts.begin(), parts.end()},
                      .merges = plan_.merges,
                      .n = Elems(plan_.shards.Run(bucket, plan_.rank)),
                      .out = ShardOf(bucket),
                      .stream = sending_.get()});
}

// Runs differ in length by a block; what a shorter one is filled up with comes out after its sum,
// where the next bucket's is put afterwards.
absl::Status TreeReducer::SendFast(int64_t bucket) {
  const int64_t each = MostElems(plan_, bucket);
  const float* const arena = buffers_[step_.PartBuffer(0)].get();
  for (int r = 0; r < comm_->world_size(); ++r) {
    const core::BlockRange run = plan_.shards.Run(bucket, r);
    if (run.size() == 0) continue;
    BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(
        cudaMemcpyAsync(received_.get() + r * each, arena + run.begin * kBlockElems,
                        static_cast<size_t>(Elems(run)) * sizeof(float), cudaMemcpyDeviceToDevice,
                        sending_.get())));
  }
  const size_t elems = static_cast<size_t>(each);
  return comm_
      ->StartReduceScatter({received_.get(), elems * static_cast<size_t>(comm_->world_size())},
                           {ShardOf(bucket), elems}, absl::StrCat("gradient bucket ", bucket),
                           sending_.get())
      .status();
}

}  // namespace

ReducerCost DeviceGradientReducer::Cost(const core::FlatLayout& layout, const ShardMap& shards,
                                        int rank, const DeviceGradientReducerOptions& options) {
  const ReductionPlan plan(layout, shards, rank, options.micro_batches_per_step, options.reduction);
  const bool fast = options.reduction == Reduction::kFast;
  ReducerCost cost = {.leaf_bytes = plan.arena_elems * kFloatBytes,
                      .partial_bytes = (plan.num_buffers - 1) * plan.arena_elems * kFloatBytes,
                      .partials_per_rank = plan.my_nodes};
  if (plan.in_place()) return cost;
  cost.receive_bytes =
      (ReceiveElems(plan, options.reduction) + ShardElems(plan, options.reduction)) * kFloatBytes;
  if (!fast) {
    cost.sent_bytes_per_step = plan.my_nodes * (plan.arena_elems - plan.shard_elems) * kFloatBytes;
    return cost;
  }
  for (int64_t bucket = 0; bucket < shards.num_buckets(); ++bucket)
    cost.sent_bytes_per_step += MostElems(plan, bucket) * (shards.world_size() - 1) * kFloatBytes;
  return cost;
}

absl::StatusOr<std::unique_ptr<DeviceGradientReducer>> DeviceGradientReducer::Create(
    const core::FlatLayout& layout, const ShardMap& shards, DeviceCommunicator* comm,
    const DeviceGradientReducerOptions& options) {
  BITSHARD_CHECK(shards.world_size() == comm->world_size())
      << shards.world_size() << " != " << comm->world_size();
  BITSHARD_RETURN_IF_ERROR(
      internal::CheckMicroBatches(options.micro_batches_per_step, comm->world_size()));
  auto reducer = std::make_unique<TreeReducer>(layout, shards, comm, options);
  BITSHARD_RETURN_IF_ERROR(reducer->Init());
  return reducer;
}

}  // namespace bitshard::comm
