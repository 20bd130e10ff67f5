// A communicator of NCCL with the thread that watches it.
//
// NCCL's calls and the abort must never meet (the guide: an abort is safe only while no other
// thread is inside of a call), so all go through one lock; the communicator is a non-blocking one,
// so no call holds it for long. The watching thread asks for asynchronous errors and queries
// events; it never waits on the device.
#ifndef BITSHARD_COMM_INTERNAL_NCCL_ENGINE_H_
#define BITSHARD_COMM_INTERNAL_NCCL_ENGINE_H_

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace bitshard::comm::internal {

/// A collective on its stream. Its members are the engine's.
struct NcclOperation {
  ~NcclOperation();
  std::string call;  ///< all-to-all "bucket 3" (number 7)
  cudaEvent_t event = nullptr;
  bool done = false;
};

struct NcclEngineOptions {
  ncclComm_t comm = nullptr;  ///< Initialised, non-blocking; the engine destroys or aborts it.
  int rank = 0;
  int device = 0;
  absl::Duration timeout;
  absl::Duration abort_limit;
};

/// Threads: any; collectives from one at a time.
class NcclEngine {
 public:
  explicit NcclEngine(const NcclEngineOptions& options);
  /// Aborts what was not finalized.
  ~NcclEngine();

  /// Runs `issue` between the start and the end of a group, and waits until the group is on the
  /// stream.
  absl::StatusOr<std::shared_ptr<NcclOperation>> Start(
      const std::string& call, const std::function<ncclResult_t(ncclComm_t)>& issue,
      cudaStream_t stream);
  absl::Status Wait(NcclOperation* operation);
  absl::Status Finalize();
  absl::Status failure();
  void set_timeout(absl::Duration timeout);

 private:
  using Clock = std::chrono::steady_clock;

  void Watch();
  // All with the lock.
  void Retire();
  void CheckAge();
  ncclResult_t Settle(ncclResult_t result);
  std::string Where();
  absl::Status FailLocked(const absl::Status& why);
  void AbortLocked(const std::string& why);

  const int rank_;
  const int device_;
  const absl::Duration abort_limit_;

  std::mutex mutex_;  // Guards what follows, and every call with comm_.
  std::condition_variable changed_;
  ncclComm_t comm_;  // nullptr: aborted or destroyed.
  absl::Duration timeout_;
  std::deque<std::shared_ptr<NcclOperation>> running_;  // In order; not known to be complete.
  Clock::time_point oldest_since_;                      // Since when the front is the oldest.
  std::string starting_;                                // The call that Start is in, or failed in.
  std::string last_done_ = "nothing";
  int64_t num_started_ = 0;
  absl::Status failure_;
  bool stop_ = false;

  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_NCCL_ENGINE_H_
