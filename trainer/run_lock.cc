#include "trainer/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::trainer {
namespace {

// What the file says of its holder; it may say anything.
std::string ReadHolder(int fd) {
  char buffer[300];
  const ssize_t got = pread(fd, buffer, sizeof buffer, 0);
  const std::string text(buffer, static_cast<size_t>(got > 0 ? got : 0));
  return core::Escaped(text.substr(0, text.find('\n')));
}

std::string ThisProcess() {
  char host[256] = "?";
  (void)gethostname(host, sizeof host - 1);
  return absl::StrCat("process ", getpid(), " on ", host);
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunLock>> RunLock::Acquire(const std::string& directory) {
  const absl::Status made = core::MakeDirectories(directory);
  if (!made.ok()) return core::ConfigError("output_dir: " + std::string(made.message()));
  const std::string path = directory + "/.lock";
  core::ScopedFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (fd.get() < 0) {
    return core::ConfigError(
        absl::StrCat("output_dir: ", core::Escaped(path, 4096), ": ", std::strerror(errno)));
  }
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return core::ConfigError(absl::StrCat("output_dir: ", core::Escaped(path, 4096),
                                            ": flock: ", std::strerror(errno)));
    }
    const std::string holder = ReadHolder(fd.get());
    return core::ConfigError(absl::StrCat("output_dir: ", core::Escaped(directory, 4096),
                                          " is in use by ", holder.empty() ? "another job" : holder,
                                          "; wait for it, or choose another output_dir"));
  }
  const std::string before = ReadHolder(fd.get());
  const std::string text = ThisProcess() + "\n";
  if (ftruncate(fd.get(), 0) != 0 ||
      pwrite(fd.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    return core::ConfigError(absl::StrCat("output_dir: ", core::Escaped(path, 4096),
                                          ": can't be written: ", std::strerror(errno)));
  }
  return std::unique_ptr<RunLock>(new RunLock(std::move(fd), before));
}

RunLock::~RunLock() {
  // An empty file says that its last holder gave it back. The file stays: were it removed, a job
  // that has it open and one that makes it anew would both hold a lock.
  if (ftruncate(fd_.get(), 0) != 0) return;
}

}  // namespace bitshard::trainer
