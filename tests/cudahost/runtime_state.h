// What the files of the stand-in runtime share: one state behind one lock, and the way into every
// call.
#ifndef BITSHARD_TESTS_CUDAHOST_RUNTIME_STATE_H_
#define BITSHARD_TESTS_CUDAHOST_RUNTIME_STATE_H_

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/cudahost/heap.h"
#include "tests/cudahost/runtime.h"
#include "tests/cudahost/stream.h"

namespace cudahost::internal {

struct Stream;

// A point in a stream: what was enqueued up to it.
struct Point {
  std::shared_ptr<Stream> stream;
  uint64_t sequence = 0;
  bool reached() const;
};

struct Operation {
  StreamOp op;
  std::vector<Point> after;
  bool host_function = false;  // Runs without the lock: it may wait for other threads.
};

struct Stream {
  std::string name;
  unsigned flags = 0;
  int device = 0;
  int priority = 0;
  bool busy = false;  // Its head runs on another thread.
  std::deque<Operation> queue;
  uint64_t issued = 0;
  uint64_t completed = 0;

  bool blocking() const { return (flags & cudaStreamNonBlocking) == 0; }
};

inline bool Point::reached() const { return stream->completed >= sequence; }

struct Event {
  std::string name;
  unsigned flags = 0;
  std::optional<Point> recorded;
  std::shared_ptr<double> reached_ms;  // Written when the point is reached.
};

struct Allocation {
  Buffer buffer;
  std::string made_by;
  int device = 0;
  size_t charged_bytes = 0;
  bool stream_ordered = false;
  bool free_enqueued = false;
};

struct Page {
  bool on_host = false;
  bool on_device = false;  // Both: read-only copies.
  bool discarded = false;
  bool read_mostly = false;
  bool mapped = false;  // The device reads and writes the host's copy.
  bool accessed_by_device = false;
  int preferred = cudaInvalidDeviceId;
  int last_prefetch = cudaInvalidDeviceId;
  int device = 0;
  uint64_t last_use = 0;
};

struct ManagedRange {
  std::byte* begin = nullptr;
  size_t bytes = 0;
  std::vector<Page> pages;
};

struct Injection {
  std::string name;
  int64_t calls_left = 0;
  cudaError_t error = cudaSuccess;
  bool when_run = false;
};

struct State {
  std::mutex mutex;
  std::condition_variable changed;  // A host function that ran without the lock has ended.

  Settings settings;
  std::mt19937_64 random;
  cudaError_t sticky = cudaSuccess;
  std::vector<Injection> injections;
  std::map<std::string, int64_t> calls;
  std::vector<std::string> reports;

  uint64_t made = 0;  // Streams and events, for their names and handles; never reused.
  std::shared_ptr<Stream> legacy;
  std::map<cudaStream_t, std::shared_ptr<Stream>> streams;
  std::vector<std::shared_ptr<Stream>>
      queues;  // With the legacy one and those destroyed but not drained.
  std::map<cudaEvent_t, Event> events;

  std::map<const std::byte*, Allocation> allocations;
  std::map<const std::byte*, size_t> registered;  // cudaHostRegister
  std::map<int, size_t> device_bytes_used;        // Without managed pages.
  size_t pinned_bytes_used = 0;
  std::map<const void*, int> dynamic_shared_bytes;  // By kernel.

  std::map<const std::byte*, ManagedRange> managed;
  ManagedCounters managed_counters;
  uint64_t tick = 0;  // Operations run: the clock of the pages' last use.
  int running_device = 0;
};

struct Locked {
  State& state;
  std::unique_lock<std::mutex> lock;
};

// The only state, made on first use and never destroyed: static destructors may still call the
// runtime.
State& TheState();
Locked Lock();

// runtime_errors.cc
bool IsSticky(cudaError_t error);
cudaError_t SetLastError(cudaError_t error);
void ClearLastError();
// Errors before a call does anything: no device, a sticky one, an injected one. Counts the call.
cudaError_t EnterCall(Locked& locked, const std::string& name);
std::optional<cudaError_t> TakeInjection(State& state, const std::string& name, bool when_run);
// Why a call returns an error that a device would return too: on stderr only.
void Explain(const std::string& message);
// What a device would leave undefined: makes the process fail at its end, unless a test takes it.
void Report(State& state, const std::string& message);
// Reports, and makes the error of undefined device behaviour sticky.
cudaError_t DeviceFault(State& state, const std::string& message);
// While an operation runs on this thread, the runtime may not be called.
bool InsideOperation();
class OperationScope {
 public:
  OperationScope();
  ~OperationScope();
};

// Every function of the runtime: `body` is called with the lock held.
template <class Body>
cudaError_t Call(const char* name, Body&& body) {
  if (InsideOperation()) return SetLastError(cudaErrorNotPermitted);
  Locked locked = Lock();
  cudaError_t error = EnterCall(locked, name);
  if (error == cudaSuccess) error = std::forward<Body>(body)(locked);
  return SetLastError(error);
}

// runtime_device.cc
int& CurrentDevice();  // Of the calling thread.
bool IsDevice(const State& state, int device);

// runtime_stream.cc
std::shared_ptr<Stream> FindStream(State& state,
                                   cudaStream_t stream);  // nullptr: unknown or destroyed
Point Append(State& state, const std::shared_ptr<Stream>& stream, Operation operation);
bool RunOne(Locked& locked);
// Runs operations until done() or a sticky error, which it returns.
cudaError_t RunUntil(Locked& locked, const std::function<bool()>& done);
cudaError_t WaitForAll(Locked& locked);
// The device runs by itself now and then: programs that count on its laziness fail on some seeds.
void RunAhead(Locked& locked);
void ResetStreams(State& state);

// runtime_memory.cc
enum class Place { kPageable, kPinned, kDevice, kManaged };
// The place of [p, p + bytes); an error, explained, when it leaves its buffer or the buffer was
// freed.
struct Range {
  Place place = Place::kPageable;
  uint64_t serial = 0;  // Of the buffer; 0 outside of the heap.
};
cudaError_t FindRange(State& state, const char* call, const void* p, size_t bytes, Range* range);
// For operations that run later: false when the buffer was freed since.
bool StillLive(const Range& range, const void* p);
std::string Describe(const void* p);  // "0x7f.. in cudaMalloc #3 (1024 bytes) at 16"
cudaError_t ReleaseAllocation(State& state, const void* p);
void ResetMemory(State& state);

// runtime_pages.cc
size_t ManagedBytesOn(const State& state, int device);
// Evicts pages of the least recently used; false when `bytes` do not fit even so.
bool MakeRoom(State& state, int device, size_t bytes);
cudaError_t AddManaged(State& state, const Allocation& allocation);
void RemoveManaged(State& state, const std::byte* begin);
// A copy or fill of managed memory: pages that are nowhere come to be on that side.
void TouchManaged(State& state, const void* p, size_t bytes, bool by_device, bool write);
void PrefetchPages(State& state, const void* p, size_t bytes, int device);  // or cudaCpuDeviceId
void DiscardPages(State& state, void* p, size_t bytes);
void ForEachPageOf(State& state, const void* p, size_t bytes,
                   const std::function<void(Page&)>& visit);

}  // namespace cudahost::internal

#endif  // BITSHARD_TESTS_CUDAHOST_RUNTIME_STATE_H_
