#include "paging/cuda_resource.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/cuda_status.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "paging/host_memory.h"

namespace bitshard::paging {
namespace {

std::span<std::byte> SpanOf(void* memory, int64_t bytes) {
  return {static_cast<std::byte*>(memory), static_cast<size_t>(bytes)};
}

std::string Mebibytes(int64_t bytes) {
  return absl::StrCat(bytes, " bytes (", bytes >> 20, " MiB)");
}

std::string DeviceMemoryLeft() {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
    (void)cudaGetLastError();
    return "an unknown number of bytes";
  }
  return absl::StrCat(free, " bytes free of ", total);
}

}  // namespace

absl::StatusOr<std::span<std::byte>> DeviceResource::Allocate(int64_t bytes,
                                                              const std::string& purpose) {
  BITSHARD_CHECK(bytes > 0) << purpose << ": " << bytes;
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return core::MemoryError(
        absl::StrCat(purpose, ": want ", Mebibytes(bytes), " of device memory, the device has ",
                     DeviceMemoryLeft(),
                     "; page the optimizer state, lower paging.budget, or train fewer "
                     "parameters (`bitshard plan` says what a run needs)"));
  }
  BITSHARD_RETURN_IF_ERROR(core::CudaStatus(error, "cudaMalloc", __FILE__, __LINE__));
  return SpanOf(memory, bytes);
}

// Here and below: freeing fails only where the context is gone or broken, and the memory with it.
void DeviceResource::Deallocate(std::span<std::byte> memory) { (void)cudaFree(memory.data()); }

absl::Status CheckManagedIsConcurrent() {
  int devices = 0;
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaGetDeviceCount(&devices)));
  for (int device = 0; device < devices; ++device) {
    int concurrent = 0;
    BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(
        cudaDeviceGetAttribute(&concurrent, cudaDevAttrConcurrentManagedAccess, device)));
    if (concurrent == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("managed memory of device ", device,
                       " is not concurrent (cudaDevAttrConcurrentManagedAccess is 0)"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::span<std::byte>> ManagedResource::Allocate(int64_t bytes,
                                                               const std::string& purpose) {
  BITSHARD_CHECK(bytes > 0) << purpose << ": " << bytes;
  void* memory = nullptr;
  const cudaError_t error =
      cudaMallocManaged(&memory, static_cast<size_t>(bytes), cudaMemAttachGlobal);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    const HostMemory host = AvailableHostMemory();
    return core::MemoryError(absl::StrCat(
        purpose, ": want ", Mebibytes(bytes), " of managed memory, the device has ",
        DeviceMemoryLeft(), " and the host ", host.available_bytes, " bytes (", host.limited_by,
        "); free some, or use more ranks: each holds its share of the state"));
  }
  BITSHARD_RETURN_IF_ERROR(core::CudaStatus(error, "cudaMallocManaged", __FILE__, __LINE__));
  return SpanOf(memory, bytes);
}

void ManagedResource::Deallocate(std::span<std::byte> memory) { (void)cudaFree(memory.data()); }

absl::StatusOr<std::span<std::byte>> PinnedResource::Allocate(int64_t bytes,
                                                              const std::string& purpose) {
  BITSHARD_CHECK(bytes > 0) << purpose << ": " << bytes;
  const HostMemory host = AvailableHostMemory();
  void* memory = nullptr;
  // Portable: pinned for every device, whichever is current. Not write-combined: that halves what
  // the device writes (47 instead of 97 GiB/s on a GH200) and makes the host's reads very slow.
  const cudaError_t error =
      bytes > host.available_bytes
          ? cudaErrorMemoryAllocation
          : cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocPortable);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return core::MemoryError(
        absl::StrCat(purpose, ": want ", Mebibytes(bytes),
                     " of pinned host memory; available: ", host.available_bytes, " bytes (",
                     host.limited_by, "), locked memory limit: ", MemlockLimit(),
                     " (ulimit -l); raise the limit, free memory, or use more ranks: each "
                     "holds its share of the state"));
  }
  BITSHARD_RETURN_IF_ERROR(core::CudaStatus(error, "cudaHostAlloc", __FILE__, __LINE__));
  return SpanOf(memory, bytes);
}

void PinnedResource::Deallocate(std::span<std::byte> memory) { (void)cudaFreeHost(memory.data()); }

}  // namespace bitshard::paging
