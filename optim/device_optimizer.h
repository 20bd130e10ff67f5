// DeviceOptimizer: ShardedOptimizer (optim/sharded_optimizer.h) for parameters and gradients in
// device memory, with the same bits: this rank's blocks are stepped on the device, and the updated
// parameters gathered over a DeviceCommunicator while later blocks are still being stepped.
//
//   BITSHARD_ASSIGN_OR_RETURN(
//       auto optimizer, optim::DeviceOptimizer::Create(layout, shards, comm, options));
//   BITSHARD_ASSIGN_OR_RETURN(const double norm, optimizer->GradientNorm(gradients, scale));
//   BITSHARD_RETURN_IF_ERROR(optimizer->Step({.parameters = arena, .gradients = gradients,
//                                             .learning_rate = 1e-3}));
//
// Built only with BITSHARD_CUDA.
#ifndef BITSHARD_OPTIM_DEVICE_OPTIMIZER_H_
#define BITSHARD_OPTIM_DEVICE_OPTIMIZER_H_

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/device_communicator.h"
#include "comm/shard_map.h"
#include "core/flat_layout.h"
#include "optim/device_shard.h"

namespace bitshard::optim {

/// Pointers to device memory.
struct DeviceStepArgs {
  float* parameters = nullptr;  ///< The whole arena, [layout.padded_elems()]; same on every rank.
  const float* gradients = nullptr;  ///< This rank's blocks, in the order of shards.RunsOf(rank).
  double gradient_scale = 1.0;
  double learning_rate = 0;
};

/// Threads: one thread calls it. Ranks make the same calls. Streams: the stream of the options
/// orders everything; what is put on it after Step sees all parameters. Errors: those of the
/// communicator and of DeviceShard; after one the parameters are half stepped.
class DeviceOptimizer {
 public:
  /// `comm` outlives it.
  static absl::StatusOr<std::unique_ptr<DeviceOptimizer>> Create(const core::FlatLayout& layout,
                                                                 const comm::ShardMap& shards,
                                                                 comm::DeviceCommunicator* comm,
                                                                 const DeviceShardOptions& options);
  virtual ~DeviceOptimizer() = default;

  /// As ShardedOptimizer::GradientNorm, the same bits. Waits for the stream.
  virtual absl::StatusOr<double> GradientNorm(const float* gradients, double gradient_scale) = 0;

  /// Enqueues one step: updates this rank's blocks, then gathers everybody's. Steps count from 1.
  /// With max_unorm it waits for the stream in the middle, for the norms of the updates.
  virtual absl::Status Step(const DeviceStepArgs& args) = 0;

  virtual int64_t step() const = 0;
  virtual void set_step(int64_t step) = 0;
  /// The state, for checkpoints, counters and notices.
  virtual DeviceShard& shard() = 0;
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_DEVICE_OPTIMIZER_H_
