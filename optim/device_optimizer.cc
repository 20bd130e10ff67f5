#include "optim/device_optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/cuda_status.h"
#include "core/cuda_stream.h"
#include "core/status_macros.h"
#include "optim/block_norm.h"
#include "optim/gradient_norm_cuda.h"
#include "paging/cuda_resource.h"

namespace bitshard::optim {
namespace {

class Engine : public DeviceOptimizer {
 public:
  Engine(const core::FlatLayout& layout, const comm::ShardMap& shards,
         comm::DeviceCommunicator* comm, const DeviceShardOptions& options)
      : layout_(layout), shards_(shards), comm_(comm), options_(options) {}

  absl::Status Init() {
    BITSHARD_ASSIGN_OR_RETURN(shard_,
                              DeviceShard::Create(layout_, shards_, comm_->rank(), options_));
    const bool has_pre_pass = shard_->groups().max_unorm() > 0;
    const auto block_bytes =
        static_cast<int64_t>(has_pre_pass ? sizeof(BlockNorms) : sizeof(double));
    const int64_t bytes = std::max<int64_t>(layout_.num_blocks(), 1) * block_bytes;
    BITSHARD_ASSIGN_OR_RETURN(squares_, paging::Allocation<paging::DeviceResource>::Create(
                                            &device_, bytes, "sums of squares of blocks"));
    BITSHARD_ASSIGN_OR_RETURN(host_squares_, paging::Allocation<paging::PinnedResource>::Create(
                                                 &pinned_, bytes, "sums of squares of blocks"));
    BITSHARD_ASSIGN_OR_RETURN(gathering_, core::Stream::Create());
    BITSHARD_ASSIGN_OR_RETURN(stepped_, core::Event::Create());
    BITSHARD_ASSIGN_OR_RETURN(gathered_, core::Event::Create());
    return absl::OkStatus();
  }
  ~Engine() override {
    if (gathering_.get() != nullptr) (void)gathering_.Synchronize();
    (void)BITSHARD_CUDA_STATUS(cudaStreamSynchronize(options_.stream));
  }

  absl::StatusOr<double> GradientNorm(const float* gradients, double gradient_scale) override;
  absl::Status Step(const DeviceStepArgs& args) override;
  int64_t step() const override { return step_; }
  void set_step(int64_t step) override { step_ = step; }
  DeviceShard& shard() override { return *shard_; }

 private:
  absl::Status Gather(std::span<const std::span<std::byte>> parts, const std::string& name,
                      cudaStream_t stream);
  absl::Status StartGathers(float* parameters, int64_t local_blocks_done);
  template <class T>
  T* PartOf(int rank) const;
  template <class T>
  absl::StatusOr<std::vector<std::vector<T>>> GatherBlocks(const char* name);
  absl::StatusOr<std::vector<double>> UpdateScalesOf(const DeviceShardStep& args);

  const core::FlatLayout layout_;
  const comm::ShardMap shards_;
  comm::DeviceCommunicator* const comm_;
  const DeviceShardOptions options_;
  std::unique_ptr<DeviceShard> shard_;
  paging::DeviceResource device_;
  paging::PinnedResource pinned_;
  paging::Allocation<paging::DeviceResource> squares_;  // Rank after rank, each one's blocks.
  paging::Allocation<paging::PinnedResource> host_squares_;
  core::Stream gathering_;
  core::Event stepped_;
  core::Event gathered_;
  int64_t step_ = 0;
  int64_t next_bucket_ = 0;  // Of the step that is being enqueued.
};

// parts[r] of rank r comes to every other rank, in place. An all-to-all, because parts differ in
// size by a block.
absl::Status Engine::Gather(std::span<const std::span<std::byte>> parts, const std::string& name,
                            cudaStream_t stream) {
  const size_t self = static_cast<size_t>(comm_->rank());
  std::vector<std::span<const std::byte>> send(parts.size());
  std::vector<std::span<std::byte>> receive(parts.size());
  for (size_t r = 0; r < parts.size(); ++r) {
    if (r == self) continue;
    send[r] = parts[self];
    receive[r] = parts[r];
  }
  return comm_->StartAllToAll(send, receive, name, stream).status();
}

// Where squares_ has what belongs to a rank's blocks, each of which has a T.
template <class T>
T* Engine::PartOf(int rank) const {
  int64_t before = 0;
  for (int r = 0; r < rank; ++r) before += shards_.NumBlocksOf(r);
  return reinterpret_cast<T*>(squares_.memory().data()) + before;
}

// What every rank has put into its part of squares_, by rank, on the host.
template <class T>
absl::StatusOr<std::vector<std::vector<T>>> Engine::GatherBlocks(const char* name) {
  const cudaStream_t stream = options_.stream;
  std::vector<std::span<std::byte>> device;
  for (int rank = 0; rank < comm_->world_size(); ++rank) {
    device.push_back(std::as_writable_bytes(
        std::span(PartOf<T>(rank), static_cast<size_t>(shards_.NumBlocksOf(rank)))));
  }
  if (comm_->world_size() > 1) BITSHARD_RETURN_IF_ERROR(Gather(device, name, stream));
  const size_t bytes = static_cast<size_t>(layout_.num_blocks()) * sizeof(T);
  if (bytes > 0) {
    BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemcpyAsync(host_squares_.memory().data(),
                                                                  squares_.memory().data(), bytes,
                                                                  cudaMemcpyDeviceToHost, stream)));
  }
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaStreamSynchronize(stream)));
  BITSHARD_RETURN_IF_ERROR(comm_->status());
  const T* from = reinterpret_cast<const T*>(host_squares_.memory().data());
  std::vector<std::vector<T>> parts;
  for (int rank = 0; rank < comm_->world_size(); ++rank) {
    parts.emplace_back(from, from + shards_.NumBlocksOf(rank));
    from += shards_.NumBlocksOf(rank);
  }
  return parts;
}

