// Devices: the GPUs that this program can train on. A build without CUDA links
// trainer/devices_none.cc, one with it trainer/devices_cuda.cc; nothing else differs.
//
//   const std::unique_ptr<Devices> devices = MakeDevices();
//   BITSHARD_RETURN_IF_ERROR(devices->Usable(comm->local_rank()));
//   BITSHARD_ASSIGN_OR_RETURN(auto replica, devices->MakeReplica(args));
#ifndef BITSHARD_TRAINER_DEVICES_H_
#define BITSHARD_TRAINER_DEVICES_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/shard_map.h"
#include "core/flat_layout.h"
#include "trainer/config.h"
#include "trainer/model/decoder.h"
#include "trainer/model/model_config.h"
#include "trainer/plan.h"
#include "trainer/replica.h"

namespace bitshard::trainer {

struct DevicePlanInput {
  const Config* config = nullptr;
  const ModelConfig* model = nullptr;
  DecoderOptions decoder;
  const core::FlatLayout* layout = nullptr;
  const comm::ShardMap* shards = nullptr;
  int rank = 0;
};

struct DevicePlan {
  std::vector<PlanLine>
      memory;  ///< What MakeReplica takes; CUDA's context and NCCL's buffers come on top.
  int64_t gradient_bytes_sent = 0;  ///< To other ranks, a step.
};

/// A rank's GPU is the one with the number that the rank has on its host.
class Devices {
 public:
  virtual ~Devices() = default;

  /// OK where there is a GPU for a host's rank number `local_rank`. Errors: kConfig with what is
  /// missing and what to do.
  virtual absl::Status Usable(int local_rank) const = 0;
  /// Whether that GPU multiplies bfloat16. Needs Usable.
  virtual bool MultipliesBFloat16(int local_rank) const = 0;
  /// Its name and memory, for people. Needs Usable.
  virtual std::string Describe(int local_rank) const = 0;

  /// A collective. Errors: those of DeviceDecoder, NcclCommunicator, DeviceGradientReducer and
  /// DeviceOptimizer; agreed.
  virtual absl::StatusOr<std::unique_ptr<Replica>> MakeReplica(const ReplicaArgs& args) const = 0;
  /// Errors: those of optim::ParseOptimizerName and Decoder::AdapterLayout.
  virtual absl::StatusOr<DevicePlan> MakePlan(const DevicePlanInput& input) const = 0;
};

std::unique_ptr<Devices> MakeDevices();

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_DEVICES_H_
