#include "comm/thread_communicator.h"

#include <latch>

#include "tests/comm/communicator_conformance.h"
#include "tests/comm/faults.h"
#include "tests/comm/world.h"

namespace bitshard::comm {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

template <int kRanks>
struct ThreadWorld {
  void Run(const RankBody& body) { RunOnThreads(kRanks, absl::Seconds(60), body); }
};

using OneThread = ThreadWorld<1>;
using TwoThreads = ThreadWorld<2>;
using ThreeThreads = ThreadWorld<3>;
using FourThreads = ThreadWorld<4>;
using Worlds = testing::Types<OneThread, TwoThreads, ThreeThreads, FourThreads>;
INSTANTIATE_TYPED_TEST_SUITE_P(Threads, CommunicatorConformance, Worlds);

// Every rank's status after a fault on rank 2 of 3.
struct Outcome {
  std::vector<absl::Status> status = std::vector<absl::Status>(3);
  std::vector<absl::Status> later = std::vector<absl::Status>(3);
  std::vector<int> reporting_rank = std::vector<int>(3);
};

Outcome RunFaultOnThreads(const std::string& fault, absl::Duration timeout = absl::Seconds(60)) {
  Outcome outcome;
  RunOnThreads(3, absl::Seconds(60), [&](Communicator& comm) {
    const size_t rank = static_cast<size_t>(comm.rank());
    outcome.status[rank] = RunFault(fault, timeout, &comm);
    if (fault == "leave" && rank == 2) return;
    outcome.later[rank] = comm.Barrier();
    outcome.reporting_rank[rank] = comm.reporting_rank();
  });
  return outcome;
}

TEST(ThreadCommunicator, NamesTheRankThatIsLate) {
  // So much may the two ranks that are in time be apart.
  const Outcome outcome = RunFaultOnThreads("late", absl::Seconds(3));
  for (size_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(core::KindOf(outcome.status[rank]), core::ErrorKind::kPeer);
    EXPECT_THAT(std::string(outcome.status[rank].message()),
                HasSubstr("all-gather \"parameters\": rank 2 did not arrive within 3s"));
    EXPECT_EQ(outcome.later[rank], outcome.status[rank]) << "the first error stays";
    EXPECT_EQ(outcome.reporting_rank[rank], 0);
  }
}

TEST(ThreadCommunicator, NamesTheRankThatHasLeft) {
  const Outcome outcome = RunFaultOnThreads("leave");
  for (size_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(core::KindOf(outcome.status[rank]), core::ErrorKind::kPeer);
    EXPECT_THAT(std::string(outcome.status[rank].message()),
                HasSubstr("\"parameters\": rank 2 has left"));
  }
}

TEST(ThreadCommunicator, RanksThatDisagreeOnTheCallGetAnErrorAndNoData) {
  for (const std::string fault : {"size", "name", "operation"}) {
    const Outcome outcome = RunFaultOnThreads(fault);
    for (size_t rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(outcome.status[rank].code(), absl::StatusCode::kInternal) << fault;
      EXPECT_THAT(
          std::string(outcome.status[rank].message()),
          AnyOf(
              HasSubstr("rank 2 sends 16 bytes to rank 0, which expects 8"),
              HasSubstr(
                  "rank 0 calls all-gather \"parameters\" as its collective number 3, rank 2 calls "
                  "all-gather \"gradients\""),
              HasSubstr("rank 2 calls broadcast \"parameters\" as number 3")));
    }
  }
}

TEST(ThreadCommunicator, AFailureOfOneRankIsTheErrorOfAll) {
  const Outcome outcome = RunFaultOnThreads("fail");
  for (size_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(outcome.status[rank], absl::Status(outcome.status[0]));
    EXPECT_EQ(core::KindOf(outcome.status[rank]), core::ErrorKind::kStorage);
    EXPECT_EQ(outcome.status[rank].message(), "rank 2: the disk is full");
    EXPECT_EQ(outcome.reporting_rank[rank], 2);
    EXPECT_FALSE(WasAgreed(outcome.status[rank]));
  }
}

TEST(ThreadCommunicator, ADroppedWorkFailsTheCommunicator) {
  const Outcome outcome = RunFaultOnThreads("drop");
  for (size_t rank = 0; rank < 3; ++rank) {
    EXPECT_THAT(std::string(outcome.later[rank].message()), HasSubstr("\"parameters\" was dropped"))
        << rank;
  }
}

TEST(ThreadCommunicator, TheDeadlineCanBeChanged) {
  std::latch done(1);
  RunOnThreads(2, absl::Seconds(60), [&done](Communicator& comm) {
    comm.set_timeout(absl::Milliseconds(100));
    if (comm.rank() == 1) return done.wait();  // One that has left would be called so.
    EXPECT_THAT(std::string(comm.Barrier().message()),
                HasSubstr("rank 1 did not arrive within 100ms"));
    done.count_down();
  });
}

TEST(ThreadCommunicator, FinalizeWaitsForAllAndFindsARankThatIsElsewhere) {
  RunOnThreads(3, absl::Seconds(60), [](Communicator& comm) { EXPECT_TRUE(comm.Finalize().ok()); });
  RunOnThreads(2, absl::Seconds(60), [](Communicator& comm) {
    const absl::Status status = comm.rank() == 0 ? comm.Finalize() : comm.Barrier();
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kPeer);
    EXPECT_THAT(std::string(status.message()), HasSubstr("\"barrier\": rank 0 has left"));
  });
}

}  // namespace
}  // namespace bitshard::comm
