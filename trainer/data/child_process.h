// ChildProcess: another program that is talked to in lines over its standard input and output.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto child, ChildProcess::Start({.arguments = {"cat"}}));
//   BITSHARD_RETURN_IF_ERROR(child->WriteLine("hello", options));
//   BITSHARD_ASSIGN_OR_RETURN(auto line, child->ReadLine({.seconds = 5}));   // "hello"
//
// Threads: one thread calls a ChildProcess.
#ifndef BITSHARD_TRAINER_DATA_CHILD_PROCESS_H_
#define BITSHARD_TRAINER_DATA_CHILD_PROCESS_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/file.h"

namespace bitshard::trainer {

struct ChildOptions {
  std::vector<std::string> arguments;    ///< The program (a path, or a name in PATH) first.
  std::vector<std::string> environment;  ///< "NAME=value": added to ours, or in place of it.
};

/// How long to wait for the child.
struct WaitOptions {
  double seconds = 60;
  std::function<bool()> stop_requested;  ///< True ends the wait. May be empty.
};

class ChildProcess {
 public:
  /// The child gets a process group of its own (a terminal's ^C does not reach it), default signal
  /// handling, and no open file but its standard ones.
  /// Errors: kConfig when the program can't be started.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const ChildOptions& options);
  /// Kills the child if it still runs.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  /// Sends the line and a newline.
  /// Errors: kData when the child ended or took nothing for `wait.seconds`; kInterrupted.
  absl::Status WriteLine(const std::string& line, const WaitOptions& wait);
  /// The child reads end of file from now on.
  void CloseInput();
  /// The next line of its standard output without the newline; nullopt at end of file.
  /// Errors: kData after `wait.seconds` in which it wrote nothing; kInterrupted. The child is
  /// killed then.
  absl::StatusOr<std::optional<std::string>> ReadLine(const WaitOptions& wait);

  /// Waits for the end (up to 2 s, then kills) and says how it came: "ended with status 3", "was
  /// killed by signal 9 (Killed)".
  std::string End();
  /// The last lines of its standard error, control characters escaped; "" when there is none.
  std::string LastWords();

 private:
  ChildProcess(pid_t pid, core::ScopedFd input, core::ScopedFd output, core::ScopedFd errors)
      : pid_(pid),
        input_(std::move(input)),
        output_(std::move(output)),
        errors_(std::move(errors)) {}
  absl::Status WaitForEvent(short input_events, double deadline, const WaitOptions& wait);
  void DrainErrors();
  void Kill();
  bool Reap(bool block);

  pid_t pid_;
  core::ScopedFd input_, output_, errors_;
  bool ended_ = false;
  std::string how_it_ended_;
  std::string pending_;     // Output that is no complete line yet.
  std::string error_text_;  // The end of standard error.
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_DATA_CHILD_PROCESS_H_
