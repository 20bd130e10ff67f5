// What can be made to go wrong in the stand-in for NCCL: by a test of threads with SetNcclFaults,
// by a test of processes with the environment.
//
//   BITSHARD_CUDAHOST_NCCL="rank=1 die_at=7" launch/mpirun.sh -n 2 ...
//
// Groups of calls (a call outside of a group is one) are counted from 0 by each communicator.
#ifndef BITSHARD_TESTS_CUDAHOST_NCCL_FAULTS_H_
#define BITSHARD_TESTS_CUDAHOST_NCCL_FAULTS_H_

#include <cstdint>
#include <optional>
#include <string>

namespace cudahost {

struct NcclFaults {
  int64_t rank = -1;      // The rank that misbehaves; -1: all.
  int64_t delay_at = -1;  // It comes `delay_ms` late to this group.
  int64_t delay_ms = 200;
  int64_t die_at = -1;          // SIGKILL instead of this group.
  int64_t vanish_at = -1;       // It never comes to this group, as if it were dead, but lives.
  int64_t async_error_at = -1;  // ncclCommGetAsyncError tells ncclSystemError from this group on.
  int64_t silent = 0;  // Peers of a rank that died or aborted get no ncclRemoteError: they hang.
  int64_t init_hangs = 0;      // Initialisation never completes.
  int64_t abort_hangs = 0;     // ncclCommAbort never returns (nccl issues 829, 1777).
  int64_t finalize_hangs = 0;  // Finalisation never completes.
  int64_t average_drops = 0;  // ncclAvg on one rank leaves out the last elements (nccl issue 1950).
  int64_t permute_gather = 0;   // All-gather puts chunks in the wrong places (nccl issue 1906).
  int64_t permute_scatter = 0;  // Reduce-scatter gives ranks each other's chunks (the same).
  int64_t flip_at = -1;         // The first byte that this group delivers is wrong.
  int64_t timeout_ms =
      120000;  // A wait for peers that lasts longer is reported, so that no test hangs.
};

// nullopt and `*error` for an unknown key or a value that is not a whole number.
std::optional<NcclFaults> ParseNcclFaults(const std::string& text, std::string* error);

// Those of the environment until SetNcclFaults was called. A malformed environment ends the
// process.
NcclFaults CurrentNcclFaults();
void SetNcclFaults(const NcclFaults& faults);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_NCCL_FAULTS_H_
