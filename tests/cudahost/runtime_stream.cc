// Streams: queues whose ready heads run in a random order on the threads that wait or poll.
#include <cuda_runtime_api.h>

#include <chrono>
#include <string>
#include <utility>

#include "tests/cudahost/runtime_state.h"

namespace cudahost {
namespace internal {
namespace {

// Never dereferenced, never used again, and no small number: 1 and 2 stand for the special streams.
template <class Handle>
Handle MakeHandle(State& state) {
  return reinterpret_cast<Handle>(uintptr_t{0x5EED0000} + 64 * ++state.made);
}

bool IsReady(const Stream& stream) {
  if (stream.queue.empty() || stream.busy) return false;
  const Operation& head = stream.queue.front();
  for (const Point& point : head.after) {
    if (!point.reached()) return false;
  }
  if (!head.op.ready) return true;
  const OperationScope scope;
  return head.op.ready();
}

cudaError_t Run(Locked& locked, Operation& operation) {
  State& state = locked.state;
  if (const std::optional<cudaError_t> injected = TakeInjection(state, operation.op.what, true)) {
    return *injected;
  }
  if (!operation.op.run) return cudaSuccess;
  ++state.tick;
  if (operation.host_function) locked.lock.unlock();
  cudaError_t error = cudaSuccess;
  {
    const OperationScope scope;
    error = operation.op.run();
  }
  if (operation.host_function) locked.lock.lock();
  return error;
}

// A destroyed stream goes when its queue is empty.
void DropDrained(State& state) {
  std::erase_if(state.queues, [&state](const std::shared_ptr<Stream>& queue) {
    if (!queue->queue.empty() || queue == state.legacy) return false;
    for (const auto& [handle, stream] : state.streams) {
      if (stream == queue) return false;
    }
    return true;
  });
}

bool AllDrained(const State& state) {
  for (const std::shared_ptr<Stream>& queue : state.queues) {
    if (!queue->queue.empty()) return false;
  }
  return true;
}

cudaError_t MakeStream(Locked& locked, cudaStream_t* stream, unsigned flags, int priority) {
  if (stream == nullptr || (flags & ~unsigned{cudaStreamNonBlocking}) != 0) {
    return cudaErrorInvalidValue;
  }
  State& state = locked.state;
  *stream = MakeHandle<cudaStream_t>(state);
  auto made = std::make_shared<Stream>();
  made->name = "stream #" + std::to_string(state.made);
  made->flags = flags;
  made->priority = priority;
  made->device = CurrentDevice();
  state.queues.push_back(made);
  state.streams[*stream] = std::move(made);
  return cudaSuccess;
}

}  // namespace

void ResetStreams(State& state) {
  state.streams.clear();
  state.events.clear();
  state.queues.clear();
  state.legacy = std::make_shared<Stream>();
  state.legacy->name = "the legacy stream";
  state.queues.push_back(state.legacy);
}

std::shared_ptr<Stream> FindStream(State& state, cudaStream_t stream) {
  if (stream == nullptr || stream == cudaStreamLegacy) return state.legacy;
  const auto found = state.streams.find(stream);
  return found == state.streams.end() ? nullptr : found->second;
}

Point Append(State& state, const std::shared_ptr<Stream>& stream, Operation operation) {
  if (stream == state.legacy) {
    for (const std::shared_ptr<Stream>& queue : state.queues) {
      if (queue != stream && queue->blocking()) {
        operation.after.push_back({.stream = queue, .sequence = queue->issued});
      }
    }
  } else if (stream->blocking()) {
    operation.after.push_back({.stream = state.legacy, .sequence = state.legacy->issued});
  }
  stream->queue.push_back(std::move(operation));
  return {.stream = stream, .sequence = ++stream->issued};
}

bool RunOne(Locked& locked) {
  State& state = locked.state;
  if (state.sticky != cudaSuccess) return false;
  std::vector<std::shared_ptr<Stream>> ready;
  for (const std::shared_ptr<Stream>& queue : state.queues) {
    if (IsReady(*queue)) ready.push_back(queue);
  }
  if (ready.empty()) return false;
  const std::shared_ptr<Stream> stream = ready[state.random() % ready.size()];
  Operation operation = std::move(stream->queue.front());
  stream->busy = true;
  state.running_device = stream->device;
  const cudaError_t error = Run(locked, operation);
  stream->busy = false;
  stream->queue.pop_front();
  ++stream->completed;
  if (error != cudaSuccess && state.sticky == cudaSuccess) state.sticky = error;
  DropDrained(state);
  state.changed.notify_all();
  return true;
}

cudaError_t RunUntil(Locked& locked, const std::function<bool()>& done) {
  while (locked.state.sticky == cudaSuccess && !done()) {
    // Nothing is ready: a collective waits for another process, or a host function runs on another
    // thread.
    if (!RunOne(locked)) locked.state.changed.wait_for(locked.lock, std::chrono::microseconds(50));
  }
  return locked.state.sticky;
}

cudaError_t WaitForAll(Locked& locked) {
  return RunUntil(locked, [&state = locked.state] { return AllDrained(state); });
}

void RunAhead(Locked& locked) {
  State& state = locked.state;
  if (static_cast<int>(state.random() % 100) < state.settings.run_ahead_percent) RunOne(locked);
}

}  // namespace internal

cudaError_t Enqueue(cudaStream_t stream, StreamOp op) {
  return internal::Call(op.what.c_str(), [&](internal::Locked& locked) -> cudaError_t {
    const std::shared_ptr<internal::Stream> found = internal::FindStream(locked.state, stream);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    internal::Append(locked.state, found, {.op = std::move(op)});
    return cudaSuccess;
  });
}

bool RunOneOperation() {
  if (internal::InsideOperation()) return false;
  internal::Locked locked = internal::Lock();
  return internal::RunOne(locked);
}

}  // namespace cudahost

