#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <ostream>
#include <string>

#include "tests/cudahost/sched.h"
#include "tests/cudahost/selftest/device_array.h"
#include "tests/cudahost/selftest/kernels.h"

namespace cudahost::selftest {
namespace {

using testing::AllOf;
using testing::ContainsRegex;
using testing::HasSubstr;

constexpr uint64_t kSeeds = 20;

struct Fault {
  const char* kernel;
  const char* report;  // A regular expression: how the report begins.
  const char* also = "";
  unsigned block = 128;
};

std::ostream& operator<<(std::ostream& out, const Fault& fault) { return out << fault.kernel; }

// "faults.cu:57": the line that ends with `mark` in the function of that name; "" when none does.
std::string MarkedLine(const std::string& function, const std::string& mark) {
  std::ifstream file(BITSHARD_SOURCE_DIR "/tests/cudahost/selftest/faults.cu");
  EXPECT_TRUE(file.good());
  bool inside = false;
  int number = 1;
  for (std::string line; std::getline(file, line); ++number) {
    if (line.find(" " + function + "(") != std::string::npos) inside = true;
    if (inside && line.ends_with(mark)) {
      return "tests/cudahost/selftest/faults.cu:" + std::to_string(number);
    }
    if (line.starts_with("}") || line.find("}  //") != std::string::npos) inside = false;
  }
  return "";
}

class Faults : public testing::TestWithParam<Fault> {};

void Launch(const Fault& fault, const Buffers& buffers) {
  const Shape shape{.grid = 2, .block = fault.block};
  const absl::Status status = LaunchFault(fault.kernel, shape, buffers, nullptr);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_P(Faults, AreReportedWithBothPlaces) {
  const Fault& fault = GetParam();
  const size_t n = 2 * fault.block;
  const std::vector<float> host(n, 3.0f);
  const DeviceArray<float> in(host);
  const DeviceArray<float> shorter(std::vector<float>(n - 1, 3.0f));
  const DeviceArray<float> nothing(n);
  const DeviceArray<float> out(host);
  const DeviceArray<uint32_t> words{std::vector<uint32_t>(n)};
  const DeviceArray<uint8_t> bytes{std::vector<uint8_t>(n)};
  Buffers buffers{.in = in.data(),
                  .out = out.data(),
                  .words = words.data(),
                  .bytes = bytes.data(),
                  .n = static_cast<int64_t>(n)};
  const std::string kernel = fault.kernel;
  if (kernel.starts_with("Uninitialised")) buffers.in = nothing.data();
  if (kernel == "HostPointer") buffers.in = host.data();
  if (kernel.ends_with("PastEnd")) {
    buffers.in = shorter.data();
    buffers.out = kernel == "WritePastEnd" ? shorter.data() : out.data();
    buffers.n = static_cast<int64_t>(n) - 1;
  }
  const std::string here = MarkedLine(kernel, "// HERE");
  const std::string there = MarkedLine(kernel, "// THERE");
  ASSERT_NE(here, "");
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SetSeed(seed);
    EXPECT_DEATH(Launch(fault, buffers),
                 AllOf(ContainsRegex("cudahost: (" + std::string(fault.report) + "): "),
                       HasSubstr("kernel " + kernel + ", block ("), HasSubstr("thread ("),
                       HasSubstr(here), HasSubstr(there), ContainsRegex(fault.also),
                       HasSubstr("order of seed " + std::to_string(seed) + " ")));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Divergence, Faults,
    testing::Values(Fault{"BarrierInBranch", "barrier not reached by all threads", "has exited"},
                    Fault{"DifferentBarriers", "threads at different barriers", "waits in"},
                    Fault{"EarlyReturn", "exited lane named by the mask.*"},
                    Fault{"OutsideItsMask", "lane outside of its mask", "mask 0xffff"},
                    Fault{"BeyondTheBlock", "mask names a lane beyond the block", "", 48},
                    Fault{"DifferentCalls", "lanes at different calls", "waits in __shfl_sync"},
                    Fault{"HalfMask", "source lane [0-9]+ outside of the mask"},
                    Fault{"Deadlock", "deadlock: no thread can go on", "waits in __sync"},
                    Fault{"BadWidth", "width is not a power of two up to 32"}),
    testing::PrintToStringParamName());

INSTANTIATE_TEST_SUITE_P(
    Memory, Faults,
    testing::Values(
        Fault{"ReadPastEnd", "out of bounds", "offset 1020, 0 bytes past the end of device buffer"},
        Fault{"WritePastEnd", "out of bounds", "offset 1020, 0 bytes past the end of device"},
        Fault{"WriteBeforeBegin", "out of bounds", "1 bytes before the begin of device buffer"},
        Fault{"TableLoopTooLong", "out of bounds",
              "offset 1024, 0 bytes past the end of shared buffer 'table'"},
        Fault{"UninitialisedDevice", "uninitialised read", "of device buffer"},
        Fault{"CopyPastEnd", "out of bounds", "offset 1020, 0 bytes past the end of device buffer"},
        Fault{"UninitialisedCopy", "uninitialised read", "of device buffer"},
        Fault{"StructPastEnd", "out of bounds",
              "read of 24 bytes.*offset 1020, 0 bytes past the end of device buffer"},
        Fault{"UninitialisedStruct", "uninitialised read", "24 bytes.*offset 168 of device buf"},
        Fault{
            "MisalignedRead", "misaligned",
            "read of 'const (struct )?float4'.*no multiple of 16: offset [0-9]+ of device buffer"},
        Fault{"MisalignedWrite", "misaligned",
              "write of 'uint32_t'.*no multiple of 4: offset [0-9]+ of device buffer"},
        Fault{"OnlyOneLaneStores", "uninitialised read", "of shared buffer 'sums'"},
        Fault{"HostPointer", "kernel in host memory", "address 0x"}),
    testing::PrintToStringParamName());

INSTANTIATE_TEST_SUITE_P(
    Races, Faults,
    testing::Values(Fault{"ScratchReused", "race", "of shared buffer 'scratch' of 1024 bytes", 256},
                    Fault{"TwoBlocksOneWord", "race", "with the write at .*offset 0 of device"},
                    Fault{"TwoThreadsOneWord", "race", "with the write at .*offset [0-9]+ of dev"},
                    Fault{"BlocksReadAndWrite", "race", "with the (read|write).*offset 0 of dev"},
                    Fault{"FillAndWrite", "race", "offset (0|36) of device buffer"},
                    Fault{"StructAndWord", "race", "offset 36 of device buffer"},
                    Fault{"BytesOfOneWord", "race", "offset [4-7] of device buffer"},
                    Fault{"NoSyncwarp", "race", "of shared buffer 'tile'"},
                    Fault{"PartialSyncwarp", "race", "of shared buffer 'tile'"},
                    Fault{"AtomicAndPlain", "race", "with the (atomic update|write) at"}),
    testing::PrintToStringParamName());

INSTANTIATE_TEST_SUITE_P(
    Parts, Faults,
    testing::Values(
        Fault{"QuadPastEnd", "out of bounds", "16 bytes.*offset 1020, 0 bytes past the end of dev"},
        Fault{"HalfPastEnd", "out of bounds", "2 bytes.*offset 1020, 0 bytes past the end of dev"},
        Fault{"UninitialisedQuad", "uninitialised read", "16 bytes"},
        Fault{"UninitialisedHalf", "uninitialised read", "2 bytes"},
        Fault{"TwoBlocksOneQuad", "race", "with the write at .*offset 16 of device"},
        Fault{"TwoThreadsOneHalf", "race", "with the write at .*offset [0-9]+ of dev"},
        Fault{"QuadReadAndWritten", "race", "with the (read|write).*offset 32 of dev"},
        Fault{"QuadAndWord", "race", "with the (read|write).*offset 36 of dev"},
        Fault{"HalfAndWord", "race", "with the (read|write).*offset 6 of dev"},
        Fault{"HalfAndByte", "race", "with the (read|write).*offset 7 of dev"},
        Fault{"QuadReadAfterWrite", "race", "with the (read|write).*offset 48 of dev"},
        Fault{"HalfReadAfterWrite", "race", "with the (read|write).*offset 6 of dev"},
        Fault{"ReadBeforeAndAfter", "race", "of shared buffer 'tile'"},
        Fault{"ReadInBothBlocks", "race", "with the (read|write).*offset 0 of device"},
        Fault{"ReadInBothWarps", "race", "offset 0 of shared buffer 'tile'"},
        Fault{"SharedHalvesReused", "race", "of shared buffer 'scratch' of 512 bytes", 256}),
    testing::PrintToStringParamName());

// Whether the neighbour has stored yet depends on the order.
INSTANTIATE_TEST_SUITE_P(Order, Faults,
                         testing::Values(Fault{"NoBarrierAfterLoad", "uninitialised read|race",
                                               "of shared buffer 'table'", 256}),
                         testing::PrintToStringParamName());

TEST(Faults, FreedMemoryIsReported) {
  float* data = nullptr;
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&data), 1024), cudaSuccess);
  ASSERT_EQ(cudaMemset(data, 0, 1024), cudaSuccess);
  const DeviceArray<float> out(256);
  ASSERT_EQ(cudaFree(data), cudaSuccess);
  EXPECT_DEATH(Launch({"UninitialisedDevice", ""}, {.in = data, .out = out.data()}),
               "use after free: read of 4 bytes at .*of freed device buffer '.*' of 1024 bytes");
}

