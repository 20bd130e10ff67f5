// Device and pinned memory: capacity, copies between host and device, and what is refused.
#include <cuda_runtime_api.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/cudahost/runtime_test.h"

namespace cudahost {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

class RuntimeMemory : public RuntimeTest {
 protected:
  static size_t FreeBytes() {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    EXPECT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    EXPECT_EQ(total_bytes, CurrentSettings().device_bytes);
    return free_bytes;
  }
};

TEST_F(RuntimeMemory, TheDeviceRunsOut) {
  SetDeviceBytes(1 << 20);
  void* first = nullptr;
  ASSERT_EQ(cudaMalloc(&first, 700 << 10), cudaSuccess);
  EXPECT_EQ(FreeBytes(), size_t{324 << 10});
  void* second = nullptr;
  EXPECT_EQ(cudaMalloc(&second, 400 << 10), cudaErrorMemoryAllocation);
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&second, SIZE_MAX), cudaErrorMemoryAllocation);
  ASSERT_EQ(cudaFree(first), cudaSuccess);
  EXPECT_EQ(FreeBytes(), size_t{1 << 20});
  EXPECT_EQ(cudaMalloc(&second, 400 << 10), cudaSuccess);
}

TEST_F(RuntimeMemory, NothingIsANullPointer) {
  void* p = &p;
  EXPECT_EQ(cudaMalloc(&p, 0), cudaSuccess);
  EXPECT_EQ(p, nullptr);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(nullptr), cudaSuccess);
  EXPECT_EQ(cudaMalloc(nullptr, 1), cudaErrorInvalidValue);
}

TEST_F(RuntimeMemory, PinnedMemoryHasItsLimit) {
  SetPinnedBytes(64 << 10);
  void* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 48 << 10), cudaSuccess);
  void* more = nullptr;
  EXPECT_EQ(cudaHostAlloc(&more, 32 << 10, cudaHostAllocPortable), cudaErrorMemoryAllocation);
  std::vector<char> own(32 << 10);
  EXPECT_EQ(cudaHostRegister(own.data(), own.size(), cudaHostRegisterDefault),
            cudaErrorMemoryAllocation);
  ASSERT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaHostRegister(own.data(), own.size(), cudaHostRegisterDefault), cudaSuccess);
  EXPECT_EQ(cudaHostRegister(own.data() + 5, 1, 0), cudaErrorHostMemoryAlreadyRegistered);
  EXPECT_EQ(cudaHostUnregister(own.data()), cudaSuccess);
  EXPECT_EQ(cudaHostUnregister(own.data()), cudaErrorHostMemoryNotRegistered);
}

