// Device and pinned memory: capacity, allocation, and what a pointer points at.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

#include "tests/cudahost/runtime_state.h"

namespace cudahost::internal {
namespace {

// What an allocation takes from the device at least, as CUDA's allocator rounds.
constexpr size_t kGranuleBytes = 512;

struct Request {
  const char* call;
  Space space = Space::kDevice;
  size_t bytes = 0;
  bool stream_ordered = false;
};

std::string NameOf(const Request& request, const State& state) {
  const auto calls = state.calls.find(request.call);
  return std::string(request.call) + " #" +
         std::to_string(calls == state.calls.end() ? 0 : calls->second);
}

bool Charge(State& state, const Request& request, size_t* charged_bytes) {
  if (request.bytes > SIZE_MAX - kGranuleBytes) return false;
  const size_t bytes = (request.bytes + kGranuleBytes - 1) / kGranuleBytes * kGranuleBytes;
  if (request.space == Space::kPinned) {
    if (bytes > state.settings.pinned_bytes -
                    std::min(state.settings.pinned_bytes, state.pinned_bytes_used)) {
      return false;
    }
    state.pinned_bytes_used += bytes;
  } else if (request.space == Space::kDevice) {
    const int device = CurrentDevice();
    if (!MakeRoom(state, device, bytes)) return false;
    state.device_bytes_used[device] += bytes;
  }
  *charged_bytes = bytes;
  return true;
}

void Uncharge(State& state, const Allocation& allocation) {
  if (allocation.buffer.space == Space::kPinned) {
    state.pinned_bytes_used -= allocation.charged_bytes;
  } else if (allocation.buffer.space == Space::kDevice) {
    state.device_bytes_used[allocation.device] -= allocation.charged_bytes;
  }
}

cudaError_t Allocate(State& state, void** pointer, const Request& request) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  if (request.bytes == 0) {
    *pointer = nullptr;
    return cudaSuccess;
  }
  Allocation allocation{
      .made_by = request.call, .device = CurrentDevice(), .stream_ordered = request.stream_ordered};
  if (!Charge(state, request, &allocation.charged_bytes)) return cudaErrorMemoryAllocation;
  allocation.buffer.space = request.space;
  std::byte* data = HeapAllocate(request.space, request.bytes, NameOf(request, state));
  if (data == nullptr) {
    Uncharge(state, allocation);
    return cudaErrorMemoryAllocation;
  }
  allocation.buffer = *HeapFind(data);
  if (request.space == Space::kManaged) {
    const cudaError_t error = AddManaged(state, allocation);
    if (error != cudaSuccess) {
      HeapFree(data);
      return error;
    }
  }
  state.allocations[data] = std::move(allocation);
  *pointer = data;
  return cudaSuccess;
}

Allocation* FindAllocation(State& state, const void* p) {
  const auto found = state.allocations.find(static_cast<const std::byte*>(p));
  return found == state.allocations.end() ? nullptr : &found->second;
}

cudaError_t RefuseFree(const char* call, const void* p) {
  Explain(std::string(call) + ": " + Describe(p) + " is not what it may free");
  return cudaErrorInvalidValue;
}

cudaError_t FreeDevice(Locked& locked, void* p) {
  if (p == nullptr) return cudaSuccess;
  Allocation* allocation = FindAllocation(locked.state, p);
  if (allocation == nullptr || allocation->buffer.space == Space::kPinned ||
      allocation->free_enqueued) {
    return RefuseFree("cudaFree", p);
  }
  if (!allocation->stream_ordered) {
    const cudaError_t error = WaitForAll(locked);
    if (error != cudaSuccess) return error;
    // Another thread may have freed it meanwhile.
    if (FindAllocation(locked.state, p) == nullptr) return RefuseFree("cudaFree", p);
  }
  return ReleaseAllocation(locked.state, p);
}

bool IsRegistered(const State& state, const void* p, size_t bytes) {
  const auto* first = static_cast<const std::byte*>(p);
  auto after = state.registered.upper_bound(first);
  if (after == state.registered.begin()) return false;
  const auto& [begin, range_bytes] = *--after;
  return first + bytes <= begin + range_bytes;
}

}  // namespace

std::string Describe(const void* p) {
  char address[32];
  std::snprintf(address, sizeof address, "%p", p);
  const Buffer* buffer = HeapFind(p);
  if (buffer == nullptr) {
    return std::string(address) + (HeapHolds(p) ? " (between buffers)" : " (host memory)");
  }
  const auto offset = static_cast<const std::byte*>(p) - buffer->data;
  return std::string(address) + " (byte " + std::to_string(offset) + " of " + buffer->name + ", " +
         std::to_string(buffer->bytes) + " bytes" + (buffer->live ? ")" : ", freed)");
}

