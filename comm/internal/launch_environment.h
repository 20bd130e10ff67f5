// What started this process, as far as the environment tells.
#ifndef BITSHARD_COMM_INTERNAL_LAUNCH_ENVIRONMENT_H_
#define BITSHARD_COMM_INTERNAL_LAUNCH_ENVIRONMENT_H_

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace bitshard::comm::internal {

struct LaunchEnvironment {
  bool mpi = false;      ///< A launcher that connects its processes by MPI.
  int size = 0;          ///< Processes that it says it started; 0: it does not say.
  std::string launcher;  ///< For messages.
};

/// `getenv` returns "" for variables that are not set. Open MPI's variables come first: a batch
/// system's and a stale shell's leak into the children of mpirun. Errors: kConfig when a launcher
/// has started several processes without MPI (torchrun; srun without PMIx).
absl::StatusOr<LaunchEnvironment> FindLauncher(
    const std::function<std::string(const char*)>& getenv);

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_LAUNCH_ENVIRONMENT_H_
