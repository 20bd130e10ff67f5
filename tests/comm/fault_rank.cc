// One rank of a job in which the last rank misbehaves: driven by mpi_faults_test.py.
//
//   fault_rank FAULT [TIMEOUT_SECONDS]
//
// The timeout is that of the collective in which the fault is noticed; what comes before has a
// minute.
#include <mpi.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "comm/mpi_communicator.h"
#include "core/status_macros.h"
#include "tests/comm/faults.h"

namespace bitshard::comm {
namespace {

// Faults that only a process can have.
void EndProcess(const std::string& fault) {
  if (fault == "stop") raise(SIGSTOP);
  if (fault == "kill") raise(SIGKILL);
  if (fault == "exit") _exit(0);
}

bool IsStopped(int64_t process) {
  std::string text;
  std::getline(std::ifstream(absl::StrCat("/proc/", process, "/stat")), text);
  return text.find(") T ") != std::string::npos;
}

// The last of two ranks announces that it takes data, more than fits into any buffer on the way,
// and takes none: it has stopped when the other one starts.
absl::Status StopInData(absl::Duration timeout, Communicator* comm) {
  std::vector<std::byte> data(64 << 20);
  std::vector<std::span<std::byte>> receive(2);
  std::vector<std::span<const std::byte>> send(2);
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<int64_t> processes,
                            comm->GatherInt64(getpid(), "processes"));
  if (comm->rank() == 1) {
    receive[0] = data;
    const auto work = comm->StartAllToAll(send, receive, "large");
    absl::SleepFor(absl::Seconds(1));  // The announcement goes out.
    raise(SIGSTOP);
    return work.ok() ? (*work)->Wait() : work.status();
  }
  send[1] = data;
  while (!IsStopped(processes[1])) absl::SleepFor(absl::Milliseconds(10));
  comm->set_timeout(timeout);
  return comm->AllToAll(send, receive, "large");
}

// The job is suspended for longer than the timeout, while rank 0 waits: nobody's fault.
absl::Status PauseAll(absl::Duration timeout, Communicator* comm) {
  if (comm->rank() == 0) comm->set_timeout(timeout);
  absl::Time last = absl::Now();
  while (comm->rank() != 0 && absl::Now() - last < timeout) {
    last = absl::Now();
    absl::SleepFor(absl::Milliseconds(10));
  }
  return Gather(comm, "parameters");
}

absl::Status Run(const std::string& fault, absl::Duration timeout, Communicator* comm) {
  if (fault == "none") return Gather(comm, "parameters");
  if (fault == "stop" || fault == "kill" || fault == "exit") {
    BITSHARD_RETURN_IF_ERROR(Gather(comm, "good"));
    if (comm->rank() == comm->world_size() - 1) EndProcess(fault);
    comm->set_timeout(timeout);
    return Gather(comm, "parameters");
  }
  if (fault == "stop_in_data") return StopInData(timeout, comm);
  if (fault == "pause_all") return PauseAll(timeout, comm);
  return RunFault(fault, timeout, comm);
}

int Main(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "none";
  const double timeout_seconds = argc > 2 ? std::atof(argv[2]) : 60;
  auto comm = MpiCommunicator::Create({.timeout = absl::Seconds(60)});
  if (!comm.ok()) {
    std::fprintf(stderr, "bitshard: error: %s\n", std::string(comm.status().message()).c_str());
    return core::ExitCode(comm.status());
  }
  std::printf("pid %d rank %d of %d\n", getpid(), (*comm)->rank(), (*comm)->world_size());
  std::fflush(stdout);
  absl::Status status = Run(fault, absl::Seconds(timeout_seconds), comm->get());
  if (!status.ok()) {
    std::printf("rank %d got: %s\n", (*comm)->rank(), std::string(status.message()).c_str());
    std::fflush(stdout);
    // All say what they got, before one ends the job.
    if (fault == "fail") MPI_Barrier(MPI_COMM_WORLD);
  }
  if (fault == "leave" && status.ok()) return 0;  // without Finalize: the destructor must notice
  if (status.ok()) status = (*comm)->Finalize();
  if (!status.ok())
    EndJob(comm->get(), status, absl::StrCat("bitshard: error: ", std::string(status.message())));
  return 0;
}

}  // namespace
}  // namespace bitshard::comm

int main(int argc, char** argv) { return bitshard::comm::Main(argc, argv); }
