// A world of ranks in which a test's body runs, once a rank: threads of this process, or the
// processes of a job.
#ifndef BITSHARD_TESTS_COMM_WORLD_H_
#define BITSHARD_TESTS_COMM_WORLD_H_

#include <functional>
#include <thread>
#include <vector>

#include "comm/thread_communicator.h"

namespace bitshard::comm {

using RankBody = std::function<void(Communicator&)>;

/// Runs `body` on `world_size` threads, each with its own communicator, and joins them.
inline void RunOnThreads(int world_size, absl::Duration timeout, const RankBody& body) {
  auto ranks = ThreadCommunicator::Create(world_size, {.timeout = timeout});
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back([&body, comm = std::move(rank)] { body(*comm); });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace bitshard::comm

#endif  // BITSHARD_TESTS_COMM_WORLD_H_
