// For the tests of the stand-in runtime: a clean one for each test, and buffers that say what they
// hold.
#ifndef BITSHARD_TESTS_CUDAHOST_RUNTIME_TEST_H_
#define BITSHARD_TESTS_CUDAHOST_RUNTIME_TEST_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cudahost/runtime.h"
#include "tests/cudahost/stream.h"

namespace cudahost {

class RuntimeTest : public testing::Test {
 protected:
  RuntimeTest() { Reset(); }
  ~RuntimeTest() override {
    EXPECT_THAT(TakeReports(), testing::IsEmpty());
    Reset();
  }

  static cudaStream_t NonBlockingStream() {
    cudaStream_t stream = nullptr;
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    return stream;
  }

  static cudaEvent_t NewEvent() {
    cudaEvent_t event = nullptr;
    EXPECT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    return event;
  }

  static int* DeviceInts(size_t n) {
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, n * sizeof(int)), cudaSuccess);
    return static_cast<int*>(p);
  }

  static int* PinnedInts(size_t n) {
    void* p = nullptr;
    EXPECT_EQ(cudaMallocHost(&p, n * sizeof(int)), cudaSuccess);
    return static_cast<int*>(p);
  }

  static std::byte* Managed(size_t bytes) {
    void* p = nullptr;
    EXPECT_EQ(cudaMallocManaged(&p, bytes, cudaMemAttachGlobal), cudaSuccess);
    return static_cast<std::byte*>(p);
  }

  // An operation of a stream that does `work`, as a kernel would.
  template <class Work>
  static void Launch(cudaStream_t stream, Work work) {
    const auto run = [work] {
      work();
      return cudaSuccess;
    };
    EXPECT_EQ(Enqueue(stream, {.what = "kernel Work", .run = run}), cudaSuccess);
  }

  // Nothing runs but where a call waits or polls.
  static void StayLazy() {
    Settings settings = CurrentSettings();
    settings.run_ahead_percent = 0;
    Configure(settings);
  }
};

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_RUNTIME_TEST_H_