cudaError_t FindRange(State& state, const char* call, const void* p, size_t bytes, Range* range) {
  if (!HeapHolds(p)) {
    *range = {.place = IsRegistered(state, p, bytes) ? Place::kPinned : Place::kPageable};
    return cudaSuccess;
  }
  const Buffer* buffer = HeapFind(p);
  const auto* first = static_cast<const std::byte*>(p);
  if (buffer == nullptr || !buffer->live || buffer->space == Space::kShared ||
      bytes > buffer->bytes - static_cast<size_t>(first - buffer->data)) {
    Explain(std::string(call) + ": " + std::to_string(bytes) + " bytes at " + Describe(p) +
            " are not within one live buffer");
    return cudaErrorInvalidValue;
  }
  range->serial = buffer->serial;
  range->place = buffer->space == Space::kDevice    ? Place::kDevice
                 : buffer->space == Space::kManaged ? Place::kManaged
                                                    : Place::kPinned;
  return cudaSuccess;
}

bool StillLive(const Range& range, const void* p) {
  if (range.serial == 0) return true;
  const Buffer* buffer = HeapFind(p);
  return buffer != nullptr && buffer->live && buffer->serial == range.serial;
}

cudaError_t ReleaseAllocation(State& state, const void* p) {
  const Allocation* allocation = FindAllocation(state, p);
  if (allocation->buffer.space == Space::kManaged) RemoveManaged(state, allocation->buffer.data);
  Uncharge(state, *allocation);
  HeapFree(allocation->buffer.data);
  state.allocations.erase(allocation->buffer.data);
  return cudaSuccess;
}

void ResetMemory(State& state) {
  while (!state.allocations.empty()) {
    ReleaseAllocation(state, state.allocations.begin()->first);
  }
  state.registered.clear();
  state.pinned_bytes_used = 0;
  state.dynamic_shared_bytes.clear();
  state.managed_counters = {};
}

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return Call("cudaMalloc", [&](Locked& locked) {
    return Allocate(locked.state, pointer, {.call = "cudaMalloc", .bytes = bytes});
  });
}

cudaError_t cudaFree(void* p) {
  return Call("cudaFree", [&](Locked& locked) { return FreeDevice(locked, p); });
}

// The memory is there at once; that other streams must wait for this one before they use it is not
// checked.
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  return Call("cudaMallocAsync", [&](Locked& locked) -> cudaError_t {
    if (FindStream(locked.state, stream) == nullptr) {
      return cudaErrorInvalidResourceHandle;
    }
    return Allocate(locked.state, pointer,
                    {.call = "cudaMallocAsync", .bytes = bytes, .stream_ordered = true});
  });
}

cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  return Call("cudaFreeAsync", [&](Locked& locked) -> cudaError_t {
    State& state = locked.state;
    const auto found = FindStream(state, stream);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (p == nullptr) return cudaSuccess;
    Allocation* allocation = FindAllocation(state, p);
    if (allocation == nullptr || allocation->buffer.space != Space::kDevice ||
        allocation->free_enqueued) {
      return RefuseFree("cudaFreeAsync", p);
    }
    allocation->free_enqueued = true;
    const auto run = [&state, p] { return ReleaseAllocation(state, p); };
    Append(state, found, {.op = {.what = "cudaFreeAsync", .run = run}});
    RunAhead(locked);
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return Call("cudaMemGetInfo", [&](Locked& locked) -> cudaError_t {
    if (free_bytes == nullptr || total_bytes == nullptr) return cudaErrorInvalidValue;
    State& state = locked.state;
    const int device = CurrentDevice();
    const size_t used = state.device_bytes_used[device] + ManagedBytesOn(state, device);
    *total_bytes = state.settings.device_bytes;
    *free_bytes = *total_bytes - std::min(*total_bytes, used);
    return cudaSuccess;
  });
}

cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned flags) {
  return Call("cudaMallocManaged", [&](Locked& locked) -> cudaError_t {
    if (!locked.state.settings.managed_memory) return cudaErrorNotSupported;
    const bool known = flags == cudaMemAttachGlobal || flags == cudaMemAttachHost;
    if (!known || bytes == 0) return cudaErrorInvalidValue;
    return Allocate(locked.state, pointer,
                    {.call = "cudaMallocManaged", .space = Space::kManaged, .bytes = bytes});
  });
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return Call("cudaMallocHost", [&](Locked& locked) {
    return Allocate(locked.state, pointer,
                    {.call = "cudaMallocHost", .space = Space::kPinned, .bytes = bytes});
  });
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  return Call("cudaHostAlloc", [&](Locked& locked) -> cudaError_t {
    constexpr unsigned kKnown =
        cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
    if ((flags & ~kKnown) != 0) return cudaErrorInvalidValue;
    return Allocate(locked.state, pointer,
                    {.call = "cudaHostAlloc", .space = Space::kPinned, .bytes = bytes});
  });
}

// Waits for nothing: an operation that still uses the memory is reported when it runs.
cudaError_t cudaFreeHost(void* p) {
  return Call("cudaFreeHost", [&](Locked& locked) -> cudaError_t {
    if (p == nullptr) return cudaSuccess;
    const Allocation* allocation = FindAllocation(locked.state, p);
    if (allocation == nullptr || allocation->buffer.space != Space::kPinned) {
      return RefuseFree("cudaFreeHost", p);
    }
    return ReleaseAllocation(locked.state, p);
  });
}

}  // extern "C"

}  // namespace cudahost::internal