// What whole launches have found to be in order must be found anew.
TEST(Faults, FreedMemoryIsReportedWhereverItWas) {
  const DeviceArray<float> out(256);
  const auto read = [&](const float* at, size_t floats) {
    Launch({"UninitialisedQuad", ""},
           {.in = at, .out = out.data(), .n = static_cast<int64_t>(floats)});
  };
  // The buffers, and their records, begin and end at different places in pages.
  for (size_t floats = 10'004; floats < 13'000; floats += 700) {
    float* data = nullptr;
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&data), floats * sizeof(float)), cudaSuccess);
    ASSERT_EQ(cudaMemset(data, 0, floats * sizeof(float)), cudaSuccess);
    read(data, floats);
    ASSERT_EQ(cudaFree(data), cudaSuccess);
    for (const size_t at : {size_t{0}, size_t{1100}, size_t{2044}, floats / 8 * 4, floats - 2048,
                            floats - 1104, floats - 4}) {
      EXPECT_DEATH(read(data + at, 4), "use after free: read of 16 bytes at ") << at;
    }
  }
}

TEST(Faults, ACopyOfWhatWasNeverWrittenIsReported) {
  const DeviceArray<float> in(std::vector<float>(256, 3.0f));
  const DeviceArray<float> nothing(256);
  const DeviceArray<float> out(256);
  const Buffers buffers{.in = in.data(), .out = out.data(), .n = 256};
  Launch({"UninitialisedQuad", ""}, buffers);
  ASSERT_EQ(cudaMemcpy(in.data() + 100, nothing.data(), 16, cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_DEATH(Launch({"UninitialisedQuad", ""}, buffers), "uninitialised read: .*offset 400 of");
}

TEST(Faults, WhatAnEarlierLaunchReadIsReportedWhenItIsWritten) {
  const DeviceArray<uint32_t> words(std::vector<uint32_t>(256));
  const DeviceArray<float> out(256);
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SetSeed(seed);
    Launch({"TableAndWrite", ""}, {.out = out.data(), .words = words.data(), .n = -1});
    EXPECT_DEATH(
        Launch({"TableAndWrite", ""}, {.out = out.data(), .words = words.data(), .n = 130}),
        "race: .*with the (read|write).*offset (8|12) of device buffer");
  }
}

TEST(Faults, HostCodeMayReadPinnedMemoryOnly) {
  float* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(reinterpret_cast<void**>(&pinned), 16), cudaSuccess);
  pinned[0] = 5;
  EXPECT_EQ(ReadOnHost(pinned), 5);
  ASSERT_EQ(cudaFreeHost(pinned), cudaSuccess);
  const DeviceArray<float> device(std::vector<float>{1.0f});
  EXPECT_DEATH(ReadOnHost(device.data()), "host code in device memory: read of 4 bytes at " +
                                              MarkedLine("ReadOnHost", "// HERE"));
}

TEST(Faults, PinnedMemoryThatNobodyWroteIsReported) {
  float* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(reinterpret_cast<void**>(&pinned), 1024), cudaSuccess);
  const DeviceArray<float> out(256);
  EXPECT_DEATH(Launch({"UninitialisedDevice", ""}, {.in = pinned, .out = out.data()}),
               "uninitialised read: .*of pinned buffer");
  // This file is not instrumented: the writes are seen by what they leave.
  for (int i = 0; i < 256; ++i) pinned[i] = static_cast<float>(i);
  Launch({"UninitialisedDevice", ""}, {.in = pinned, .out = out.data()});
  EXPECT_EQ(out.ToHost()[255], 255);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

}  // namespace
}  // namespace cudahost::selftest
