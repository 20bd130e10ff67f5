#include <utility>
#include <vector>

#include "comm/gradient_reducer.h"
#include "core/aligned_buffer.h"
#include "core/status_macros.h"
#include "optim/sharded_optimizer.h"
#include "trainer/replica.h"
#include "trainer/run_options.h"

namespace bitshard::trainer {
namespace {

class HostReplica : public Replica {
 public:
  explicit HostReplica(const ReplicaArgs& args) : config_(*args.config), comm_(args.comm) {}

  absl::Status Init(const ReplicaArgs& args) {
    BITSHARD_ASSIGN_OR_RETURN(decoder_, Decoder::Create(*args.source, args.decoder));
    const core::FlatLayout& layout = decoder_->adapter_layout();
    shards_ = comm::ShardMap(layout, comm_->world_size(), config_.comm.bucket_bytes);
    BITSHARD_ASSIGN_OR_RETURN(
        arena_, core::AlignedBuffer::Create(layout.padded_elems() * 4, "adapter parameters"));
    BITSHARD_ASSIGN_OR_RETURN(reducer_,
                              comm::GradientReducer::Create(
                                  layout, shards_, comm_,
                                  {.micro_batches_per_step = config_.batch.micro_batches_per_step(),
                                   .reduction = config_.comm.reduction}));
    BITSHARD_ASSIGN_OR_RETURN(const optim::ShardedOptimizerOptions options,
                              OptimizerOptionsOf(config_));
    BITSHARD_ASSIGN_OR_RETURN(optimizer_,
                              optim::ShardedOptimizer::Create(layout, shards_, comm_, options));
    decoder_->InitAdapter(seed(), parameters());
    return absl::OkStatus();
  }

  const core::FlatLayout& layout() const override { return decoder_->adapter_layout(); }
  const comm::ShardMap& shards() const override { return shards_; }
  std::span<float> parameters() override { return arena_.as<float>(); }
  absl::Status ReadParameters() override { return absl::OkStatus(); }
  absl::Status WriteParameters() override { return absl::OkStatus(); }

  void BeginStep() override { reducer_->BeginStep(); }
  absl::StatusOr<LossSum> RunMicroBatch(const MicroBatch& batch, int64_t step) override {
    reducer_->BeginMicroBatch();
    return decoder_->ForwardBackward(
        batch,
        {.parameters = parameters(), .gradients = reducer_->leaf(), .seed = seed(), .step = step},
        [this](int64_t tensor) { return reducer_->TensorReady(tensor); });
  }
  absl::Status FinishGradients() override {
    BITSHARD_ASSIGN_OR_RETURN(gradients_, reducer_->FinishStep());
    return absl::OkStatus();
  }
  double exposed_seconds() const override { return reducer_->exposed_seconds(); }
  absl::StatusOr<double> GradientNorm(double gradient_scale) override {
    return optimizer_->GradientNorm(gradients_, gradient_scale);
  }
  absl::Status Update(const UpdateArgs& args) override {
    return optimizer_->Step({.parameters = parameters(),
                             .gradients = gradients_,
                             .gradient_scale = args.gradient_scale,
                             .learning_rate = args.learning_rate});
  }

  absl::StatusOr<LossSum> Evaluate(const MicroBatch& batch, WhichModel which) override {
    const bool base = which == WhichModel::kBase;
    return decoder_->Evaluate(batch, base ? std::span<float>() : parameters(), {});
  }
  absl::StatusOr<std::shared_ptr<Decoder>> HostDecoder() override {
    return std::shared_ptr<Decoder>(decoder_.get(), [](Decoder*) {});
  }

  int64_t optimizer_step() const override { return optimizer_->step(); }
  void set_optimizer_step(int64_t step) override { optimizer_->set_step(step); }
  std::vector<optim::StateShare> shares() const override { return optimizer_->shares(); }
  int64_t BlockStateBytes(int64_t block) const override {
    return optimizer_->BlockStateBytes(block);
  }
  absl::Status ExportState(core::BlockRange blocks, std::span<std::byte> out) override {
    return optimizer_->ExportState(blocks, out);
  }
  absl::Status ImportState(core::BlockRange blocks, std::span<const std::byte> in) override {
    return optimizer_->ImportState(blocks, in);
  }

  std::vector<std::string> notices() const override { return {}; }
  int64_t bytes_sent() const override { return comm_->bytes_sent(); }
  absl::Status Close() override { return absl::OkStatus(); }

 private:
  uint64_t seed() const { return static_cast<uint64_t>(config_.compute.seed); }

  const Config& config_;
  comm::Communicator* const comm_;
  std::unique_ptr<Decoder> decoder_;
  comm::ShardMap shards_;
  core::AlignedBuffer arena_;
  std::unique_ptr<comm::GradientReducer> reducer_;
  std::unique_ptr<optim::ShardedOptimizer> optimizer_;
  std::span<float> gradients_;  // This rank's blocks of the sums.
};

}  // namespace

absl::StatusOr<std::unique_ptr<Replica>> MakeHostReplica(const ReplicaArgs& args) {
  auto replica = std::make_unique<HostReplica>(args);
  BITSHARD_RETURN_IF_ERROR(replica->Init(args));
  return replica;
}

}  // namespace bitshard::trainer
