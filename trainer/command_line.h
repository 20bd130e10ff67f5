// The command line of `bitshard`: which command, which configuration, and the few options of single
// commands.
#ifndef BITSHARD_TRAINER_COMMAND_LINE_H_
#define BITSHARD_TRAINER_COMMAND_LINE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"

namespace bitshard::trainer {

enum class Command { kTrain, kPlan, kEvaluate, kGenerate, kQuantize, kHelp };

struct CommandLine {
  Command command = Command::kHelp;
  std::string config_path;             ///< --config FILE
  std::vector<std::string> overrides;  ///< --set a.b=c, in order
  bool resume = false;               ///< train --resume: go on from the newest complete checkpoint
  int ranks = 0;                     ///< plan --ranks N: plan for N ranks; 0: those of this job
  std::string adapter;               ///< evaluate, generate --adapter DIR; "": the base alone
  std::vector<std::string> prompts;  ///< generate --prompt TEXT, repeatable
  std::string export_format;         ///< quantize --export hf
  std::string output;                ///< quantize --output DIR
  std::string help;                  ///< kHelp: what to print
};

/// Errors: kConfig with the parser's message.
absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv);

/// That all ranks have the same command with the same options of its own; configurations are
/// compared by OpenSession. A collective. Errors: kConfig naming the rank and both.
absl::Status CheckSameCommand(const CommandLine& line, comm::Communicator* comm);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_COMMAND_LINE_H_
