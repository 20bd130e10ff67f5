// DeviceShard: one rank's optimizer state on a device, resident or paged, and the step of the
// rank's blocks. What ShardedOptimizer does between its collectives, with device pointers and in
// stream order; the same bits.
//
//   BITSHARD_ASSIGN_OR_RETURN(
//       auto shard, optim::DeviceShard::Create(layout, shards, rank, options));
//   BITSHARD_RETURN_IF_ERROR(
//       shard->Step({.parameters = arena,
//                    .gradients = gradients,
//                    .moment = {.step = 1, .learning_rate = 1e-3}},
//                   [](int64_t) { return absl::OkStatus(); }));
//
// Built only with BITSHARD_CUDA.
#ifndef BITSHARD_OPTIM_DEVICE_SHARD_H_
#define BITSHARD_OPTIM_DEVICE_SHARD_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/shard_map.h"
#include "core/flat_layout.h"
#include "optim/grouped_runs.h"
#include "optim/state_pages.h"
#include "optim/step_cuda.h"
#include "optim/tensor_groups.h"
#include "paging/cuda_resource.h"
#include "paging/device_paged_buffer.h"

namespace bitshard::optim {

struct DeviceShardOptions {
  OptimizerSettings settings;
  paging::DevicePagingOptions paging;  ///< Used when settings.name.paged.
  cudaStream_t stream = nullptr;       ///< What the steps are put on; outlives the shard.
};

struct DeviceShardStep {
  float* parameters = nullptr;       ///< The whole arena, float32 [layout.padded_elems()].
  const float* gradients = nullptr;  ///< This rank's blocks, in the order of shards.RunsOf(rank).
  StepMoment moment;
  /// UpdateScale of each tensor of the layout; empty: 1. On the host.
  std::span<const double> update_scales;
};

/// Threads: one thread calls it. Streams: everything is put on the stream of the options; nothing
/// but ExportState and ImportState waits for the device.
class DeviceShard {
 public:
  /// The state is zero. Errors: those of TensorGroups, DevicePagedBuffer and CudaStepper.
  static absl::StatusOr<std::unique_ptr<DeviceShard>> Create(const core::FlatLayout& layout,
                                                             const comm::ShardMap& shards, int rank,
                                                             const DeviceShardOptions& options);
  /// Waits for its stream.
  ~DeviceShard();

  /// Puts the step on the stream, page by page; one launch for each group of tensors where the
  /// state is resident. `done(n)` is called when the step of this rank's first n blocks is on the
  /// stream. After an error the state is half stepped: every later call returns it. But not after
  /// those of TensorGroups::CheckMoment, as for a learning rate of NaN: they change nothing.
  absl::Status Step(const DeviceShardStep& args,
                    absl::FunctionRef<absl::Status(int64_t blocks)> done);

  /// Puts the norms of the updates of `args` on the stream, for the rank's block b into out[b] in
  /// device memory; changes nothing. Only where groups().max_unorm() > 0.
  absl::Status UpdateNorms(const DeviceShardStep& args, BlockNorms* out);

  /// Bytes of the state as ShardedOptimizer::ExportState defines them, on the host. `blocks` must
  /// lie in one of this rank's runs.
  absl::Status ExportState(core::BlockRange blocks, std::span<std::byte> out);
  absl::Status ImportState(core::BlockRange blocks, std::span<const std::byte> in);

  const StatePages& pages() const { return pages_; }
  const TensorGroups& groups() const { return groups_; }
  /// One line for the user, or "": see DevicePagedBuffer.
  std::string notice() const { return buffer_ == nullptr ? "" : buffer_->notice(); }
  paging::PagingCounters paging_counters() const {
    return buffer_ == nullptr ? paging::PagingCounters{} : buffer_->counters();
  }

 private:
  DeviceShard(const core::FlatLayout& layout, const comm::ShardMap& shards, int rank,
              const DeviceShardOptions& options, TensorGroups groups);
  absl::Status Init();
  bool resident() const { return buffer_->tier() == paging::DeviceTier::kDevice; }
  absl::Status Flush(const DeviceShardStep& args, BlockNorms* norms);
  absl::Status WalkResident(const DeviceShardStep& args, BlockNorms* norms,
                            absl::FunctionRef<absl::Status(int64_t blocks)> done);
  absl::Status WalkPaged(const DeviceShardStep& args, BlockNorms* norms,
                         absl::FunctionRef<absl::Status(int64_t blocks)> done);
  void AddPage(const DeviceShardStep& args, int64_t page, std::byte* at);

  template <class Copy>
  absl::Status CopyState(core::BlockRange blocks, size_t bytes, bool dirty, Copy&& copy);
  absl::Status CopyPage(void* to, const void* from);

  const DeviceShardOptions options_;
  const TensorGroups groups_;
  const StatePages pages_;
  std::unique_ptr<paging::DevicePagedBuffer> buffer_;
  std::vector<std::unique_ptr<CudaStepper>> steppers_;  // Of each group: its table stays.
  paging::PinnedResource pinned_;
  paging::Allocation<paging::PinnedResource> staged_;  // A page on the host, for checkpoints.
  GroupedRuns runs_;
  absl::Status error_;  // Of a step that was not finished: the state is lost.
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_DEVICE_SHARD_H_
