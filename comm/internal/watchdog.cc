#include "comm/internal/watchdog.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

namespace bitshard::comm::internal {

Watchdog::Watchdog(absl::Duration limit, std::string message, int exit_code)
    : thread_([this, limit, message = std::move(message), exit_code] {
        std::unique_lock lock(mutex_);
        const auto cancelled = [this] { return cancelled_; };
        if (cancelled_changed_.wait_for(lock, absl::ToChronoNanoseconds(limit), cancelled)) return;
        std::fprintf(stderr, "bitshard: %s\n", message.c_str());
        std::fflush(nullptr);
        _exit(exit_code);
      }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  cancelled_changed_.notify_all();
  thread_.join();
}

}  // namespace bitshard::comm::internal
