// Managed memory: where its pages are, what moves them, and what CUDA 13 refuses.
#include <cuda_runtime_api.h>

#include <cstring>
#include <vector>

#include "tests/cudahost/runtime_test.h"

namespace cudahost {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr size_t kPage = 4096;
constexpr cudaMemLocation kDevice0 = {.type = cudaMemLocationTypeDevice, .id = 0};
constexpr cudaMemLocation kHost = {.type = cudaMemLocationTypeHost, .id = 0};

class RuntimeManaged : public RuntimeTest {
 protected:
  RuntimeManaged() {
    Settings settings = CurrentSettings();
    settings.managed_page_bytes = kPage;
    settings.device_bytes = 4 * kPage;
    Configure(settings);
    stream_ = NonBlockingStream();
  }

  static void Without(bool Settings::*capability) {
    Settings settings = CurrentSettings();
    settings.*capability = false;
    Configure(settings);
  }

  // A kernel that touches one byte of each of the pages.
  void Touch(std::vector<std::byte*> bytes, bool write) {
    Launch(stream_, [bytes, write] {
      for (std::byte* p : bytes) OnKernelAccess(p, 1, write);
    });
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }

  void Prefetch(std::byte* p, size_t bytes, cudaMemLocation location) {
    ASSERT_EQ(cudaMemPrefetchAsync(p, bytes, location, 0, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  }

  // faults, pages to the device, pages to the host, evictions
  static std::vector<int64_t> Counts() {
    const ManagedCounters c = CurrentManagedCounters();
    constexpr auto page = static_cast<int64_t>(kPage);
    return {c.device_faults, c.bytes_to_device / page, c.bytes_to_host / page, c.evictions};
  }

  static std::vector<Residence> PagesOf(const std::byte* p, size_t pages) {
    std::vector<Residence> residence;
    for (size_t i = 0; i < pages; ++i) residence.push_back(ResidenceOf(p + i * kPage));
    return residence;
  }

  cudaStream_t stream_ = nullptr;
};

TEST_F(RuntimeManaged, StartsNowhereAndComesWhereItIsTouched) {
  std::byte* p = Managed(3 * kPage);
  EXPECT_THAT(PagesOf(p, 3), Each(Residence::kNowhere));
  Touch({p, p + 1, p + kPage}, true);
  OnHostAccess(p + 2 * kPage, 1, true);
  EXPECT_THAT(PagesOf(p, 3), ElementsAre(Residence::kDevice, Residence::kDevice, Residence::kHost));
  EXPECT_THAT(Counts(), ElementsAre(2, 0, 0, 0));
  EXPECT_EQ(CurrentManagedCounters().host_faults, 1);
}

TEST_F(RuntimeManaged, MigratesOnFaultsEachWay) {
  std::byte* p = Managed(kPage);
  OnHostAccess(p, 1, true);
  Touch({p}, false);
  EXPECT_THAT(Counts(), ElementsAre(1, 1, 0, 0));
  OnHostAccess(p, 1, false);
  EXPECT_EQ(ResidenceOf(p), Residence::kHost);
  EXPECT_THAT(Counts(), ElementsAre(1, 1, 1, 0));
}

TEST_F(RuntimeManaged, AnAccessAcrossAPageBorderTouchesBoth) {
  std::byte* p = Managed(2 * kPage);
  Launch(stream_, [p] { OnKernelAccess(p + kPage - 4, 8, false); });
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_THAT(Counts(), ElementsAre(2, 0, 0, 0));
}

TEST_F(RuntimeManaged, PrefetchSavesTheFault) {
  std::byte* p = Managed(2 * kPage);
  OnHostAccess(p, 2 * kPage, true);
  Prefetch(p, 2 * kPage, kDevice0);
  EXPECT_THAT(PagesOf(p, 2), Each(Residence::kDevice));
  Touch({p, p + kPage}, true);
  EXPECT_THAT(Counts(), ElementsAre(0, 2, 0, 0));
  Prefetch(p, 1, kHost);
  EXPECT_THAT(PagesOf(p, 2), ElementsAre(Residence::kHost, Residence::kDevice));
  EXPECT_THAT(Counts(), ElementsAre(0, 2, 1, 0));
}

TEST_F(RuntimeManaged, PrefetchWaitsForItsTurn) {
  StayLazy();
  std::byte* p = Managed(kPage);
  ASSERT_EQ(cudaMemPrefetchAsync(p, kPage, kDevice0, 0, stream_), cudaSuccess);
  EXPECT_EQ(ResidenceOf(p), Residence::kNowhere);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(ResidenceOf(p), Residence::kDevice);
}

TEST_F(RuntimeManaged, EvictsTheLeastRecentlyUsedPages) {
  std::byte* p = Managed(6 * kPage);
  for (size_t i = 0; i < 4; ++i) Touch({p + i * kPage}, true);
  Touch({p}, false);
  Touch({p + 4 * kPage}, true);
  EXPECT_THAT(PagesOf(p, 6),
              ElementsAre(Residence::kDevice, Residence::kHost, Residence::kDevice,
                          Residence::kDevice, Residence::kDevice, Residence::kNowhere));
  EXPECT_THAT(Counts(), ElementsAre(5, 0, 1, 1));
}

TEST_F(RuntimeManaged, DeviceMemoryPushesPagesOutAndStays) {
  std::byte* p = Managed(3 * kPage);
  Prefetch(p, 3 * kPage, kDevice0);
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  EXPECT_EQ(free_bytes, kPage);
  void* fixed = nullptr;
  ASSERT_EQ(cudaMalloc(&fixed, 3 * kPage), cudaSuccess);
  EXPECT_THAT(Counts(), ElementsAre(0, 0, 2, 2));
  EXPECT_EQ(cudaMalloc(&fixed, 2 * kPage), cudaErrorMemoryAllocation);
}

// Where not one page can be had the kernel still computes, over the bus.
TEST_F(RuntimeManaged, AFullDeviceReadsOverTheBus) {
  void* fixed = nullptr;
  ASSERT_EQ(cudaMalloc(&fixed, 4 * kPage), cudaSuccess);
  std::byte* p = Managed(kPage);
  Touch({p, p + 1}, true);
  EXPECT_EQ(ResidenceOf(p), Residence::kHost);
  EXPECT_THAT(Counts(), ElementsAre(1, 0, 0, 0));
}

TEST_F(RuntimeManaged, ReadMostlyPagesAreCopiedUntilWritten) {
  std::byte* p = Managed(kPage);
  OnHostAccess(p, 1, true);
  ASSERT_EQ(cudaMemAdvise(p, kPage, cudaMemAdviseSetReadMostly, kDevice0), cudaSuccess);
  Touch({p}, false);
  EXPECT_EQ(ResidenceOf(p), Residence::kBoth);
  OnHostAccess(p, 1, false);
  EXPECT_THAT(Counts(), ElementsAre(1, 1, 0, 0));
  EXPECT_EQ(CurrentManagedCounters().host_faults, 1);
  Touch({p}, true);
  EXPECT_EQ(ResidenceOf(p), Residence::kDevice);
  EXPECT_THAT(Counts(), ElementsAre(2, 1, 0, 0));
}

// A copy leaves pages where they are; those that are nowhere come to be on the copy's side.
TEST_F(RuntimeManaged, CopiesMoveNoPages) {
  std::byte* p = Managed(2 * kPage);
  int* device = DeviceInts(1);
  ASSERT_EQ(cudaMemsetAsync(device, 0, 4, stream_), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(p, device, 4, cudaMemcpyDeviceToDevice, stream_), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(p + kPage, device, 4, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(p + 4, p + kPage, 4, cudaMemcpyDefault, stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_THAT(PagesOf(p, 2), ElementsAre(Residence::kDevice, Residence::kHost));
  EXPECT_THAT(Counts(), ElementsAre(0, 0, 0, 0));
}

TEST_F(RuntimeManaged, AdviceKeepsPagesOnTheHost) {
  std::byte* p = Managed(2 * kPage);
  OnHostAccess(p, 2 * kPage, true);
  ASSERT_EQ(cudaMemAdvise(p, kPage, cudaMemAdviseSetAccessedBy, kDevice0), cudaSuccess);
  ASSERT_EQ(cudaMemAdvise(p + kPage, kPage, cudaMemAdviseSetPreferredLocation, kHost), cudaSuccess);
  Touch({p, p, p + kPage, p + kPage}, true);
  EXPECT_THAT(PagesOf(p, 2), Each(Residence::kHost));
  EXPECT_THAT(Counts(), ElementsAre(1, 0, 0, 0));
  int preferred = 0;
  ASSERT_EQ(cudaMemRangeGetAttribute(&preferred, 4, cudaMemRangeAttributePreferredLocation,
                                     p + kPage, kPage),
            cudaSuccess);
  EXPECT_EQ(preferred, cudaCpuDeviceId);
  ASSERT_EQ(
      cudaMemRangeGetAttribute(&preferred, 4, cudaMemRangeAttributePreferredLocation, p, 2 * kPage),
      cudaSuccess);
  EXPECT_EQ(preferred, cudaInvalidDeviceId);
}

TEST_F(RuntimeManaged, RemembersTheLastPrefetchAskedFor) {
  StayLazy();
  std::byte* p = Managed(2 * kPage);
  ASSERT_EQ(cudaMemPrefetchAsync(p, kPage, kDevice0, 0, stream_), cudaSuccess);
  int location = 7;
  ASSERT_EQ(
      cudaMemRangeGetAttribute(&location, 4, cudaMemRangeAttributeLastPrefetchLocation, p, kPage),
      cudaSuccess);
  EXPECT_EQ(location, 0);
  ASSERT_EQ(cudaMemRangeGetAttribute(&location, 4, cudaMemRangeAttributeLastPrefetchLocation, p,
                                     2 * kPage),
            cudaSuccess);
  EXPECT_EQ(location, cudaInvalidDeviceId);
}

TEST_F(RuntimeManaged, DiscardedPagesAreNotMovedAndHoldNothing) {
  std::byte* p = Managed(2 * kPage);
  std::memset(p, 1, 2 * kPage);
  OnHostAccess(p, 2 * kPage, true);
  void* data[] = {p};
  size_t bytes[] = {2 * kPage};
  cudaMemLocation location = kDevice0;
  size_t start = 0;
  ASSERT_EQ(cudaMemDiscardAndPrefetchBatchAsync(data, bytes, 1, &location, &start, 1, 0, stream_),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_THAT(PagesOf(p, 2), Each(Residence::kDevice));
  EXPECT_THAT(Counts(), ElementsAre(0, 0, 0, 0));
  EXPECT_EQ(p[5], std::byte{0xFF});
}

TEST_F(RuntimeManaged, DiscardEndsWithAWrite) {
  std::byte* p = Managed(2 * kPage);
  Touch({p, p + kPage}, true);
  void* data[] = {p};
  size_t bytes[] = {2 * kPage};
  ASSERT_EQ(cudaMemDiscardBatchAsync(data, bytes, 1, 0, stream_), cudaSuccess);
  Touch({p}, true);
  Prefetch(p, 2 * kPage, kHost);
  EXPECT_THAT(Counts(), ElementsAre(2, 0, 1, 0));  // only the page that was written
}

TEST_F(RuntimeManaged, ABatchHasALocationForEachRun) {
  std::byte* p = Managed(3 * kPage);
  void* data[] = {p, p + kPage, p + 2 * kPage};
  size_t bytes[] = {kPage, kPage, kPage};
  cudaMemLocation locations[] = {kDevice0, kHost};
  size_t starts[] = {0, 2};
  ASSERT_EQ(cudaMemPrefetchBatchAsync(data, bytes, 3, locations, starts, 2, 0, stream_),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_THAT(PagesOf(p, 3), ElementsAre(Residence::kDevice, Residence::kDevice, Residence::kHost));
}

TEST_F(RuntimeManaged, RefusesBatchesThatCudaRefuses) {
  std::byte* p = Managed(2 * kPage);
  void* data[] = {p, p + kPage};
  size_t bytes[] = {kPage, kPage};
  cudaMemLocation locations[] = {kDevice0, kHost};
  const auto prefetch = [&](std::vector<size_t> starts, size_t count, cudaStream_t stream) {
    return cudaMemPrefetchBatchAsync(data, bytes, count, locations, starts.data(), starts.size(), 0,
                                     stream);
  };
  EXPECT_EQ(prefetch({0, 1}, 2, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(prefetch({0, 1}, 2, cudaStreamLegacy), cudaErrorInvalidValue);
  EXPECT_EQ(prefetch({1}, 2, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(prefetch({0, 0}, 2, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(prefetch({0, 2}, 2, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(prefetch({0, 1}, 1, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(prefetch({0}, 0, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemDiscardBatchAsync(data, bytes, 2, 1, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemDiscardBatchAsync(data, bytes, 2, 0, nullptr), cudaErrorInvalidValue);
  bytes[1] = kPage + 1;
  EXPECT_EQ(prefetch({0, 1}, 2, stream_), cudaErrorInvalidValue);
}

TEST_F(RuntimeManaged, RefusesWhatIsNotManagedAndLocationsThatAreNotThere) {
  std::byte* p = Managed(kPage);
  int* device = DeviceInts(4);
  int* pinned = PinnedInts(4);
  int host = 0;
  for (void* other :
       {static_cast<void*>(device), static_cast<void*>(pinned), static_cast<void*>(&host)}) {
    EXPECT_EQ(cudaMemPrefetchAsync(other, 4, kDevice0, 0, stream_), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemAdvise(other, 4, cudaMemAdviseSetReadMostly, kDevice0), cudaErrorInvalidValue);
  }
  // The host given as a device, as older calls did.
  const cudaMemLocation minus_one = {.type = cudaMemLocationTypeDevice, .id = cudaCpuDeviceId};
  EXPECT_EQ(cudaMemPrefetchAsync(p, 4, minus_one, 0, stream_), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaMemAdvise(p, 4, cudaMemAdviseSetPreferredLocation, minus_one),
            cudaErrorInvalidDevice);
  EXPECT_EQ(cudaMemPrefetchAsync(p, 4, kDevice0, 1, stream_), cudaErrorInvalidValue);
}

TEST_F(RuntimeManaged, IsRefusedWholeWith801) {
  Without(&Settings::managed_memory);
  void* p = nullptr;
  EXPECT_EQ(cudaMallocManaged(&p, kPage, cudaMemAttachGlobal), cudaErrorNotSupported);
  EXPECT_EQ(static_cast<int>(cudaGetLastError()), 801);
}

TEST_F(RuntimeManaged, DoesNotOversubscribeWithoutConcurrentAccess) {
  Without(&Settings::concurrent_managed_access);
  std::byte* p = Managed(3 * kPage);
  EXPECT_THAT(PagesOf(p, 3), Each(Residence::kDevice));
  void* more = nullptr;
  EXPECT_EQ(cudaMallocManaged(&more, 2 * kPage, cudaMemAttachGlobal), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMemPrefetchAsync(p, kPage, kDevice0, 0, stream_), cudaErrorInvalidDevice);
  void* data[] = {p};
  size_t bytes[] = {kPage};
  EXPECT_EQ(cudaMemDiscardBatchAsync(data, bytes, 1, 0, stream_), cudaErrorNotSupported);
}

TEST_F(RuntimeManaged, ReportsTheHostBesideAKernelWithoutConcurrentAccess) {
  Without(&Settings::concurrent_managed_access);
  StayLazy();
  std::byte* p = Managed(kPage);
  OnHostAccess(p, 1, true);
  Launch(stream_, [] {});
  OnHostAccess(p, 1, true);
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("without concurrentManagedAccess")));
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorIllegalAddress);
}

TEST_F(RuntimeManaged, CannotBePrefetchedOnceItWasFreed) {
  StayLazy();
  std::byte* p = Managed(kPage);
  ASSERT_EQ(cudaMemPrefetchAsync(p, kPage, kDevice0, 0, stream_), cudaSuccess);
  ASSERT_EQ(cudaFree(p), cudaSuccess);  // waits: the prefetch ran before
  EXPECT_EQ(cudaStreamQuery(stream_), cudaSuccess);
  EXPECT_EQ(cudaMemPrefetchAsync(p, kPage, kDevice0, 0, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace cudahost
