#include "paging/paged_buffer.h"

#include <algorithm>

#include "core/check.h"
#include "core/status_macros.h"
#include "paging/file_buffer.h"
#include "paging/memory_resource.h"

namespace bitshard::paging {
namespace {

// Everything stays in memory: acquiring is an address.
class HostBuffer : public PagedBuffer {
 public:
  static absl::StatusOr<std::unique_ptr<PagedBuffer>> Create(int64_t num_pages,
                                                             int64_t page_bytes) {
    auto buffer = std::make_unique<HostBuffer>(num_pages, page_bytes);
    if (num_pages > 0) {
      BITSHARD_ASSIGN_OR_RETURN(
          buffer->memory_,
          Allocation<HostResource>::Create(&buffer->host_, num_pages * page_bytes, "pages"));
    }
    return buffer;
  }
  HostBuffer(int64_t num_pages, int64_t page_bytes)
      : num_pages_(num_pages), page_bytes_(page_bytes) {}

  int64_t num_pages() const override { return num_pages_; }
  int64_t page_bytes() const override { return page_bytes_; }
  int64_t resident_limit_bytes() const override { return num_pages_ * page_bytes_; }
  absl::Status BeginWalk() override { return absl::OkStatus(); }
  absl::Status EndWalk() override { return absl::OkStatus(); }
  absl::StatusOr<std::span<std::byte>> Acquire(int64_t page) override {
    BITSHARD_CHECK(page >= 0 && page < num_pages_) << page;
    ++counters_.hits;
    return memory_.memory().subspan(static_cast<size_t>(page * page_bytes_),
                                    static_cast<size_t>(page_bytes_));
  }
  absl::Status Release(int64_t, ReleaseOptions) override { return absl::OkStatus(); }
  PagingCounters counters() const override { return counters_; }

 private:
  const int64_t num_pages_;
  const int64_t page_bytes_;
  HostResource host_;
  Allocation<HostResource> memory_;
  PagingCounters counters_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PagedBuffer>> PagedBuffer::Create(int64_t num_pages,
                                                                 int64_t page_bytes,
                                                                 const PagingOptions& options) {
  BITSHARD_CHECK(num_pages >= 0 && page_bytes >= 1 && page_bytes % 64 == 0 &&
                 page_bytes <= INT64_MAX / std::max<int64_t>(num_pages, 1))
      << num_pages << " pages of " << page_bytes << " bytes";
  if (options.tier == Tier::kFile && num_pages > 0) {
    return FileBuffer::Create(num_pages, page_bytes, options);
  }
  return HostBuffer::Create(num_pages, page_bytes);
}

}  // namespace bitshard::paging
