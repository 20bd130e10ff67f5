// What every Communicator must do, as a typed suite. A world type has Run(body): the body runs once
// a rank, in ranks that may be threads of this process or the processes of a job.
#ifndef BITSHARD_TESTS_COMM_COMMUNICATOR_CONFORMANCE_H_
#define BITSHARD_TESTS_COMM_COMMUNICATOR_CONFORMANCE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/communicator.h"
#include "core/error.h"
#include "tests/comm/reducer_reference.h"

namespace bitshard::comm {

/// Pieces of an all-to-all whose sizes and bytes are a function of (from, to, salt); some are
/// empty.
struct Pieces {
  Pieces(const Communicator& comm, int salt) : salt(salt), rank(comm.rank()) {
    for (int r = 0; r < comm.world_size(); ++r) {
      out.push_back(Piece(rank, r));
      in.emplace_back(Piece(r, rank).size());
    }
    for (const auto& piece : out) send.emplace_back(std::as_bytes(std::span(piece)));
    for (auto& piece : in) receive.emplace_back(std::as_writable_bytes(std::span(piece)));
  }
  std::vector<uint8_t> Piece(int from, int to) const {
    std::vector<uint8_t> bytes(static_cast<size_t>((from * 7 + to * 3 + salt) % 4) * 3001);
    for (size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<uint8_t>(i * 31 + static_cast<size_t>(from * 64 + to * 16 + salt));
    }
    return bytes;
  }
  void Check() const {
    for (size_t r = 0; r < in.size(); ++r)
      EXPECT_EQ(in[r], Piece(static_cast<int>(r), rank)) << "from rank " << r;
  }

  int salt;
  int rank;
  std::vector<std::vector<uint8_t>> out;
  std::vector<std::vector<uint8_t>> in;
  std::vector<std::span<const std::byte>> send;
  std::vector<std::span<std::byte>> receive;
};

template <class World>
class CommunicatorConformance : public testing::Test {
 protected:
  World world_;
};
TYPED_TEST_SUITE_P(CommunicatorConformance);

TYPED_TEST_P(CommunicatorConformance, RanksKnowTheirPlace) {
  this->world_.Run([](Communicator& comm) {
    EXPECT_GE(comm.rank(), 0);
    EXPECT_LT(comm.rank(), comm.world_size());
    EXPECT_GE(comm.local_rank(), 0);
    EXPECT_LT(comm.local_rank(), comm.local_size());
    EXPECT_LE(comm.local_size(), comm.world_size());
    const auto places =
        comm.GatherStrings(absl::StrCat(comm.host_name(), " ", comm.local_rank()), "places");
    ASSERT_TRUE(places.ok()) << places.status();
    for (int a = 0; a < comm.world_size(); ++a) {
      const size_t count = static_cast<size_t>(
          std::count(places->begin(), places->end(), (*places)[static_cast<size_t>(a)]));
      EXPECT_EQ(count, 1u) << (*places)[static_cast<size_t>(a)];
    }
  });
}

TYPED_TEST_P(CommunicatorConformance, AllToAllDeliversEveryPiece) {
  this->world_.Run([](Communicator& comm) {
    Pieces pieces(comm, 1);
    const absl::Status status = comm.AllToAll(pieces.send, pieces.receive, "pieces");
    ASSERT_TRUE(status.ok()) << status;
    pieces.Check();
  });
}

TYPED_TEST_P(CommunicatorConformance, ManyCollectivesRunAtATimeAndAreWaitedForInAnyOrder) {
  this->world_.Run([](Communicator& comm) {
    std::vector<std::unique_ptr<Pieces>> pieces;
    std::vector<std::unique_ptr<Work>> works;
    for (int i = 0; i < 20; ++i) {
      if (i % 5 == comm.rank()) absl::SleepFor(absl::Milliseconds(3));
      pieces.push_back(std::make_unique<Pieces>(comm, i));
      auto work = comm.StartAllToAll(pieces.back()->send, pieces.back()->receive,
                                     absl::StrCat("number ", i));
      ASSERT_TRUE(work.ok()) << work.status();
      works.push_back(*std::move(work));
    }
    // Ranks wait in different orders: a started collective needs nobody's Wait to go on.
    if (comm.rank() % 2 == 1) std::reverse(works.begin(), works.end());
    for (const auto& work : works) {
      const absl::Status status = work->Wait();
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(work->Wait().ok()) << "a second Wait tells the same";
    }
    for (const auto& piece : pieces) piece->Check();
  });
}

TYPED_TEST_P(CommunicatorConformance, AllGatherTakesSizesThatDifferAndMayAlias) {
  this->world_.Run([](Communicator& comm) {
    const auto size = [](int rank) {
      return static_cast<size_t>(rank * 1000);
    };  // rank 0 has nothing
    std::vector<uint8_t> arena;
    std::vector<size_t> begin;
    for (int r = 0; r < comm.world_size(); ++r) {
      begin.push_back(arena.size());
      arena.resize(arena.size() + size(r));
    }
    std::fill_n(arena.begin() + static_cast<int64_t>(begin[static_cast<size_t>(comm.rank())]),
                size(comm.rank()), static_cast<uint8_t>(comm.rank() + 1));
    std::vector<std::span<std::byte>> gathered;
    for (int r = 0; r < comm.world_size(); ++r) {
      gathered.push_back(
          std::as_writable_bytes(std::span(arena).subspan(begin[static_cast<size_t>(r)], size(r))));
    }
    const absl::Status status =
        comm.AllGather(gathered[static_cast<size_t>(comm.rank())], gathered, "arena");
    ASSERT_TRUE(status.ok()) << status;
    for (int r = 0; r < comm.world_size(); ++r) {
      for (size_t i = 0; i < size(r); ++i)
        ASSERT_EQ(arena[begin[static_cast<size_t>(r)] + i], r + 1);
    }
  });
}

TYPED_TEST_P(CommunicatorConformance, BroadcastCopiesFromAnyRoot) {
  this->world_.Run([](Communicator& comm) {
    for (int root = 0; root < comm.world_size(); ++root) {
      std::vector<uint8_t> data(70000, static_cast<uint8_t>(comm.rank() + 1));
      const absl::Status status =
          comm.Broadcast(std::as_writable_bytes(std::span(data)), root, "data");
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(data, std::vector<uint8_t>(70000, static_cast<uint8_t>(root + 1)));
    }
    const auto text = comm.BroadcastString(comm.rank() == 0 ? "from rank 0" : "ignored", "text");
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, "from rank 0");
    EXPECT_EQ(comm.BroadcastString("", "nothing").value_or("?"), "");
  });
}

