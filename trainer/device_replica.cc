#include "trainer/device_replica.h"

#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "comm/device_gradient_reducer.h"
#include "comm/nccl_communicator.h"
#include "core/aligned_buffer.h"
#include "core/cuda_status.h"
#include "core/cuda_stream.h"
#include "core/status_macros.h"
#include "optim/device_optimizer.h"
#include "paging/cuda_resource.h"
#include "trainer/model/adapter.h"
#include "trainer/model/device_decoder.h"
#include "trainer/run_options.h"
#include "trainer/stopwatch.h"

namespace bitshard::trainer {
namespace {

class DeviceReplica : public Replica {
 public:
  explicit DeviceReplica(const ReplicaArgs& args)
      : config_(*args.config),
        source_(*args.source),
        comm_(args.comm),
        decoder_options_(args.decoder) {}
  ~DeviceReplica() override {
    if (stream_.get() != nullptr) (void)stream_.Synchronize();
  }

  absl::Status Init();

  const core::FlatLayout& layout() const override { return adapter_.layout(); }
  const comm::ShardMap& shards() const override { return shards_; }
  std::span<float> parameters() override { return host_parameters_.as<float>(); }
  absl::Status ReadParameters() override {
    return Transfer(parameters().data(), device_parameters(), cudaMemcpyDeviceToHost);
  }
  absl::Status WriteParameters() override {
    return Transfer(device_parameters(), parameters().data(), cudaMemcpyHostToDevice);
  }

  void BeginStep() override { reducer_->BeginStep(); }
  absl::StatusOr<LossSum> RunMicroBatch(const MicroBatch& batch, int64_t step) override {
    reducer_->BeginMicroBatch();
    return decoder_->ForwardBackward(
        batch,
        {.parameters = device_parameters(),
         .gradients = reducer_->leaf(),
         .seed = seed(),
         .step = step},
        [this](int64_t tensor) { return reducer_->TensorReady(tensor); });
  }
  absl::Status FinishGradients() override;
  double exposed_seconds() const override { return exposed_seconds_; }
  absl::StatusOr<double> GradientNorm(double gradient_scale) override {
    return optimizer_->GradientNorm(gradients_, gradient_scale);
  }
  absl::Status Update(const UpdateArgs& args) override;

  absl::StatusOr<LossSum> Evaluate(const MicroBatch& batch, WhichModel which) override {
    return decoder_->Evaluate(batch, which == WhichModel::kBase ? nullptr : device_parameters());
  }
  absl::StatusOr<std::shared_ptr<Decoder>> HostDecoder() override {
    BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<Decoder> decoder,
                              Decoder::Create(source_, AnswerDecoderOptionsOf(decoder_options_)));
    return std::shared_ptr<Decoder>(std::move(decoder));
  }

  int64_t optimizer_step() const override { return optimizer_->step(); }
  void set_optimizer_step(int64_t step) override { optimizer_->set_step(step); }
  std::vector<optim::StateShare> shares() const override {
    return optimizer_->shard().groups().Shares(layout());
  }
  int64_t BlockStateBytes(int64_t block) const override {
    return optimizer_->shard().pages().BlockBytes(layout().TensorOfBlock(block));
  }
  absl::Status ExportState(core::BlockRange blocks, std::span<std::byte> out) override {
    return optimizer_->shard().ExportState(blocks, out);
  }
  absl::Status ImportState(core::BlockRange blocks, std::span<const std::byte> in) override {
    return optimizer_->shard().ImportState(blocks, in);
  }

  std::vector<std::string> notices() const override;
  int64_t bytes_sent() const override { return comm_->bytes_sent() + nccl_->bytes_sent(); }
  absl::Status Close() override { return nccl_->Finalize(); }

 private:
  absl::Status Allocate();
  absl::Status Transfer(void* to, const void* from, cudaMemcpyKind kind);
  uint64_t seed() const { return static_cast<uint64_t>(config_.compute.seed); }
  float* device_parameters() const {
    return reinterpret_cast<float*>(device_parameters_.memory().data());
  }

