// The device's attributes, errors and their injection, and what is left at the end of a process.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string>
#include <thread>

#include "tests/cudahost/heap.h"
#include "tests/cudahost/runtime_test.h"

namespace cudahost {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class RuntimeDevice : public RuntimeTest {
 protected:
  template <class T>
  static void Set(T Settings::*field, T value) {
    Settings settings = CurrentSettings();
    settings.*field = value;
    Configure(settings);
  }

  static int Attribute(cudaDeviceAttr attribute) {
    int value = -1;
    EXPECT_EQ(cudaDeviceGetAttribute(&value, attribute, 0), cudaSuccess);
    return value;
  }
};

TEST_F(RuntimeDevice, AttributesAndPropertiesFollowTheSettings) {
  EXPECT_EQ(Attribute(cudaDevAttrConcurrentManagedAccess), 1);
  EXPECT_EQ(Attribute(cudaDevAttrComputeCapabilityMajor), 9);
  Set(&Settings::compute_capability, 75);
  Set(&Settings::concurrent_managed_access, false);
  SetDeviceBytes(1 << 20);
  EXPECT_EQ(Attribute(cudaDevAttrConcurrentManagedAccess), 0);
  EXPECT_EQ(Attribute(cudaDevAttrComputeCapabilityMajor), 7);
  cudaDeviceProp prop;
  ASSERT_EQ(cudaGetDeviceProperties(&prop, 0), cudaSuccess);
  EXPECT_EQ(prop.major * 10 + prop.minor, 75);
  EXPECT_EQ(prop.concurrentManagedAccess, 0);
  EXPECT_EQ(prop.managedMemory, 1);
  EXPECT_EQ(prop.totalGlobalMem, size_t{1 << 20});
  EXPECT_EQ(prop.sharedMemPerBlockOptin, size_t{64 << 10});
  Set(&Settings::managed_memory, false);
  EXPECT_EQ(Attribute(cudaDevAttrManagedMemory), 0);
  int value = 0;
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMaxTexture1DWidth, 0), cudaErrorInvalidValue);
}

TEST_F(RuntimeDevice, EachThreadHasItsDevice) {
  Set(&Settings::devices, 2);
  int count = 0;
  ASSERT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 2);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  int device = -1;
  std::thread([&device] { EXPECT_EQ(cudaGetDevice(&device), cudaSuccess); }).join();
  EXPECT_EQ(device, 0);
  ASSERT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(device, 1);
  char bus_id[16];
  ASSERT_EQ(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, 1), cudaSuccess);
  EXPECT_STREQ(bus_id, "0000:02:00.0");
  EXPECT_EQ(cudaDeviceGetPCIBusId(bus_id, 4, 1), cudaErrorInvalidValue);
}

TEST_F(RuntimeDevice, EachDeviceHasItsMemory) {
  Set(&Settings::devices, 2);
  SetDeviceBytes(64 << 10);
  void* p = nullptr;
  ASSERT_EQ(cudaMalloc(&p, 64 << 10), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&p, 1), cudaErrorMemoryAllocation);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&p, 64 << 10), cudaSuccess);
  cudaPointerAttributes attributes;
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, p), cudaSuccess);
  EXPECT_EQ(attributes.device, 1);
}

TEST_F(RuntimeDevice, WithoutADeviceEveryCallSaysSo) {
  Set(&Settings::devices, 0);
  int count = 7;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(count, 0);
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, 1), cudaErrorNoDevice);
  EXPECT_EQ(cudaMallocHost(&p, 1), cudaErrorNoDevice);
  int version = 0;
  EXPECT_EQ(cudaRuntimeGetVersion(&version), cudaSuccess);
  EXPECT_EQ(version, 13000);
}

