#include "trainer/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/file.h"

namespace bitshard::trainer {
namespace {

constexpr int kPlainWidth = 80;
constexpr std::chrono::milliseconds kRedraw(100);

}  // namespace

Console::Console(const ConsoleOptions& options)
    : options_(options),
      is_terminal_(!options.silent && options.terminal.value_or(isatty(options.progress_fd) == 1)) {
}

void Console::Put(int fd, const std::string& text) {
  if (options_.silent || text.empty()) return;
  const absl::Status status =
      core::WriteAll(fd, text.data(), text.size(),
                     fd == options_.output_fd ? "standard output" : "standard error");
  if (status_.ok()) status_ = status;
}

void Console::ClearLine() {
  if (!line_shown_) return;
  Put(options_.progress_fd, "\r\x1b[K");
  line_shown_ = false;
}

void Console::Say(const std::string& text) {
  ClearLine();
  Put(options_.output_fd, text.empty() || text.back() != '\n' ? text + "\n" : text);
}

void Console::Warn(const std::string& text) {
  ClearLine();
  Put(options_.progress_fd, absl::StrCat("warning: ", text, "\n"));
}

void Console::ShowLine(const std::string& line) {
  Put(options_.progress_fd, absl::StrCat("\r", line, "\x1b[K"));
  line_shown_ = true;
}

int Console::width() const {
  struct winsize size {};
  if (!is_terminal_ || ioctl(options_.progress_fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
    return kPlainWidth;
  return size.ws_col;
}

std::string DurationText(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::clamp(seconds, 0.0, 1e12)));
  const int64_t days = whole / 86400;
  const int64_t hours = whole / 3600 % 24;
  const int64_t minutes = whole / 60 % 60;
  std::string text = days > 0 ? absl::StrFormat("%dd ", days) : "";
  if (days > 0 || hours > 0)
    return absl::StrCat(text, absl::StrFormat("%d:%02d:%02d", hours, minutes, whole % 60));
  return absl::StrFormat("%d:%02d", minutes, whole % 60);
}

std::string ProgressLine(const ProgressState& state, int width) {
  const std::string head = absl::StrFormat("step %d/%d ", state.step, state.total_steps);
  const std::string tail =
      absl::StrFormat(" loss %.4f  %.0f tok/s  ETA %s", state.loss, state.tokens_per_second,
                      state.seconds_left < 0 ? "-" : DurationText(state.seconds_left));
  // The last column stays free: some terminals wrap as soon as it is written.
  const int room = width - 1 - static_cast<int>(head.size() + tail.size()) - 2;
  std::string line = head;
  if (room >= 5) {
    const int bar = std::min(room, 40);
    const double share = state.total_steps > 0 ? static_cast<double>(state.step) /
                                                     static_cast<double>(state.total_steps)
                                               : 0;
    const auto full = static_cast<size_t>(std::clamp(share, 0.0, 1.0) * bar);
    absl::StrAppend(&line, "[", std::string(full, '='),
                    std::string(static_cast<size_t>(bar) - full, ' '), "]");
  }
  line += line.size() == head.size() ? tail.substr(1) : tail;
  return line.substr(0, static_cast<size_t>(std::max(width - 1, 1)));
}

Progress::Progress(Console* console, const ProgressOptions& options)
    : console_(console),
      options_(options),
      start_(std::chrono::steady_clock::now()),
      last_drawn_(start_ - kRedraw) {
  state_.total_steps = options.total_steps;
  state_.step = options.first_step;
}

void Progress::Update(const Step& step) {
  const auto now = std::chrono::steady_clock::now();
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const int64_t done = step.step - options_.first_step;
  state_.step = step.step;
  state_.loss = step.loss;
  state_.tokens_per_second = step.tokens_per_second;
  if (done > 0) {
    state_.seconds_left =
        seconds / static_cast<double>(done) * static_cast<double>(state_.total_steps - step.step);
  }
  const bool last = step.step == options_.total_steps;
  if (console_->is_terminal()) {
    if (!last && now - last_drawn_ < kRedraw) return;
    last_drawn_ = now;
    console_->ShowLine(ProgressLine(state_, console_->width()));
  } else if (last || step.step == 1 || step.step % options_.every == 0) {
    console_->Say(absl::StrFormat("step %d/%d  loss %.4f  %.0f tok/s  ETA %s", step.step,
                                  state_.total_steps, step.loss, step.tokens_per_second,
                                  DurationText(std::max(state_.seconds_left, 0.0))));
  }
}

void Progress::Finish() {
  if (!console_->is_terminal()) return;
  console_->ShowLine(ProgressLine(state_, console_->width()) + "\n");
}

}  // namespace bitshard::trainer
