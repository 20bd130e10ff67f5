// The last line against calls that never return.
#ifndef BITSHARD_COMM_INTERNAL_WATCHDOG_H_
#define BITSHARD_COMM_INTERNAL_WATCHDOG_H_

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "absl/time/time.h"

namespace bitshard::comm::internal {

/// Unless it is destroyed within `limit`: prints `message` to stderr and ends the process with
/// `exit_code`, without running destructors or atexit handlers, which might hang as well.
class Watchdog {
 public:
  Watchdog(absl::Duration limit, std::string message, int exit_code);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable cancelled_changed_;
  bool cancelled_ = false;
  std::thread thread_;
};

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_WATCHDOG_H_
