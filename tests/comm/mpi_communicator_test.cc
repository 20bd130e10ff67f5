// The conformance suite in the processes of a job: started by launch/mpirun.sh with 1 to 4 ranks.
#include "comm/mpi_communicator.h"

#include <cstdio>

#include "tests/comm/communicator_conformance.h"

namespace bitshard::comm {
namespace {

Communicator* job = nullptr;

struct MpiWorld {
  template <class Body>
  void Run(Body body) {
    body(*job);
  }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Mpi, CommunicatorConformance, MpiWorld);

int Main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  // Small messages, so that the data of one collective is many.
  auto comm = MpiCommunicator::Create({.timeout = absl::Seconds(60), .max_message_bytes = 1000});
  if (!comm.ok()) {
    std::fprintf(stderr, "%s\n", comm.status().ToString().c_str());
    return core::ExitCode(comm.status());
  }
  job = comm->get();
  const int failed = RUN_ALL_TESTS();
  const absl::Status status = job->Finalize();
  if (!status.ok()) EndJob(job, status, status.ToString());
  return failed;
}

}  // namespace
}  // namespace bitshard::comm

int main(int argc, char** argv) { return bitshard::comm::Main(argc, argv); }
