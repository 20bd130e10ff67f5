// The stand-in for NCCL with ranks that are processes: started by launch/mpirun.sh.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "comm/mpi_communicator.h"
#include "core/error.h"
#include "tests/cudahost/nccl_checks.h"

namespace cudahost {
namespace {

bitshard::comm::Communicator* job = nullptr;

ncclUniqueId NextId() {
  ncclUniqueId id{};
  if (job->rank() == 0) Ok(ncclGetUniqueId(&id));
  std::span<ncclUniqueId> bytes(&id, 1);
  const absl::Status status = job->Broadcast(std::as_writable_bytes(bytes), 0, "id");
  EXPECT_TRUE(status.ok()) << status;
  return id;
}

class NcclChecksOnProcesses : public testing::TestWithParam<NcclCheck> {};

TEST_P(NcclChecksOnProcesses, Hold) {
  GetParam().run({.rank = job->rank(), .size = job->world_size(), .next_id = NextId});
  EXPECT_TRUE(job->Barrier().ok());
  FreeDeviceArrays();
}

INSTANTIATE_TEST_SUITE_P(, NcclChecksOnProcesses, testing::ValuesIn(NcclChecks()),
                         [](const auto& info) { return std::string(info.param.name); });

int Main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  auto comm = bitshard::comm::MpiCommunicator::Create({.timeout = absl::Seconds(60)});
  if (!comm.ok()) {
    std::fprintf(stderr, "%s\n", comm.status().ToString().c_str());
    return bitshard::core::ExitCode(comm.status());
  }
  job = comm->get();
  const int failed = RUN_ALL_TESTS();
  const absl::Status status = job->Finalize();
  if (!status.ok()) bitshard::comm::EndJob(job, status, status.ToString());
  return failed;
}

}  // namespace
}  // namespace cudahost

int main(int argc, char** argv) { return cudahost::Main(argc, argv); }
