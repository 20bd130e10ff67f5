// The stand-in for NCCL with ranks that are threads, and what it does when they misbehave.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <barrier>
#include <thread>

#include "tests/cudahost/nccl_checks.h"
#include "tests/cudahost/nccl_faults.h"
#include "tests/cudahost/runtime.h"

namespace cudahost {
namespace {

using testing::HasSubstr;

void RunThreads(int size, const std::function<void(const NcclRank&)>& body) {
  ncclUniqueId id;
  std::barrier all(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      body({.rank = r, .size = size, .next_id = [&, r] {
              all.arrive_and_wait();
              if (r == 0) Ok(ncclGetUniqueId(&id));
              all.arrive_and_wait();
              return id;
            }});
    });
  }
  for (std::thread& thread : threads) thread.join();
  FreeDeviceArrays();
}

class NcclStandIn : public testing::Test {
 protected:
  // What a test has left, a sticky error first of all, must not be the next one's.
  NcclStandIn() { Reset(); }
  ~NcclStandIn() override { SetNcclFaults({}); }
};

class NcclChecksOnThreads : public NcclStandIn,
                            public testing::WithParamInterface<std::tuple<NcclCheck, int>> {};

TEST_P(NcclChecksOnThreads, Hold) {
  const auto [check, size] = GetParam();
  RunThreads(size, check.run);
}

INSTANTIATE_TEST_SUITE_P(, NcclChecksOnThreads,
                         testing::Combine(testing::ValuesIn(NcclChecks()),
                                          testing::Values(1, 2, 3, 4)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) + "On" +
                                  std::to_string(std::get<1>(info.param));
                         });

// Every rank runs `calls`; returns what rank 0 is told at the end, after all have seen their stream
// fail.
std::string ErrorOf(int size, const std::function<void(const NcclRank&, ncclComm_t, cudaStream_t,
                                                       const DeviceArray<float>&)>& calls) {
  std::string text;
  Reset();
  RunThreads(size, [&](const NcclRank& rank) {
    TestComm comm(rank);
    const TestStream stream;
    const DeviceArray<float> data(std::vector<float>(64));
    calls(rank, comm, stream, data);
    (void)stream.Wait();
    ncclResult_t error = ncclSuccess;
    Ok(ncclCommGetAsyncError(comm, &error));
    EXPECT_EQ(error, ncclInvalidUsage) << "rank " << rank.rank;
    if (rank.rank == 0) text = ncclGetLastError(comm);
    comm.Abort();
  });
  return text;
}

TEST_F(NcclStandIn, DifferentCallsAreReportedWithBothOfThem) {
  EXPECT_EQ(
      ErrorOf(2,
              [](const NcclRank& rank, ncclComm_t comm, cudaStream_t stream, const auto& data) {
                Ok(ncclAllReduce(data.data(), data.data(), 4, ncclFloat32, ncclSum, comm, stream));
                const size_t count = rank.rank == 0 ? 16 : 8;
                Ok(ncclAllReduce(data.data(), data.data(), count, ncclFloat32, ncclSum, comm,
                                 stream));
              }),
      "ranks make different calls: rank 0 calls ncclAllReduce number 1 (count 16, ncclFloat32, "
      "ncclSum), rank 1 calls ncclAllReduce number 1 (count 8, ncclFloat32, ncclSum)");
  EXPECT_THAT(
      ErrorOf(2,
              [](const NcclRank& rank, ncclComm_t comm, cudaStream_t stream, const auto& data) {
                if (rank.rank == 0) {
                  Ok(ncclBroadcast(data.data(), data.data(), 4, ncclFloat32, 0, comm, stream));
                } else {
                  Ok(ncclAllReduce(data.data(), data.data(), 4, ncclFloat32, ncclMax, comm,
                                   stream));
                }
              }),
      HasSubstr("rank 0 calls ncclBroadcast number 0 (count 4, ncclFloat32, root 0), rank 1 calls "
                "ncclAllReduce number 0 (count 4, ncclFloat32, ncclMax)"));
  EXPECT_THAT(
      ErrorOf(2,
              [](const NcclRank& rank, ncclComm_t comm, cudaStream_t stream, const auto& data) {
                if (rank.rank == 0) {
                  Ok(ncclSend(data.data(), 4, ncclFloat32, 1, comm, stream));
                } else {
                  Ok(ncclRecv(data.data(), 4, ncclInt32, 0, comm, stream));
                }
              }),
      HasSubstr("rank 0 calls ncclSend number 0 to rank 1 (count 4, ncclFloat32), rank 1 calls "
                "ncclRecv number 0 from rank 0 (count 4, ncclInt32)"));
}

