#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/status_macros.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace bitshard::core {
namespace {

// AddressSanitizer knows nothing of mappings: the last page is readable up to its end. This makes
// reads beyond the file's end errors, and undoes it before the addresses are used for something
// else.
void GuardTail([[maybe_unused]] const std::byte* data, [[maybe_unused]] size_t size,
               [[maybe_unused]] bool guard) {
#if defined(__SANITIZE_ADDRESS__)
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t tail = (page - size % page) % page;
  if (guard) {
    __asan_poison_memory_region(data + size, tail);
  } else {
    __asan_unpoison_memory_region(data + size, tail);
  }
#endif
}

std::string ErrnoText() { return std::strerror(errno); }

absl::Status WriteFailure(const std::string& path, const char* what) {
  const char* hint = errno == ENOSPC || errno == EDQUOT ? "; free space or write elsewhere"
                     : errno == EFBIG                   ? "; raise the file size limit (ulimit -f)"
                                                        : "";
  return StorageError(absl::StrCat(Escaped(path, 4096), ": ", what, ": ", ErrnoText(), hint));
}

absl::StatusOr<ScopedFd> OpenRegular(const std::string& path, int64_t* size) {
  // O_NONBLOCK: opening a FIFO without a writer must not wait.
  ScopedFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0)
    return DataError(absl::StrCat(Escaped(path, 4096), ": can't be opened: ", ErrnoText()));
  struct stat info {};
  if (fstat(fd.get(), &info) != 0)
    return DataError(absl::StrCat(Escaped(path, 4096), ": ", ErrnoText()));
  if (!S_ISREG(info.st_mode))
    return DataError(absl::StrCat(Escaped(path, 4096), ": not a regular file"));
  *size = info.st_size;
  return fd;
}

std::string DirectoryOf(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace

ScopedFd::~ScopedFd() {
  if (fd_ >= 0) close(fd_);
}

ScopedFd& ScopedFd::operator=(ScopedFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  int64_t size = 0;
  BITSHARD_ASSIGN_OR_RETURN(const ScopedFd fd, OpenRegular(path, &size));
  const std::byte* data = nullptr;
  if (size > 0) {
    void* mapped = mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (mapped == MAP_FAILED)
      return DataError(absl::StrCat(Escaped(path, 4096), ": mmap: ", ErrnoText()));
    data = static_cast<const std::byte*>(mapped);
    GuardTail(data, static_cast<size_t>(size), true);
  }
  return std::unique_ptr<MappedFile>(new MappedFile(path, data, static_cast<size_t>(size)));
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  GuardTail(data_, size_, false);
  munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::Release(size_t offset, size_t bytes) const {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = (offset + bytes) / page * page;
  if (begin < end) madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::Create(const std::string& path) {
  const std::string temporary = absl::StrCat(path, ".tmp.", getpid());
  const int fd =
      open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return WriteFailure(temporary, "can't be created");
  return std::unique_ptr<AtomicFile>(new AtomicFile(path, temporary, fd));
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

absl::Status AtomicFile::Write(const void* data, size_t bytes) {
  BITSHARD_RETURN_IF_ERROR(WriteAll(fd_, data, bytes, temporary_));
  bytes_written_ += static_cast<int64_t>(bytes);
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  if (fsync(fd_) != 0) return WriteFailure(temporary_, "fsync");
  const int fd = fd_;
  fd_ = -1;
  if (close(fd) != 0) return WriteFailure(temporary_, "close");
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return WriteFailure(path_, "rename");
  temporary_.clear();
  return SyncDirectory(DirectoryOf(path_));
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  int64_t size = 0;
  BITSHARD_ASSIGN_OR_RETURN(const ScopedFd fd, OpenRegular(path, &size));
  if (size > max_bytes) {
    return DataError(
        absl::StrFormat("%s: %d bytes, want at most %d", Escaped(path, 4096), size, max_bytes));
  }
  std::string content(static_cast<size_t>(size), '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t got = read(fd.get(), content.data() + done, content.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return DataError(absl::StrCat(Escaped(path, 4096), ": read: ", ErrnoText()));
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  content.resize(done);
  return content;
}

absl::Status WriteFileAtomically(const std::string& path, const std::string& content) {
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> file, AtomicFile::Create(path));
  BITSHARD_RETURN_IF_ERROR(file->Write(content));
  return file->Commit();
}

absl::Status WriteAll(int fd, const void* data, size_t bytes, const std::string& path) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = write(fd, at, bytes);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return WriteFailure(path, "write");
    at += put;
    bytes -= static_cast<size_t>(put);
  }
  return absl::OkStatus();
}

absl::Status OpenStandardDescriptors() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    // In rising order, so that open takes this one.
    if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", O_RDWR) != fd)
      return StorageError(
          "/dev/null: can't be opened in the place of a standard descriptor that is closed");
  }
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& path) {
  const ScopedFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0 || fsync(fd.get()) != 0) return WriteFailure(path, "fsync of the directory");
  return absl::OkStatus();
}

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error)
    return StorageError(
        absl::StrCat(Escaped(path, 4096), ": can't make the directory: ", error.message()));
  return absl::OkStatus();
}

}  // namespace bitshard::core
