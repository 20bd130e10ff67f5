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

constexpr int64_t kDoubleBytes = static_cast<int64_t>(sizeof(double));

class Engine : public DeviceOptimizer {
 public:
  Engine(const core::FlatLayout& layout, const comm::ShardMap& shards,
         comm::DeviceCommunicator* comm, const DeviceOptimizerOptions& options)
      : layout_(layout), shards_(shards), comm_(comm), options_(options) {}

  absl::Status Init() {
    BITSHARD_ASSIGN_OR_RETURN(shard_,
                              DeviceShard::Create(layout_, shards_, comm_->rank(), options_.shard));
    const int64_t bytes = std::max<int64_t>(layout_.num_blocks(), 1) * kDoubleBytes;
    BITSHARD_ASSIGN_OR_RETURN(squares_, paging::Allocation<paging::DeviceResource>::Create(
                                            &device_, bytes, "sums of squares of gradients"));
    BITSHARD_ASSIGN_OR_RETURN(host_squares_, paging::Allocation<paging::PinnedResource>::Create(
                                                 &pinned_, bytes, "sums of squares of gradients"));
    BITSHARD_ASSIGN_OR_RETURN(gathering_, core::Stream::Create());
    BITSHARD_ASSIGN_OR_RETURN(stepped_, core::Event::Create());
    BITSHARD_ASSIGN_OR_RETURN(gathered_, core::Event::Create());
    return absl::OkStatus();
  }
  ~Engine() override {
    if (gathering_.get() != nullptr) (void)gathering_.Synchronize();
    (void)BITSHARD_CUDA_STATUS(cudaStreamSynchronize(options_.shard.stream));
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

  const core::FlatLayout layout_;
  const comm::ShardMap shards_;
  comm::DeviceCommunicator* const comm_;
  const DeviceOptimizerOptions options_;
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

absl::StatusOr<double> Engine::GradientNorm(const float* gradients, double gradient_scale) {
  const cudaStream_t stream = options_.shard.stream;
  std::vector<std::span<std::byte>> device, host;
  int64_t at = 0;
  for (int rank = 0; rank < comm_->world_size(); ++rank) {
    const int64_t bytes = shards_.NumBlocksOf(rank) * kDoubleBytes;
    device.push_back(
        squares_.memory().subspan(static_cast<size_t>(at), static_cast<size_t>(bytes)));
    host.push_back(
        host_squares_.memory().subspan(static_cast<size_t>(at), static_cast<size_t>(bytes)));
    at += bytes;
  }
  BITSHARD_RETURN_IF_ERROR(SumSquaresByBlockCuda(
      {.x = gradients,
       .elems = shards_.NumBlocksOf(comm_->rank()) * core::kBlockElems,
       .out = reinterpret_cast<double*>(device[static_cast<size_t>(comm_->rank())].data()),
       .stream = stream}));
  if (comm_->world_size() > 1) BITSHARD_RETURN_IF_ERROR(Gather(device, "gradient norm", stream));
  if (at > 0) {
    BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(
        cudaMemcpyAsync(host_squares_.memory().data(), squares_.memory().data(),
                        static_cast<size_t>(at), cudaMemcpyDeviceToHost, stream)));
  }
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaStreamSynchronize(stream)));
  BITSHARD_RETURN_IF_ERROR(comm_->status());
  std::vector<std::vector<double>> parts;
  for (const std::span<std::byte> part : host) {
    const double* first = reinterpret_cast<const double*>(part.data());
    parts.emplace_back(first, first + part.size() / sizeof(double));
  }
  return BlockSquaresNorm(layout_, shards_, parts) * std::abs(gradient_scale);
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
      BITSHARD_RETURN_IF_ERROR(stepped_.Record(options_.shard.stream));
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
  const StepHyper hyper{.step = step_ + 1,
                        .learning_rate = args.learning_rate,
                        .beta1 = options_.beta1,
                        .beta2 = options_.beta2,
                        .eps = options_.eps,
                        .weight_decay = options_.weight_decay,
                        .gradient_scale = args.gradient_scale};
  BITSHARD_RETURN_IF_ERROR(
      shard_->Step({.parameters = args.parameters, .gradients = args.gradients, .hyper = hyper},
                   [&](int64_t blocks) { return StartGathers(args.parameters, blocks); }));
  BITSHARD_CHECK(comm_->world_size() == 1 || next_bucket_ == shards_.num_buckets())
      << next_bucket_ << " of " << shards_.num_buckets() << " buckets gathered";
  BITSHARD_RETURN_IF_ERROR(gathered_.Record(gathering_.get()));
  BITSHARD_RETURN_IF_ERROR(gathered_.MakeWait(options_.shard.stream));
  ++step_;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceOptimizer>> DeviceOptimizer::Create(
    const core::FlatLayout& layout, const comm::ShardMap& shards, comm::DeviceCommunicator* comm,
    const DeviceOptimizerOptions& options) {
  auto engine = std::make_unique<Engine>(layout, shards, comm, options);
  BITSHARD_RETURN_IF_ERROR(engine->Init());
  return engine;
}

}  // namespace bitshard::optim