  const Config& config_;
  const io::WeightSource& source_;
  comm::Communicator* const comm_;
  const DecoderOptions decoder_options_;
  Adapter adapter_;
  comm::ShardMap shards_;
  core::AlignedBuffer host_parameters_;
  // From here on, each uses those before it.
  std::unique_ptr<comm::DeviceCommunicator> nccl_;
  core::Stream stream_;
  paging::DeviceResource device_;
  paging::Allocation<paging::DeviceResource> device_parameters_;
  std::unique_ptr<DeviceDecoder> decoder_;
  std::unique_ptr<comm::DeviceGradientReducer> reducer_;
  std::unique_ptr<optim::DeviceOptimizer> optimizer_;
  const float* gradients_ = nullptr;  // This rank's blocks of the sums, on the device.
  double exposed_seconds_ = 0;
};

absl::Status DeviceReplica::Init() {
  // Agreed before NCCL, which would wait for a rank that has no device.
  BITSHARD_RETURN_IF_ERROR(
      comm_->AgreeOnStatus(BITSHARD_CUDA_STATUS(cudaSetDevice(comm_->local_rank()))));
  BITSHARD_ASSIGN_OR_RETURN(nccl_, comm::NcclCommunicator::Create(
                                       {.host = comm_,
                                        .device = comm_->local_rank(),
                                        .timeout = absl::Seconds(config_.comm.timeout_seconds)}));
  return comm_->AgreeOnStatus(Allocate());
}

absl::Status DeviceReplica::Allocate() {
  BITSHARD_ASSIGN_OR_RETURN(stream_, core::Stream::Create());
  BITSHARD_ASSIGN_OR_RETURN(adapter_, Adapter::Create(source_.config(), decoder_options_.lora));
  shards_ = comm::ShardMap(layout(), comm_->world_size(), config_.comm.bucket_bytes);
  const int64_t bytes = layout().padded_elems() * 4;
  BITSHARD_ASSIGN_OR_RETURN(host_parameters_,
                            core::AlignedBuffer::Create(bytes, "adapter parameters"));
  BITSHARD_ASSIGN_OR_RETURN(device_parameters_, paging::Allocation<paging::DeviceResource>::Create(
                                                    &device_, bytes, "adapter parameters"));
  BITSHARD_ASSIGN_OR_RETURN(decoder_,
                            DeviceDecoder::Create(source_, decoder_options_, stream_.get()));
  BITSHARD_ASSIGN_OR_RETURN(reducer_,
                            comm::DeviceGradientReducer::Create(
                                layout(), shards_, nccl_.get(),
                                {.micro_batches_per_step = config_.batch.micro_batches_per_step(),
                                 .reduction = config_.comm.reduction,
                                 .stream = stream_.get()}));
  BITSHARD_ASSIGN_OR_RETURN(optim::DeviceShardOptions options, DeviceShardOptionsOf(config_));
  options.stream = stream_.get();
  BITSHARD_ASSIGN_OR_RETURN(
      optimizer_, optim::DeviceOptimizer::Create(layout(), shards_, nccl_.get(), options));
  adapter_.Init(seed(), parameters());
  return WriteParameters();
}

absl::Status DeviceReplica::Transfer(void* to, const void* from, cudaMemcpyKind kind) {
  const size_t bytes = static_cast<size_t>(layout().padded_elems()) * sizeof(float);
  BITSHARD_RETURN_IF_ERROR(
      BITSHARD_CUDA_STATUS(cudaMemcpyAsync(to, from, bytes, kind, stream_.get())));
  return stream_.Synchronize();
}

std::vector<std::string> DeviceReplica::notices() const {
  std::vector<std::string> lines;
  const std::vector<std::string> nccl = comm::NcclEnvironment();
  if (!nccl.empty()) lines.push_back(absl::StrCat("NCCL is told ", absl::StrJoin(nccl, " ")));
  const std::string paging = optimizer_->shard().notice();
  if (!paging.empty()) lines.push_back(paging);
  return lines;
}

// Every micro-batch has been waited for: what is still to wait for is the network.
absl::Status DeviceReplica::FinishGradients() {
  Stopwatch watch;
  BITSHARD_ASSIGN_OR_RETURN(gradients_, reducer_->FinishStep());
  BITSHARD_RETURN_IF_ERROR(stream_.Synchronize());
  exposed_seconds_ = watch.Lap();
  return nccl_->status();
}

absl::Status DeviceReplica::Update(const UpdateArgs& args) {
  BITSHARD_RETURN_IF_ERROR(optimizer_->Step({.parameters = device_parameters(),
                                             .gradients = gradients_,
                                             .gradient_scale = args.gradient_scale,
                                             .learning_rate = args.learning_rate}));
  BITSHARD_RETURN_IF_ERROR(stream_.Synchronize());
  return nccl_->status();
}

}  // namespace

absl::StatusOr<optim::DeviceShardOptions> DeviceShardOptionsOf(const Config& config) {
  optim::DeviceShardOptions options;
  BITSHARD_ASSIGN_OR_RETURN(options.settings, OptimizerSettingsOf(config));
  options.paging = {.tier = config.paging.tier == PagingTier::kPinned
                                ? paging::DeviceTier::kPinned
                                : paging::DeviceTier::kManaged,
                    .budget_bytes = config.paging.budget};
  return options;
}

absl::StatusOr<std::unique_ptr<Replica>> MakeDeviceReplica(const ReplicaArgs& args) {
  auto replica = std::make_unique<DeviceReplica>(args);
  BITSHARD_RETURN_IF_ERROR(replica->Init());
  return replica;
}

}  // namespace bitshard::trainer
