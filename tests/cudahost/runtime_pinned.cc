// Host memory that the program pins itself, and what a pointer points at.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "tests/cudahost/runtime_state.h"

namespace cudahost::internal {
namespace {

bool OverlapsRegistered(const State& state, const std::byte* first, size_t bytes) {
  for (const auto& [begin, range_bytes] : state.registered) {
    if (first < begin + range_bytes && begin < first + bytes) return true;
  }
  return false;
}

}  // namespace

extern "C" {

cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned flags) {
  return Call("cudaHostRegister", [&](Locked& locked) -> cudaError_t {
    State& state = locked.state;
    constexpr unsigned kKnown = cudaHostRegisterPortable | cudaHostRegisterMapped;
    if (p == nullptr || bytes == 0 || (flags & ~kKnown) != 0) return cudaErrorInvalidValue;
    if (HeapHolds(p)) return cudaErrorHostMemoryAlreadyRegistered;
    const auto* first = static_cast<const std::byte*>(p);
    if (OverlapsRegistered(state, first, bytes)) return cudaErrorHostMemoryAlreadyRegistered;
    const size_t limit = state.settings.pinned_bytes;
    if (bytes > limit - std::min(limit, state.pinned_bytes_used)) return cudaErrorMemoryAllocation;
    state.pinned_bytes_used += bytes;
    state.registered[first] = bytes;
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* p) {
  return Call("cudaHostUnregister", [&](Locked& locked) -> cudaError_t {
    State& state = locked.state;
    const auto found = state.registered.find(static_cast<const std::byte*>(p));
    if (found == state.registered.end()) return cudaErrorHostMemoryNotRegistered;
    state.pinned_bytes_used -= found->second;
    state.registered.erase(found);
    return cudaSuccess;
  });
}

// Host and device know pinned memory by one address.
cudaError_t cudaHostGetDevicePointer(void** device_pointer, void* p, unsigned flags) {
  return Call("cudaHostGetDevicePointer", [&](Locked& locked) -> cudaError_t {
    if (device_pointer == nullptr || flags != 0) return cudaErrorInvalidValue;
    Range range;
    const cudaError_t error = FindRange(locked.state, "cudaHostGetDevicePointer", p, 1, &range);
    if (error != cudaSuccess) return error;
    if (range.place != Place::kPinned) return cudaErrorInvalidValue;
    *device_pointer = p;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  return Call("cudaPointerGetAttributes", [&](Locked& locked) -> cudaError_t {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    *attributes = {};
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->device = cudaInvalidDeviceId;
    attributes->hostPointer = const_cast<void*>(p);
    const Buffer* buffer = HeapFind(p);
    if (buffer != nullptr && !buffer->live) return cudaSuccess;
    Range range;
    const cudaError_t error = FindRange(locked.state, "cudaPointerGetAttributes", p, 1, &range);
    if (error != cudaSuccess || range.place == Place::kPageable) return error;
    attributes->device = CurrentDevice();
    attributes->devicePointer = const_cast<void*>(p);
    attributes->type = cudaMemoryTypeHost;
    if (buffer == nullptr) return cudaSuccess;
    const auto found = locked.state.allocations.find(buffer->data);
    if (found != locked.state.allocations.end()) attributes->device = found->second.device;
    if (range.place == Place::kManaged) attributes->type = cudaMemoryTypeManaged;
    if (range.place == Place::kDevice) {
      attributes->type = cudaMemoryTypeDevice;
      attributes->hostPointer = nullptr;
    }
    return cudaSuccess;
  });
}

}  // extern "C"

}  // namespace cudahost::internal
