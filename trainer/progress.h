// What a person sees: a progress line on a terminal, plain lines elsewhere, and messages. A console
// that is closed or full never stops training: the first failure is kept and told at the end.
//
//   Console console;                                     // rank 0's; other ranks pass {.silent =
//   true} console.Say("loading the model"); Progress progress(&console, {.total_steps = 100, .every
//   = 10}); progress.Update({.step = 41, .loss = 2.31, .tokens_per_second = 310});
//   progress.Finish();
#ifndef BITSHARD_TRAINER_PROGRESS_H_
#define BITSHARD_TRAINER_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace bitshard::trainer {

struct ConsoleOptions {
  bool silent = false;  ///< Writes nothing: every rank but 0.
  int output_fd = 1;    ///< Say.
  int progress_fd = 2;  ///< Progress.
  /// Whether progress_fd shows on a terminal; not given: isatty. mpirun puts a pipe between rank
  /// and terminal.
  std::optional<bool> terminal;
};

/// Threads: one thread calls it.
class Console {
 public:
  explicit Console(const ConsoleOptions& options = {});

  /// A line, or several, on standard output. Clears a progress line first, so the two never mix.
  void Say(const std::string& text);
  /// The same on standard error, after "warning: ".
  void Warn(const std::string& text);

  /// Replaces the line at the cursor of a terminal.
  void ShowLine(const std::string& line);
  /// Standard error is a terminal.
  bool is_terminal() const { return is_terminal_; }
  /// Columns of the terminal; 80 where there is none.
  int width() const;
  /// The first failure; OK if none.
  const absl::Status& status() const { return status_; }

 private:
  void Put(int fd, const std::string& text);
  void ClearLine();

  ConsoleOptions options_;
  bool is_terminal_ = false;
  bool line_shown_ = false;
  absl::Status status_;
};

/// What a progress line shows.
struct ProgressState {
  int64_t step = 0;
  int64_t total_steps = 0;
  double loss = 0;
  double tokens_per_second = 0;
  double seconds_left = -1;  ///< Below 0: not known yet.
};

/// "step 41/100 [====      ] loss 2.310  310 tok/s  ETA 3:20", at most `width` columns; ASCII.
std::string ProgressLine(const ProgressState& state, int width);
/// "3:20", "1:03:20", "2d 1:03:20".
std::string DurationText(double seconds);

struct ProgressOptions {
  int64_t total_steps = 0;
  int64_t first_step = 0;  ///< Steps done before this process began.
  int64_t every = 10;      ///< Steps between plain lines where there is no terminal.
};

/// Threads: one thread calls it.
class Progress {
 public:
  Progress(Console* console, const ProgressOptions& options);
  struct Step {
    int64_t step = 0;
    double loss = 0;
    double tokens_per_second = 0;
  };
  /// The time left is by the mean time of the steps of this process. A terminal's line is redrawn
  /// at most ten times a second.
  void Update(const Step& step);
  /// Leaves the last line standing.
  void Finish();

 private:
  Console* console_;
  ProgressOptions options_;
  ProgressState state_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_drawn_;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_PROGRESS_H_
