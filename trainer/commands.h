// The commands of `bitshard`. Every rank of the job calls the same one.
#ifndef BITSHARD_TRAINER_COMMANDS_H_
#define BITSHARD_TRAINER_COMMANDS_H_

#include "absl/status/status.h"
#include "comm/communicator.h"
#include "trainer/command_line.h"

namespace bitshard::trainer {

/// Finetunes and writes output_dir: metrics, checkpoints, adapter, summary.
absl::Status RunTrain(const CommandLine& line, comm::Communicator* comm);
/// Prints memory and traffic; loads no weights.
absl::Status RunPlan(const CommandLine& line, comm::Communicator* comm);
/// Prints the held-out loss.
absl::Status RunEvaluate(const CommandLine& line, comm::Communicator* comm);
/// Prints answers to prompts.
absl::Status RunGenerate(const CommandLine& line, comm::Communicator* comm);
/// Writes the base as training sees it, as a Hugging Face folder.
absl::Status RunQuantize(const CommandLine& line, comm::Communicator* comm);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_COMMANDS_H_
