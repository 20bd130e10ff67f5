// The file below a paged buffer: pages with checksums, in a file without a name.
//
//   const PageFileOptions options{.directory = dir, .num_pages = 100, .page_bytes = 1 << 20};
//   BITSHARD_ASSIGN_OR_RETURN(auto file, PageFile::Create(options));
//   BITSHARD_RETURN_IF_ERROR(file->Write(3, page));
//   BITSHARD_RETURN_IF_ERROR(file->Read(3, page));      // or an error that names page 3
#ifndef BITSHARD_PAGING_PAGE_FILE_H_
#define BITSHARD_PAGING_PAGE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/file.h"

namespace bitshard::paging {

struct PageFileOptions {
  std::string directory;
  int64_t num_pages = 0;
  int64_t page_bytes = 0;
};

/// Threads: one at a time. EINTR and short transfers are continued.
class PageFile {
 public:
  /// Reserves the whole file on the disk, then removes its name: the space is given back however
  /// the process ends. Errors: kConfig when the directory can't be written to; kStorage when the
  /// disk has too little space (with bytes needed and free), or the file size limit is too low.
  static absl::StatusOr<std::unique_ptr<PageFile>> Create(const PageFileOptions& options);

  /// Errors: kStorage naming file and page: the system's error, a file that ends early, or (Read) a
  /// checksum (XXH3) that is not that of what was written last. A page must have been written
  /// before it is read.
  absl::Status Write(int64_t page, std::span<const std::byte> data);
  absl::Status Read(int64_t page, std::span<std::byte> data);

  int64_t bytes_read() const { return bytes_read_; }
  int64_t bytes_written() const { return bytes_written_; }

 private:
  PageFile(const PageFileOptions& options, std::string path, core::ScopedFd fd);
  std::string PageName(int64_t page) const;

  const std::string path_;
  const int64_t page_bytes_;
  core::ScopedFd fd_;
  std::vector<uint64_t> checksums_;
  int64_t bytes_read_ = 0;
  int64_t bytes_written_ = 0;
};

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_PAGE_FILE_H_
