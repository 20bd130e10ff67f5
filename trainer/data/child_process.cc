#include "trainer/data/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::trainer {
namespace {

constexpr size_t kMaxErrorText = 8192;
constexpr size_t kMaxErrorLines = 12;
constexpr size_t kMaxLineBytes = size_t{256} << 20;
constexpr double kSecondsToEnd = 2;
constexpr int kPollMilliseconds = 100;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string ErrnoText(int error) { return std::strerror(error); }

// Our end first. Sockets, not pipes, so that a write to a dead child is EPIPE and no SIGPIPE.
absl::StatusOr<std::pair<core::ScopedFd, core::ScopedFd>> MakeChannel() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return core::ConfigError(absl::StrCat("socketpair: ", ErrnoText(errno)));
  }
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  return std::pair(core::ScopedFd(ends[0]), core::ScopedFd(ends[1]));
}

std::vector<std::string> MergedEnvironment(const std::vector<std::string>& added) {
  std::vector<std::string> result = added;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('=') + 1);
    const bool replaced = std::any_of(added.begin(), added.end(), [&](const std::string& other) {
      return other.compare(0, name.size(), name) == 0;
    });
    if (!replaced) result.push_back(text);
  }
  return result;
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& text : strings) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// Returns 0 or an errno value.
int Spawn(const ChildOptions& options, const int (&standard)[3], pid_t* pid) {
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  for (int fd = 0; fd < 3; ++fd) posix_spawn_file_actions_adddup2(&files, standard[fd], fd);
  posix_spawn_file_actions_addclosefrom_np(&files, 3);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  const std::vector<std::string> environment = MergedEnvironment(options.environment);
  const int error = posix_spawnp(pid, options.arguments[0].c_str(), &files, &attributes,
                                 Pointers(options.arguments).data(), Pointers(environment).data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  return error;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const ChildOptions& options) {
  BITSHARD_ASSIGN_OR_RETURN(auto input, MakeChannel());
  BITSHARD_ASSIGN_OR_RETURN(auto output, MakeChannel());
  BITSHARD_ASSIGN_OR_RETURN(auto errors, MakeChannel());
  pid_t pid = 0;
  const int error =
      Spawn(options, {input.second.get(), output.second.get(), errors.second.get()}, &pid);
  if (error != 0) {
    return core::ConfigError(absl::StrCat(core::Escaped(options.arguments[0], 4096),
                                          ": can't be started: ", ErrnoText(error)));
  }
  return std::unique_ptr<ChildProcess>(new ChildProcess(
      pid, std::move(input.first), std::move(output.first), std::move(errors.first)));
}

ChildProcess::~ChildProcess() { Kill(); }

void ChildProcess::Kill() {
  if (ended_) return;
  kill(-pid_, SIGKILL);
  kill(pid_, SIGKILL);
  Reap(true);
}

bool ChildProcess::Reap(bool block) {
  if (ended_) return true;
  int status = 0;
  pid_t got;
  do {
    got = waitpid(pid_, &status, block ? 0 : WNOHANG);
  } while (got < 0 && errno == EINTR);
  if (got == 0) return false;
  ended_ = true;
  if (got < 0) {
    how_it_ended_ = absl::StrCat("was lost: waitpid: ", ErrnoText(errno));
  } else if (WIFSIGNALED(status)) {
    how_it_ended_ = absl::StrFormat("was killed by signal %d (%s)", WTERMSIG(status),
                                    strsignal(WTERMSIG(status)));
  } else {
    how_it_ended_ = absl::StrCat("ended with status ", WEXITSTATUS(status));
  }
  return true;
}

void ChildProcess::DrainErrors() {
  char buffer[4096];
  while (errors_.get() >= 0) {
    const ssize_t got = read(errors_.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      errors_ = core::ScopedFd();
      return;
    }
    error_text_.append(buffer, static_cast<size_t>(got));
    if (error_text_.size() > 2 * kMaxErrorText) {
      error_text_.erase(0, error_text_.size() - kMaxErrorText);
    }
  }
}

// Waits for `events` of the input or (POLLIN) output channel; standard error is read meanwhile.
absl::Status ChildProcess::WaitForEvent(short events, double deadline, const WaitOptions& wait) {
  while (true) {
    if (wait.stop_requested && wait.stop_requested()) {
      Kill();
      return core::InterruptedError("stopped while waiting for the text process");
    }
    if (Now() >= deadline) {
      Kill();
      return core::DataError(
          absl::StrFormat("gave no sign of life for %g s and was killed", wait.seconds));
    }
    pollfd polled[2] = {
        {.fd = events == POLLIN ? output_.get() : input_.get(), .events = events, .revents = 0},
        {.fd = errors_.get(), .events = POLLIN, .revents = 0}};
    if (poll(polled, 2, kPollMilliseconds) < 0 && errno != EINTR) {
      return core::DataError(absl::StrCat("poll: ", ErrnoText(errno)));
    }
    DrainErrors();
    if (polled[0].revents != 0) return absl::OkStatus();
  }
}

absl::Status ChildProcess::WriteLine(const std::string& line, const WaitOptions& wait) {
  const std::string text = line + "\n";
  size_t done = 0;
  double deadline = Now() + wait.seconds;
  while (done < text.size()) {
    const ssize_t put = send(input_.get(), text.data() + done, text.size() - done, MSG_NOSIGNAL);
    if (put > 0) {
      done += static_cast<size_t>(put);
      deadline = Now() + wait.seconds;
    } else if (errno == EAGAIN) {
      BITSHARD_RETURN_IF_ERROR(WaitForEvent(POLLOUT, deadline, wait));
    } else if (errno != EINTR) {
      return core::DataError(End());
    }
  }
  return absl::OkStatus();
}

void ChildProcess::CloseInput() { input_ = core::ScopedFd(); }

absl::StatusOr<std::optional<std::string>> ChildProcess::ReadLine(const WaitOptions& wait) {
  double deadline = Now() + wait.seconds;
  std::vector<char> buffer(size_t{1} << 16);
  size_t searched = 0;
  while (true) {
    const size_t newline = pending_.find('\n', searched);
    if (newline != std::string::npos) {
      std::string line = pending_.substr(0, newline);
      pending_.erase(0, newline + 1);
      return line;
    }
    searched = pending_.size();
    if (pending_.size() > kMaxLineBytes) return core::DataError("wrote a line without end");
    const ssize_t got = read(output_.get(), buffer.data(), buffer.size());
    if (got > 0) {
      pending_.append(buffer.data(), static_cast<size_t>(got));
      deadline = Now() + wait.seconds;
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      return std::nullopt;  // A reset by a child that was killed is an end as well.
    } else if (errno == EAGAIN) {
      BITSHARD_RETURN_IF_ERROR(WaitForEvent(POLLIN, deadline, wait));
    }
  }
}

std::string ChildProcess::End() {
  const double deadline = Now() + kSecondsToEnd;
  while (!Reap(false)) {
    if (Now() >= deadline) {
      Kill();
      break;
    }
    DrainErrors();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  DrainErrors();
  return how_it_ended_;
}

std::string ChildProcess::LastWords() {
  DrainErrors();
  std::vector<std::string> lines = absl::StrSplit(error_text_, '\n', absl::SkipWhitespace());
  if (lines.size() > kMaxErrorLines) {
    lines.erase(lines.begin(), lines.end() - static_cast<ptrdiff_t>(kMaxErrorLines));
  }
  std::string text;
  for (const std::string& line : lines) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", core::Escaped(line, 500));
  }
  return text;
}

}  // namespace bitshard::trainer