TYPED_TEST_P(CommunicatorConformance, GathersStringsOfAnyLength) {
  this->world_.Run([](Communicator& comm) {
    const auto text = [](int rank) {
      return std::string(static_cast<size_t>(rank * 5), static_cast<char>('a' + rank));
    };
    const auto strings = comm.GatherStrings(text(comm.rank()), "strings");
    ASSERT_TRUE(strings.ok()) << strings.status();
    for (int r = 0; r < comm.world_size(); ++r)
      EXPECT_EQ((*strings)[static_cast<size_t>(r)], text(r));
    const auto empty = comm.GatherStrings("", "nothing");
    ASSERT_TRUE(empty.ok());
    EXPECT_EQ(*empty, std::vector<std::string>(static_cast<size_t>(comm.world_size())));
  });
}

TYPED_TEST_P(CommunicatorConformance, SumsAndMaximaAreExact) {
  this->world_.Run([](Communicator& comm) {
    const int64_t big = (int64_t{1} << 53) + 1;  // no double
    EXPECT_EQ(comm.SumInt64(big + comm.rank()).value_or(0),
              big * comm.world_size() + comm.world_size() * (comm.world_size() - 1) / 2);
    EXPECT_EQ(comm.MaxInt64(-10 - comm.rank()).value_or(0), -10);
    EXPECT_TRUE(comm.Barrier().ok());
  });
}

TYPED_TEST_P(CommunicatorConformance, AgreesOnTheErrorOfTheLowestRank) {
  this->world_.Run([](Communicator& comm) {
    EXPECT_TRUE(comm.AgreeOnStatus(absl::OkStatus()).ok());
    const int lowest = comm.world_size() / 2;
    for (int round = 0; round < 2; ++round) {  // the communicator still works after it
      absl::Status mine;
      if (comm.rank() >= lowest) {
        mine = core::StorageError(absl::StrCat("disk of ", comm.rank(), " is full"));
        mine.SetPayload("test/payload", absl::Cord("kept"));
      }
      const absl::Status agreed = comm.AgreeOnStatus(mine);
      EXPECT_EQ(agreed.code(), absl::StatusCode::kAborted);
      EXPECT_EQ(core::KindOf(agreed), core::ErrorKind::kStorage);
      EXPECT_EQ(core::ExitCode(agreed), 6);
      EXPECT_EQ(agreed.message(),
                comm.world_size() == 1
                    ? "disk of 0 is full"
                    : absl::StrCat("rank ", lowest, ": disk of ", lowest, " is full"));
      EXPECT_EQ(agreed.GetPayload("test/payload"), absl::Cord("kept"));
      EXPECT_TRUE(WasAgreed(agreed));
      EXPECT_FALSE(WasAgreed(mine));
    }
    EXPECT_TRUE(comm.AgreeOnStatus(absl::OkStatus()).ok());
  });
}

TYPED_TEST_P(CommunicatorConformance, CountsThePayloadItSends) {
  this->world_.Run([](Communicator& comm) {
    const int64_t others = comm.world_size() - 1;
    const int64_t before = comm.bytes_sent();
    ASSERT_TRUE(comm.SumInt64(1).ok());
    EXPECT_EQ(comm.bytes_sent() - before, 8 * others);
    std::vector<std::byte> data(100);
    ASSERT_TRUE(comm.Broadcast(data, 0, "data").ok());
    EXPECT_EQ(comm.bytes_sent() - before, 8 * others + (comm.rank() == 0 ? 100 * others : 0));
  });
}

TYPED_TEST_P(CommunicatorConformance, ReducesGradientsToTheBitsOfTheTree) {
  this->world_.Run([](Communicator& comm) {
    for (int64_t micro_batches = comm.world_size(); micro_batches <= 9; ++micro_batches) {
      CheckSums(comm, micro_batches);
    }
  });
}

TYPED_TEST_P(CommunicatorConformance, ReducesFastWithinTheBound) {
  this->world_.Run([](Communicator& comm) {
    for (int64_t micro_batches = comm.world_size(); micro_batches <= 9; ++micro_batches) {
      CheckFastSums(comm, micro_batches);
    }
  });
}

REGISTER_TYPED_TEST_SUITE_P(CommunicatorConformance, RanksKnowTheirPlace,
                            AllToAllDeliversEveryPiece,
                            ManyCollectivesRunAtATimeAndAreWaitedForInAnyOrder,
                            AllGatherTakesSizesThatDifferAndMayAlias, BroadcastCopiesFromAnyRoot,
                            GathersStringsOfAnyLength, SumsAndMaximaAreExact,
                            AgreesOnTheErrorOfTheLowestRank, CountsThePayloadItSends,
                            ReducesGradientsToTheBitsOfTheTree, ReducesFastWithinTheBound);

}  // namespace bitshard::comm

#endif  // BITSHARD_TESTS_COMM_COMMUNICATOR_CONFORMANCE_H_
