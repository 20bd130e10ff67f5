// DeviceGradientReducer: GradientReducer (comm/gradient_reducer.h) for gradients in device memory.
// Sums are made and sent in stream order; the host waits for nothing.
//
//   reducer->BeginStep();
//   for (int64_t micro : my_micro_batches) {
//     reducer->BeginMicroBatch();
//     ... kernels on the stream write reducer->leaf(); once per tensor, when its last one is
//     enqueued: reducer->TensorReady(i) ...
//   }
//   BITSHARD_ASSIGN_OR_RETURN(const float* my_blocks, reducer->FinishStep());
//   ... kernels on the stream read my_blocks ...
//
// Built only with BITSHARD_CUDA.
#ifndef BITSHARD_COMM_DEVICE_GRADIENT_REDUCER_H_
#define BITSHARD_COMM_DEVICE_GRADIENT_REDUCER_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/device_communicator.h"
#include "comm/gradient_reducer.h"
#include "comm/shard_map.h"
#include "core/flat_layout.h"

namespace bitshard::comm {

struct DeviceGradientReducerOptions {
  int64_t micro_batches_per_step = 1;  ///< Over all ranks; at least world_size.
  /// kOrdered has the bits of GradientReducer. kFast has not: the transport adds, in its order, so
  /// that the bits depend on its version and on the network too.
  Reduction reduction = Reduction::kOrdered;
  cudaStream_t stream = nullptr;  ///< What gradients are written and sums read on; outlives it.
};

/// Threads: one thread calls it. All ranks make the same calls. Streams: what is enqueued on the
/// stream of the options before TensorReady is seen by the sums, and what is enqueued after
/// FinishStep sees them. Errors of every call: those of the communicator and of launches; after one
/// no more calls but the destructor. An error of a collective that is on its way shows in
/// comm->status(): ask it before the sums are used for good (DeviceOptimizer::GradientNorm does).
class DeviceGradientReducer {
 public:
  /// `comm` outlives it. Errors: kConfig when there are fewer micro-batches than ranks, or more
  /// partial sums than one launch can add; kMemory.
  static absl::StatusOr<std::unique_ptr<DeviceGradientReducer>> Create(
      const core::FlatLayout& layout, const ShardMap& shards, DeviceCommunicator* comm,
      const DeviceGradientReducerOptions& options);
  /// Its memory is the device's. In kFast each rank sends filled up runs, as NCCL's ring does.
  static ReducerCost Cost(const core::FlatLayout& layout, const ShardMap& shards, int rank,
                          const DeviceGradientReducerOptions& options);
  /// Waits for its streams, and as cudaFree does for the whole device.
  virtual ~DeviceGradientReducer() = default;

  virtual void BeginStep() = 0;
  virtual void BeginMicroBatch() = 0;
  /// On the device, float32 [layout.padded_elems()]; tensor i at layout.tensor(i).offset(). The
  /// padding holds zeros and is not to be written. The address may change at each BeginMicroBatch.
  virtual float* leaf() = 0;
  /// What writes tensor `index` of this micro-batch's gradient is enqueued. Once per tensor and
  /// micro-batch, in any order. In the last micro-batch, the buckets that it completes are sent.
  virtual absl::Status TensorReady(int64_t index) = 0;
  /// This rank's summed blocks on the device, one run after another in the order of
  /// shards.RunsOf(rank); valid until the next BeginStep.
  virtual absl::StatusOr<const float*> FinishStep() = 0;
  /// Seconds that the stream of the options waited for the network: the communication that backward
  /// did not hide. Of all steps whose sums the device has by now; nobody waits for the answer.
  virtual double exposed_seconds() = 0;
};

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_DEVICE_GRADIENT_REDUCER_H_
