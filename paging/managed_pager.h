// The managed tier of DevicePagedBuffer: pages in managed memory. The driver could move them by
// itself, on faults, a few KiB at a time; here the plan does, whole pages ahead of their use.
//
// - Advice: host memory is the preferred location and the device has the pages mapped, so that no
//   access ever moves one: only the plan does.
// - A page comes by a prefetch to the device; one that is still zeros is discarded first, so that
//   nothing is copied, and filled there.
// - A page leaves by a prefetch to the host; one that is still zeros is discarded.
// - Prefetches and discards of a step of the plan are one batch.
#ifndef BITSHARD_PAGING_MANAGED_PAGER_H_
#define BITSHARD_PAGING_MANAGED_PAGER_H_

#include <memory>
#include <span>

#include "paging/cuda_resource.h"
#include "paging/stream_pager.h"

namespace bitshard::paging {

class ManagedPager : public StreamPager {
 public:
  /// Pages lie at multiples of it: 64 KiB, the largest page of any host that the driver supports,
  /// so that no two share a page of the system and move each other. (The driver puts ranges of 2
  /// MiB and more at multiples of 2 MiB.)
  static constexpr int64_t kAlignBytes = int64_t{64} << 10;
  static int64_t StrideBytes(int64_t page_bytes) {
    return (page_bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
  }

  /// Errors: kFailedPrecondition where managed memory is refused or not concurrent; kMemory.
  static absl::StatusOr<std::unique_ptr<DevicePagedBuffer>> Create(int64_t num_pages,
                                                                   int64_t page_bytes,
                                                                   int64_t num_frames);
  ~ManagedPager() override { Drain(); }

  DeviceTier tier() const override { return DeviceTier::kManaged; }
  int64_t device_limit_bytes() const override { return num_frames() * stride_bytes(); }
  int64_t host_bytes() const override { return num_pages() * stride_bytes(); }

 private:
  using StreamPager::StreamPager;
  absl::Status Allocate();
  absl::Status Leave(std::span<const PagerMove> moves, cudaStream_t stream) override;
  absl::Status Come(std::span<const PagerMove> moves, cudaStream_t stream) override;
  std::byte* AddressOf(int64_t page, int64_t) const override { return Home(page); }
  int64_t stride_bytes() const { return StrideBytes(page_bytes()); }
  std::byte* Home(int64_t page) const { return pages_.memory().data() + page * stride_bytes(); }

  int device_ = 0;
  ManagedResource managed_;
  Allocation<ManagedResource> pages_;
};

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_MANAGED_PAGER_H_
