// The stand-in's streams: queues of operations that run when a call waits for them or polls, and
// now and then by themselves between two calls, in an order drawn from the seed. A program that
// forgets a wait gets wrong data on some seeds, and the same ones each time.
//
//   return Enqueue(stream, {.what = "kernel AdamStep", .run = [=] { return RunGrid(...); }});
//
// Threads: every function may be called by any host thread. `ready` and `run` are called by
// whichever thread waits or polls, one at a time in the process and with the runtime's lock held:
// they may neither call the runtime (it answers cudaErrorNotPermitted) nor wait for another thread,
// and a lock that they take must not be held round a call of the runtime.
#ifndef BITSHARD_TESTS_CUDAHOST_STREAM_H_
#define BITSHARD_TESTS_CUDAHOST_STREAM_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>

namespace cudahost {

// What stands at the head of a stream and is not ready (an event that was not reached, a collective
// whose peers have not come) holds the stream up. An operation that several polls may have to
// advance returns false from `ready`. An error from `run` is sticky, as what fails on a device is.
struct StreamOp {
  std::string what;             // In reports: "kernel AdamStep", "ncclAllReduce".
  std::function<bool()> ready;  // Empty: always.
  std::function<cudaError_t()> run;
};

// Enqueues; runs nothing. Errors as CUDA's: an unknown or destroyed stream, a sticky error, one
// asked for by FailCall(op.what, ...) of runtime.h.
cudaError_t Enqueue(cudaStream_t stream, StreamOp op);

// Runs one random ready head of any stream. False when nothing is ready.
bool RunOneOperation();

// What the device refuses of a launch: empty or too large grids and blocks, more dynamic shared
// memory than `kernel` was granted by cudaFuncSetAttribute. The error is not sticky, as on a
// device.
cudaError_t CheckLaunch(const void* kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_STREAM_H_
