// Things that go wrong on one rank, and what the others do meanwhile: the same for threads and for
// processes.
#ifndef BITSHARD_TESTS_COMM_FAULTS_H_
#define BITSHARD_TESTS_COMM_FAULTS_H_

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "comm/communicator.h"
#include "core/check.h"
#include "core/error.h"

namespace bitshard::comm {

/// An all-gather of `bytes` a rank.
inline absl::Status Gather(Communicator* comm, const std::string& name, size_t bytes = 8) {
  std::vector<std::byte> data(bytes * static_cast<size_t>(comm->world_size()));
  std::vector<std::span<std::byte>> gathered;
  for (size_t r = 0; r < static_cast<size_t>(comm->world_size()); ++r) {
    gathered.push_back(std::span(data).subspan(r * bytes, bytes));
  }
  const std::vector<std::byte> mine(bytes);
  return comm->AllGather(mine, gathered, name);
}

/// Runs a few good collectives, then `fault` on the last rank, with a deadline of `timeout` from
/// then on. Returns what this rank's collective says; the last rank's own answer in "leave" is OK.
inline absl::Status RunFault(const std::string& fault, absl::Duration timeout, Communicator* comm) {
  const bool culprit = comm->rank() == comm->world_size() - 1;
  for (int i = 0; i < 3; ++i) {
    const absl::Status status = Gather(comm, "good");
    if (!status.ok()) return status;
  }
  comm->set_timeout(timeout);
  // A collective that is already complete can be dropped without harm: the others come later.
  while (!culprit && fault == "drop" && comm->reporting_rank() == 0)
    absl::SleepFor(absl::Milliseconds(5));
  if (!culprit) return Gather(comm, "parameters");
  if (fault == "late") {
    absl::SleepFor(2 * timeout);
    return Gather(comm, "parameters");
  }
  if (fault == "leave") return absl::OkStatus();
  if (fault == "size") return Gather(comm, "parameters", 16);
  if (fault == "name") return Gather(comm, "gradients");
  if (fault == "operation") return comm->Broadcast({}, 0, "parameters");
  if (fault == "fail") {
    comm->Fail(core::StorageError("the disk is full"));
    return Gather(comm, "parameters");
  }
  if (fault == "drop") {
    std::vector<std::byte> data(8 * static_cast<size_t>(comm->world_size()));
    std::vector<std::span<std::byte>> gathered;
    for (size_t at = 0; at < data.size(); at += 8)
      gathered.push_back(std::span(data).subspan(at, 8));
    const std::vector<std::byte> mine(8);
    const auto dropped = comm->StartAllGather(mine, gathered, "parameters");
    if (!dropped.ok()) return dropped.status();
    return absl::OkStatus();
  }
  BITSHARD_CHECK(false) << "unknown fault " << fault;
  return absl::OkStatus();
}

}  // namespace bitshard::comm

#endif  // BITSHARD_TESTS_COMM_FAULTS_H_