TEST_F(RuntimeMemory, FreesOnlyWhatItGave) {
  std::vector<int> host(4);
  int* device = DeviceInts(4);
  int* pinned = PinnedInts(4);
  EXPECT_EQ(cudaFree(host.data()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(device + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(pinned), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(device), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(device), cudaSuccess);
  EXPECT_EQ(cudaFree(device), cudaErrorInvalidValue);
}

TEST_F(RuntimeMemory, CopiesThereAndBack) {
  const std::vector<int> source = {1, 2, 3};
  int* first = DeviceInts(3);
  int* second = DeviceInts(3);
  cudaStream_t stream = NonBlockingStream();
  std::vector<int> result(3);
  ASSERT_EQ(cudaMemcpyAsync(first, source.data(), 12, cudaMemcpyHostToDevice, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(second, first, 12, cudaMemcpyDefault, stream), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(second, 0, 4, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(result.data(), second, 12, cudaMemcpyDeviceToHost, stream),
            cudaSuccess);
  EXPECT_THAT(result, ElementsAre(0, 2, 3));
}

TEST_F(RuntimeMemory, TakesPageableSourcesAtTheCall) {
  StayLazy();
  int source = 1;
  int* device = DeviceInts(1);
  cudaStream_t stream = NonBlockingStream();
  ASSERT_EQ(cudaMemcpyAsync(device, &source, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
  source = 2;
  int result = 0;
  ASSERT_EQ(cudaMemcpyAsync(&result, device, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(result, 1);
}

// As CUDA leaves it open for devices that reach pageable memory by themselves.
TEST_F(RuntimeMemory, CopiesPageableMemoryWhenTheCopyRunsWhereNothingIsStaged) {
  Settings settings = CurrentSettings();
  settings.pageable_memory_access = true;
  Configure(settings);
  StayLazy();
  int supported = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&supported, cudaDevAttrPageableMemoryAccess, 0), cudaSuccess);
  EXPECT_EQ(supported, 1);
  int source = 1, result = 0;
  int* device = DeviceInts(1);
  cudaStream_t stream = NonBlockingStream();
  ASSERT_EQ(cudaMemcpyAsync(device, &source, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
  source = 2;
  ASSERT_EQ(cudaMemcpyAsync(&result, device, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(result, 0);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(result, 2);
  source = 3;
  ASSERT_EQ(cudaMemcpy(device, &source, 4, cudaMemcpyHostToDevice), cudaSuccess);
  source = 4;
  ASSERT_EQ(cudaMemcpy(&result, device, 4, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(result, 3);
}

TEST_F(RuntimeMemory, ReadsPinnedSourcesWhenTheCopyRuns) {
  StayLazy();
  std::vector<int> own = {1};
  int* pinned = PinnedInts(1);
  *pinned = 1;
  ASSERT_EQ(cudaHostRegister(own.data(), 4, cudaHostRegisterDefault), cudaSuccess);
  for (int* source : {pinned, own.data()}) {
    int* device = DeviceInts(1);
    cudaStream_t stream = NonBlockingStream();
    ASSERT_EQ(cudaMemcpyAsync(device, source, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
    *source = 2;
    int result = 0;
    ASSERT_EQ(cudaMemcpyAsync(&result, device, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    EXPECT_EQ(result, 2);
  }
}

TEST_F(RuntimeMemory, WritesPinnedTargetsWhenTheCopyRuns) {
  StayLazy();
  int* device = DeviceInts(1);
  int* pinned = PinnedInts(1);
  *pinned = 1;
  cudaStream_t stream = NonBlockingStream();
  ASSERT_EQ(cudaMemsetAsync(device, 0, 4, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned, device, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(*pinned, 1);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(*pinned, 0);
}

// What cudaMemcpy does not wait for is seen by a non-blocking stream that does not wait either.
TEST_F(RuntimeMemory, CudaMemcpyFromPageableMemoryMayArriveLater) {
  StayLazy();
  const int source = 5;
  int* device = DeviceInts(1);
  ASSERT_EQ(cudaMemset(device, 0, 4), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(device, &source, 4, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(nullptr), cudaErrorNotReady);
  int result = 0;
  ASSERT_EQ(cudaMemcpy(&result, device, 4, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(result, 5);
}

TEST_F(RuntimeMemory, RefusesTheWrongSide) {
  std::vector<int> host(4);
  int* device = DeviceInts(4);
  int* pinned = PinnedInts(4);
  cudaStream_t stream = NonBlockingStream();
  const auto copy = [stream](void* to, const void* from, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, 16, kind, stream);
  };
  testing::internal::CaptureStderr();
  EXPECT_EQ(copy(device, host.data(), cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::AllOf(HasSubstr("cudaMemcpyAsync, cudaMemcpyDeviceToHost: to"),
                             HasSubstr("byte 0 of cudaMalloc")));
  EXPECT_EQ(copy(host.data(), device, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(host.data(), device, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(pinned, host.data(), cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(device, host.data(), static_cast<cudaMemcpyKind>(7)),
            cudaErrorInvalidMemcpyDirection);
  EXPECT_EQ(copy(nullptr, host.data(), cudaMemcpyDefault), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host.data(), 0, 16), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(pinned, 0, 16, stream), cudaErrorInvalidValue);
}

TEST_F(RuntimeMemory, RefusesWhatLeavesTheBuffer) {
  std::vector<int> host(8);
  int* device = DeviceInts(4);
  EXPECT_EQ(cudaMemcpy(device, host.data(), 17, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(device + 1, host.data(), 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(device + 4, 0, 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(device, 0, 17), cudaErrorInvalidValue);
  ASSERT_EQ(cudaFree(device), cudaSuccess);
  EXPECT_EQ(cudaMemset(device, 0, 4), cudaErrorInvalidValue);
}

TEST_F(RuntimeMemory, ReportsOverlappingCopies) {
  int* device = DeviceInts(4);
  ASSERT_EQ(cudaMemset(device, 0, 16), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(device + 1, device, 8, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("overlap")));
}

TEST_F(RuntimeMemory, ReportsACopyToTheHostOfWhatWasNeverWritten) {
  int* device = DeviceInts(4);
  int* copied = DeviceInts(4);
  std::vector<int> host(4);
  cudaStream_t stream = NonBlockingStream();
  ASSERT_EQ(cudaMemsetAsync(device, 0, 8, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(copied, device, 16, cudaMemcpyDeviceToDevice, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(host.data(), copied, 8, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(host.data(), copied, 12, cudaMemcpyDeviceToHost, stream),
            cudaErrorIllegalAddress);
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("never written")));
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);  // sticky
}

TEST_F(RuntimeMemory, CudaFreeWaitsForTheDevice) {
  StayLazy();
  int* device = DeviceInts(1);
  cudaStream_t stream = NonBlockingStream();
  ASSERT_EQ(cudaMemsetAsync(device, 0, 4, stream), cudaSuccess);
  EXPECT_EQ(cudaFree(device), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
}

TEST_F(RuntimeMemory, ReportsPinnedMemoryFreedUnderACopy) {
  StayLazy();
  int* pinned = PinnedInts(1);
  int* device = DeviceInts(1);
  cudaStream_t stream = NonBlockingStream();
  ASSERT_EQ(cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
  ASSERT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("after its buffer was freed")));
}

TEST_F(RuntimeMemory, StreamOrderedMemoryIsFreedInItsTurn) {
  StayLazy();
  SetDeviceBytes(64 << 10);
  cudaStream_t stream = NonBlockingStream();
  void* p = nullptr;
  ASSERT_EQ(cudaMallocAsync(&p, 48 << 10, stream), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(p, 0, 48 << 10, stream), cudaSuccess);
  ASSERT_EQ(cudaFreeAsync(p, stream), cudaSuccess);
  EXPECT_EQ(cudaFreeAsync(p, stream), cudaErrorInvalidValue);
  EXPECT_EQ(FreeBytes(), size_t{16 << 10});
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(FreeBytes(), size_t{64 << 10});
}

TEST_F(RuntimeMemory, CudaFreeDoesNotWaitForStreamOrderedMemory) {
  StayLazy();
  cudaStream_t stream = NonBlockingStream();
  void* p = nullptr;
  ASSERT_EQ(cudaMallocAsync(&p, 16, stream), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(p, 0, 16, stream), cudaSuccess);
  ASSERT_EQ(cudaFree(p), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("a fill ran after its buffer was freed")));
}

TEST_F(RuntimeMemory, TellsWhatAPointerIs) {
  int host = 0;
  cudaPointerAttributes attributes;
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, &host), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  EXPECT_EQ(attributes.devicePointer, nullptr);
  int* device = DeviceInts(4);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, device + 1), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  EXPECT_EQ(attributes.device, 0);
  EXPECT_EQ(attributes.devicePointer, device + 1);
  EXPECT_EQ(attributes.hostPointer, nullptr);
  int* pinned = PinnedInts(1);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, pinned), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  EXPECT_EQ(attributes.hostPointer, pinned);
  void* on_device = nullptr;
  EXPECT_EQ(cudaHostGetDevicePointer(&on_device, pinned, 0), cudaSuccess);
  EXPECT_EQ(on_device, pinned);
  EXPECT_EQ(cudaHostGetDevicePointer(&on_device, device, 0), cudaErrorInvalidValue);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, Managed(16)), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeManaged);
  ASSERT_EQ(cudaFree(device), cudaSuccess);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, device), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
}

}  // namespace
}  // namespace cudahost