TEST_F(NcclStandIn, SendsOutsideOfAGroupThatWaitForEachOtherAreReported) {
  EXPECT_THAT(
      ErrorOf(2,
              [](const NcclRank& rank, ncclComm_t comm, cudaStream_t stream, const auto& data) {
                const int peer = 1 - rank.rank;
                Ok(ncclSend(data.data(), 4, ncclFloat32, peer, comm, stream));
                Ok(ncclRecv(data.data() + 8, 4, ncclFloat32, peer, comm, stream));
              }),
      HasSubstr("ranks wait for each other: rank 0 calls ncclSend number 0 to rank 1 (count 4, "
                "ncclFloat32), rank 1 calls ncclSend number 0 to rank 0"));
}

TEST_F(NcclStandIn, AWaitThatIsTooLongNamesTheCall) {
  SetNcclFaults({.rank = 1, .vanish_at = 0, .timeout_ms = 3000});  // Also of the initialisation.
  EXPECT_THAT(
      ErrorOf(2,
              [](const NcclRank&, ncclComm_t comm, cudaStream_t stream, const auto& data) {
                Ok(ncclAllReduce(data.data(), data.data(), 4, ncclFloat32, ncclSum, comm, stream));
              }),
      HasSubstr("timeout: rank "));
}

TEST_F(NcclStandIn, ARankThatHasEndedIsReported) {
  RunThreads(2, [](const NcclRank& rank) {
    ncclComm_t comm = nullptr;
    Ok(ncclCommInitRank(&comm, rank.size, rank.next_id(), rank.rank));
    if (rank.rank == 1) {
      EXPECT_EQ(ncclCommDestroy(comm), ncclInvalidUsage) << "told by the other rank";
      return;
    }
    const TestStream stream;
    const DeviceArray<float> data({1});
    Ok(ncclAllReduce(data.data(), data.data(), 1, ncclFloat32, ncclSum, comm, stream));
    EXPECT_NE(stream.Wait(), cudaSuccess);
    ncclResult_t error = ncclSuccess;
    Ok(ncclCommGetAsyncError(comm, &error));
    EXPECT_THAT(ncclGetLastError(comm), HasSubstr("rank 1 has ended its communicator"));
    Ok(ncclCommAbort(comm));
  });
}

TEST_F(NcclStandIn, RefusesBuffersThatNcclCannotUse) {
  RunThreads(1, [](const NcclRank& rank) {
    const TestComm comm(rank);
    const TestStream stream;
    const DeviceArray<float> data(std::vector<float>(64));
    std::vector<float> host(64);
    const auto reduce = [&](float* from, float* to, size_t count) {
      EXPECT_EQ(ncclAllReduce(from, to, count, ncclFloat32, ncclSum, comm, stream),
                ncclInvalidArgument);
      return std::string(ncclGetLastError(comm));
    };
    EXPECT_THAT(reduce(host.data(), data.data(), 4), HasSubstr("sendbuff is host memory"));
    EXPECT_THAT(reduce(data.data(), host.data(), 4), HasSubstr("recvbuff is host memory"));
    EXPECT_THAT(reduce(data.data(), nullptr, 4), HasSubstr("recvbuff is null"));
    EXPECT_THAT(reduce(data.data(), data.data(), 65), HasSubstr("3 bytes behind"));
    EXPECT_THAT(reduce(data.data(), data.data() + 2, 4), HasSubstr("overlap"));
  });
}

TEST_F(NcclStandIn, AbortEndsWhatIsOnTheStream) {
  SetNcclFaults({.async_error_at = 0});
  RunThreads(2, [](const NcclRank& rank) {
    TestComm comm(rank);
    const TestStream stream;
    const DeviceArray<float> data({1});
    Ok(ncclAllReduce(data.data(), data.data(), 1, ncclFloat32, ncclSum, comm, stream));
    ncclResult_t error = ncclSuccess;
    while (error == ncclSuccess) {
      EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
      Ok(ncclCommGetAsyncError(comm, &error));
    }
    EXPECT_EQ(error, ncclSystemError);
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady) << "the kernel spins until the abort";
    comm.Abort();
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(data.Read()[0], 1) << "without data";
  });
}

TEST_F(NcclStandIn, InitialisationHangsOnDemand) {
  SetNcclFaults({.rank = 1, .init_hangs = 1});
  RunThreads(2, [](const NcclRank& rank) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    EXPECT_EQ(ncclCommInitRankConfig(&comm, rank.size, rank.next_id(), rank.rank, &config),
              ncclInProgress);
    if (rank.rank == 0) {
      EXPECT_EQ(WaitForComm(comm), ncclSuccess);
    } else {
      for (int i = 0; i < 50; ++i) {
        ncclResult_t state = ncclSuccess;
        Ok(ncclCommGetAsyncError(comm, &state));
        EXPECT_EQ(state, ncclInProgress);
        usleep(1000);
      }
    }
    (void)rank.next_id();  // Both have come: an abort takes the place away where ranks join.
    Ok(ncclCommAbort(comm));
  });
}

