// Ranks that are threads of one process: for one rank (no launcher needed), for a host program that
// trains with a thread a device, and for tests.
//
//   auto ranks = comm::ThreadCommunicator::Create(2, {.timeout = absl::Seconds(60)});
//   std::thread second([&] { RunRank(ranks[1].get()); });
//   RunRank(ranks[0].get());
#ifndef BITSHARD_COMM_THREAD_COMMUNICATOR_H_
#define BITSHARD_COMM_THREAD_COMMUNICATOR_H_

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "comm/communicator.h"

namespace bitshard::comm {

struct ThreadCommunicatorOptions {
  absl::Duration timeout =
      absl::Seconds(600);  ///< How long a collective waits for the last rank to arrive.
};

class ThreadCommunicator {
 public:
  /// One communicator a rank; each is used by one thread at a time. The data of a collective is
  /// copied by the rank that arrives last. A communicator that is destroyed has left: ranks that
  /// wait for it get kPeer.
  static std::vector<std::unique_ptr<Communicator>> Create(
      int world_size, const ThreadCommunicatorOptions& options = {});
};

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_THREAD_COMMUNICATOR_H_
