// Managed memory's calls: prefetch, discard and advice, one range or a batch, as CUDA 13 declares
// them.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/cudahost/runtime_state.h"

namespace cudahost::internal {
namespace {

struct Span {
  void* data = nullptr;
  size_t bytes = 0;
  int device = cudaCpuDeviceId;  // Where to; cudaCpuDeviceId: the host.
};

cudaError_t FindManagedSpan(State& state, const char* call, const Span& span) {
  if (span.data == nullptr || span.bytes == 0) return cudaErrorInvalidValue;
  Range range;
  const cudaError_t error = FindRange(state, call, span.data, span.bytes, &range);
  if (error != cudaSuccess) return error;
  if (range.place == Place::kManaged) return cudaSuccess;
  Explain(std::string(call) + ": " + Describe(span.data) + " is not managed memory");
  return cudaErrorInvalidValue;
}

// A device number, or cudaCpuDeviceId for every kind of host location.
cudaError_t FindLocation(const State& state, const cudaMemLocation& location, int* device) {
  switch (location.type) {
    case cudaMemLocationTypeDevice:
      if (!IsDevice(state, location.id)) return cudaErrorInvalidDevice;
      if (!state.settings.concurrent_managed_access) return cudaErrorInvalidDevice;
      *device = location.id;
      return cudaSuccess;
    case cudaMemLocationTypeHostNuma:
      if (location.id < 0) return cudaErrorInvalidValue;
      *device = cudaCpuDeviceId;
      return cudaSuccess;
    case cudaMemLocationTypeHost:
    case cudaMemLocationTypeHostNumaCurrent:
      *device = cudaCpuDeviceId;
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

struct Batch {
  void** data = nullptr;
  size_t* bytes = nullptr;
  size_t count = 0;
  const cudaMemLocation* locations = nullptr;
  const size_t* location_starts = nullptr;
  size_t num_locations = 0;
  unsigned long long flags = 0;
  bool discard = false;
  bool prefetch = false;
};

cudaError_t FindLocations(const State& state, const Batch& batch, std::vector<Span>* spans) {
  if (batch.locations == nullptr || batch.location_starts == nullptr || batch.num_locations == 0 ||
      batch.num_locations > batch.count || batch.location_starts[0] != 0) {
    return cudaErrorInvalidValue;
  }
  for (size_t k = 0; k < batch.num_locations; ++k) {
    const bool last = k + 1 == batch.num_locations;
    const size_t end = last ? batch.count : batch.location_starts[k + 1];
    if (end <= batch.location_starts[k] || end > batch.count) return cudaErrorInvalidValue;
    int device = cudaCpuDeviceId;
    const cudaError_t error = FindLocation(state, batch.locations[k], &device);
    if (error != cudaSuccess) return error;
    for (size_t i = batch.location_starts[k]; i < end; ++i) (*spans)[i].device = device;
  }
  return cudaSuccess;
}

// The memory lives still: cudaFree waits for the device.
cudaError_t RunSpans(State& state, std::vector<Span> spans, bool discard, bool prefetch) {
  std::shuffle(spans.begin(), spans.end(), state.random);  // No order within a batch.
  for (const Span& span : spans) {
    if (discard) DiscardPages(state, span.data, span.bytes);
    if (prefetch) PrefetchPages(state, span.data, span.bytes, span.device);
  }
  return cudaSuccess;
}

void AppendSpans(Locked& locked, const std::shared_ptr<Stream>& stream, const char* call,
                 std::vector<Span> spans, const Batch& batch) {
  State& state = locked.state;
  for (const Span& span : spans) {
    if (!batch.prefetch) break;
    // What was asked for last, not where the pages are.
    ForEachPageOf(state, span.data, span.bytes,
                  [&span](Page& page) { page.last_prefetch = span.device; });
  }
  const auto run = [&state, spans = std::move(spans), discard = batch.discard,
                    prefetch = batch.prefetch] {
    return RunSpans(state, spans, discard, prefetch);
  };
  Append(state, stream, {.op = {.what = call, .run = run}});
  RunAhead(locked);
}

cudaError_t EnqueueBatch(Locked& locked, const char* call, const Batch& batch,
                         cudaStream_t stream) {
  State& state = locked.state;
  if (!state.settings.concurrent_managed_access) return cudaErrorNotSupported;
  const std::shared_ptr<Stream> in = FindStream(state, stream);
  if (in == nullptr) return cudaErrorInvalidResourceHandle;
  if (in == state.legacy) {
    Explain(std::string(call) + ": not on the legacy stream");
    return cudaErrorInvalidValue;
  }
  if (batch.flags != 0 || batch.count == 0 || batch.data == nullptr || batch.bytes == nullptr) {
    return cudaErrorInvalidValue;
  }
  std::vector<Span> spans(batch.count);
  for (size_t i = 0; i < batch.count; ++i) {
    spans[i] = {.data = batch.data[i], .bytes = batch.bytes[i]};
    const cudaError_t error = FindManagedSpan(state, call, spans[i]);
    if (error != cudaSuccess) return error;
  }
  if (batch.prefetch) {
    const cudaError_t error = FindLocations(state, batch, &spans);
    if (error != cudaSuccess) return error;
  }
  AppendSpans(locked, in, call, std::move(spans), batch);
  return cudaSuccess;
}

cudaError_t Advise(State& state, const Span& span, cudaMemoryAdvise advice,
                   const cudaMemLocation& location) {
  int device = cudaCpuDeviceId;
  if (advice == cudaMemAdviseSetPreferredLocation || advice == cudaMemAdviseSetAccessedBy ||
      advice == cudaMemAdviseUnsetAccessedBy) {
    const cudaError_t error = FindLocation(state, location, &device);
    if (error != cudaSuccess) return error;
  }
  const bool by_device = device != cudaCpuDeviceId;
  const auto apply = [&](Page& page) {
    switch (advice) {
      case cudaMemAdviseSetReadMostly:
        page.read_mostly = true;
        break;
      case cudaMemAdviseUnsetReadMostly:
        page.read_mostly = false;
        if (page.on_host && page.on_device) page.on_device = page.preferred >= 0;
        if (page.on_device) page.on_host = false;
        break;
      case cudaMemAdviseSetPreferredLocation:
        page.preferred = device;
        break;
      case cudaMemAdviseUnsetPreferredLocation:
        page.preferred = cudaInvalidDeviceId;
        break;
      case cudaMemAdviseSetAccessedBy:
        page.accessed_by_device = page.accessed_by_device || by_device;
        break;
      default:  // cudaMemAdviseUnsetAccessedBy
        page.accessed_by_device = page.accessed_by_device && !by_device;
        page.mapped = page.mapped && !by_device;
        break;
    }
  };
  ForEachPageOf(state, span.data, span.bytes, apply);
  return cudaSuccess;
}

// The value that all pages share, or what stands for none.
int SharedValue(State& state, const Span& span, int none, const std::function<int(Page&)>& value) {
  bool first = true;
  int shared = none;
  ForEachPageOf(state, span.data, span.bytes, [&](Page& page) {
    if (!first && value(page) != shared) shared = none;
    if (first) shared = value(page);
    first = false;
  });
  return shared;
}

cudaError_t RangeAttribute(State& state, const Span& span, cudaMemRangeAttribute attribute,
                           int* value) {
  const auto of = [&](int none, const std::function<int(Page&)>& each) {
    *value = SharedValue(state, span, none, each);
    return cudaSuccess;
  };
  switch (attribute) {
    case cudaMemRangeAttributeReadMostly:
      return of(0, [](Page& page) { return page.read_mostly ? 1 : 0; });
    case cudaMemRangeAttributePreferredLocation:
      return of(cudaInvalidDeviceId, [](Page& page) { return page.preferred; });
    case cudaMemRangeAttributeLastPrefetchLocation:
      return of(cudaInvalidDeviceId, [](Page& page) { return page.last_prefetch; });
    default:  // The lists and pairs of the other attributes are not here.
      return cudaErrorNotSupported;
  }
}

}  // namespace

extern "C" {

cudaError_t cudaMemPrefetchAsync(const void* p, size_t bytes, cudaMemLocation location,
                                 unsigned flags, cudaStream_t stream) {
  return Call("cudaMemPrefetchAsync", [&](Locked& locked) -> cudaError_t {
    State& state = locked.state;
    const auto in = FindStream(state, stream);
    if (in == nullptr) return cudaErrorInvalidResourceHandle;
    if (flags != 0) return cudaErrorInvalidValue;
    if (!state.settings.concurrent_managed_access) return cudaErrorInvalidDevice;
    Span span{.data = const_cast<void*>(p), .bytes = bytes};
    cudaError_t error = FindManagedSpan(state, "cudaMemPrefetchAsync", span);
    if (error == cudaSuccess) error = FindLocation(state, location, &span.device);
    if (error != cudaSuccess) return error;
    AppendSpans(locked, in, "cudaMemPrefetchAsync", {span}, {.prefetch = true});
    return cudaSuccess;
  });
}

cudaError_t cudaMemPrefetchBatchAsync(void** data, size_t* bytes, size_t count,
                                      cudaMemLocation* locations, size_t* location_starts,
                                      size_t num_locations, unsigned long long flags,
                                      cudaStream_t stream) {
  return Call("cudaMemPrefetchBatchAsync", [&](Locked& locked) {
    return EnqueueBatch(locked, "cudaMemPrefetchBatchAsync",
                        {.data = data,
                         .bytes = bytes,
                         .count = count,
                         .locations = locations,
                         .location_starts = location_starts,
                         .num_locations = num_locations,
                         .flags = flags,
                         .prefetch = true},
                        stream);
  });
}

cudaError_t cudaMemDiscardBatchAsync(void** data, size_t* bytes, size_t count,
                                     unsigned long long flags, cudaStream_t stream) {
  return Call("cudaMemDiscardBatchAsync", [&](Locked& locked) {
    return EnqueueBatch(
        locked, "cudaMemDiscardBatchAsync",
        {.data = data, .bytes = bytes, .count = count, .flags = flags, .discard = true}, stream);
  });
}

cudaError_t cudaMemDiscardAndPrefetchBatchAsync(void** data, size_t* bytes, size_t count,
                                                cudaMemLocation* locations, size_t* location_starts,
                                                size_t num_locations, unsigned long long flags,
                                                cudaStream_t stream) {
  return Call("cudaMemDiscardAndPrefetchBatchAsync", [&](Locked& locked) {
    return EnqueueBatch(locked, "cudaMemDiscardAndPrefetchBatchAsync",
                        {.data = data,
                         .bytes = bytes,
                         .count = count,
                         .locations = locations,
                         .location_starts = location_starts,
                         .num_locations = num_locations,
                         .flags = flags,
                         .discard = true,
                         .prefetch = true},
                        stream);
  });
}

cudaError_t cudaMemAdvise(const void* p, size_t bytes, cudaMemoryAdvise advice,
                          cudaMemLocation location) {
  return Call("cudaMemAdvise", [&](Locked& locked) -> cudaError_t {
    if (advice < cudaMemAdviseSetReadMostly || advice > cudaMemAdviseUnsetAccessedBy) {
      return cudaErrorInvalidValue;
    }
    Span span{.data = const_cast<void*>(p), .bytes = bytes};
    const cudaError_t error = FindManagedSpan(locked.state, "cudaMemAdvise", span);
    if (error != cudaSuccess) return error;
    return Advise(locked.state, span, advice, location);
  });
}

cudaError_t cudaMemRangeGetAttribute(void* value, size_t value_bytes,
                                     cudaMemRangeAttribute attribute, const void* p, size_t bytes) {
  return Call("cudaMemRangeGetAttribute", [&](Locked& locked) -> cudaError_t {
    if (value == nullptr || value_bytes != sizeof(int)) return cudaErrorInvalidValue;
    Span span{.data = const_cast<void*>(p), .bytes = bytes};
    const cudaError_t error = FindManagedSpan(locked.state, "cudaMemRangeGetAttribute", span);
    if (error != cudaSuccess) return error;
    return RangeAttribute(locked.state, span, attribute, static_cast<int*>(value));
  });
}

}  // extern "C"

}  // namespace cudahost::internal
