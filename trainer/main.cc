// bitshard: the program. One process is one rank; every rank runs the same command.
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "comm/mpi_communicator.h"
#include "core/error.h"
#include "core/file.h"
#include "core/simd.h"
#include "core/status_macros.h"
#include "trainer/command_line.h"
#include "trainer/commands.h"
#include "trainer/devices.h"
#include "trainer/process_memory.h"
#include "trainer/signals.h"

namespace bitshard::trainer {
namespace {

absl::Status Dispatch(const CommandLine& line, comm::Communicator* comm) {
  BITSHARD_RETURN_IF_ERROR(CheckSameCommand(line, comm));
  BITSHARD_RETURN_IF_ERROR(comm->AgreeOnStatus(core::InitSimdFromEnvironment()));
  const std::unique_ptr<Devices> devices = MakeDevices();
  switch (line.command) {
    case Command::kTrain:
      return RunTrain(line, comm, *devices);
    case Command::kPlan:
      return RunPlan(line, comm, *devices);
    case Command::kEvaluate:
      return RunEvaluate(line, comm, *devices);
    case Command::kGenerate:
      return RunGenerate(line, comm, *devices);
    case Command::kQuantize:
      return RunQuantize(line, comm, *devices);
    case Command::kHelp:
      if (comm->rank() == 0) std::fputs(line.help.c_str(), stdout);
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status OutOfMemory(const std::string& what) {
  return core::MemoryError(absl::StrCat(
      "not enough memory (", what,
      "): `bitshard plan` says what the run needs by purpose; lower "
      "micro_batch_size, sequence_len or generate.max_new_tokens, use optimizer: paged_adamw_8bit "
      "or fewer ranks on this host, or raise the limit (ulimit -v, the container's)"));
}

// The one place that catches what containers and LibTorch throw when memory runs out: nothing
// between here and them could do more than pass it on.
absl::Status DispatchInMemory(const CommandLine& line, comm::Communicator* comm) {
  try {
    return Dispatch(line, comm);
  } catch (const std::bad_alloc&) {
    return OutOfMemory("an allocation failed");
  } catch (const std::length_error& error) {
    return OutOfMemory(error.what());
  } catch (const std::exception& error) {
    // LibTorch's allocator throws a c10::Error, which only its text tells from others.
    const std::string text = error.what();
    const std::string first = core::Escaped(text.substr(0, text.find('\n')));
    if (text.find("can't allocate memory") != std::string::npos) return OutOfMemory(first);
    return absl::InternalError(absl::StrCat("unexpected: ", first, "; this is a bug of bitshard"));
  }
}

std::string ErrorText(const absl::Status& status) {
  return absl::StrCat("bitshard: error: ", std::string(status.message()));
}

int Main(int argc, char** argv) {
  const absl::Status descriptors = core::OpenStandardDescriptors();
  if (!descriptors.ok()) return core::ExitCode(descriptors);
  ApplyMallocPolicy();
  InstallStopSignals();
  absl::StatusOr<CommandLine> line = ParseCommandLine(argc, argv);
  const auto comm = comm::MpiCommunicator::Create({});
  if (!comm.ok()) {
    std::fprintf(stderr, "%s\n", ErrorText(comm.status()).c_str());
    return core::ExitCode(comm.status());
  }
  absl::Status status = (*comm)->AgreeOnStatus(line.status());
  if (status.ok()) status = DispatchInMemory(*line, comm->get());
  if (status.ok()) status = (*comm)->Finalize();
  if (status.ok()) return 0;
  comm::EndJob(comm->get(), status, ErrorText(status));
}

}  // namespace
}  // namespace bitshard::trainer

int main(int argc, char** argv) { return bitshard::trainer::Main(argc, argv); }
