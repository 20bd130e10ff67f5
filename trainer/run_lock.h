// One job a folder: a lock that the kernel drops when its holder is gone, however it went.
//
//   BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<RunLock> lock,
//   RunLock::Acquire("runs/quickstart")); if (!lock->taken_over_from().empty()) console.Say("taking
//   over from " + lock->taken_over_from());
#ifndef BITSHARD_TRAINER_RUN_LOCK_H_
#define BITSHARD_TRAINER_RUN_LOCK_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "core/file.h"

namespace bitshard::trainer {

/// Held by rank 0 from Acquire until it is destroyed or the process ends.
class RunLock {
 public:
  /// Makes `directory` where it is missing and locks `directory`/.lock.
  /// Errors: kConfig when another job holds it, named by process and host, and when the directory
  /// can't be made or written.
  static absl::StatusOr<std::unique_ptr<RunLock>> Acquire(const std::string& directory);
  ~RunLock();

  /// The job that held the lock before and ended without giving it back ("process 71 on node1"), or
  /// "".
  const std::string& taken_over_from() const { return taken_over_from_; }

 private:
  RunLock(core::ScopedFd fd, std::string taken_over_from)
      : fd_(std::move(fd)), taken_over_from_(std::move(taken_over_from)) {}
  core::ScopedFd fd_;
  std::string taken_over_from_;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_RUN_LOCK_H_
