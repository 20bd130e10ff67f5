// DevicePagedBuffer: an array of bytes, in pages, of which only some need be in device memory at a
// time. What PagedBuffer (paging/paged_buffer.h) is for the host, in stream order: no call waits
// for the device.
//
//   BITSHARD_RETURN_IF_ERROR(buffer->BeginWalk());  // pages 0, 1, 2, ... once each
//   for (int64_t page = 0; page < buffer->num_pages(); ++page) {
//     BITSHARD_ASSIGN_OR_RETURN(std::byte* bytes, buffer->Acquire(page, stream));
//     ...  // kernels and copies on `stream` that read and write in place
//     BITSHARD_RETURN_IF_ERROR(buffer->Release(page, stream, {.dirty = true}));
//   }
//   BITSHARD_RETURN_IF_ERROR(buffer->EndWalk());
#ifndef BITSHARD_PAGING_DEVICE_PAGED_BUFFER_H_
#define BITSHARD_PAGING_DEVICE_PAGED_BUFFER_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "paging/paged_buffer.h"

namespace bitshard::paging {

enum class DeviceTier {
  kDevice,   ///< Everything in device memory.
  kManaged,  ///< Managed memory, prefetched and evicted by plan.
  kPinned,   ///< Pinned host memory, copied through device buffers.
};

struct DevicePagingOptions {
  DeviceTier tier = DeviceTier::kDevice;
  /// kManaged, kPinned: device memory for resident pages; at least two pages, of page_stride_bytes.
  int64_t budget_bytes = 0;
};

/// Threads: one thread calls it, with the device current that it was created on.
/// Streams: a page's bytes may be used on the stream given to Acquire, by what is put on it between
/// Acquire and Release. The stream given to Release is the same one, or has been made to wait for
/// it. The next user of a page, on whatever stream, and its eviction wait for what stood on the
/// stream at Release. Streams are not the legacy NULL stream.
/// Counters: bytes_read and bytes_written are to and from the device; a hit is a page that was
/// there or on its way; stall_seconds is how long streams waited in Acquire (a few microseconds
/// each where nothing was missing), as far as they have passed it.
/// Errors: kMemory; kInternal for an error of the runtime, which every later call returns.
class DevicePagedBuffer {
 public:
  /// Pages start as zeros. `num_pages` >= 0; `page_bytes` a multiple of 64.
  /// kManaged becomes kPinned where managed memory is refused or can't be prefetched; notice() then
  /// says so. Errors: kConfig when the budget holds less than two pages; kMemory.
  static absl::StatusOr<std::unique_ptr<DevicePagedBuffer>> Create(
      int64_t num_pages, int64_t page_bytes, const DevicePagingOptions& options);
  /// What a page takes of the budget.
  static int64_t PageStrideBytes(DeviceTier tier, int64_t page_bytes);
  /// Waits for the streams that pages were released on.
  virtual ~DevicePagedBuffer() = default;

  virtual DeviceTier tier() const = 0;
  /// One line for the user, or "": why the tier is not the one that was asked for.
  const std::string& notice() const { return notice_; }
  virtual int64_t num_pages() const = 0;
  virtual int64_t page_bytes() const = 0;
  /// Most device memory that resident pages take at a time, and host memory taken for the others.
  virtual int64_t device_limit_bytes() const = 0;
  virtual int64_t host_bytes() const = 0;

  virtual absl::Status BeginWalk() = 0;
  virtual absl::Status EndWalk() = 0;
  /// Address on the device, 64-byte aligned, until Release. Works outside of walks too, without
  /// reading ahead. At most as many pages are acquired at a time as the budget holds.
  virtual absl::StatusOr<std::byte*> Acquire(int64_t page, cudaStream_t stream) = 0;
  virtual absl::Status Release(int64_t page, cudaStream_t stream, ReleaseOptions options) = 0;
  virtual PagingCounters counters() const = 0;

 private:
  std::string notice_;
};

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_DEVICE_PAGED_BUFFER_H_
