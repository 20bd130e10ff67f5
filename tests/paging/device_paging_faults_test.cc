// What a device can do to a pager, on the stand-in, where it can be made to: little memory, no
// concurrent managed memory, calls that fail, streams that run in any order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "tests/cudahost/runtime.h"
#include "tests/paging/device_pager.h"

namespace bitshard::paging {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr size_t kSystemPage = 64 << 10;  // so that pages of the test do not share one

class OnStandIn : public testing::Test {
 protected:
  OnStandIn() { Start({}); }
  ~OnStandIn() override {
    EXPECT_THAT(cudahost::TakeReports(), IsEmpty());
    cudahost::Reset();
  }
  static void Start(cudahost::Settings settings) {
    cudahost::Reset();
    settings.managed_page_bytes = kSystemPage;
    cudahost::Configure(settings);
  }
};
class DevicePagingFaults : public OnStandIn, public testing::WithParamInterface<DeviceTier> {};
std::string NameOf(const testing::TestParamInfo<DeviceTier>& info) {
  if (info.param == DeviceTier::kDevice) return "Device";
  return info.param == DeviceTier::kPinned ? "Pinned" : "Managed";
}
INSTANTIATE_TEST_SUITE_P(Tiers, DevicePagingFaults,
                         testing::Values(DeviceTier::kDevice, DeviceTier::kPinned,
                                         DeviceTier::kManaged),
                         NameOf);

absl::Status Walk(DevicePager* pager, int64_t version) {
  absl::Status status = pager->BeginWalk();
  for (int64_t page = 0; status.ok() && page < kPages; ++page) {
    status = pager->Acquire(page);
    if (!status.ok()) break;
    if (version > 1) pager->Expect(page, version - 1);
    pager->Write(page, version);
    status = pager->Release(page, true);
  }
  return status.ok() ? pager->EndWalk() : status;
}

TEST_P(DevicePagingFaults, NoOrderOfStreamsChangesABit) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    for (const int64_t resident : {2, 3, 5}) {
      SCOPED_TRACE(absl::StrCat("seed ", seed, ", resident ", resident));
      Start({.seed = seed});
      DevicePager pager(MakeDeviceBuffer(GetParam(), resident));
      for (int64_t version = 1; version <= 3; ++version) ASSERT_TRUE(Walk(&pager, version).ok());
      pager.Finish();
    }
  }
}

TEST_F(OnStandIn, ManagedPagesMoveByPlanAlone) {
  const int64_t resident = 3;
  // Not one byte more than the budget: nothing has to be evicted for want of room.
  Start({.device_bytes = resident * kSystemPage});
  auto buffer = MakeDeviceBuffer(DeviceTier::kManaged, resident);
  ASSERT_EQ(buffer->tier(), DeviceTier::kManaged);
  DevicePager pager(std::move(buffer));
  for (int64_t version = 1; version <= 4; ++version) ASSERT_TRUE(Walk(&pager, version).ok());
  pager.Finish();
  const cudahost::ManagedCounters moved = cudahost::CurrentManagedCounters();
  EXPECT_EQ(moved.evictions, 0);
  EXPECT_EQ(moved.device_faults, 0);
  EXPECT_EQ(moved.host_faults, 0);
  EXPECT_EQ(moved.bytes_to_device, pager.counters().bytes_read);
  EXPECT_EQ(moved.bytes_to_host, pager.counters().bytes_written);
}

// So that an access from the device would be carried out where the page is, and not move it.
TEST_F(OnStandIn, ManagedPagesPreferTheHost) {
  auto buffer = MakeDeviceBuffer(DeviceTier::kManaged, 2);
  const core::Stream stream = *core::Stream::Create();
  ASSERT_TRUE(buffer->BeginWalk().ok());
  const absl::StatusOr<std::byte*> page = buffer->Acquire(0, stream.get());
  ASSERT_TRUE(page.ok()) << page.status();
  int preferred = cudaInvalidDeviceId;
  ASSERT_EQ(cudaMemRangeGetAttribute(&preferred, sizeof preferred,
                                     cudaMemRangeAttributePreferredLocation, *page, kSystemPage),
            cudaSuccess);
  EXPECT_EQ(preferred, cudaCpuDeviceId);
  ASSERT_TRUE(buffer->Release(0, stream.get(), {}).ok());
  ASSERT_TRUE(buffer->EndWalk().ok());
}

