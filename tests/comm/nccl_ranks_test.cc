// The NCCL communicator with ranks that are processes, on the stand-in or on GPUs: started by
// launch/mpirun.sh.
#include <cstdio>

#include "comm/mpi_communicator.h"
#include "tests/comm/device_ranks.h"
#include "tests/comm/nccl_checks.h"

namespace bitshard::comm {
namespace {

Communicator* job = nullptr;

TEST(NcclCommunicatorOnProcesses, MovesAndSumsDeviceMemory) { CheckAll(*job); }

int Main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  auto comm = MpiCommunicator::Create({.timeout = absl::Seconds(60)});
  if (!comm.ok()) {
    std::fprintf(stderr, "%s\n", comm.status().ToString().c_str());
    return core::ExitCode(comm.status());
  }
  job = comm->get();
  if (!EveryRankHasADevice(job)) {
    (void)job->Finalize();
    return 77;
  }
  const int failed = RUN_ALL_TESTS();
  const absl::Status status = job->Finalize();
  if (!status.ok()) EndJob(job, status, status.ToString());
  return failed;
}

}  // namespace
}  // namespace bitshard::comm

int main(int argc, char** argv) { return bitshard::comm::Main(argc, argv); }
