// One job a folder: a lock that the kernel drops when its holder is gone, however it went.
//
//   BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<RunLock> lock,
//                             RunLock::Acquire("runs/quickstart"));
//   if (!lock->taken_over_from().empty())
//     console.Say("taking over from " + lock->taken_over_from());
//   ...                // An error up to here leaves no trace in the folder.
//   lock->Keep();
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
  /// can't be made or opened; kStorage when the lock's text can't be written: a full disk.
  static absl::StatusOr<std::unique_ptr<RunLock>> Acquire(const std::string& directory);
  /// Without Keep, removes what Acquire made: the lock's file, and the directory where it is empty.
  ~RunLock();

  /// The job begins to write into the directory.
  void Keep() { keep_ = true; }

  /// The job that held the lock before and ended without giving it back ("process 71 on node1"), or
  /// "".
  const std::string& taken_over_from() const { return taken_over_from_; }

 private:
  RunLock(std::string directory, core::ScopedFd fd, std::string taken_over_from)
      : directory_(std::move(directory)),
        fd_(std::move(fd)),
        taken_over_from_(std::move(taken_over_from)) {}
  static absl::StatusOr<core::ScopedFd> OpenAndLock(const std::string& directory, bool* made_file);

  std::string directory_;
  core::ScopedFd fd_;
  std::string taken_over_from_;
  bool made_file_ = false;
  bool made_directory_ = false;
  bool keep_ = false;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_RUN_LOCK_H_
