// Replica: one rank's part of what is trained, wherever it is held: the frozen base, the adapter,
// gradients and optimizer, and the passes over them. On the CPU (MakeHostReplica) or on a GPU
// (trainer/devices.h); the training loop does not know which.
//
//   replica->BeginStep();
//   for (const MicroBatch& batch : mine) {
//     BITSHARD_ASSIGN_OR_RETURN(const LossSum sum, replica->RunMicroBatch(batch, step)); ...
//   }
//   BITSHARD_RETURN_IF_ERROR(replica->FinishGradients());
//   BITSHARD_ASSIGN_OR_RETURN(const double norm, replica->GradientNorm(1.0 / tokens));
//   BITSHARD_RETURN_IF_ERROR(replica->Update({.gradient_scale = ..., .learning_rate = ...}));
#ifndef BITSHARD_TRAINER_REPLICA_H_
#define BITSHARD_TRAINER_REPLICA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "comm/shard_map.h"
#include "core/flat_layout.h"
#include "optim/tensor_groups.h"
#include "trainer/config.h"
#include "trainer/data/micro_batch.h"
#include "trainer/io/weight_source.h"
#include "trainer/model/decoder.h"

namespace bitshard::trainer {

/// All outlive the replica.
struct ReplicaArgs {
  const Config* config = nullptr;
  const io::WeightSource* source = nullptr;
  comm::Communicator* comm = nullptr;
  DecoderOptions decoder;
};

struct UpdateArgs {
  double gradient_scale = 1;  ///< Multiplies every gradient first (1 / tokens, clipping).
  double learning_rate = 0;
};

enum class WhichModel { kBase, kAdapted };

/// Threads: one thread calls it. Ranks make the same calls, but for RunMicroBatch and Evaluate,
/// whose numbers may differ by rank. Errors of every call: kPeer; kMemory and kInternal of a GPU;
/// after one, no more calls.
class Replica {
 public:
  virtual ~Replica() = default;

  virtual const core::FlatLayout& layout() const = 0;
  virtual const comm::ShardMap& shards() const = 0;

  /// The adapter on the host, [layout().padded_elems()]. It is what is trained, or a copy of it:
  /// ReadParameters brings it up to date, WriteParameters makes it the one that is trained.
  virtual std::span<float> parameters() = 0;
  virtual absl::Status ReadParameters() = 0;
  virtual absl::Status WriteParameters() = 0;

  virtual void BeginStep() = 0;
  /// Forward and backward. `step` is part of dropout's key. Errors too: those of the batch.
  virtual absl::StatusOr<LossSum> RunMicroBatch(const MicroBatch& batch, int64_t step) = 0;
  /// The sums over all micro-batches of all ranks are made.
  virtual absl::Status FinishGradients() = 0;
  /// Seconds that FinishGradients waited for the network in the last step.
  virtual double exposed_seconds() const = 0;
  /// Of gradient_scale * gradients over all ranks; may be inf or NaN.
  virtual absl::StatusOr<double> GradientNorm(double gradient_scale) = 0;
  virtual absl::Status Update(const UpdateArgs& args) = 0;

  /// Loss without dropout.
  virtual absl::StatusOr<LossSum> Evaluate(const MicroBatch& batch, WhichModel which) = 0;
  /// A decoder on the CPU for answers: this replica's own, or, for a GPU's, one that is loaded anew
  /// and goes with the pointer. Errors: those of Decoder::Create.
  virtual absl::StatusOr<std::shared_ptr<Decoder>> HostDecoder() = 0;

  /// As those of optim::ShardedOptimizer.
  virtual int64_t optimizer_step() const = 0;
  virtual void set_optimizer_step(int64_t step) = 0;
  virtual std::vector<optim::StateShare> shares() const = 0;
  virtual int64_t BlockStateBytes(int64_t block) const = 0;
  virtual absl::Status ExportState(core::BlockRange blocks, std::span<std::byte> out) = 0;
  virtual absl::Status ImportState(core::BlockRange blocks, std::span<const std::byte> in) = 0;

  /// What the user should know, a line each: why something is not as the configuration asks, and
  /// what in the environment decides over it.
  virtual std::vector<std::string> notices() const = 0;
  /// By this rank to others, over whatever transport, since it began.
  virtual int64_t bytes_sent() const = 0;
  /// After the last call but those that read. A collective.
  virtual absl::Status Close() = 0;
};

/// Errors: those of Decoder::Create, GradientReducer::Create and ShardedOptimizer::Create; not
/// agreed.
absl::StatusOr<std::unique_ptr<Replica>> MakeHostReplica(const ReplicaArgs& args);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_REPLICA_H_
