// PagedBuffer: an array of bytes, in pages, of which only some need be in host memory at a time.
//
// The optimizer walks its state in a known order, so what comes next is exact knowledge, not a
// guess: a step announces its walk, and pages are read ahead and written behind by the plan of
// paging/residency_policy.h.
//
//   BITSHARD_RETURN_IF_ERROR(buffer->BeginWalk());  // pages 0, 1, 2, ... once each
//
//   for (int64_t page = 0; page < buffer->num_pages(); ++page) {
//     BITSHARD_ASSIGN_OR_RETURN(std::span<std::byte> bytes, buffer->Acquire(page));
//     ...  // read and write in place
//     BITSHARD_RETURN_IF_ERROR(buffer->Release(page, {.dirty = true}));
//   }
//   BITSHARD_RETURN_IF_ERROR(buffer->EndWalk());
#ifndef BITSHARD_PAGING_PAGED_BUFFER_H_
#define BITSHARD_PAGING_PAGED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bitshard::paging {

enum class Tier { kHost, kFile };

struct PagingOptions {
  Tier tier = Tier::kHost;
  int64_t budget_bytes = 0;  ///< kFile: host memory for resident pages; at least two pages.
  std::string directory;     ///< kFile: where the backing file is made; must exist.
};

/// Since creation.
struct PagingCounters {
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  int64_t hits = 0;          ///< Acquire found the page resident.
  int64_t faults = 0;        ///< Acquire had to read it (or wait for the read).
  double stall_seconds = 0;  ///< Time that Acquire and EndWalk waited for I/O.
};

struct ReleaseOptions {
  bool dirty = false;
};

/// Threads: one thread calls it. Pages start as zeros.
/// At most as many pages are acquired at a time as the budget holds.
/// Errors: kStorage naming the file and page for I/O failures and for a page whose checksum does
/// not match what was written; kMemory where memory can't be had.
class PagedBuffer {
 public:
  /// `num_pages` >= 0; `page_bytes` a multiple of 64; the last page is whole too. kFile
  /// preallocates the whole file at once, so a full disk is an error here (with bytes needed and
  /// free) and not in the middle of training. The backing file is unlinked as soon as it is open:
  /// nothing is left behind however the process ends.
  static absl::StatusOr<std::unique_ptr<PagedBuffer>> Create(int64_t num_pages, int64_t page_bytes,
                                                             const PagingOptions& options);
  virtual ~PagedBuffer() = default;

  virtual int64_t num_pages() const = 0;
  virtual int64_t page_bytes() const = 0;
  /// Most host memory that the buffer holds at a time.
  virtual int64_t resident_limit_bytes() const = 0;

  /// Announces that pages 0 .. num_pages-1 will be acquired in order.
  virtual absl::Status BeginWalk() = 0;
  virtual absl::Status EndWalk() = 0;
  /// The page's bytes, 64-byte aligned, in place until Release. Works outside a walk too, without
  /// read-ahead.
  virtual absl::StatusOr<std::span<std::byte>> Acquire(int64_t page) = 0;
  virtual absl::Status Release(int64_t page, ReleaseOptions options) = 0;
  virtual PagingCounters counters() const = 0;
};

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_PAGED_BUFFER_H_
