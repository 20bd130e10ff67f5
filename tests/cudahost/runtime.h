// What tests set and read of the stand-in for the CUDA runtime. Product code sees only the real
// CUDA headers.
//
//   cudahost::Reset();
//   cudahost::SetDeviceBytes(1 << 20);
//   cudahost::FailCall("cudaMemcpyAsync", 3, cudaErrorIllegalAddress);  // the third from now
//
// Where CUDA leaves a choice, the stand-in takes the one that a careless program does not survive:
//   cudaMemcpy from pageable memory returns when the source may be reused, not when the data has
//   arrived, and one from device to device does not wait at all (so CUDA's "API synchronization
//   behavior"); only the legacy stream, and the blocking ones with it, sees the result without a
//   wait. cudaFreeHost, and cudaFree of what cudaMallocAsync gave, wait for nothing.
//   cudaStreamQuery and cudaEventQuery tell what was so before they let the device run one
//   operation.
// A use that a device would take for undefined (memory freed under an operation, a copy to the host
// of what was never written, a kernel beside the host on managed memory without
// concurrentManagedAccess) is reported on stderr with what touched which buffer and is a sticky
// cudaErrorIllegalAddress.
//
// Not modelled: several legacy streams (one for all devices), the per-thread default stream,
// graphs, peer access.
#ifndef BITSHARD_TESTS_CUDAHOST_RUNTIME_H_
#define BITSHARD_TESTS_CUDAHOST_RUNTIME_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cudahost {

// Each field can be set for a child process by the variable beside it, with BITSHARD_CUDAHOST_
// before it.
struct Settings {
  int devices = 1;                        // DEVICES
  size_t device_bytes = size_t{4} << 30;  // DEVICE_BYTES, of each device
  size_t pinned_bytes = size_t{4} << 30;  // PINNED_BYTES
  size_t managed_page_bytes = 2 << 20;    // PAGE_BYTES, a power of two of at least 4096
  int compute_capability = 90;            // COMPUTE_CAPABILITY
  bool managed_memory = true;             // MANAGED; without: cudaMallocManaged gives error 801
  bool concurrent_managed_access = true;  // CONCURRENT_MANAGED
  bool pageable_memory_access = false;    // PAGEABLE: cudaMemcpyAsync stages nothing
  uint64_t seed = 1;                      // SEED
  int run_ahead_percent = 25;  // RUN_AHEAD: how often a call lets the device run one operation
};
Settings CurrentSettings();
void Configure(const Settings& settings);  // Starts the random order anew.
void SetDeviceBytes(size_t bytes);
void SetPinnedBytes(size_t bytes);
// The order between streams; that of blocks and threads within a kernel is SetSeed's (sched.h).
void SetStreamSeed(uint64_t seed);

// The nth call from now (1: the next one) of a function of the runtime, or launch of an operation
// of that name (StreamOp::what, or its first word), does nothing but return `error`. In a child
// process: BITSHARD_CUDAHOST_FAIL=cudaMalloc:3:cudaErrorMemoryAllocation,cudaMemcpyAsync:1:700
void FailCall(const std::string& name, int64_t nth, cudaError_t error);
// The nth operation from now with that name is not run; its stream's error is sticky and seen by
// the next call.
void FailRun(const std::string& what, int64_t nth, cudaError_t error);
int64_t CallCount(const std::string& name);  // Since the start or Reset, failed ones included.

// What is reported on stderr and was not taken yet. A process that ends with some fails.
std::vector<std::string> TakeReports();

// Allocations, pinned ranges, streams and events that live, by name, with the function that made
// them. At the end of the process they are listed on stderr; with BITSHARD_CUDAHOST_LEAKS=fail the
// process then fails, with `off` nothing is listed. Not after a sticky error: no call can release
// anything then.
std::vector<std::string> LiveObjects();

// Everything as at the start of the process: frees all memory, drops streams and what they hold,
// errors and counts; but reports stay until they are taken. No other thread may be in the runtime.
void Reset();

struct ManagedCounters {
  int64_t device_faults = 0;  // Pages that a kernel had to wait for.
  int64_t host_faults = 0;    // Only what OnHostAccess was told.
  int64_t bytes_to_device = 0;
  int64_t bytes_to_host = 0;
  int64_t evictions = 0;  // Pages that left the device to make room.
};
ManagedCounters CurrentManagedCounters();

enum class Residence { kNowhere, kHost, kDevice, kBoth };
Residence ResidenceOf(const void* managed);  // Of the page that holds the byte.

// For the checker of kernels' and the host's accesses: moves pages and counts faults. Only from
// within StreamOp::run (OnKernelAccess), or from outside of it (OnHostAccess). Memory that is not
// managed is left alone.
void OnKernelAccess(const void* p, size_t bytes, bool write);
void OnHostAccess(const void* p, size_t bytes, bool write);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_RUNTIME_H_
