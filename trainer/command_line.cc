#include "trainer/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/version.h"

namespace bitshard::trainer {
namespace {

// Far more than any job has: for the message, and so that a plan ends.
constexpr int kMaxRanks = 1000000;

// The parser says only that a command is missing.
absl::Status CheckCommand(int argc, const char* const* argv, const CLI::App& app) {
  if (argc < 2 || argv[1][0] == '-') return absl::OkStatus();
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  if (std::find(names.begin(), names.end(), argv[1]) != names.end()) return absl::OkStatus();
  const std::string nearest = core::Nearest(std::string(argv[1]), names);
  return core::ConfigError(
      absl::StrCat("command line: unknown command \"", core::Escaped(argv[1]), "\"",
                   nearest.empty() ? "." : absl::StrCat(", did you mean ", nearest, "?"),
                   " Known: ", absl::StrJoin(names, ", ")));
}

std::string NameOf(Command command) {
  switch (command) {
    case Command::kTrain:
      return "train";
    case Command::kPlan:
      return "plan";
    case Command::kEvaluate:
      return "evaluate";
    case Command::kGenerate:
      return "generate";
    case Command::kQuantize:
      return "quantize";
    case Command::kHelp:
      break;
  }
  return "--help";
}

CLI::App* AddCommand(CLI::App* app, Command command, const std::string& text, CommandLine* line) {
  CLI::App* sub = app->add_subcommand(NameOf(command), text);
  sub->add_option("--config", line->config_path, "run configuration (YAML; docs/config.md)")
      ->required();
  sub->add_option("--set", line->overrides,
                  "override a key of the configuration: a.b=c (repeatable)")
      ->allow_extra_args(false);
  sub->callback([line, command] { line->command = command; });
  return sub;
}

// The command as it was typed, without what the configuration says.
std::string TextOf(const CommandLine& line) {
  std::string text = NameOf(line.command);
  if (line.ranks > 0) absl::StrAppend(&text, " --ranks ", line.ranks);
  const auto add = [&text](const char* option, const std::string& value) {
    if (!value.empty()) absl::StrAppend(&text, " ", option, " ", core::Escaped(value, 4096));
  };
  add("--adapter", line.adapter);
  for (const std::string& prompt : line.prompts) add("--prompt", prompt);
  add("--export", line.export_format);
  add("--output", line.output);
  return text;
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv) {
  CommandLine line;
  CLI::App app(
      absl::StrCat("bitshard ", kVersion,
                   ": QLoRA finetuning across ranks with an 8-bit sharded, paged optimizer.\n"
                   "Start it with launch/mpirun.sh (installed: bitshard-mpirun) -n RANKS, or alone "
                   "for one rank."),
      "bitshard");
  app.require_subcommand(1);
  app.set_version_flag("--version", kVersion);

  CLI::App* train =
      AddCommand(&app, Command::kTrain, "finetune; writes the run to output_dir", &line);
  train->add_flag("--resume", line.resume,
                  "go on from the newest complete checkpoint of output_dir");
  CLI::App* plan =
      AddCommand(&app, Command::kPlan,
                 "print memory and traffic of a run, by purpose, without running a step", &line);
  plan->add_option("--ranks", line.ranks, "plan for this many ranks")
      ->check(CLI::Range(1, kMaxRanks));
  CLI::App* evaluate = AddCommand(&app, Command::kEvaluate, "print the held-out loss", &line);
  evaluate->add_option("--adapter", line.adapter, "adapter folder; without it the base alone");
  CLI::App* generate = AddCommand(&app, Command::kGenerate, "answer prompts", &line);
  generate->add_option("--adapter", line.adapter, "adapter folder; without it the base alone");
  generate->add_option("--prompt", line.prompts, "a user message (repeatable)")
      ->required()
      ->allow_extra_args(false);
  CLI::App* quantize = AddCommand(&app, Command::kQuantize,
                                  "quantise the base and write what training sees of it", &line);
  quantize
      ->add_option("--export", line.export_format,
                   "hf: a Hugging Face folder with the dequantised weights")
      ->required()
      ->check(CLI::IsMember({"hf"}));
  quantize->add_option("--output", line.output, "folder to make")->required();

  const absl::Status known = CheckCommand(argc, argv, app);
  if (!known.ok()) return known;
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    line.command = Command::kHelp;
    line.help = app.get_subcommands().empty() ? app.help()
                                              : app.get_subcommands().front()->help("bitshard");
  } catch (const CLI::CallForVersion&) {
    line.command = Command::kHelp;
    line.help = absl::StrCat("bitshard ", kVersion, "\n");
  } catch (const CLI::ParseError& error) {
    return core::ConfigError(absl::StrCat("command line: ", error.what(), "; see bitshard --help"));
  }
  return line;
}

absl::Status CheckSameCommand(const CommandLine& line, comm::Communicator* comm) {
  const std::string mine = TextOf(line);
  BITSHARD_ASSIGN_OR_RETURN(const std::string first, comm->BroadcastString(mine, "command"));
  absl::Status status;
  if (mine != first) {
    status = core::ConfigError(absl::StrCat("was started with `bitshard ", mine,
                                            "`, rank 0 with `bitshard ", first,
                                            "`: start all ranks with the same command"));
  }
  return comm->AgreeOnStatus(status);
}

}  // namespace bitshard::trainer