namespace cudahost::internal {

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return Call("cudaStreamCreate",
              [&](Locked& locked) { return MakeStream(locked, stream, cudaStreamDefault, 0); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return Call("cudaStreamCreateWithFlags",
              [&](Locked& locked) { return MakeStream(locked, stream, flags, 0); });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return Call("cudaStreamCreateWithPriority",
              [&](Locked& locked) { return MakeStream(locked, stream, flags, priority); });
}

// Returns at once; what the stream holds still runs.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return Call("cudaStreamDestroy", [&](Locked& locked) -> cudaError_t {
    const bool erased = locked.state.streams.erase(stream) == 1;
    if (!erased) return cudaErrorInvalidResourceHandle;
    DropDrained(locked.state);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Call("cudaStreamSynchronize", [&](Locked& locked) -> cudaError_t {
    const std::shared_ptr<Stream> found = FindStream(locked.state, stream);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    const Point end{.stream = found, .sequence = found->issued};
    return RunUntil(locked, [&end] { return end.reached(); });
  });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return Call("cudaStreamQuery", [&](Locked& locked) -> cudaError_t {
    const std::shared_ptr<Stream> found = FindStream(locked.state, stream);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (found->queue.empty()) return cudaSuccess;
    RunOne(locked);
    if (locked.state.sticky != cudaSuccess) return locked.state.sticky;
    return cudaErrorNotReady;
  });
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  return Call("cudaStreamGetFlags", [&](Locked& locked) -> cudaError_t {
    const std::shared_ptr<Stream> found = FindStream(locked.state, stream);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (flags == nullptr) return cudaErrorInvalidValue;
    *flags = found->flags;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  return Call("cudaStreamGetPriority", [&](Locked& locked) -> cudaError_t {
    const std::shared_ptr<Stream> found = FindStream(locked.state, stream);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (priority == nullptr) return cudaErrorInvalidValue;
    *priority = found->priority;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  return Call("cudaStreamGetDevice", [&](Locked& locked) -> cudaError_t {
    const std::shared_ptr<Stream> found = FindStream(locked.state, stream);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = found->device;
    return cudaSuccess;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return Call("cudaLaunchHostFunc", [&](Locked& locked) -> cudaError_t {
    const std::shared_ptr<Stream> found = FindStream(locked.state, stream);
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (function == nullptr) return cudaErrorInvalidValue;
    const auto run = [function, data] {
      function(data);
      return cudaSuccess;
    };
    Append(locked.state, found,
           {.op = {.what = "cudaLaunchHostFunc", .run = run}, .host_function = true});
    RunAhead(locked);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return Call("cudaDeviceSynchronize", [](Locked& locked) { return WaitForAll(locked); });
}

}  // extern "C"

}  // namespace cudahost::internal
