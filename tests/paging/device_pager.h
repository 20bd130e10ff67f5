// A pager on a device under test, through the CUDA runtime alone.
#ifndef BITSHARD_TESTS_PAGING_DEVICE_PAGER_H_
#define BITSHARD_TESTS_PAGING_DEVICE_PAGER_H_

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/cuda_stream.h"
#include "paging/cuda_resource.h"
#include "paging/device_paged_buffer.h"
#include "tests/paging/pager_under_test.h"

namespace bitshard::paging {

/// Even pages are used on one stream, odd ones on another; which of the two changes with each use,
/// so that only the pager keeps the order. Nothing waits for the device before Finish.
class DevicePager : public PagerUnderTest {
 public:
  explicit DevicePager(std::unique_ptr<DevicePagedBuffer> buffer) : buffer_(std::move(buffer)) {
    for (core::Stream& stream : streams_) stream = *core::Stream::Create();
  }
  ~DevicePager() override { Wait(); }

  absl::Status BeginWalk() override { return buffer_->BeginWalk(); }
  absl::Status EndWalk() override { return buffer_->EndWalk(); }
  absl::Status Acquire(int64_t page) override {
    Use use{.stream = streams_[static_cast<size_t>((page + num_uses_++) % 2)].get()};
    const absl::StatusOr<std::byte*> at = buffer_->Acquire(page, use.stream);
    if (!at.ok()) return at.status();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(*at) % 64, 0u);
    use.at = *at;
    acquired_[page] = use;
    return absl::OkStatus();
  }
  absl::Status Release(int64_t page, bool dirty) override {
    const Use use = acquired_.at(page);
    acquired_.erase(page);
    return buffer_->Release(page, use.stream, {.dirty = dirty});
  }
  void Expect(int64_t page, int64_t version) override {
    Slot& slot = NewSlot();
    slot.page = page;
    slot.version = version;
    Copy(slot.bytes.memory().data(), acquired_.at(page).at, acquired_.at(page).stream);
  }
  void Write(int64_t page, int64_t version) override {
    Slot& slot = NewSlot();
    Fill(slot.bytes.memory(), page, version);
    Copy(acquired_.at(page).at, slot.bytes.memory().data(), acquired_.at(page).stream);
  }
  void Finish() override {
    Wait();
    for (const Slot& slot : slots_) {
      if (slot.page < 0) continue;
      EXPECT_TRUE(Holds(slot.bytes.memory(), slot.page, slot.version));
    }
    slots_.clear();
  }
  PagingCounters counters() override { return buffer_->counters(); }
  int64_t num_pages() override { return buffer_->num_pages(); }
  int64_t page_bytes() override { return buffer_->page_bytes(); }
  int64_t limit_bytes() override { return buffer_->device_limit_bytes(); }

 private:
  struct Use {
    cudaStream_t stream = nullptr;
    std::byte* at = nullptr;
  };
  struct Slot {
    int64_t page = -1;  // -1: the source of a write.
    int64_t version = 0;
    Allocation<PinnedResource> bytes;
  };

  Slot& NewSlot() {
    auto bytes = Allocation<PinnedResource>::Create(&pinned_, kPageBytes, "test");
    BITSHARD_CHECK(bytes.ok()) << bytes.status().ToString();
    slots_.push_back({.bytes = *std::move(bytes)});
    return slots_.back();
  }
  void Copy(void* to, const void* from, cudaStream_t stream) {
    EXPECT_EQ(cudaMemcpyAsync(to, from, kPageBytes, cudaMemcpyDefault, stream), cudaSuccess);
  }
  void Wait() {
    for (const core::Stream& stream : streams_) EXPECT_TRUE(stream.Synchronize().ok());
  }

  std::unique_ptr<DevicePagedBuffer> buffer_;
  core::Stream streams_[2];
  PinnedResource pinned_;
  std::vector<Slot> slots_;
  std::map<int64_t, Use> acquired_;
  int64_t num_uses_ = 0;
};

inline std::unique_ptr<DevicePagedBuffer> MakeDeviceBuffer(DeviceTier tier, int64_t resident_pages,
                                                           int64_t num_pages = kPages) {
  const int64_t stride = DevicePagedBuffer::PageStrideBytes(tier, kPageBytes);
  auto buffer = DevicePagedBuffer::Create(num_pages, kPageBytes,
                                          {.tier = tier, .budget_bytes = resident_pages * stride});
  BITSHARD_CHECK(buffer.ok()) << buffer.status().ToString();
  return *std::move(buffer);
}

}  // namespace bitshard::paging

#endif  // BITSHARD_TESTS_PAGING_DEVICE_PAGER_H_