absl::StatusOr<double> Engine::GradientNorm(const float* gradients, double gradient_scale) {
  BITSHARD_RETURN_IF_ERROR(
      SumSquaresByBlockCuda({.x = gradients,
                             .elems = shards_.NumBlocksOf(comm_->rank()) * core::kBlockElems,
                             .out = PartOf<double>(comm_->rank()),
                             .stream = options_.stream}));
  BITSHARD_ASSIGN_OR_RETURN(const auto parts, GatherBlocks<double>("gradient norm"));
  return BlockSquaresNorm(layout_, shards_, parts) * std::abs(gradient_scale);
}

absl::StatusOr<std::vector<double>> Engine::UpdateScalesOf(const DeviceShardStep& args) {
  BITSHARD_RETURN_IF_ERROR(shard_->UpdateNorms(args, PartOf<BlockNorms>(comm_->rank())));
  BITSHARD_ASSIGN_OR_RETURN(const auto parts, GatherBlocks<BlockNorms>("norms of updates"));
  return UpdateScales(layout_, shards_, parts, shard_->groups().max_unorm());
}

// On a stream of its own, so that the step of later blocks goes on.
absl::Status Engine::StartGathers(float* parameters, int64_t local_blocks_done) {
  if (comm_->world_size() == 1) return absl::OkStatus();
  int64_t before = 0;
  for (int64_t b = 0; b < next_bucket_; ++b) before += shards_.Run(b, comm_->rank()).size();
  bool waits = false;
  for (; next_bucket_ < shards_.num_buckets(); ++next_bucket_) {
    before += shards_.Run(next_bucket_, comm_->rank()).size();
    if (before > local_blocks_done) break;
    if (!waits) {
      BITSHARD_RETURN_IF_ERROR(stepped_.Record(options_.stream));
      BITSHARD_RETURN_IF_ERROR(stepped_.MakeWait(gathering_.get()));
      waits = true;
    }
    std::vector<std::span<std::byte>> parts;
    for (int rank = 0; rank < comm_->world_size(); ++rank) {
      const core::BlockRange run = shards_.Run(next_bucket_, rank);
      parts.push_back(
          std::as_writable_bytes(std::span(parameters + run.begin * core::kBlockElems,
                                           static_cast<size_t>(run.size() * core::kBlockElems))));
    }
    BITSHARD_RETURN_IF_ERROR(
        Gather(parts, absl::StrCat("parameters of bucket ", next_bucket_), gathering_.get()));
  }
  return absl::OkStatus();
}

absl::Status Engine::Step(const DeviceStepArgs& args) {
  next_bucket_ = 0;
  DeviceShardStep step{.parameters = args.parameters,
                       .gradients = args.gradients,
                       .moment = {.step = step_ + 1,
                                  .learning_rate = args.learning_rate,
                                  .gradient_scale = args.gradient_scale}};
  std::vector<double> scales;
  if (shard_->groups().max_unorm() > 0) {
    BITSHARD_ASSIGN_OR_RETURN(scales, UpdateScalesOf(step));
    step.update_scales = scales;
  }
  BITSHARD_RETURN_IF_ERROR(
      shard_->Step(step, [&](int64_t blocks) { return StartGathers(args.parameters, blocks); }));
  BITSHARD_CHECK(comm_->world_size() == 1 || next_bucket_ == shards_.num_buckets())
      << next_bucket_ << " of " << shards_.num_buckets() << " buckets gathered";
  BITSHARD_RETURN_IF_ERROR(gathered_.Record(gathering_.get()));
  BITSHARD_RETURN_IF_ERROR(gathered_.MakeWait(options_.stream));
  ++step_;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceOptimizer>> DeviceOptimizer::Create(
    const core::FlatLayout& layout, const comm::ShardMap& shards, comm::DeviceCommunicator* comm,
    const DeviceShardOptions& options) {
  auto engine = std::make_unique<Engine>(layout, shards, comm, options);
  BITSHARD_RETURN_IF_ERROR(engine->Init());
  return engine;
}

}  // namespace bitshard::optim
