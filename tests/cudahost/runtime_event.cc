// Events: points in streams.
#include <cuda_runtime_api.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "tests/cudahost/runtime_state.h"

namespace cudahost::internal {
namespace {

double NowMs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

Event* FindEvent(State& state, cudaEvent_t event) {
  const auto found = state.events.find(event);
  return found == state.events.end() ? nullptr : &found->second;
}

cudaError_t MakeEvent(Locked& locked, cudaEvent_t* event, unsigned flags) {
  // cudaEventInterprocess is not here: a call that needs it must not seem to work.
  constexpr unsigned kKnown = cudaEventBlockingSync | cudaEventDisableTiming;
  if (event == nullptr || (flags & ~kKnown) != 0) return cudaErrorInvalidValue;
  State& state = locked.state;
  *event = reinterpret_cast<cudaEvent_t>(uintptr_t{0xE7E70000} + 64 * ++state.made);
  state.events[*event] = {.name = "event #" + std::to_string(state.made), .flags = flags};
  return cudaSuccess;
}

cudaError_t RecordEvent(Locked& locked, Event& event, const std::shared_ptr<Stream>& stream) {
  auto reached_ms = std::make_shared<double>(0);
  event.reached_ms = reached_ms;
  event.recorded =
      Append(locked.state, stream, {.op = {.what = "cudaEventRecord", .run = [reached_ms] {
                                             *reached_ms = NowMs();
                                             return cudaSuccess;
                                           }}});
  RunAhead(locked);
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return Call("cudaEventCreate",
              [&](Locked& locked) { return MakeEvent(locked, event, cudaEventDefault); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return Call("cudaEventCreateWithFlags",
              [&](Locked& locked) { return MakeEvent(locked, event, flags); });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return Call("cudaEventDestroy", [&](Locked& locked) -> cudaError_t {
    const bool erased = locked.state.events.erase(event) == 1;
    return erased ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return Call("cudaEventRecord", [&](Locked& locked) -> cudaError_t {
    Event* found = FindEvent(locked.state, event);
    const std::shared_ptr<Stream> in = FindStream(locked.state, stream);
    if (found == nullptr || in == nullptr) return cudaErrorInvalidResourceHandle;
    return RecordEvent(locked, *found, in);
  });
}

// An event that was never recorded is nothing to wait for.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return Call("cudaStreamWaitEvent", [&](Locked& locked) -> cudaError_t {
    const Event* found = FindEvent(locked.state, event);
    const std::shared_ptr<Stream> in = FindStream(locked.state, stream);
    if (found == nullptr || in == nullptr) return cudaErrorInvalidResourceHandle;
    if (flags != cudaEventWaitDefault) return cudaErrorInvalidValue;
    if (!found->recorded) return cudaSuccess;
    Append(locked.state, in, {.op = {.what = "cudaStreamWaitEvent"}, .after = {*found->recorded}});
    RunAhead(locked);
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return Call("cudaEventQuery", [&](Locked& locked) -> cudaError_t {
    const Event* found = FindEvent(locked.state, event);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (!found->recorded || found->recorded->reached()) return cudaSuccess;
    RunOne(locked);
    if (locked.state.sticky != cudaSuccess) return locked.state.sticky;
    return cudaErrorNotReady;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Call("cudaEventSynchronize", [&](Locked& locked) -> cudaError_t {
    const Event* found = FindEvent(locked.state, event);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (!found->recorded) return cudaSuccess;
    const Point point = *found->recorded;  // The event may be recorded anew while this waits.
    return RunUntil(locked, [&point] { return point.reached(); });
  });
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  return Call("cudaEventElapsedTime", [&](Locked& locked) -> cudaError_t {
    const Event* first = FindEvent(locked.state, start);
    const Event* last = FindEvent(locked.state, end);
    if (ms == nullptr) return cudaErrorInvalidValue;
    if (first == nullptr || last == nullptr || !first->recorded || !last->recorded ||
        ((first->flags | last->flags) & cudaEventDisableTiming) != 0) {
      return cudaErrorInvalidResourceHandle;
    }
    if (!first->recorded->reached() || !last->recorded->reached()) return cudaErrorNotReady;
    *ms = static_cast<float>(*last->reached_ms - *first->reached_ms);
    return cudaSuccess;
  });
}

}  // extern "C"

}  // namespace cudahost::internal
