// bitshard: the program. One process is one rank; every rank runs the same command.
#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "comm/mpi_communicator.h"
#include "core/error.h"
#include "core/simd.h"
#include "core/status_macros.h"
#include "trainer/command_line.h"
#include "trainer/commands.h"
#include "trainer/process_memory.h"
#include "trainer/signals.h"

namespace bitshard::trainer {
namespace {

absl::Status Dispatch(const CommandLine& line, comm::Communicator* comm) {
  BITSHARD_RETURN_IF_ERROR(core::InitSimdFromEnvironment());
  switch (line.command) {
    case Command::kTrain:
      return RunTrain(line, comm);
    case Command::kPlan:
      return RunPlan(line, comm);
    case Command::kEvaluate:
      return RunEvaluate(line, comm);
    case Command::kGenerate:
      return RunGenerate(line, comm);
    case Command::kQuantize:
      return RunQuantize(line, comm);
    case Command::kHelp:
      if (comm->rank() == 0) std::fputs(line.help.c_str(), stdout);
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

std::string ErrorText(const absl::Status& status) {
  return absl::StrCat("bitshard: error: ", std::string(status.message()));
}

int Main(int argc, char** argv) {
  ApplyMallocPolicy();
  InstallStopSignals();
  absl::StatusOr<CommandLine> line = ParseCommandLine(argc, argv);
  const auto comm = comm::MpiCommunicator::Create({});
  if (!comm.ok()) {
    std::fprintf(stderr, "%s\n", ErrorText(comm.status()).c_str());
    return core::ExitCode(comm.status());
  }
  absl::Status status = (*comm)->AgreeOnStatus(line.status());
  if (status.ok()) status = Dispatch(*line, comm->get());
  if (status.ok()) status = (*comm)->Finalize();
  if (status.ok()) return 0;
  comm::EndJob(comm->get(), status, ErrorText(status));
}

}  // namespace
}  // namespace bitshard::trainer

int main(int argc, char** argv) { return bitshard::trainer::Main(argc, argv); }
