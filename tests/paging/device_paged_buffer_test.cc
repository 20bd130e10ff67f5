// The suite of all pagers over the device's tiers, then what only they have.
#include "paging/device_paged_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/paging/device_pager.h"
#include "tests/paging/pager_conformance.h"

namespace bitshard::paging {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

PagerCase Case(const std::string& name, DeviceTier tier, int64_t resident) {
  const int64_t stride = DevicePagedBuffer::PageStrideBytes(tier, kPageBytes);
  return {.name = name,
          .limit_bytes = std::min(kPages, resident) * stride,
          .stride_bytes = stride,
          .resident = std::min(kPages, resident),
          .one_copy = tier == DeviceTier::kManaged,
          .make = [=](int64_t num_pages) {
            auto buffer = MakeDeviceBuffer(tier, resident, num_pages);
            if (num_pages > 0 && buffer->tier() != tier) return std::unique_ptr<DevicePager>();
            return std::make_unique<DevicePager>(std::move(buffer));
          }};
}

INSTANTIATE_TEST_SUITE_P(Device, PagerConformance,
                         testing::Values(Case("Device", DeviceTier::kDevice, kPages),
                                         Case("PinnedTwoPages", DeviceTier::kPinned, 2),
                                         Case("PinnedThreePages", DeviceTier::kPinned, 3),
                                         Case("PinnedFivePages", DeviceTier::kPinned, 5),
                                         Case("PinnedAllPages", DeviceTier::kPinned, 100),
                                         Case("ManagedTwoPages", DeviceTier::kManaged, 2),
                                         Case("ManagedThreePages", DeviceTier::kManaged, 3),
                                         Case("ManagedFivePages", DeviceTier::kManaged, 5),
                                         Case("ManagedAllPages", DeviceTier::kManaged, 100)),
                         [](const auto& info) { return info.param.name; });

TEST(DevicePagedBuffer, HoldsTheOthersInHostMemory) {
  EXPECT_EQ(MakeDeviceBuffer(DeviceTier::kDevice, 0)->host_bytes(), 0);
  EXPECT_EQ(MakeDeviceBuffer(DeviceTier::kPinned, 2)->host_bytes(), kPages * kPageBytes);
  EXPECT_EQ(MakeDeviceBuffer(DeviceTier::kDevice, 0)->notice(), "");
}

TEST(DevicePagedBuffer, RefusesABudgetOfLessThanTwoPages) {
  for (const DeviceTier tier : {DeviceTier::kPinned, DeviceTier::kManaged}) {
    const int64_t stride = DevicePagedBuffer::PageStrideBytes(tier, kPageBytes);
    const DevicePagingOptions one{.tier = tier, .budget_bytes = 2 * stride - 1};
    const absl::Status status = DevicePagedBuffer::Create(kPages, kPageBytes, one).status();
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kConfig);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("paging.budget"), HasSubstr(std::to_string(2 * stride))));
    EXPECT_TRUE(DevicePagedBuffer::Create(1, kPageBytes, one).ok()) << "one page needs no second";
  }
}

TEST(DevicePagedBuffer, SaysHowMuchMemoryIsMissing) {
  for (const DeviceTier tier : {DeviceTier::kDevice, DeviceTier::kPinned}) {
    const DevicePagingOptions options{.tier = tier, .budget_bytes = int64_t{1} << 51};
    const absl::Status status = DevicePagedBuffer::Create(2, int64_t{1} << 50, options).status();
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kMemory) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("pages: want 2251799813685248 bytes"));
  }
}

// A whole walk is put on the stream before anything of it has to have run; each page is asked for
// ahead of its use.
TEST(DevicePagedBuffer, WalksFindPagesOnTheirWay) {
  for (const DeviceTier tier : {DeviceTier::kPinned, DeviceTier::kManaged}) {
    DevicePager pager(MakeDeviceBuffer(tier, 3));
    for (int walk = 0; walk < 3; ++walk) {
      ASSERT_TRUE(pager.BeginWalk().ok());
      for (int64_t page = 0; page < kPages; ++page) {
        ASSERT_TRUE(pager.Acquire(page).ok());
        pager.Write(page, walk + 1);
        ASSERT_TRUE(pager.Release(page, true).ok());
      }
      ASSERT_TRUE(pager.EndWalk().ok());
    }
    pager.Finish();
    EXPECT_EQ(pager.counters().faults, 0);
    EXPECT_EQ(pager.counters().hits, 3 * kPages);
    EXPECT_GE(pager.counters().stall_seconds, 0);
  }
}

}  // namespace
}  // namespace bitshard::paging
