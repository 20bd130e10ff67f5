#include "paging/page_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/status_macros.h"

namespace bitshard::paging {
namespace {

absl::Status SizeLimitError(const std::string& path, int64_t bytes) {
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
      static_cast<uint64_t>(bytes) <= limit.rlim_cur) {
    return absl::OkStatus();
  }
  return core::StorageError(
      absl::StrCat("paging file ", path, ": needs ", bytes, " bytes, but this process may write ",
                   "files of ", limit.rlim_cur, " bytes only (ulimit -f); raise the limit"));
}

// Reserves the space, so that a full disk shows here and never in the middle of training.
absl::Status Reserve(int fd, const std::string& path, int64_t bytes) {
  BITSHARD_RETURN_IF_ERROR(SizeLimitError(path, bytes));
  int error = 0;
  do {
    error = posix_fallocate(fd, 0, bytes);
  } while (error == EINTR);
  if (error == 0) return absl::OkStatus();
  struct statvfs disk {};
  const std::string free = fstatvfs(fd, &disk) == 0 ? absl::StrCat(disk.f_bavail * disk.f_frsize)
                                                    : "an unknown number of";
  return core::StorageError(absl::StrCat(
      "paging file ", path, ": needs ", bytes, " bytes, the file system has ", free, " free (",
      std::strerror(error), "); set paging.directory to one with more space"));
}

}  // namespace

PageFile::PageFile(const PageFileOptions& options, std::string path, core::ScopedFd fd)
    : path_(std::move(path)),
      page_bytes_(options.page_bytes),
      fd_(std::move(fd)),
      checksums_(static_cast<size_t>(options.num_pages)) {}

absl::StatusOr<std::unique_ptr<PageFile>> PageFile::Create(const PageFileOptions& options) {
  BITSHARD_CHECK(options.num_pages >= 1 && options.page_bytes >= 1 &&
                 options.page_bytes <= INT64_MAX / options.num_pages)
      << options.num_pages << " pages of " << options.page_bytes << " bytes";
  std::string path = absl::StrCat(options.directory, "/bitshard-paging-XXXXXX");
  core::ScopedFd fd(mkostemp(path.data(), O_CLOEXEC));
  if (fd.get() < 0) {
    return core::ConfigError(
        absl::StrCat("paging.directory: no file can be made in '", core::Escaped(options.directory),
                     "' (", std::strerror(errno), "); name an existing, writable directory"));
  }
  const absl::Status reserved = Reserve(fd.get(), path, options.num_pages * options.page_bytes);
  unlink(path.c_str());
  if (!reserved.ok()) return reserved;
  return std::unique_ptr<PageFile>(new PageFile(options, std::move(path), std::move(fd)));
}

std::string PageFile::PageName(int64_t page) const {
  return absl::StrCat("paging file ", path_, ", page ", page);
}

absl::Status PageFile::Write(int64_t page, std::span<const std::byte> data) {
  BITSHARD_CHECK(static_cast<int64_t>(data.size()) == page_bytes_) << data.size();
  for (size_t done = 0; done < data.size();) {
    const ssize_t n = pwrite(fd_.get(), data.data() + done, data.size() - done,
                             page * page_bytes_ + static_cast<int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return core::StorageError(
          absl::StrCat(PageName(page), ": can't be written: ", std::strerror(n < 0 ? errno : EIO)));
    }
    done += static_cast<size_t>(n);
  }
  checksums_[static_cast<size_t>(page)] = core::Hash64(data.data(), data.size());
  bytes_written_ += page_bytes_;
  return absl::OkStatus();
}

absl::Status PageFile::Read(int64_t page, std::span<std::byte> data) {
  BITSHARD_CHECK(static_cast<int64_t>(data.size()) == page_bytes_) << data.size();
  for (size_t done = 0; done < data.size();) {
    const ssize_t n = pread(fd_.get(), data.data() + done, data.size() - done,
                            page * page_bytes_ + static_cast<int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return core::StorageError(absl::StrCat(
          PageName(page),
          ": can't be read: ", n < 0 ? std::strerror(errno) : "the file ends before it"));
    }
    done += static_cast<size_t>(n);
  }
  bytes_read_ += page_bytes_;
  if (core::Hash64(data.data(), data.size()) != checksums_[static_cast<size_t>(page)]) {
    return core::StorageError(
        absl::StrCat(PageName(page), ": its content is not what was written (checksum differs): ",
                     "the disk or memory is damaged; resume from the last checkpoint, with "
                     "paging.directory on another disk"));
  }
  return absl::OkStatus();
}

}  // namespace bitshard::paging
