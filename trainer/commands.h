// The commands of `bitshard`. Every rank of the job calls the same one. `devices`: what `train` may
// run on and `plan` may count; the others run on the CPU.
#ifndef BITSHARD_TRAINER_COMMANDS_H_
#define BITSHARD_TRAINER_COMMANDS_H_

#include "absl/status/status.h"
#include "comm/communicator.h"
#include "trainer/command_line.h"
#include "trainer/devices.h"

namespace bitshard::trainer {

/// Finetunes and writes output_dir: metrics, checkpoints, adapter, summary.
absl::Status RunTrain(const CommandLine& line, comm::Communicator* comm, const Devices& devices);
/// Prints memory and traffic; loads no weights.
absl::Status RunPlan(const CommandLine& line, comm::Communicator* comm, const Devices& devices);
/// Prints the held-out loss.
absl::Status RunEvaluate(const CommandLine& line, comm::Communicator* comm, const Devices& devices);
/// Prints answers to prompts.
absl::Status RunGenerate(const CommandLine& line, comm::Communicator* comm, const Devices& devices);
/// Writes the base as training sees it, as a Hugging Face folder.
absl::Status RunQuantize(const CommandLine& line, comm::Communicator* comm, const Devices& devices);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_COMMANDS_H_
