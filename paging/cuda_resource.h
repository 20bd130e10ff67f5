// Memory resources of CUDA: on the device, managed (moves between host and device) and pinned (host
// memory that the device copies from and to at full speed).
//
//   DeviceResource device;
//   BITSHARD_ASSIGN_OR_RETURN(
//       auto frames, Allocation<DeviceResource>::Create(&device, bytes, "resident pages"));
//
// Of the current device. Content: unspecified. Deallocate waits for nothing but what the runtime
// itself waits for: whoever frees memory has synchronised the streams that use it.
// Errors: kMemory with the bytes wanted, the bytes free, and what to do.
#ifndef BITSHARD_PAGING_CUDA_RESOURCE_H_
#define BITSHARD_PAGING_CUDA_RESOURCE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "paging/memory_resource.h"

namespace bitshard::paging {

/// The span holds addresses of the device, which the host must not touch.
class DeviceResource {
 public:
  absl::StatusOr<std::span<std::byte>> Allocate(int64_t bytes, const std::string& purpose);
  void Deallocate(std::span<std::byte> memory);
};
static_assert(MemoryResource<DeviceResource>);

/// kOk where managed memory can be prefetched to the current device and back while kernels run:
/// cudaDevAttrConcurrentManagedAccess on every device of the machine, which the batched calls of
/// CUDA 13 ask for. kFailedPrecondition else (Windows, WSL 2, old devices), naming the device.
absl::Status CheckManagedIsConcurrent();

/// Errors too: kFailedPrecondition where the driver refuses managed memory altogether
/// (cudaErrorNotSupported, as some virtual GPUs do).
class ManagedResource {
 public:
  absl::StatusOr<std::span<std::byte>> Allocate(int64_t bytes, const std::string& purpose);
  void Deallocate(std::span<std::byte> memory);
};
static_assert(MemoryResource<ManagedResource>);

/// Refuses to pin more than the system has available: pinned pages can't be swapped, and a system
/// without others stands still.
class PinnedResource {
 public:
  absl::StatusOr<std::span<std::byte>> Allocate(int64_t bytes, const std::string& purpose);
  void Deallocate(std::span<std::byte> memory);
};
static_assert(MemoryResource<PinnedResource>);

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_CUDA_RESOURCE_H_
