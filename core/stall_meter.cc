#include "core/stall_meter.h"

#include <utility>

#include "core/status_macros.h"

namespace bitshard::core {

absl::Status StallMeter::Wait(cudaStream_t stream, const Event& event) {
  BITSHARD_RETURN_IF_ERROR(Collect());
  Pair pair;
  if (spare_.empty()) {
    BITSHARD_ASSIGN_OR_RETURN(pair.before, Event::Create({.timed = true}));
    BITSHARD_ASSIGN_OR_RETURN(pair.after, Event::Create({.timed = true}));
  } else {
    pair = std::move(spare_.back());
    spare_.pop_back();
  }
  BITSHARD_RETURN_IF_ERROR(pair.before.Record(stream));
  BITSHARD_RETURN_IF_ERROR(event.MakeWait(stream));
  BITSHARD_RETURN_IF_ERROR(pair.after.Record(stream));
  running_.push_back(std::move(pair));
  return absl::OkStatus();
}

absl::Status StallMeter::Collect() {
  while (!running_.empty()) {
    BITSHARD_ASSIGN_OR_RETURN(const bool passed, running_.front().after.IsComplete());
    if (!passed) break;
    BITSHARD_ASSIGN_OR_RETURN(const double milliseconds,
                              running_.front().after.MillisecondsSince(running_.front().before));
    seconds_ += milliseconds / 1000;
    spare_.push_back(std::move(running_.front()));
    running_.pop_front();
  }
  return absl::OkStatus();
}

double StallMeter::Seconds() {
  (void)Collect();
  return seconds_;
}

}  // namespace bitshard::core
