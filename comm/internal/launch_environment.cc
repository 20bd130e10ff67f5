#include "comm/internal/launch_environment.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/error.h"

namespace bitshard::comm::internal {

absl::StatusOr<LaunchEnvironment> FindLauncher(
    const std::function<std::string(const char*)>& getenv) {
  const auto count = [&](const char* name) {
    int value = 0;
    return absl::SimpleAtoi(getenv(name), &value) && value > 0 ? value : 0;
  };
  if (const int size = count("OMPI_COMM_WORLD_SIZE")) {
    return LaunchEnvironment{.mpi = true, .size = size, .launcher = "Open MPI's mpirun"};
  }
  if (!getenv("PMIX_RANK").empty())
    return LaunchEnvironment{.mpi = true, .launcher = "a PMIx launcher"};
  if (const int size = count("PMI_SIZE")) {
    return LaunchEnvironment{
        .mpi = true, .size = size, .launcher = "a PMI launcher (MPICH, Intel MPI or srun)"};
  }
  if (const int size = count("SLURM_STEP_NUM_TASKS"); size > 1) {
    return core::ConfigError(
        absl::StrCat("srun has started ", size,
                     " processes that MPI does not connect: use mpirun inside the allocation, "
                     "or srun --mpi=pmix"));
  }
  if (const int size = count("WORLD_SIZE"); size > 1 && !getenv("RANK").empty()) {
    return core::ConfigError(
        absl::StrCat("RANK and WORLD_SIZE=", size,
                     " are set (torchrun?), but this program's ranks are started by mpirun: use ",
                     "launch/mpirun.sh -n ", size,
                     " (installed: bitshard-mpirun), or unset them to run a single rank"));
  }
  return LaunchEnvironment{.size = 1};
}

}  // namespace bitshard::comm::internal
