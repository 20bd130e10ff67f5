// Streams and events: order within a stream, freedom between streams, and that a forgotten wait
// shows.
#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "tests/cudahost/runtime_test.h"

namespace cudahost {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

class RuntimeStream : public RuntimeTest {};

constexpr uint64_t kSeeds = 40;

// A producer and a consumer on two streams; true when the consumer saw what was produced.
struct Handover {
  bool wait = false;
  bool destroy_event_early = false;
};
bool HandsOver(const Handover& how) {
  cudaStream_t producer = nullptr;
  cudaStream_t consumer = nullptr;
  EXPECT_EQ(cudaStreamCreateWithFlags(&producer, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(cudaStreamCreateWithFlags(&consumer, cudaStreamNonBlocking), cudaSuccess);
  void* source = nullptr;
  void* device = nullptr;
  void* result = nullptr;
  EXPECT_EQ(cudaMallocHost(&source, sizeof(int)), cudaSuccess);
  EXPECT_EQ(cudaMallocHost(&result, sizeof(int)), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&device, sizeof(int)), cudaSuccess);
  EXPECT_EQ(cudaMemset(device, 0, sizeof(int)), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  *static_cast<int*>(source) = 7;
  EXPECT_EQ(cudaMemcpyAsync(device, source, sizeof(int), cudaMemcpyHostToDevice, producer),
            cudaSuccess);
  if (how.wait) {
    cudaEvent_t produced = nullptr;
    EXPECT_EQ(cudaEventCreateWithFlags(&produced, cudaEventDisableTiming), cudaSuccess);
    EXPECT_EQ(cudaEventRecord(produced, producer), cudaSuccess);
    EXPECT_EQ(cudaStreamWaitEvent(consumer, produced, 0), cudaSuccess);
    if (how.destroy_event_early) {
      EXPECT_EQ(cudaEventDestroy(produced), cudaSuccess);
    }
  }
  EXPECT_EQ(cudaMemcpyAsync(result, device, sizeof(int), cudaMemcpyDeviceToHost, consumer),
            cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(consumer), cudaSuccess);
  return *static_cast<int*>(result) == 7;
}

int HandoversThatFail(const Handover& how) {
  int failed = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Reset();
    SetStreamSeed(seed);
    failed += HandsOver(how) ? 0 : 1;
  }
  return failed;
}

TEST_F(RuntimeStream, ShowsAMissingWaitOnSomeSeedsAndTheSameOnes) {
  const int failed = HandoversThatFail({.wait = false});
  EXPECT_GE(failed, 5);
  EXPECT_LT(failed, static_cast<int>(kSeeds));
  EXPECT_EQ(HandoversThatFail({.wait = false}), failed);
}

TEST_F(RuntimeStream, NeverFailsWithTheWait) {
  EXPECT_EQ(HandoversThatFail({.wait = true}), 0);
  EXPECT_EQ(HandoversThatFail({.wait = true, .destroy_event_early = true}), 0);
}

TEST_F(RuntimeStream, KeepsTheOrderWithinAStream) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Reset();
    SetStreamSeed(seed);
    std::vector<int> order;
    cudaStream_t stream = NonBlockingStream();
    cudaStream_t other = NonBlockingStream();
    for (int i = 0; i < 5; ++i) {
      Launch(stream, [&order, i] { order.push_back(i); });
      Launch(other, [] {});
    }
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    ASSERT_THAT(order, ElementsAre(0, 1, 2, 3, 4));
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
}

TEST_F(RuntimeStream, RunsNothingUntilACallWaits) {
  StayLazy();
  bool ran = false;
  cudaStream_t stream = NonBlockingStream();
  Launch(stream, [&ran] { ran = true; });
  EXPECT_FALSE(ran);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_TRUE(ran);
}

// A source that the program fills too late is seen on the seeds where the device did not wait for
// it.
TEST_F(RuntimeStream, RunsAheadOnSomeSeeds) {
  int too_late = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Reset();
    SetStreamSeed(seed);
    int* source = PinnedInts(1);
    int* device = DeviceInts(1);
    int result = 0;
    cudaStream_t stream = NonBlockingStream();
    *source = 1;
    ASSERT_EQ(cudaMemcpyAsync(device, source, sizeof(int), cudaMemcpyHostToDevice, stream),
              cudaSuccess);
    *source = 2;
    ASSERT_EQ(cudaMemcpyAsync(&result, device, sizeof(int), cudaMemcpyDeviceToHost, stream),
              cudaSuccess);
    too_late += result == 1 ? 1 : 0;
  }
  EXPECT_GE(too_late, 3);
  EXPECT_LT(too_late, static_cast<int>(kSeeds));
}

