#include "trainer/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
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

absl::StatusOr<core::ScopedFd> RunLock::OpenAndLock(const std::string& directory, bool* made_file) {
  const std::string path = directory + "/.lock";
  const auto failed = [&](const std::string& what) {
    return core::ConfigError(
        absl::StrCat("output_dir: ", core::Escaped(path, 4096), ": ", what, std::strerror(errno)));
  };
  while (true) {
    struct stat before {
    }, named{}, held{};
    *made_file = lstat(path.c_str(), &before) != 0;
    core::ScopedFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (fd.get() < 0) return failed("");
    if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return failed("flock: ");
      const std::string holder = ReadHolder(fd.get());
      return core::ConfigError(absl::StrCat(
          "output_dir: ", core::Escaped(directory, 4096), " is in use by ",
          holder.empty() ? "another job" : holder, "; wait for it, or choose another output_dir"));
    }
    // A job that ended early may have removed the file after it was opened here: a lock on what has
    // no name any more keeps nobody out.
    if (fstat(fd.get(), &held) == 0 && stat(path.c_str(), &named) == 0 &&
        held.st_dev == named.st_dev && held.st_ino == named.st_ino)
      return fd;
  }
}

absl::StatusOr<std::unique_ptr<RunLock>> RunLock::Acquire(const std::string& directory) {
  struct stat info {};
  const bool made_directory = stat(directory.c_str(), &info) != 0;
  const absl::Status made = core::MakeDirectories(directory);
  if (!made.ok()) return core::ConfigError("output_dir: " + std::string(made.message()));
  bool made_file = false;
  BITSHARD_ASSIGN_OR_RETURN(core::ScopedFd fd, OpenAndLock(directory, &made_file));
  const std::string before = ReadHolder(fd.get());
  std::unique_ptr<RunLock> lock(new RunLock(directory, std::move(fd), before));
  lock->made_file_ = made_file;
  lock->made_directory_ = made_directory;
  const std::string text = ThisProcess() + "\n";
  if (ftruncate(lock->fd_.get(), 0) != 0) {
    return core::StorageError(absl::StrCat("output_dir: ", core::Escaped(directory, 4096),
                                           "/.lock: can't be cut: ", std::strerror(errno)));
  }
  BITSHARD_RETURN_IF_ERROR(
      core::WriteAll(lock->fd_.get(), text.data(), text.size(), directory + "/.lock"));
  return lock;
}

RunLock::~RunLock() {
  if (!keep_ && made_file_) {
    (void)unlink((directory_ + "/.lock").c_str());  // Under the lock; see OpenAndLock.
    if (made_directory_) (void)rmdir(directory_.c_str());
    return;
  }
  // An empty file says that its last holder gave it back.
  if (ftruncate(fd_.get(), 0) != 0) return;
}

}  // namespace bitshard::trainer
