// The Replica of a GPU. Built only with BITSHARD_CUDA.
#ifndef BITSHARD_TRAINER_DEVICE_REPLICA_H_
#define BITSHARD_TRAINER_DEVICE_REPLICA_H_

#include <memory>

#include "absl/status/statusor.h"
#include "optim/device_shard.h"
#include "trainer/config.h"
#include "trainer/replica.h"

namespace bitshard::trainer {

/// Everything of the optimizer but its stream. Errors: those of optim::ParseOptimizerName.
absl::StatusOr<optim::DeviceShardOptions> DeviceShardOptionsOf(const Config& config);

/// On CUDA's device number args.comm->local_rank(), which becomes the current one. A collective.
/// Errors as Devices::MakeReplica; agreed.
absl::StatusOr<std::unique_ptr<Replica>> MakeDeviceReplica(const ReplicaArgs& args);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_DEVICE_REPLICA_H_
