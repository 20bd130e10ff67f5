#include "paging/device_paged_buffer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/cuda_status.h"
#include "core/cuda_stream.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "paging/cuda_resource.h"
#include "paging/managed_pager.h"
#include "paging/pinned_pager.h"

namespace bitshard::paging {
namespace {

// Everything stays on the device: acquiring is an address and the order of users.
class ResidentBuffer : public DevicePagedBuffer {
 public:
  static absl::StatusOr<std::unique_ptr<DevicePagedBuffer>> Create(int64_t num_pages,
                                                                   int64_t page_bytes) {
    auto buffer = std::make_unique<ResidentBuffer>(num_pages, page_bytes);
    if (num_pages == 0) return buffer;
    const int64_t bytes = num_pages * page_bytes;
    BITSHARD_ASSIGN_OR_RETURN(buffer->memory_,
                              Allocation<DeviceResource>::Create(&buffer->device_, bytes, "pages"));
    for (core::Event& used : buffer->used_) {
      BITSHARD_ASSIGN_OR_RETURN(used, core::Event::Create());
    }
    BITSHARD_ASSIGN_OR_RETURN(const core::Stream stream, core::Stream::Create());
    BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemsetAsync(
        buffer->memory_.memory().data(), 0, static_cast<size_t>(bytes), stream.get())));
    BITSHARD_RETURN_IF_ERROR(stream.Synchronize());
    return buffer;
  }
  ResidentBuffer(int64_t num_pages, int64_t page_bytes)
      : num_pages_(num_pages), page_bytes_(page_bytes), used_(static_cast<size_t>(num_pages)) {}
  ~ResidentBuffer() override {
    for (const core::Event& used : used_) (void)used.Synchronize();
  }

  DeviceTier tier() const override { return DeviceTier::kDevice; }
  int64_t num_pages() const override { return num_pages_; }
  int64_t page_bytes() const override { return page_bytes_; }
  int64_t device_limit_bytes() const override { return num_pages_ * page_bytes_; }
  int64_t host_bytes() const override { return 0; }
  absl::Status BeginWalk() override { return absl::OkStatus(); }
  absl::Status EndWalk() override { return absl::OkStatus(); }
  absl::StatusOr<std::byte*> Acquire(int64_t page, cudaStream_t stream) override {
    BITSHARD_CHECK(page >= 0 && page < num_pages_) << page;
    BITSHARD_RETURN_IF_ERROR(used_[static_cast<size_t>(page)].MakeWait(stream));
    ++counters_.hits;
    return memory_.memory().data() + page * page_bytes_;
  }
  absl::Status Release(int64_t page, cudaStream_t stream, ReleaseOptions) override {
    return used_[static_cast<size_t>(page)].Record(stream);
  }
  PagingCounters counters() const override { return counters_; }

 private:
  const int64_t num_pages_;
  const int64_t page_bytes_;
  DeviceResource device_;
  Allocation<DeviceResource> memory_;
  std::vector<core::Event> used_;
  PagingCounters counters_;
};

absl::StatusOr<int64_t> NumFrames(int64_t num_pages, int64_t stride_bytes, int64_t budget_bytes) {
  const int64_t least = std::min<int64_t>(num_pages, 2);
  const int64_t frames = std::min(num_pages, budget_bytes / stride_bytes);
  if (frames >= least) return frames;
  return core::ConfigError(absl::StrCat("paging.budget: ", budget_bytes, " bytes, want at least ",
                                        least * stride_bytes, " (", least, " pages of ",
                                        stride_bytes, " bytes: one to work on, one on its way)"));
}

}  // namespace

int64_t DevicePagedBuffer::PageStrideBytes(DeviceTier tier, int64_t page_bytes) {
  return tier == DeviceTier::kManaged ? ManagedPager::StrideBytes(page_bytes) : page_bytes;
}

absl::StatusOr<std::unique_ptr<DevicePagedBuffer>> DevicePagedBuffer::Create(
    int64_t num_pages, int64_t page_bytes, const DevicePagingOptions& options) {
  BITSHARD_CHECK(num_pages >= 0 && page_bytes >= 1 && page_bytes % 64 == 0 &&
                 page_bytes <= INT64_MAX / 2 / std::max<int64_t>(num_pages, 1))
      << num_pages << " pages of " << page_bytes << " bytes";
  if (options.tier == DeviceTier::kDevice || num_pages == 0)
    return ResidentBuffer::Create(num_pages, page_bytes);
  BITSHARD_ASSIGN_OR_RETURN(
      const int64_t frames,
      NumFrames(num_pages, PageStrideBytes(options.tier, page_bytes), options.budget_bytes));
  if (options.tier == DeviceTier::kPinned)
    return PinnedPager::Create(num_pages, page_bytes, frames);
  auto managed = ManagedPager::Create(num_pages, page_bytes, frames);
  if (managed.status().code() != absl::StatusCode::kFailedPrecondition) return managed;
  BITSHARD_ASSIGN_OR_RETURN(auto pinned, PinnedPager::Create(num_pages, page_bytes, frames));
  pinned->notice_ = absl::StrCat("paging: ", managed.status().message(),
                                 "; optimizer state is in pinned host memory instead");
  return pinned;
}

}  // namespace bitshard::paging