TEST_F(RuntimeDevice, ChecksLaunches) {
  const int kernel = 0;
  const auto check = [&kernel](dim3 grid, dim3 block, size_t shared_bytes) {
    return CheckLaunch(&kernel, grid, block, shared_bytes);
  };
  EXPECT_EQ(check(1, 1024, 48 << 10), cudaSuccess);
  EXPECT_EQ(check(0, 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(check(1, 1025, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(check(1, {32, 33, 1}, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(check({1, 65536, 1}, 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(check(1, 32, (48 << 10) + 1), cudaErrorInvalidValue);
  ASSERT_EQ(cudaFuncSetAttribute(&kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 96 << 10),
            cudaSuccess);
  EXPECT_EQ(check(1, 32, 96 << 10), cudaSuccess);
  cudaFuncAttributes attributes;
  ASSERT_EQ(cudaFuncGetAttributes(&attributes, &kernel), cudaSuccess);
  EXPECT_EQ(attributes.maxDynamicSharedSizeBytes, 96 << 10);
  EXPECT_EQ(cudaFuncSetAttribute(&kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10),
            cudaErrorInvalidValue);
}

TEST_F(RuntimeDevice, OccupancyIsBoundByThreadsBlocksAndSharedMemory) {
  const int kernel = 0;
  const auto occupancy = [&kernel](int threads, size_t shared_bytes) {
    int blocks = -1;
    EXPECT_EQ(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, &kernel, threads, shared_bytes),
        cudaSuccess);
    return blocks;
  };
  EXPECT_EQ(occupancy(256, 0), 8);
  EXPECT_EQ(occupancy(255, 0), 8);
  EXPECT_EQ(occupancy(32, 0), 32);
  EXPECT_EQ(occupancy(32, 56 << 10), 4);
}

TEST_F(RuntimeDevice, KeepsTheLastErrorUntilItIsTaken) {
  EXPECT_EQ(cudaSetDevice(-1), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidDevice);
  std::thread([] { EXPECT_EQ(cudaGetLastError(), cudaSuccess); }).join();
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(RuntimeDevice, NamesErrors) {
  EXPECT_STREQ(cudaGetErrorName(cudaErrorMemoryAllocation), "cudaErrorMemoryAllocation");
  EXPECT_STREQ(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
  EXPECT_STREQ(cudaGetErrorName(static_cast<cudaError_t>(1000)), "unrecognized error code");
}

TEST_F(RuntimeDevice, FailsTheNthCall) {
  FailCall("cudaMalloc", 2, cudaErrorMemoryAllocation);
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, 16), cudaSuccess);
  EXPECT_EQ(cudaMallocHost(&p, 16), cudaSuccess);
  void* second = nullptr;
  EXPECT_EQ(cudaMalloc(&second, 16), cudaErrorMemoryAllocation);
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(cudaMalloc(&second, 16), cudaSuccess);
  EXPECT_EQ(CallCount("cudaMalloc"), 3);
}

TEST_F(RuntimeDevice, FailsLaunchesByName) {
  cudaStream_t stream = NonBlockingStream();
  FailCall("kernel Step", 1, cudaErrorLaunchOutOfResources);
  EXPECT_EQ(Enqueue(stream, {.what = "kernel Other"}), cudaSuccess);
  EXPECT_EQ(Enqueue(stream, {.what = "kernel Step"}), cudaErrorLaunchOutOfResources);
  EXPECT_EQ(Enqueue(stream, {.what = "kernel Step"}), cudaSuccess);
  FailCall("kernel", 1, cudaErrorLaunchOutOfResources);
  EXPECT_EQ(Enqueue(stream, {.what = "kernel Other"}), cudaErrorLaunchOutOfResources);
}

TEST_F(RuntimeDevice, StickyErrorsStay) {
  StayLazy();
  FailRun("kernel", 2, cudaErrorLaunchFailure);
  cudaStream_t stream = NonBlockingStream();
  int ran = 0;
  for (int i = 0; i < 3; ++i) Launch(stream, [&ran] { ++ran; });
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
  EXPECT_EQ(ran, 1);
  void* p = nullptr;
  EXPECT_EQ(cudaMalloc(&p, 1), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaErrorLaunchFailure);
  Reset();
  EXPECT_EQ(cudaMalloc(&p, 1), cudaSuccess);
}

TEST_F(RuntimeDevice, InjectedErrorsAreStickyWhereCudasAre) {
  FailCall("cudaEventRecord", 1, cudaErrorIllegalAddress);
  cudaEvent_t event = NewEvent();
  EXPECT_EQ(cudaEventRecord(event, nullptr), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaEventRecord(event, nullptr), cudaErrorIllegalAddress);
}

TEST_F(RuntimeDevice, ListsWhatLives) {
  void* p = nullptr;
  ASSERT_EQ(cudaMalloc(&p, 24), cudaSuccess);
  cudaStream_t stream = NonBlockingStream();
  cudaEvent_t event = NewEvent();
  EXPECT_THAT(LiveObjects(), ElementsAre(HasSubstr("cudaMalloc #1, 24 bytes"),
                                         HasSubstr("stream #"), HasSubstr("event #")));
  HeapSetName(static_cast<std::byte*>(p), "moments");
  EXPECT_THAT(LiveObjects(), Contains(HasSubstr("moments, 24 bytes, by cudaMalloc")));
  ASSERT_EQ(cudaFree(p), cudaSuccess);
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  ASSERT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_THAT(LiveObjects(), IsEmpty());
}

// Children of this process, from its start, so that they read their environment.
class RuntimeProcess : public testing::Test {
 protected:
  RuntimeProcess() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  ~RuntimeProcess() override {
    for (const char* name : {"LEAKS", "FAIL", "DEVICE_BYTES"}) {
      unsetenv((std::string("BITSHARD_CUDAHOST_") + name).c_str());
    }
  }
};

void Leak() {
  void* p = nullptr;
  if (cudaMalloc(&p, 24) != cudaSuccess) std::exit(3);
  std::exit(0);
}

TEST_F(RuntimeProcess, ListsLeaksAtItsEnd) {
  EXPECT_EXIT(Leak(), testing::ExitedWithCode(0), "not released: cudaMalloc #1, 24 bytes");
}

TEST_F(RuntimeProcess, FailsForLeaksWhenAsked) {
  setenv("BITSHARD_CUDAHOST_LEAKS", "fail", 1);
  EXPECT_EXIT(Leak(), testing::ExitedWithCode(1), "not released: cudaMalloc #1, 24 bytes");
}

// What a static destructor releases is no leak.
struct ReleasedLate {
  ~ReleasedLate() { (void)cudaFree(p); }
  void* p = nullptr;
};

TEST_F(RuntimeProcess, LooksAfterStaticDestructors) {
  setenv("BITSHARD_CUDAHOST_LEAKS", "fail", 1);
  const auto leak_late = [] {
    static ReleasedLate late;
    if (cudaMalloc(&late.p, 24) != cudaSuccess) std::exit(3);
    std::exit(0);
  };
  EXPECT_EXIT(leak_late(), testing::ExitedWithCode(0), "^$");
}

TEST_F(RuntimeProcess, FailsForReportsThatNobodyTook) {
  const auto overlap = [] {
    void* p = nullptr;
    if (cudaMalloc(&p, 24) != cudaSuccess) std::exit(3);
    if (cudaMemcpy(p, p, 24, cudaMemcpyDefault) == cudaSuccess) std::exit(4);
    if (cudaFree(p) != cudaSuccess) std::exit(5);
    std::exit(0);
  };
  EXPECT_EXIT(overlap(), testing::ExitedWithCode(1), "overlap");
}

TEST_F(RuntimeProcess, TakesSettingsAndFailuresFromItsEnvironment) {
  setenv("BITSHARD_CUDAHOST_DEVICE_BYTES", "4096", 1);
  setenv("BITSHARD_CUDAHOST_FAIL", "cudaMalloc:2:cudaErrorMemoryAllocation,cudaFree:1:700", 1);
  const auto calls = [] {
    void* p = nullptr;
    if (cudaMalloc(&p, 8192) != cudaErrorMemoryAllocation) std::exit(3);
    if (cudaMalloc(&p, 1) != cudaErrorMemoryAllocation) std::exit(4);
    if (cudaMalloc(&p, 1) != cudaSuccess) std::exit(5);
    if (cudaFree(p) != cudaErrorIllegalAddress) std::exit(6);
    std::exit(0);
  };
  EXPECT_EXIT(calls(), testing::ExitedWithCode(0), "^$");
}

TEST_F(RuntimeProcess, RefusesAnEnvironmentItCannotRead) {
  setenv("BITSHARD_CUDAHOST_DEVICE_BYTES", "4k", 1);
  EXPECT_DEATH(Leak(), "BITSHARD_CUDAHOST_DEVICE_BYTES: got '4k', want a whole number");
}

}  // namespace
}  // namespace cudahost
