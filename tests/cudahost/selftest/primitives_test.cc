#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "tests/cudahost/selftest/device_array.h"
#include "tests/cudahost/selftest/kernels.h"

#if defined(BITSHARD_ON_CUDAHOST)
#include "tests/cudahost/sched.h"
#endif

namespace cudahost::selftest {
namespace {

// Small integers, whose sums are exact in any order.
std::vector<float> Numbers(size_t n) {
  std::vector<float> numbers(n);
  for (size_t i = 0; i < n; ++i) numbers[i] = static_cast<float>(i * 7 % 31) - 11;
  return numbers;
}

// Each test runs 20 times: on the stand-in with 20 orders of blocks and threads.
class Primitives : public testing::TestWithParam<uint64_t> {
 protected:
#if defined(BITSHARD_ON_CUDAHOST)
  void SetUp() override { SetSeed(GetParam()); }
#endif

  static void Run(std::string_view name, const Shape& shape, const Buffers& buffers) {
    const absl::Status status = LaunchPrimitive(name, shape, buffers, nullptr);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
};

TEST_P(Primitives, CopyStridesOverTheGrid) {
  const std::vector<float> in = Numbers(1003);
  const DeviceArray<float> x(in);
  const DeviceArray<float> y(in.size());
  Run("Copy", {.grid = 3, .block = 96}, {.in = x.data(), .out = y.data(), .n = 1003});
  EXPECT_EQ(y.ToHost(), in);
}

TEST_P(Primitives, IndicesHaveThreeDimensions) {
  const Shape shape{.grid = dim3(3, 2, 4), .block = dim3(5, 4, 3)};
  const DeviceArray<uint32_t> words(24 * 60);
  Run("Indices", shape, {.words = words.data()});
  std::vector<uint32_t> want;
  for (uint32_t block = 0; block < 24; ++block) {
    for (uint32_t thread = 0; thread < 60; ++thread) want.push_back(block << 16 | thread);
  }
  EXPECT_EQ(words.ToHost(), want);
}

TEST_P(Primitives, SharedMemoryIsOneForTheBlock) {
  const std::vector<float> in = Numbers(4 * 256);
  const DeviceArray<float> x(in);
  const DeviceArray<float> y(in.size());
  std::vector<float> want = in;
  for (size_t block = 0; block < 4; ++block) {
    std::reverse(want.begin() + static_cast<std::ptrdiff_t>(block * 256),
                 want.begin() + static_cast<std::ptrdiff_t>(block * 256 + 256));
  }
  Run("Reverse", {.grid = 4, .block = 256}, {.in = x.data(), .out = y.data()});
  EXPECT_EQ(y.ToHost(), want);
  Run("ReverseDynamic", {.grid = 4, .block = 256, .dynamic_shared_bytes = 256 * sizeof(float)},
      {.in = x.data(), .out = y.data()});
  EXPECT_EQ(y.ToHost(), want);
}

TEST_P(Primitives, ShufflesReduceAndScanAWarp) {
  const std::vector<float> in = Numbers(2 * 64);
  const DeviceArray<float> x(in);
  const DeviceArray<float> y(in.size());
  Run("Shuffles", {.grid = 2, .block = 64}, {.in = x.data(), .out = y.data()});
  std::vector<float> want(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    const auto warp = in.begin() + static_cast<std::ptrdiff_t>(i / 32 * 32);
    const float sum = std::accumulate(warp, warp + 32, 0.0f);
    const float prefix =
        std::accumulate(warp, warp + static_cast<std::ptrdiff_t>(i % 32 + 1), 0.0f);
    want[i] = 2 * sum + prefix + in[i ^ 1];
  }
  EXPECT_EQ(y.ToHost(), want);
}

TEST_P(Primitives, HalvesOfAWarpShuffleByThemselves) {
  const std::vector<float> in = Numbers(96);
  const DeviceArray<float> x(in);
  const DeviceArray<float> y(in.size());
  Run("HalfWarps", {.grid = 1, .block = 96}, {.in = x.data(), .out = y.data()});
  std::vector<float> want(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    const size_t source = i / 16 * 16 + (i % 32 < 16 ? 3 : 4);
    const size_t below = i % 8 < 6 ? i + 2 : i;
    want[i] = in[source] + in[below];
  }
  EXPECT_EQ(y.ToHost(), want);
}

TEST_P(Primitives, VotesCountLanesAndThreads) {
  std::vector<uint32_t> words(96);
  for (size_t i = 0; i < 96; ++i) words[i] = i < 32 ? 1u : i < 64 ? static_cast<uint32_t>(i) : 2u;
  const DeviceArray<uint32_t> w(words);
  const DeviceArray<float> y(96);
  Run("Votes", {.grid = 1, .block = 96}, {.out = y.data(), .words = w.data()});
  const std::vector<float> got = y.ToHost();
  const float block = 1000 * 48 + 4000000;
  for (size_t i = 0; i < 96; ++i) {
    EXPECT_EQ(got[i], block + (i < 32 ? 32 + 300 : i < 64 ? 16 + 100 : 0)) << i;
  }
}

TEST_P(Primitives, AtomicsLoseNothing) {
  const std::vector<uint32_t> zero(20);
  std::vector<uint32_t> start = zero;
  start[17] = ~0u;
  const DeviceArray<uint32_t> words(start);
  const DeviceArray<float> sum(std::vector<float>(1));
  Run("Atomics", {.grid = 5, .block = 64}, {.out = sum.data(), .words = words.data(), .n = 20});
  std::vector<uint32_t> want(20, 20);
  want[16] = 319;
  want[17] = 0;
  want[18] = 7;
  want[19] = 0;
  EXPECT_EQ(words.ToHost(), want);
  EXPECT_EQ(sum.ToHost()[0], 320);
}

TEST_P(Primitives, SyncwarpOrdersAWarp) {
  const std::vector<float> in = Numbers(2 * 128);
  const DeviceArray<float> x(in);
  const DeviceArray<float> y(in.size());
  Run("ExchangeInWarp", {.grid = 2, .block = 128}, {.in = x.data(), .out = y.data()});
  std::vector<float> want(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    const size_t warp = i / 32 * 32;
    const size_t lane = i % 32 < 8 ? (i + 1) % 8 : i % 32;
    want[i] = 2 * in[warp + (lane + 31) % 32];
  }
  EXPECT_EQ(y.ToHost(), want);
}

TEST_P(Primitives, VectorsAndHalfPrecisionAreLoadedAndRounded) {
  std::vector<float> in(4 * 100);
  for (size_t i = 0; i < in.size(); ++i) in[i] = 1.0f / static_cast<float>(i + 3);
  const DeviceArray<float> x(in);
  const DeviceArray<float> y(in.size());
  const DeviceArray<uint8_t> packed(in.size() * 2);
  Run("Vectors", {.grid = 2, .block = 64},
      {.in = x.data(), .out = y.data(), .bytes = packed.data(), .n = 400});
  const std::vector<float> got = y.ToHost();
  for (size_t i = 0; i < in.size(); ++i) {
    const float want = i % 4 < 2 ? __bfloat162float(__float2bfloat16(in[i]))
                                 : __half2float(__float2half_rn(in[i]));
    EXPECT_EQ(got[i], want) << i;
    EXPECT_NE(got[i], 0) << i;
  }
}

TEST_P(Primitives, BarriersOrderPartsOfAWord) {
  const std::vector<float> in = Numbers(2 * 256);
  const DeviceArray<float> x(in);
  const DeviceArray<float> y(in.size());
  std::vector<float> want(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    want[i] = in[i / 256 * 256 + 4 * (63 - i % 256 / 4) + i % 4] + 1;
  }
  for (int launch = 0; launch < 2; ++launch) {
    Run("Parts", {.grid = 2, .block = 64}, {.in = x.data(), .out = y.data()});
    EXPECT_EQ(y.ToHost(), want);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, Primitives, testing::Range(uint64_t{1}, uint64_t{21}));

}  // namespace
}  // namespace cudahost::selftest
