// How long streams waited for events, measured on the device by a timed event on either side of the
// wait, so that nobody on the host waits for the answer.
#ifndef BITSHARD_CORE_STALL_METER_H_
#define BITSHARD_CORE_STALL_METER_H_

#include <cuda_runtime_api.h>

#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "core/cuda_stream.h"

namespace bitshard::core {

/// Not thread-safe.
class StallMeter {
 public:
  /// Makes `stream` wait for `event`, and measures for how long.
  absl::Status Wait(cudaStream_t stream, const Event& event);
  /// Of the waits that have ended by now, in the order of the calls. An error of the runtime ends
  /// the measuring: what counts it, the work on the stream, reports it.
  double Seconds();

 private:
  struct Pair {
    Event before;
    Event after;
  };
  absl::Status Collect();

  std::deque<Pair> running_;
  std::vector<Pair> spare_;
  double seconds_ = 0;
};

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_STALL_METER_H_
