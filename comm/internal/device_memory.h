// Device memory of the communication code that ends with its scope.
#ifndef BITSHARD_COMM_INTERNAL_DEVICE_MEMORY_H_
#define BITSHARD_COMM_INTERNAL_DEVICE_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace bitshard::comm::internal {

// Freeing fails only where the context is gone or broken, and what was allocated with it.
struct FreeDevice {
  void operator()(void* p) const { (void)cudaFree(p); }
};

/// Freed by cudaFree, which waits for the whole device.
using DeviceFloats = std::unique_ptr<float[], FreeDevice>;

/// Zeros, once `stream` has got there; nullptr for none. Errors: kMemory naming `purpose`.
absl::StatusOr<DeviceFloats> AllocateFloats(int64_t elems, const std::string& purpose,
                                            cudaStream_t stream);

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_DEVICE_MEMORY_H_
