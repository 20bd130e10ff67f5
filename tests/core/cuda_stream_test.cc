#include "core/cuda_stream.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

namespace bitshard::core {
namespace {

// The runtime answers cudaErrorNotReady and keeps it as its last error, where whoever checks the
// next launch would find it.
TEST(Event, SaysThatItIsNotCompleteWithoutLeavingAnError) {
  constexpr size_t kBytes = size_t{4} << 20;
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, kBytes), cudaSuccess);
  {
    const auto stream = Stream::Create();
    const auto event = Event::Create();
    ASSERT_TRUE(stream.ok() && event.ok()) << stream.status() << event.status();
    int not_complete = 0;
    for (int i = 0; i < 8; ++i) {
      ASSERT_EQ(cudaMemsetAsync(memory, i, kBytes, stream->get()), cudaSuccess);
      ASSERT_TRUE(event->Record(stream->get()).ok());
      while (true) {
        const auto complete = event->IsComplete();
        ASSERT_TRUE(complete.ok()) << complete.status();
        ASSERT_EQ(cudaPeekAtLastError(), cudaSuccess);
        if (*complete) break;
        ++not_complete;
      }
    }
#if defined(BITSHARD_ON_CUDAHOST)
    EXPECT_GT(not_complete, 0);
#endif
  }
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

TEST(Event, IsCompleteBeforeItIsRecorded) {
  const auto event = Event::Create();
  ASSERT_TRUE(event.ok()) << event.status();
  const auto complete = event->IsComplete();
  ASSERT_TRUE(complete.ok()) << complete.status();
  EXPECT_TRUE(*complete);
}

}  // namespace
}  // namespace bitshard::core
