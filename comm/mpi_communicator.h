// Ranks that are processes started by mpirun.
//
//   auto comm = comm::MpiCommunicator::Create({.timeout = absl::Seconds(600)});
//   if (!comm.ok()) return Report(comm.status());
//
//   absl::Status status = Run(comm->get());
//
//   if (status.ok()) status = (*comm)->Finalize();
//
//   if (!status.ok()) comm::EndJob(comm->get(), status, "error: ...");  // said once; never returns
//
// Open MPI ends a job in which a process has died, but waits for ever for one that hangs or has
// returned from main: the deadline of each collective finds those. MPI makes no progress by itself,
// so a thread of the communicator owns all MPI traffic; it sleeps while nothing is started.
#ifndef BITSHARD_COMM_MPI_COMMUNICATOR_H_
#define BITSHARD_COMM_MPI_COMMUNICATOR_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/communicator.h"

namespace bitshard::comm {

struct MpiCommunicatorOptions {
  /// Of each collective, and of MPI's own initialisation.
  absl::Duration timeout = absl::Seconds(600);
  /// Data is cut into messages of at most this size: MPI counts are ints.
  int64_t max_message_bytes = int64_t{1} << 30;
};

class MpiCommunicator {
 public:
  /// All ranks call it, once. Initialises MPI where the program has not done so (and then Finalize
  /// ends it). Without a launcher: one rank, and MPI is not touched. Errors: kConfig when another
  /// launcher has started several processes that MPI does not connect (torchrun, srun without PMIx,
  /// another MPI's mpirun), or MPI grants less than MPI_THREAD_MULTIPLE; kPeer. A communicator
  /// destroyed without Finalize ends in order if all ranks do so; else, and after an error, its
  /// destructor ends the job as EndJob does.
  static absl::StatusOr<std::unique_ptr<Communicator>> Create(
      const MpiCommunicatorOptions& options);
};

/// Ends all ranks of the job at once; mpirun's exit code is `exit_code`. Flushes stdio. Works
/// before, during and after MPI, and without it. Takes 10 s at most, even where MPI hangs.
[[noreturn]] void MpiAbort(int exit_code);

/// Ends the job after an error, from any rank: tells the other ranks (Communicator::Fail), prints
/// `text` and a newline to stderr on the one rank that should (Communicator::reporting_rank, or
/// rank 0 for an agreed error), and calls MpiAbort(core::ExitCode(status)).
[[noreturn]] void EndJob(Communicator* comm, const absl::Status& status, const std::string& text);

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_MPI_COMMUNICATOR_H_
