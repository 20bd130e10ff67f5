// Copies and fills. What a call may do with pageable memory, and what it waits for, is as CUDA's
// "API synchronization behavior" says, at its least.
#include <cuda_runtime_api.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/cudahost/runtime_state.h"

namespace cudahost::internal {
namespace {

struct Copy {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  size_t bytes = 0;
  Range to_range;
  Range from_range;
  bool to_device = false;
  bool from_device = false;
  std::shared_ptr<std::vector<std::byte>> snapshot;  // Of a pageable source.
};

bool IsHost(Place place) { return place != Place::kDevice; }
bool IsDevice(Place place) { return place == Place::kDevice || place == Place::kManaged; }

const char* NameOfKind(cudaMemcpyKind kind) {
  switch (kind) {
    case cudaMemcpyHostToHost:
      return "cudaMemcpyHostToHost";
    case cudaMemcpyHostToDevice:
      return "cudaMemcpyHostToDevice";
    case cudaMemcpyDeviceToHost:
      return "cudaMemcpyDeviceToHost";
    case cudaMemcpyDeviceToDevice:
      return "cudaMemcpyDeviceToDevice";
    default:
      return "cudaMemcpyDefault";
  }
}

// Which side each end is on, refusing what the kind does not allow.
cudaError_t FindSides(const char* call, cudaMemcpyKind kind, Copy* copy) {
  if (kind == cudaMemcpyDefault) {
    copy->to_device = IsDevice(copy->to_range.place);
    copy->from_device = IsDevice(copy->from_range.place);
    return cudaSuccess;
  }
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDeviceToDevice) {
    return cudaErrorInvalidMemcpyDirection;
  }
  copy->to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  copy->from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const auto fits = [](bool device, Place place) {
    return device ? IsDevice(place) : IsHost(place);
  };
  if (!fits(copy->to_device, copy->to_range.place)) {
    Explain(std::string(call) + ", " + NameOfKind(kind) + ": to " + Describe(copy->to));
    return cudaErrorInvalidValue;
  }
  if (!fits(copy->from_device, copy->from_range.place)) {
    Explain(std::string(call) + ", " + NameOfKind(kind) + ": from " + Describe(copy->from));
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

cudaError_t Resolve(State& state, const char* call, cudaMemcpyKind kind, bool stages, Copy* copy) {
  if (copy->to == nullptr || copy->from == nullptr) return cudaErrorInvalidValue;
  cudaError_t error = FindRange(state, call, copy->to, copy->bytes, &copy->to_range);
  if (error == cudaSuccess) {
    error = FindRange(state, call, copy->from, copy->bytes, &copy->from_range);
  }
  if (error == cudaSuccess) error = FindSides(call, kind, copy);
  if (error != cudaSuccess) return error;
  if (copy->to < copy->from + copy->bytes && copy->from < copy->to + copy->bytes) {
    Report(state, std::string(call) + ": source and target overlap at " + Describe(copy->to));
    return cudaErrorInvalidValue;
  }
  if (stages && copy->from_range.place == Place::kPageable) {
    copy->snapshot = std::make_shared<std::vector<std::byte>>(copy->from, copy->from + copy->bytes);
    copy->from = copy->snapshot->data();
  }
  return cudaSuccess;
}

// A copy between buffers of the device takes what was never written along, as padding is; the host
// must not see it.
cudaError_t RunCopy(State& state, const Copy& copy) {
  for (const auto& [range, p] : {std::pair<const Range&, const void*>(copy.to_range, copy.to),
                                 {copy.from_range, copy.from}}) {
    if (!StillLive(range, p)) {
      return DeviceFault(state, "a copy ran after its buffer was freed: " + Describe(p));
    }
  }
  const bool tracked = copy.from_range.place == Place::kDevice;
  if (tracked && !copy.to_device) {
    const std::optional<size_t> offset = HeapFirstUninitialised(copy.from, copy.bytes);
    if (offset) {
      return DeviceFault(state, "a copy to the host reads what was never written: " +
                                    Describe(copy.from + *offset));
    }
  }
  TouchManaged(state, copy.from, copy.bytes, copy.from_device, /*write=*/false);
  TouchManaged(state, copy.to, copy.bytes, copy.to_device, /*write=*/true);
  std::memcpy(copy.to, copy.from, copy.bytes);
  if (tracked) {
    HeapCopyShadow(copy.to, copy.from, copy.bytes);
  } else if (HeapHolds(copy.to)) {  // The host writes its own, pinned and managed memory unseen.
    HeapMarkInitialised(copy.to, copy.bytes);
  }
  return cudaSuccess;
}

Point AppendCopy(State& state, const std::shared_ptr<Stream>& stream, const Copy& copy) {
  const auto run = [&state, copy] { return RunCopy(state, copy); };
  return Append(state, stream, {.op = {.what = "cudaMemcpyAsync", .run = run}});
}

cudaError_t CopyAsync(Locked& locked, const std::shared_ptr<Stream>& stream, cudaMemcpyKind kind,
                      Copy copy) {
  if (copy.bytes == 0) return cudaSuccess;
  const bool stages = !locked.state.settings.pageable_memory_access;
  const cudaError_t error = Resolve(locked.state, "cudaMemcpyAsync", kind, stages, &copy);
  if (error != cudaSuccess) return error;
  const Point end = AppendCopy(locked.state, stream, copy);
  if (stages && copy.to_range.place == Place::kPageable) {
    return RunUntil(locked, [&end] { return end.reached(); });
  }
  RunAhead(locked);
  return cudaSuccess;
}

cudaError_t CopyNow(Locked& locked, cudaMemcpyKind kind, Copy copy) {
  if (copy.bytes == 0) return cudaSuccess;
  State& state = locked.state;
  const cudaError_t error = Resolve(state, "cudaMemcpy", kind, /*stages=*/true, &copy);
  if (error != cudaSuccess) return error;
  const Point end = AppendCopy(state, state.legacy, copy);
  const Point before{.stream = state.legacy, .sequence = end.sequence - 1};
  const bool arrives_later = copy.to_device && (copy.from_device || copy.snapshot != nullptr);
  if (!arrives_later) return RunUntil(locked, [&end] { return end.reached(); });
  if (copy.from_device) return cudaSuccess;
  return RunUntil(locked, [&before] { return before.reached(); });
}

struct Fill {
  std::byte* to = nullptr;
  int value = 0;
  size_t bytes = 0;
  Range range;
};

cudaError_t RunFill(State& state, const Fill& fill) {
  if (!StillLive(fill.range, fill.to)) {
    return DeviceFault(state, "a fill ran after its buffer was freed: " + Describe(fill.to));
  }
  TouchManaged(state, fill.to, fill.bytes, /*by_device=*/true, /*write=*/true);
  std::memset(fill.to, fill.value, fill.bytes);
  HeapMarkInitialised(fill.to, fill.bytes);
  return cudaSuccess;
}

cudaError_t FillAsync(Locked& locked, const char* call, const std::shared_ptr<Stream>& stream,
                      Fill fill) {
  if (fill.bytes == 0) return cudaSuccess;
  State& state = locked.state;
  const cudaError_t error = FindRange(state, call, fill.to, fill.bytes, &fill.range);
  if (error != cudaSuccess) return error;
  if (!IsDevice(fill.range.place)) {
    Explain(std::string(call) + ": to " + Describe(fill.to));
    return cudaErrorInvalidValue;
  }
  const auto run = [&state, fill] { return RunFill(state, fill); };
  Append(state, stream, {.op = {.what = "cudaMemsetAsync", .run = run}});
  RunAhead(locked);
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Call("cudaMemcpyAsync", [&](Locked& locked) -> cudaError_t {
    const auto in = FindStream(locked.state, stream);
    if (in == nullptr) return cudaErrorInvalidResourceHandle;
    return CopyAsync(locked, in, kind,
                     {.to = static_cast<std::byte*>(to),
                      .from = static_cast<const std::byte*>(from),
                      .bytes = bytes});
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return Call("cudaMemcpy", [&](Locked& locked) {
    return CopyNow(locked, kind,
                   {.to = static_cast<std::byte*>(to),
                    .from = static_cast<const std::byte*>(from),
                    .bytes = bytes});
  });
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  return Call("cudaMemsetAsync", [&](Locked& locked) -> cudaError_t {
    const auto in = FindStream(locked.state, stream);
    if (in == nullptr) return cudaErrorInvalidResourceHandle;
    return FillAsync(locked, "cudaMemsetAsync", in,
                     {.to = static_cast<std::byte*>(p), .value = value, .bytes = bytes});
  });
}

// Does not wait, and on the legacy stream only blocking streams wait for it.
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  return Call("cudaMemset", [&](Locked& locked) {
    return FillAsync(locked, "cudaMemset", locked.state.legacy,
                     {.to = static_cast<std::byte*>(p), .value = value, .bytes = bytes});
  });
}

}  // extern "C"

}  // namespace cudahost::internal
