// Files: mapped reads, and writes that are complete or not there.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto map, core::MappedFile::Open(path));        // map->bytes()
//   BITSHARD_ASSIGN_OR_RETURN(auto out, core::AtomicFile::Create(path));
//   BITSHARD_RETURN_IF_ERROR(out->Write(data, n));
//   BITSHARD_RETURN_IF_ERROR(out->Commit());     // fsync, rename over `path`, fsync the directory
#ifndef BITSHARD_CORE_FILE_H_
#define BITSHARD_CORE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bitshard::core {

/// A read-only private mapping of a regular file. Immutable, so safe to share between threads.
class MappedFile {
 public:
  /// Errors: kData when the path does not exist, can't be read or is no regular file (FIFOs and
  /// devices are refused before they are opened for reading).
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  /// Tells the kernel that pages wholly inside [offset, offset + bytes) are not needed again soon;
  /// they stop counting as resident memory and are read again from the file if touched.
  void Release(size_t offset, size_t bytes) const;

 private:
  MappedFile(std::string path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}
  std::string path_;
  const std::byte* data_;
  size_t size_;
};

/// A file written beside its final name (`path.tmp.PID`) and renamed over it by Commit. Without
/// Commit the temporary file is removed by the destructor and `path` is untouched. Errors: kStorage
/// with path, bytes and the system's text; the disk being full says so. Short writes and EINTR are
/// continued; after a failed fsync nothing is retried.
class AtomicFile {
 public:
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  absl::Status Write(const void* data, size_t bytes);
  absl::Status Write(const std::string& text) { return Write(text.data(), text.size()); }
  absl::Status Commit();
  int64_t bytes_written() const { return bytes_written_; }

 private:
  AtomicFile(std::string path, std::string temporary, int fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}
  std::string path_;
  std::string temporary_;
  int fd_;
  int64_t bytes_written_ = 0;
};

/// The whole file. Errors: kData; more than `max_bytes` is refused before reading.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes = int64_t{1} << 30);

/// AtomicFile in one call.
absl::Status WriteFileAtomically(const std::string& path, const std::string& content);

/// write(2) until all is written. Errors: kStorage, naming `path`.
absl::Status WriteAll(int fd, const void* data, size_t bytes, const std::string& path);

/// Opens /dev/null as each of the descriptors 0, 1 and 2 that is closed: else the next file that is
/// opened gets its number, and what is meant for standard output is written into it. First in main.
/// Errors: kStorage.
absl::Status OpenStandardDescriptors();

/// fsync of a directory, so that renames and new names in it survive power loss.
absl::Status SyncDirectory(const std::string& path);

/// mkdir -p. Errors: kStorage.
absl::Status MakeDirectories(const std::string& path);

/// Closes a file descriptor at the end of its scope.
class ScopedFd {
 public:
  explicit ScopedFd(int fd = -1) : fd_(fd) {}
  ~ScopedFd();
  ScopedFd(ScopedFd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  ScopedFd& operator=(ScopedFd&& other) noexcept;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_FILE_H_
