// The NCCL communicator on the stand-in, with ranks that are threads: what it does, and what it
// makes of the faults that NCCL is known for.
#include "comm/nccl_communicator.h"

#include "absl/time/clock.h"
#include "tests/comm/nccl_checks.h"
#include "tests/comm/world.h"
#include "tests/cudahost/nccl_faults.h"
#include "tests/cudahost/runtime.h"

namespace bitshard::comm {
namespace {

using testing::HasSubstr;

// The deadline where it is what finds a fault: so much may the sound ranks be apart.
constexpr absl::Duration kShort = absl::Seconds(3);

class NcclCommunicatorTest : public testing::Test {
 protected:
  NcclCommunicatorTest() {
    cudahost::Reset();
    cudahost::Settings settings = cudahost::CurrentSettings();
    settings.devices = 4;
    cudahost::Configure(settings);
  }
  ~NcclCommunicatorTest() override {
    cudahost::SetNcclFaults({});
    EXPECT_THAT(cudahost::LiveObjects(), testing::IsEmpty());
  }
};

TEST_F(NcclCommunicatorTest, MovesAndSumsDeviceMemory) {
  for (const int ranks : {1, 2, 3, 4}) RunOnThreads(ranks, absl::Seconds(60), CheckAll);
}

// Creates with `faults`; the status of rank 0, which the others share.
absl::Status CreateWith(const cudahost::NcclFaults& faults, int ranks, absl::Duration limit) {
  cudahost::SetNcclFaults(faults);
  absl::Status result;
  RunOnThreads(ranks, absl::Seconds(60), [&](Communicator& host) {
    NcclCommunicatorOptions options = QuickOptions(host);
    options.init_timeout = limit;
    const auto comm = NcclCommunicator::Create(options);
    EXPECT_FALSE(comm.ok());
    EXPECT_EQ(core::KindOf(comm.status()), core::ErrorKind::kPeer) << comm.status();
    if (host.rank() == 0) result = comm.status();
  });
  return result;
}

TEST_F(NcclCommunicatorTest, RefusesTwoRanksOnOneGpu) {
  RunOnThreads(3, absl::Seconds(60), [&](Communicator& host) {
    NcclCommunicatorOptions options = QuickOptions(host);
    if (host.rank() == 2) options.device = 0;
    const auto comm = NcclCommunicator::Create(options);
    EXPECT_EQ(core::KindOf(comm.status()), core::ErrorKind::kConfig) << comm.status();
    EXPECT_THAT(std::string(comm.status().message()),
                HasSubstr("ranks 0 and 2 both use GPU 0000:01:00.0 (UUID 01"));
  });
}

TEST_F(NcclCommunicatorTest, NamesTheVariablesOfNccl) {
  const std::vector<std::string> before = NcclEnvironment();
  ASSERT_EQ(setenv("NCCL_SOCKET_IFNAME", "eth0", 1), 0);
  ASSERT_EQ(setenv("NCCL_ALGO", "Ring\n", 1), 0);
  ASSERT_EQ(setenv("NOT_NCCL_ALGO", "Tree", 1), 0);
  const std::vector<std::string> now = NcclEnvironment();
  EXPECT_THAT(now, testing::IsSupersetOf({"NCCL_ALGO=Ring\\x0a", "NCCL_SOCKET_IFNAME=eth0"}));
  EXPECT_EQ(now.size(), before.size() + 2);
  EXPECT_TRUE(std::is_sorted(now.begin(), now.end()));
  EXPECT_EQ(unsetenv("NCCL_SOCKET_IFNAME"), 0);
  EXPECT_EQ(unsetenv("NCCL_ALGO"), 0);
  EXPECT_EQ(NcclEnvironment(), before);
}

TEST_F(NcclCommunicatorTest, SelfTestTellsThePermutationOfAnAllGather) {
  EXPECT_THAT(std::string(CreateWith({.permute_gather = 1}, 3, absl::Seconds(30)).message()),
              HasSubstr("all-gather of 2 elements delivers wrong data: the chunks of ranks 0, 1, 2 "
                        "were expected, those of ranks 2, 1, 0 came"));
}

TEST_F(NcclCommunicatorTest, SelfTestTellsWhoseSumCame) {
  EXPECT_THAT(
      std::string(CreateWith({.permute_scatter = 1}, 2, absl::Seconds(30)).message()),
      HasSubstr("reduce-scatter of 2 elements delivers wrong data: the chunks of ranks 0 were "
                "expected, those of ranks 1 came"));
}

TEST_F(NcclCommunicatorTest, SelfTestSeesOneWrongByteOnOneRank) {
  EXPECT_THAT(std::string(CreateWith({.rank = 1, .flip_at = 0}, 2, absl::Seconds(30)).message()),
              HasSubstr("rank 1: NCCL's all-to-all of 2 elements delivers wrong data"));
}

TEST_F(NcclCommunicatorTest, NamesTheRankWhoseInitialisationNeverEnds) {
  const absl::Time start = absl::Now();
  EXPECT_THAT(std::string(CreateWith({.rank = 1, .init_hangs = 1}, 3, kShort).message()),
              HasSubstr("NCCL does not connect the 3 ranks: rank 1 not ready within 3s"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
}

// After the self-test's three groups of one size; `rank_body` gets a communicator that works so
// far.
void RunWith(const cudahost::NcclFaults& faults, int ranks,
             const std::function<void(Communicator&, DeviceCommunicator&)>& rank_body) {
  cudahost::SetNcclFaults(faults);
  RunOnThreads(ranks, absl::Seconds(60), [&](Communicator& host) {
    NcclCommunicatorOptions options = QuickOptions(host);
    options.self_test_elems = {2};
    options.timeout = absl::Seconds(10);
    auto comm = NcclCommunicator::Create(options);
    ASSERT_TRUE(comm.ok()) << comm.status();
    rank_body(host, **comm);
    EXPECT_TRUE(host.Barrier().ok());
  });
}

absl::Status GatherOnce(Communicator& host, DeviceCommunicator& comm, const std::string& name) {
  DeviceMemory memory(host);
  const std::span<float> all =
      memory.Put(std::vector<float>(static_cast<size_t>(comm.world_size()) * 8));
  const std::span<float> mine = all.subspan(static_cast<size_t>(comm.rank()) * 8, 8);
  const auto work =
      comm.StartAllGather(std::as_bytes(mine), std::as_writable_bytes(all), name, memory.stream());
  if (!work.ok()) return work.status();
  const absl::Status waited = (*work)->Wait();
  if (waited.ok()) {
    EXPECT_EQ(cudaStreamQuery(memory.stream()), cudaSuccess) << name << " goes on";
  }
  return waited;
}

TEST_F(NcclCommunicatorTest, AnAsynchronousErrorNamesRankBucketAndWhatWasDoneLast) {
  RunWith({.async_error_at = 4}, 2, [](Communicator& host, DeviceCommunicator& comm) {
    const absl::Status good = GatherOnce(host, comm, "bucket 0");
    EXPECT_TRUE(good.ok()) << good;
    const absl::Status bad = GatherOnce(host, comm, "bucket 1");
    EXPECT_EQ(core::KindOf(bad), core::ErrorKind::kPeer);
    EXPECT_THAT(std::string(bad.message()),
                HasSubstr("all-gather \"bucket 1\" (number 4); last done: all-gather \"bucket 0\" "
                          "(number 3)"));
    EXPECT_THAT(std::string(bad.message()), HasSubstr("injected error"));
    EXPECT_EQ(GatherOnce(host, comm, "bucket 2"), bad) << "the first error again";
    EXPECT_EQ(comm.status(), bad);
    EXPECT_EQ(comm.Finalize(), bad);
  });
}

TEST_F(NcclCommunicatorTest, ARankThatDoesNotComeIsNoticedByAge) {
  RunWith({.rank = 1, .vanish_at = 3, .silent = 1}, 2,
          [](Communicator& host, DeviceCommunicator& comm) {
            comm.set_timeout(kShort);
            const absl::Time start = absl::Now();
            const absl::Status bad = GatherOnce(host, comm, "bucket 0");
            EXPECT_EQ(core::KindOf(bad), core::ErrorKind::kPeer);
            EXPECT_THAT(std::string(bad.message()), HasSubstr("not complete within 3s"));
            EXPECT_LT(absl::Now() - start, absl::Seconds(30));
          });
}

TEST_F(NcclCommunicatorTest, AnEndThatNeverComesIsGivenUp) {
  RunWith({.rank = 0, .finalize_hangs = 1}, 2, [](Communicator&, DeviceCommunicator& comm) {
    comm.set_timeout(kShort);
    const absl::Status bad = comm.Finalize();
    // The other rank may see that this one has given up, and end well.
    if (comm.rank() == 1 && bad.ok()) return;
    EXPECT_EQ(core::KindOf(bad), core::ErrorKind::kPeer) << bad;
    EXPECT_THAT(std::string(bad.message()), HasSubstr("end of the run"));
  });
}

TEST_F(NcclCommunicatorTest, AStreamThatTheProgramWaitsForIsFreed) {
  RunWith({.rank = 1, .vanish_at = 3, .silent = 1}, 2,
          [](Communicator& host, DeviceCommunicator& comm) {
            comm.set_timeout(kShort);
            DeviceMemory memory(host);
            const std::span<float> all = memory.Put(std::vector<float>(16));
            const std::span<float> mine = all.subspan(static_cast<size_t>(comm.rank()) * 8, 8);
            const auto work = comm.StartAllGather(std::as_bytes(mine), std::as_writable_bytes(all),
                                                  "parameters", memory.stream());
            EXPECT_TRUE(work.ok()) << work.status();
            // Nobody calls Wait, and this call knows nothing of NCCL.
            EXPECT_EQ(cudaStreamSynchronize(memory.stream()), cudaSuccess);
            EXPECT_EQ(core::KindOf(comm.status()), core::ErrorKind::kPeer) << comm.status();
          });
}

TEST_F(NcclCommunicatorTest, ARankThatIsLateIsWaitedFor) {
  RunWith({.rank = 1, .delay_at = 3, .delay_ms = 200}, 2,
          [](Communicator& host, DeviceCommunicator& comm) {
            const absl::Time start = absl::Now();
            EXPECT_TRUE(host.Barrier().ok());  // The delay of the one begins after both starts.
            const absl::Status late = GatherOnce(host, comm, "bucket 0");
            EXPECT_TRUE(late.ok()) << late;
            EXPECT_GE(absl::Now() - start, absl::Milliseconds(190));
          });
}

using NcclCommunicatorDeathTest = NcclCommunicatorTest;

TEST_F(NcclCommunicatorDeathTest, AnAbortThatHangsEndsTheProcess) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto hang = [] {
    cudahost::SetNcclFaults({.abort_hangs = 1});
    RunOnThreads(1, absl::Seconds(60), [](Communicator& host) {
      NcclCommunicatorOptions options = QuickOptions(host);
      options.abort_limit = absl::Seconds(0.2);
      const auto comm = NcclCommunicator::Create(options);
    });
  };
  EXPECT_EXIT(hang(), testing::ExitedWithCode(5), "ncclCommAbort does not return");
}

}  // namespace
}  // namespace bitshard::comm