TEST_F(NcclStandIn, EmulatesTheLostTailOfAnAverageOnOneRank) {
  SetNcclFaults({.average_drops = 1});
  RunThreads(1, [](const NcclRank& rank) {
    const TestComm comm(rank);
    const TestStream stream;
    const DeviceArray<float> in({1, 2, 3, 4, 5});
    const DeviceArray<float> out(std::vector<float>(5));
    Ok(ncclAllReduce(in.data(), out.data(), 5, ncclFloat32, ncclAvg, comm, stream));
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(out.Read(), (std::vector<float>{1, 2, 3, 0, 0}));
    Ok(ncclAllReduce(in.data(), out.data(), 5, ncclFloat32, ncclSum, comm, stream));
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(out.Read(), (std::vector<float>{1, 2, 3, 4, 5})) << "a sum is whole";
  });
}

TEST_F(NcclStandIn, EmulatesPermutedChunks) {
  SetNcclFaults({.permute_gather = 1, .permute_scatter = 1});
  RunThreads(3, [](const NcclRank& rank) {
    const TestComm comm(rank);
    const TestStream stream;
    const DeviceArray<int32_t> mine({rank.rank});
    const DeviceArray<int32_t> all({0, 0, 0});
    Ok(ncclAllGather(mine.data(), all.data(), 1, ncclInt32, comm, stream));
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(all.Read(), (std::vector<int32_t>{2, 1, 0}));
    Ok(ncclReduceScatter(all.data(), mine.data(), 1, ncclInt32, ncclSum, comm, stream));
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(mine.Read()[0], 3 * rank.rank);
  });
}

TEST_F(NcclStandIn, InitAllMakesACliqueInOneThread) {
  ncclComm_t comms[2];
  const int devices[2] = {0, 0};
  Ok(ncclCommInitAll(comms, 2, devices));
  const TestStream first;
  const TestStream second;
  const DeviceArray<int32_t> a({1});
  const DeviceArray<int32_t> b({2});
  Ok(ncclGroupStart());
  Ok(ncclAllReduce(a.data(), a.data(), 1, ncclInt32, ncclSum, comms[0], first));
  Ok(ncclAllReduce(b.data(), b.data(), 1, ncclInt32, ncclSum, comms[1], second));
  Ok(ncclGroupEnd());
  EXPECT_EQ(first.Wait(), cudaSuccess);
  EXPECT_EQ(second.Wait(), cudaSuccess);
  EXPECT_EQ(a.Read()[0], 3);
  EXPECT_EQ(b.Read()[0], 3);
  for (ncclComm_t comm : comms) Ok(ncclCommAbort(comm));
  FreeDeviceArrays();
}

TEST_F(NcclStandIn, RegistrationAndIdentity) {
  RunThreads(1, [](const NcclRank& rank) {
    int version = 0;
    Ok(ncclGetVersion(&version));
    EXPECT_EQ(version, NCCL_VERSION_CODE);
    EXPECT_STREQ(ncclGetErrorString(ncclInProgress), "NCCL operation in progress");
    const TestComm comm(rank);
    void* memory = nullptr;
    void* handle = nullptr;
    Ok(ncclMemAlloc(&memory, 4096));
    Ok(ncclCommRegister(comm, memory, 4096, &handle));
    EXPECT_EQ(ncclCommRegister(comm, memory, 4096, &handle), ncclInvalidArgument);
    Ok(ncclCommDeregister(comm, handle));
    EXPECT_EQ(ncclCommDeregister(comm, handle), ncclInvalidArgument);
    Ok(ncclMemFree(memory));
    EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);
    ncclConfig_t config{};
    ncclComm_t other = nullptr;
    EXPECT_EQ(ncclCommInitRankConfig(&other, 1, rank.next_id(), 0, &config), ncclInvalidArgument);
  });
}

TEST(NcclFaultsTest, AreParsedWhole) {
  std::string error;
  const auto faults = ParseNcclFaults("rank=1 die_at=7", &error);
  ASSERT_TRUE(faults.has_value());
  EXPECT_EQ(faults->rank, 1);
  EXPECT_EQ(faults->die_at, 7);
  EXPECT_FALSE(ParseNcclFaults("dies_at=7", &error).has_value());
  EXPECT_EQ(error, "unknown fault 'dies_at=7'");
  EXPECT_FALSE(ParseNcclFaults("die_at=7x", &error).has_value());
  EXPECT_FALSE(ParseNcclFaults("die_at", &error).has_value());
}

}  // namespace
}  // namespace cudahost
