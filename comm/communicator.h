// Communicator: what the engine needs from a transport between ranks.
//
// Ranks of one communicator call the same collectives in the same order. A transport only moves
// bytes; every reduction is ours and in a fixed order (comm/tree_sum.h), so results never depend on
// the transport's choices.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto comm, comm::MpiCommunicator::Create({.timeout =
//   absl::Seconds(600)})); BITSHARD_RETURN_IF_ERROR(comm->AgreeOnStatus(LoadMyShard()));     // all
//   ranks go on, or none does
#ifndef BITSHARD_COMM_COMMUNICATOR_H_
#define BITSHARD_COMM_COMMUNICATOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace bitshard::comm {

/// A collective that was started and may still be running. Must not outlive its communicator.
class Work {
 public:
  /// Dropped before Wait, it makes the communicator fail: its buffers may be gone.
  virtual ~Work() = default;
  /// Blocks until the collective is complete on this rank, or until the communicator's deadline.
  /// Errors: kPeer (core/error.h) naming the collective and the ranks that are missing.
  virtual absl::Status Wait() = 0;
};

/// Threads: collectives are issued from one thread at a time. Buffers given to a started collective
/// belong to it until Wait returns. Errors of every collective: kPeer when a rank died, left, or
/// did not arrive within the timeout; kInternal when ranks disagree on the call (operation, name or
/// byte counts); what another rank gave to Fail. After an error the communicator is unusable: each
/// later call returns the first error again.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  /// Rank among, and number of, the ranks on this host.
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;
  virtual std::string host_name() const = 0;

  /// Starts sending send[r] to each rank r and receiving receive[r] from it. Both have world_size()
  /// entries; an entry may be empty; receive[r].size() must be what rank r sends here. Buffers
  /// don't overlap; the own entry is copied. `name` stands in error messages ("bucket 3").
  virtual absl::StatusOr<std::unique_ptr<Work>> StartAllToAll(
      std::vector<std::span<const std::byte>> send, std::vector<std::span<std::byte>> receive,
      const std::string& name) = 0;

  /// Starts gathering `mine` into gathered[r] on every rank; gathered[rank()] is filled too and may
  /// alias `mine`.
  virtual absl::StatusOr<std::unique_ptr<Work>> StartAllGather(
      std::span<const std::byte> mine, std::vector<std::span<std::byte>> gathered,
      const std::string& name) = 0;

  /// Copies `data` of `root` to every rank; all ranks give the same size.
  virtual absl::Status Broadcast(std::span<std::byte> data, int root, const std::string& name) = 0;

  /// Bytes that this rank has sent to other ranks, payload only.
  virtual int64_t bytes_sent() const = 0;

  /// How long collectives started from now on wait for other ranks. Ranks may compute for nearly
  /// that long between collectives.
  virtual void set_timeout(absl::Duration timeout) = 0;

  /// Tells every rank that this one can't go on, for an error outside of collectives and on this
  /// rank only: the running and later collectives of all ranks return `why`, its message prefixed
  /// "rank R: ". Returns soon, whatever the other ranks do; without effect after an earlier error.
  virtual void Fail(const absl::Status& why) = 0;

  /// The rank that should print an error that the communicator returned, so that a job prints it
  /// once: the one that called Fail; or the lowest that is not missing. 0 before any error.
  virtual int reporting_rank() const = 0;

  /// Ends the communicator in order; every rank calls it after its last collective.
  /// Errors: as a collective; a rank that is elsewhere, or never comes, is named.
  virtual absl::Status Finalize() = 0;

  // The rest is built from the above and is the same for every transport.

  /// StartAllToAll and StartAllGather with Wait.
  absl::Status AllToAll(std::vector<std::span<const std::byte>> send,
                        std::vector<std::span<std::byte>> receive, const std::string& name);
  absl::Status AllGather(std::span<const std::byte> mine,
                         std::vector<std::span<std::byte>> gathered, const std::string& name);

  /// Returns when every rank has called it.
  absl::Status Barrier();

  /// The strings of all ranks, in rank order; lengths may differ.
  absl::StatusOr<std::vector<std::string>> GatherStrings(const std::string& mine,
                                                         const std::string& name);

  /// `text` of rank 0 on every rank.
  absl::StatusOr<std::string> BroadcastString(const std::string& text, const std::string& name);

  /// Makes ranks fail together: OK when every rank passes OK; else every rank returns the status
  /// (code, kind and message, prefixed "rank R: " when world_size() > 1) of the lowest rank that
  /// failed; WasAgreed tells such a status from one that this rank alone has. A rank that returns
  /// an error never leaves another waiting in a collective.
  absl::Status AgreeOnStatus(const absl::Status& mine);

  /// Sum over ranks of an int64 / maximum over ranks, exact.
  absl::StatusOr<int64_t> SumInt64(int64_t mine);
  absl::StatusOr<int64_t> MaxInt64(int64_t mine);

  /// The numbers of all ranks, in rank order.
  absl::StatusOr<std::vector<int64_t>> GatherInt64(int64_t mine, const std::string& name);
};

/// True for an error that AgreeOnStatus returned because a rank passed it in: every rank has it,
/// and the communicator still works. False for OK and for errors of the communicator itself.
bool WasAgreed(const absl::Status& status);

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_COMMUNICATOR_H_
