// Device memory, streams and events of the communication code that end with their scope.
#ifndef BITSHARD_COMM_INTERNAL_DEVICE_MEMORY_H_
#define BITSHARD_COMM_INTERNAL_DEVICE_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>

#include "absl/status/statusor.h"

namespace bitshard::comm::internal {

// Freeing fails only where the context is gone or broken, and what was allocated with it.
struct FreeDevice {
  void operator()(void* p) const { (void)cudaFree(p); }
};
struct DestroyStream {
  void operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};

/// Freed by cudaFree, which waits for the whole device.
using DeviceFloats = std::unique_ptr<float[], FreeDevice>;
/// Destroyed without waiting for what it holds.
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, DestroyStream>;
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent>;

/// Zeros, once `stream` has got there; nullptr for none. Errors: kMemory naming `purpose`.
absl::StatusOr<DeviceFloats> AllocateFloats(int64_t elems, const std::string& purpose,
                                            cudaStream_t stream);
/// A stream that does not wait for the legacy NULL stream.
absl::StatusOr<Stream> MakeStream();
absl::StatusOr<Event> MakeEvent();

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_DEVICE_MEMORY_H_