TEST_F(OnStandIn, TheManagedPagerFallsBackToPinnedMemoryAndSaysSo) {
  for (const bool refused : {false, true}) {
    Start({.concurrent_managed_access = refused});
    if (refused) cudahost::FailCall("cudaMallocManaged", 1, cudaErrorNotSupported);
    auto buffer = MakeDeviceBuffer(DeviceTier::kManaged, 2);
    EXPECT_EQ(buffer->tier(), DeviceTier::kPinned);
    EXPECT_THAT(buffer->notice(),
                AllOf(HasSubstr(refused ? "cudaErrorNotSupported"
                                        : "cudaDevAttrConcurrentManagedAccess is 0"),
                      HasSubstr("pinned host memory instead")));
    EXPECT_EQ(buffer->notice().find('\n'), std::string::npos);
    DevicePager pager(std::move(buffer));
    ASSERT_TRUE(Walk(&pager, 1).ok());
    ASSERT_TRUE(Walk(&pager, 2).ok());
    pager.Finish();
  }
}

TEST_F(OnStandIn, PagersSayWhatTheDeviceAndTheHostLack) {
  Start({.device_bytes = 1000, .pinned_bytes = 45000});
  const DevicePagingOptions pinned{.tier = DeviceTier::kPinned, .budget_bytes = 2 * kPageBytes};
  for (const DevicePagingOptions& options : {DevicePagingOptions{}, pinned}) {
    const absl::Status status = DevicePagedBuffer::Create(kPages, kPageBytes, options).status();
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kMemory) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("bytes free of 1000"));
    EXPECT_THAT(cudahost::LiveObjects(), IsEmpty());
  }
  cudahost::SetDeviceBytes(1 << 20);
  const absl::Status status = DevicePagedBuffer::Create(kPages, kPageBytes, pinned).status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kMemory) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("want 45760 bytes"), HasSubstr("ulimit -l")));
  EXPECT_THAT(cudahost::LiveObjects(), IsEmpty());
}

// Walks a new buffer twice, with no test around it that could mind an error.
absl::Status CreateAndWalk(DeviceTier tier) {
  const int64_t stride = DevicePagedBuffer::PageStrideBytes(tier, kPageBytes);
  auto buffer =
      DevicePagedBuffer::Create(kPages, kPageBytes, {.tier = tier, .budget_bytes = 2 * stride});
  BITSHARD_RETURN_IF_ERROR(buffer.status());
  BITSHARD_ASSIGN_OR_RETURN(const core::Stream stream, core::Stream::Create());
  for (int walk = 0; walk < 2; ++walk) {
    BITSHARD_RETURN_IF_ERROR((*buffer)->BeginWalk());
    for (int64_t page = 0; page < kPages; ++page) {
      BITSHARD_RETURN_IF_ERROR((*buffer)->Acquire(page, stream.get()).status());
      BITSHARD_RETURN_IF_ERROR((*buffer)->Release(page, stream.get(), {.dirty = true}));
    }
    BITSHARD_RETURN_IF_ERROR((*buffer)->EndWalk());
  }
  return stream.Synchronize();
}

TEST_P(DevicePagingFaults, EveryCallThatFailsOnceIsAnErrorWithoutALeak) {
  Start({});
  ASSERT_TRUE(CreateAndWalk(GetParam()).ok());
  for (const std::string call :
       {"cudaMalloc", "cudaHostAlloc", "cudaMallocManaged", "cudaMemAdvise",
        "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags", "cudaEventRecord",
        "cudaStreamWaitEvent", "cudaMemcpyAsync", "cudaMemsetAsync", "cudaMemPrefetchBatchAsync",
        "cudaMemDiscardBatchAsync", "cudaMemDiscardAndPrefetchBatchAsync"}) {
    Start({});
    ASSERT_TRUE(CreateAndWalk(GetParam()).ok());
    const int64_t calls = cudahost::CallCount(call);
    for (int64_t k = 1; k <= calls; k += 1 + calls / 12) {
      SCOPED_TRACE(absl::StrCat(call, " ", k, " of ", calls));
      Start({});
      cudahost::FailCall(call, k, cudaErrorInvalidValue);
      const absl::Status status = CreateAndWalk(GetParam());
      EXPECT_FALSE(status.ok());
      EXPECT_THAT(std::string(status.message()), HasSubstr("cudaErrorInvalidValue"));
      EXPECT_THAT(cudahost::LiveObjects(), IsEmpty());
    }
  }
}

TEST_F(OnStandIn, AFailedPagerStaysSo) {
  const auto buffer = MakeDeviceBuffer(DeviceTier::kPinned, 2);
  const auto stream = core::Stream::Create();
  cudahost::FailCall("cudaMemsetAsync", 1, cudaErrorInvalidValue);
  const absl::Status first = buffer->Acquire(3, stream->get()).status();
  EXPECT_FALSE(first.ok());
  EXPECT_EQ(buffer->Acquire(0, stream->get()).status(), first);
  EXPECT_EQ(buffer->BeginWalk(), first);
  EXPECT_EQ(buffer->EndWalk(), first);
}

}  // namespace
}  // namespace bitshard::paging
