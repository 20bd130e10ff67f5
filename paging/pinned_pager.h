// The pinned tier of DevicePagedBuffer: pages in pinned host memory, and some frames of device
// memory that they are copied to and from, beside the kernels of the pages before and after.
#ifndef BITSHARD_PAGING_PINNED_PAGER_H_
#define BITSHARD_PAGING_PINNED_PAGER_H_

#include <memory>
#include <span>

#include "paging/cuda_resource.h"
#include "paging/stream_pager.h"

namespace bitshard::paging {

class PinnedPager : public StreamPager {
 public:
  /// Errors: kMemory, for the device's and the host's.
  static absl::StatusOr<std::unique_ptr<DevicePagedBuffer>> Create(int64_t num_pages,
                                                                   int64_t page_bytes,
                                                                   int64_t num_frames);
  ~PinnedPager() override { Drain(); }

  DeviceTier tier() const override { return DeviceTier::kPinned; }
  int64_t device_limit_bytes() const override { return num_frames() * page_bytes(); }
  int64_t host_bytes() const override { return num_pages() * page_bytes(); }

 private:
  using StreamPager::StreamPager;
  absl::Status Allocate();
  absl::Status Leave(std::span<const PagerMove> moves, cudaStream_t stream) override;
  absl::Status Come(std::span<const PagerMove> moves, cudaStream_t stream) override;
  std::byte* AddressOf(int64_t, int64_t frame) const override { return Frame(frame); }
  std::byte* Frame(int64_t frame) const { return frames_.memory().data() + frame * page_bytes(); }
  std::byte* Home(int64_t page) const { return pages_.memory().data() + page * page_bytes(); }

  PinnedResource pinned_;
  DeviceResource device_;
  Allocation<PinnedResource> pages_;
  Allocation<DeviceResource> frames_;
};

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_PINNED_PAGER_H_