TEST_F(RuntimeStream, OrdersTheLegacyStreamWithBlockingStreamsOnly) {
  int before_not_waited_for = 0;
  int after_did_not_wait = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Reset();
    SetStreamSeed(seed);
    cudaStream_t blocking = nullptr;
    ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
    cudaStream_t before = NonBlockingStream();
    cudaStream_t after = NonBlockingStream();
    std::string order;
    Launch(before, [&order] { order += 'x'; });
    Launch(blocking, [&order] { order += 'a'; });
    Launch(nullptr, [&order] { order += 'b'; });
    Launch(blocking, [&order] { order += 'c'; });
    Launch(after, [&order] { order += 'y'; });
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    before_not_waited_for += order.find('x') > order.find('b') ? 1 : 0;
    after_did_not_wait += order.find('y') < order.find('b') ? 1 : 0;
    std::erase_if(order, [](char c) { return c >= 'x'; });
    ASSERT_EQ(order, "abc");
  }
  EXPECT_GT(before_not_waited_for, 0);
  EXPECT_LT(before_not_waited_for, static_cast<int>(kSeeds));
  EXPECT_GT(after_did_not_wait, 0);
  EXPECT_LT(after_did_not_wait, static_cast<int>(kSeeds));
}

TEST_F(RuntimeStream, RefusesUnknownAndDestroyedStreams) {
  cudaStream_t stream = NonBlockingStream();
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(Enqueue(stream, {.what = "kernel Late"}), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamSynchronize(cudaStreamPerThread), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream, 8), cudaErrorInvalidValue);
}

TEST_F(RuntimeStream, FinishesTheWorkOfADestroyedStream) {
  StayLazy();
  bool ran = false;
  cudaStream_t stream = NonBlockingStream();
  Launch(stream, [&ran] { ran = true; });
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_FALSE(ran);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(ran);
}

TEST_F(RuntimeStream, PollsMakeProgress) {
  StayLazy();
  cudaStream_t stream = NonBlockingStream();
  cudaEvent_t event = NewEvent();
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);  // never recorded
  Launch(stream, [] {});
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  EXPECT_EQ(cudaGetLastError(), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
}

TEST_F(RuntimeStream, AnEventStandsForItsLastRecord) {
  StayLazy();
  std::vector<int> order;
  cudaStream_t stream = NonBlockingStream();
  cudaEvent_t event = NewEvent();
  Launch(stream, [&order] { order.push_back(1); });
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  Launch(stream, [&order] { order.push_back(2); });
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_THAT(order, ElementsAre(1));
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_THAT(order, ElementsAre(1, 2));
}

TEST_F(RuntimeStream, MeasuresTimeBetweenReachedEvents) {
  StayLazy();
  cudaEvent_t start = nullptr;
  cudaEvent_t end = nullptr;
  ASSERT_EQ(cudaEventCreate(&start), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&end), cudaSuccess);
  float ms = -1;
  EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaErrorInvalidResourceHandle);
  cudaStream_t stream = NonBlockingStream();
  ASSERT_EQ(cudaEventRecord(start, stream), cudaSuccess);
  Launch(stream, [] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); });
  ASSERT_EQ(cudaEventRecord(end, stream), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaErrorNotReady);
  ASSERT_EQ(cudaEventSynchronize(end), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaSuccess);
  EXPECT_GE(ms, 2);
  EXPECT_EQ(cudaEventElapsedTime(&ms, start, NewEvent()), cudaErrorInvalidResourceHandle);
}

TEST_F(RuntimeStream, WaitsForWhatIsNotReady) {
  cudaStream_t stream = NonBlockingStream();
  int polls = 0;
  bool ran = false;
  ASSERT_EQ(Enqueue(stream, {.what = "collective",
                             .ready = [&polls] { return ++polls > 3; },
                             .run =
                                 [&ran] {
                                   ran = true;
                                   return cudaSuccess;
                                 }}),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_TRUE(ran);
  EXPECT_EQ(polls, 4);
}

TEST_F(RuntimeStream, RefusesCallsFromWithinOperations) {
  cudaStream_t stream = NonBlockingStream();
  cudaError_t inside = cudaSuccess;
  const auto call = [](void* error) {
    *static_cast<cudaError_t*>(error) = cudaDeviceSynchronize();
  };
  ASSERT_EQ(cudaLaunchHostFunc(stream, call, &inside), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(inside, cudaErrorNotPermitted);
}

// A host function may wait for a thread that itself uses the runtime.
TEST_F(RuntimeStream, HostFunctionsDoNotHoldTheRuntime) {
  cudaStream_t stream = NonBlockingStream();
  std::atomic<bool> other_is_done = false;
  const auto wait = [](void* flag) { static_cast<std::atomic<bool>*>(flag)->wait(false); };
  ASSERT_EQ(cudaLaunchHostFunc(stream, wait, &other_is_done), cudaSuccess);
  std::thread other([&other_is_done] {
    int* p = DeviceInts(4);
    EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
    EXPECT_NE(p, nullptr);
    other_is_done = true;
    other_is_done.notify_all();
  });
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  other.join();
}

TEST_F(RuntimeStream, ServesSeveralThreads) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 200;
  std::vector<int> sums(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&sum = sums[static_cast<size_t>(t)]] {
      cudaStream_t stream = NonBlockingStream();
      for (int i = 0; i < kRounds; ++i) {
        Launch(stream, [&sum] { ++sum; });
        if (i % 7 == 0) {
          EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        }
      }
      EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), 0), kThreads * kRounds);
  EXPECT_THAT(LiveObjects(), SizeIs(0));
}

}  // namespace
}  // namespace cudahost
