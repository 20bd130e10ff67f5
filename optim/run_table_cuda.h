// The block table of a launch: the runs of a step in device memory.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto table, optim::RunTable::Create(200, stream));
//   BITSHARD_RETURN_IF_ERROR(table->Send(runs));   // table->device() is what kernels read
//
// Built only with BITSHARD_CUDA.
#ifndef BITSHARD_OPTIM_RUN_TABLE_CUDA_H_
#define BITSHARD_OPTIM_RUN_TABLE_CUDA_H_

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/cuda_status.h"
#include "core/status_macros.h"
#include "optim/step.h"

namespace bitshard::optim {

/// A line of the table. All fields have 8 bytes: no padding, so that tables compare as bytes.
struct TableRun {
  StepRun run;
  int64_t first_block = 0;  ///< Of all runs together.
  int64_t end_block = 0;
  int64_t aligned = 0;     ///< Whether quads can be loaded from all of its arrays.
  int64_t first_norm = 0;  ///< Where the norms of its first block go.
};
static_assert(sizeof(TableRun) == 20 * 8);

struct FreeOnDevice {
  void operator()(void* p) const { cudaFree(p); }
};
template <class T>
using DeviceArrayOf = std::unique_ptr<T[], FreeOnDevice>;

/// Device memory for `count` of T. Errors: kResourceExhausted.
template <class T>
absl::Status AllocateOnDevice(int64_t count, DeviceArrayOf<T>* out) {
  void* p = nullptr;
  BITSHARD_RETURN_IF_ERROR(
      BITSHARD_CUDA_STATUS(cudaMalloc(&p, static_cast<size_t>(count) * sizeof(T))));
  out->reset(static_cast<T*>(p));
  return absl::OkStatus();
}

/// Streams: everything is put on the stream given to Create, which outlives it and must have come
/// to rest before it is destroyed. Threads: one thread uses it.
class RunTable {
 public:
  /// Errors: kResourceExhausted when device or pinned memory is short.
  static absl::StatusOr<std::unique_ptr<RunTable>> Create(int64_t max_runs, cudaStream_t stream);

  /// Puts the table on its way, unless it is the one of the call before. Waits until the device has
  /// taken the table of the fourth upload before, no more.
  absl::Status Send(const std::vector<TableRun>& table);

  const TableRun* device() const { return runs_.get(); }
  int64_t size() const { return static_cast<int64_t>(sent_.size()); }

 private:
  struct FreePinned {
    void operator()(void* p) const { cudaFreeHost(p); }
  };
  struct DestroyEvent {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };
  // A table on its way to the device.
  struct Upload {
    std::unique_ptr<TableRun[], FreePinned> runs;
    std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent> taken;
  };

  explicit RunTable(cudaStream_t stream) : stream_(stream) {}

  const cudaStream_t stream_;
  DeviceArrayOf<TableRun> runs_;
  std::vector<TableRun> sent_;  // What runs_ holds, once the stream gets there.
  std::array<Upload, 4> uploads_;
  size_t next_upload_ = 0;
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_RUN_TABLE_CUDA_H_
