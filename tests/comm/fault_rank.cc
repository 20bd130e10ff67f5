// One rank of a job in which the last rank misbehaves: driven by mpi_faults_test.py.
//
//   fault_rank FAULT [TIMEOUT_SECONDS]
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "comm/mpi_communicator.h"
#include "tests/comm/faults.h"

namespace bitshard::comm {
namespace {

// Faults that only a process can have.
void EndProcess(const std::string& fault) {
  if (fault == "stop") raise(SIGSTOP);
  if (fault == "kill") raise(SIGKILL);
  if (fault == "exit") _exit(0);
}

absl::Status Run(const std::string& fault, Communicator* comm) {
  if (fault == "none") return Gather(comm, "parameters");
  if (fault == "stop" || fault == "kill" || fault == "exit") {
    absl::Status status = Gather(comm, "good");
    if (status.ok() && comm->rank() == comm->world_size() - 1) EndProcess(fault);
    return status.ok() ? Gather(comm, "parameters") : status;
  }
  if (fault == "stop_in_data") {
    // The last rank announces that it takes data, more than fits into any buffer on the way, and
    // takes none.
    std::vector<std::byte> data(64 << 20);
    const size_t world = static_cast<size_t>(comm->world_size());
    std::vector<std::span<std::byte>> receive(world);
    std::vector<std::span<const std::byte>> send(world);
    const bool last = comm->rank() == comm->world_size() - 1;
    if (last) receive[0] = data;
    if (comm->rank() == 0) send.back() = data;
    if (!last) absl::SleepFor(absl::Milliseconds(500));
    auto work = comm->StartAllToAll(send, receive, "large");
    if (!work.ok()) return work.status();
    absl::SleepFor(absl::Milliseconds(200));
    if (last) raise(SIGSTOP);
    return (*work)->Wait();
  }
  if (fault == "pause_all") {
    // The job is suspended for longer than the timeout: nobody's fault.
    absl::SleepFor(absl::Milliseconds(300) * comm->rank());
    return Gather(comm, "parameters");
  }
  return RunFault(fault, comm);
}

int Main(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "none";
  const double timeout_seconds = argc > 2 ? std::atof(argv[2]) : 1;
  auto comm = MpiCommunicator::Create({.timeout = absl::Seconds(60)});
  if (!comm.ok()) {
    std::fprintf(stderr, "bitshard: error: %s\n", std::string(comm.status().message()).c_str());
    return core::ExitCode(comm.status());
  }
  (*comm)->set_timeout(absl::Seconds(timeout_seconds));
  std::printf("pid %d rank %d of %d\n", getpid(), (*comm)->rank(), (*comm)->world_size());
  std::fflush(stdout);
  absl::Status status = Run(fault, comm->get());
  if (!status.ok()) {
    std::printf("rank %d got: %s\n", (*comm)->rank(), std::string(status.message()).c_str());
    std::fflush(stdout);
    // Gives the others the time to say what they got, before this rank ends the job.
    if (fault == "fail") absl::SleepFor(absl::Seconds(1));
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
