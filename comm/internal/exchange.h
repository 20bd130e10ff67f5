// Every collective is one exchange: each rank has a piece for each rank. Transports implement only
// that; here is what they share: what an exchange is, how ranks check that they make the same one,
// and what the errors say.
#ifndef BITSHARD_COMM_INTERNAL_EXCHANGE_H_
#define BITSHARD_COMM_INTERNAL_EXCHANGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/communicator.h"

namespace bitshard::comm::internal {

enum class Operation : int32_t {
  kAllToAll = 1,
  kAllGather = 2,
  kBroadcast = 3,
  kFinalize = 4,
  kFailure = 5
};

/// send[r] goes to rank r, receive[r] is filled by rank r; own entries are not the transport's.
struct Exchange {
  Operation operation = Operation::kAllToAll;
  std::string name;
  int64_t sequence = 0;  ///< Counts the exchanges of this rank from 0; set by the transport.
  std::vector<std::span<const std::byte>> send;
  std::vector<std::span<std::byte>> receive;
};

/// Comes before the data of an exchange, from each rank to each other one. With kFailure it stands
/// in place of an exchange's header and carries an error instead: `kind` and the message in `text`.
struct Header {
  static constexpr uint32_t kMagic = 0x42535831;  // "BSX1"
  uint32_t magic = kMagic;
  Operation operation = Operation::kAllToAll;
  int64_t sequence = 0;
  int64_t bytes_to_peer = 0;    ///< From the sender of the header to its receiver.
  int64_t bytes_from_peer = 0;  ///< What the sender of the header expects.
  uint64_t name_hash = 0;
  int32_t kind = 0;  ///< core::ErrorKind
  int32_t reporting_rank = 0;
  char text[464] = {};  ///< The name, or the error's message: cut, ends with 0.
};
static_assert(sizeof(Header) == 512);

Header HeaderFor(const Exchange& exchange, int peer);
Header FailureHeader(const absl::Status& error, int reporting_rank);
/// The error in a kFailure header.
absl::Status ErrorOf(const Header& failure);

/// OK when rank `peer`, which sent `theirs`, makes the same exchange as rank `self`, which makes
/// `mine`. Both ranks of a pair get errors that say the same. Errors: kPeer when it has left
/// (finalized); kInternal with both calls when it makes another one.
absl::Status CheckMatch(const Exchange& mine, int self, int peer, const Header& theirs);

/// all-to-all "bucket 3"
std::string Describe(Operation operation, const std::string& name);

/// The error for a rank that ended its run before an exchange (kPeer), and for a work that was
/// destroyed before its exchange was complete (kInternal).
absl::Status LeftError(Operation operation, const std::string& name, int rank);
absl::Status DroppedError(const Exchange& exchange);

/// The error for a deadline that has passed. `absent` ranks have not begun the exchange, `stalled`
/// ones have, but their data is not all here; host_names may be empty.
absl::Status DeadlineError(const Exchange& exchange, absl::Duration timeout,
                           const std::vector<int>& absent, const std::vector<int>& stalled,
                           const std::vector<std::string>& host_names);

/// The lowest rank that is in neither list: the one to print the error.
int LowestPresent(const std::vector<int>& absent, const std::vector<int>& stalled);

/// gethostname, or "unknown".
std::string HostName();

/// The collectives of Communicator, as exchanges.
class ExchangeCommunicator : public Communicator {
 public:
  absl::StatusOr<std::unique_ptr<Work>> StartAllToAll(std::vector<std::span<const std::byte>> send,
                                                      std::vector<std::span<std::byte>> receive,
                                                      const std::string& name) final;
  absl::StatusOr<std::unique_ptr<Work>> StartAllGather(std::span<const std::byte> mine,
                                                       std::vector<std::span<std::byte>> gathered,
                                                       const std::string& name) final;
  absl::Status Broadcast(std::span<std::byte> data, int root, const std::string& name) final;
  int64_t bytes_sent() const final { return bytes_sent_.load(std::memory_order_relaxed); }

 protected:
  /// Starts the exchange of everything but the own entries.
  virtual absl::StatusOr<std::unique_ptr<Work>> Start(Exchange exchange) = 0;
  /// The exchange by which ranks agree that the communicator has ended.
  absl::Status ExchangeFinalize();

 private:
  absl::StatusOr<std::unique_ptr<Work>> StartCounted(Exchange exchange);
  std::atomic<int64_t> bytes_sent_{0};
};

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_EXCHANGE_H_
