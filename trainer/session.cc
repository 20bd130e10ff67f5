#include "trainer/session.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/status_macros.h"
#include "optim/optimizer_name.h"
#include "trainer/process_memory.h"
#include "trainer/run_options.h"
#include "trainer/runtime_memory.h"
#include "trainer/text_python.h"
#include "trainer/version.h"

namespace bitshard::trainer {
namespace {

absl::Status CheckSameConfig(const Config& config, comm::Communicator* comm) {
  const std::string mine = ConfigToYaml(config);
  BITSHARD_ASSIGN_OR_RETURN(const std::string first, comm->BroadcastString(mine, "configuration"));
  absl::Status status;
  if (first != mine) {
    const auto other = ParseConfig(first, "rank 0's configuration");
    status = other.ok()
                 ? core::ConfigError(absl::StrCat("the configuration differs from rank 0's: ",
                                                  DescribeDifferences(DiffConfigs(*other, config)),
                                                  "; start all ranks with the same file and --set"))
                 : other.status();
  }
  return comm->AgreeOnStatus(status);
}

// `auto` of device, and what it decides of compute_type and paging.tier. Only training, and its
// plan, can be on a GPU.
absl::Status ResolveDevice(const CommandLine& line, const Devices& devices,
                           comm::Communicator* comm, Config* config) {
  const int local = comm->local_rank();
  DeviceKind& device = config->compute.device;
  if (line.command != Command::kTrain && line.command != Command::kPlan) device = DeviceKind::kCpu;
  if (device != DeviceKind::kCpu) {
    const absl::Status usable = devices.Usable(local);
    BITSHARD_ASSIGN_OR_RETURN(const int64_t missing, comm->MaxInt64(usable.ok() ? 0 : 1));
    if (missing != 0 && device == DeviceKind::kCuda) return comm->AgreeOnStatus(usable);
    device = missing != 0 ? DeviceKind::kCpu : DeviceKind::kCuda;
  }
  const bool cuda = device == DeviceKind::kCuda;
  const auto optimizer = optim::ParseOptimizerName(config->optimizer.name);
  if (config->paging.tier == PagingTier::kAuto && optimizer.ok() && optimizer->paged)
    config->paging.tier = cuda ? PagingTier::kManaged : PagingTier::kHost;
  ComputeType& type = config->compute.type;
  if (!cuda) {
    type = ResolveComputeType(type);
  } else if (!devices.MultipliesBFloat16(local)) {
    if (type == ComputeType::kBFloat16) {
      return comm->AgreeOnStatus(core::ConfigError(absl::StrFormat(
          "compute_type: bf16: this GPU (%s) does not multiply it; want fp32 or auto",
          devices.Describe(local))));
    }
    type = ComputeType::kFloat32;
  } else if (type == ComputeType::kAuto) {
    type = ComputeType::kBFloat16;
  }
  // What `auto` has become may not fit the rest.
  return comm->AgreeOnStatus(ValidateConfig(*config));
}

struct PromptSizes {
  int64_t count = 0;
  int64_t longest_tokens = 0;
};

// Of the prompts that a run answers. They are not tokens yet: about four bytes make one, and a chat
// template adds some tens, which is near enough for a few rows of keys and values.
PromptSizes PromptsOf(const Session& session) {
  constexpr int64_t kTemplateTokens = 32;
  std::vector<std::string> prompts = session.data->held_out_prompts();
  const auto most = static_cast<size_t>(session.config.generate.heldout_prompts);
  if (prompts.size() > most) prompts.resize(most);
  const std::vector<std::string>& more = session.config.generate.prompts;
  prompts.insert(prompts.end(), more.begin(), more.end());
  PromptSizes sizes{.count = static_cast<int64_t>(prompts.size())};
  for (const std::string& prompt : prompts) {
    sizes.longest_tokens =
        std::max(sizes.longest_tokens, static_cast<int64_t>(prompt.size()) / 4 + kTemplateTokens);
  }
  return sizes;
}

// OMP_NUM_THREADS (launch/mpirun.sh sets it), else the node's cores shared by its ranks.
int ThreadsOf(const Config& config, const comm::Communicator& comm) {
  if (config.compute.threads_per_rank > 0) return static_cast<int>(config.compute.threads_per_rank);
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return core::NumThreads();
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / comm.local_size());
}

// launch/mpirun.sh knows whether somebody is watching: mpirun puts a pipe between ranks and the
// terminal.
std::optional<bool> TerminalFromLauncher() {
  const char* terminal = std::getenv("BITSHARD_TERMINAL");
  if (terminal == nullptr) return std::nullopt;
  return std::string(terminal) == "1";
}

}  // namespace

absl::Status AdviseIfStopped(const absl::Status& status, const std::string& what_to_do) {
  if (status.ok() || core::KindOf(status) != core::ErrorKind::kInterrupted) return status;
  absl::Status advised(status.code(),
                       absl::StrCat(std::string(status.message()), "; ", what_to_do));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { advised.SetPayload(url, payload); });
  return advised;
}

std::string TokenizerOf(const Session& session) { return session.source->path(); }

absl::StatusOr<std::unique_ptr<Session>> OpenSession(const CommandLine& line,
                                                     comm::Communicator* comm,
                                                     const Devices& devices) {
  auto session = std::make_unique<Session>();
  session->comm = comm;
  session->devices = &devices;
  session->console = std::make_unique<Console>(
      ConsoleOptions{.silent = comm->rank() != 0, .terminal = TerminalFromLauncher()});
  auto config =
      LoadConfig({.path = line.config_path,
                  .overrides = line.overrides,
                  .needs_data = line.command == Command::kTrain || line.command == Command::kPlan ||
                                line.command == Command::kEvaluate});
  BITSHARD_RETURN_IF_ERROR(comm->AgreeOnStatus(config.status()));
  session->config = *std::move(config);
  if (line.resume) session->config.output.resume_from_checkpoint = "true";
  BITSHARD_RETURN_IF_ERROR(CheckSameConfig(session->config, comm));
  BITSHARD_RETURN_IF_ERROR(ResolveDevice(line, devices, comm, &session->config));
  BITSHARD_RETURN_IF_ERROR(CheckSameConfig(session->config, comm));  // Machines may differ.
  comm->set_timeout(absl::Seconds(session->config.comm.timeout_seconds));
  core::SetNumThreads(ThreadsOf(session->config, *comm));

  auto source = io::OpenModel(session->config.model.base_model);
  absl::Status status = source.status();
  if (status.ok()) {
    session->source = *std::move(source);
    const std::string& wanted = session->config.model.model_type;
    const std::string& found = session->source->config().model_type;
    if (!wanted.empty() && wanted != found) {
      status =
          core::ConfigError(absl::StrFormat("model_type: got %s, but %s is %s", wanted,
                                            core::Escaped(session->source->path(), 4096), found));
    }
  }
  BITSHARD_RETURN_IF_ERROR(comm->AgreeOnStatus(status));
  session->console->Say(absl::StrFormat(
      "bitshard %s: %d rank%s of %d thread%s, %s, SIMD target %s", kVersion, comm->world_size(),
      comm->world_size() == 1 ? "" : "s", core::NumThreads(), core::NumThreads() == 1 ? "" : "s",
      session->config.compute.type == ComputeType::kBFloat16 ? "bf16" : "fp32",
      core::SimdTargetName()));
  if (session->config.compute.device == DeviceKind::kCuda) {
    session->console->Say(
        absl::StrFormat("a GPU for each rank: %s", devices.Describe(comm->local_rank())));
  }
  return session;
}

absl::Status OpenData(Session* session) {
  const std::filesystem::path output = session->config.output.directory;
  const std::filesystem::path parent = output.has_parent_path() ? output.parent_path() : ".";
  // Any rank may be the one that makes the cache: it says how it gets on.
  Console own({.terminal = false});
  Console* const console = session->comm->rank() == 0 ? session->console.get() : &own;
  BITSHARD_ASSIGN_OR_RETURN(
      session->data,
      TrainingData::Open(
          {.config = &session->config,
           .model = &session->source->config(),
           .rank = session->comm->rank(),
           .python = TextPythonOf(),
           .cache_directory = (parent / ".cache").string(),
           .tokenizer = TokenizerOf(*session),
           .on_progress = [console](const std::string& text) { console->Say("  " + text); }},
          session->comm));
  BITSHARD_ASSIGN_OR_RETURN(session->text_process_peak_bytes,
                            session->comm->MaxInt64(session->data->text_process_peak_bytes()));
  if (session->text_process_peak_bytes > 0) {
    session->console->Say(absl::StrFormat("  the Python text process took %s, and is gone",
                                          Megabytes(session->text_process_peak_bytes)));
  }
  const DataSummary& data = session->data->summary();
  session->console->Say(absl::StrFormat(
      "data: %d samples, %d tokens (%d trained) in %d packs, %.1f%% full; %d dropped, %d "
      "truncated; held out: %d "
      "samples, %d tokens",
      data.train_samples, data.train_tokens, data.train_trained_tokens, data.packs, 100 * data.fill,
      data.dropped, data.truncated, data.held_out_samples, data.held_out_tokens));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Decoder>> MakeDecoder(const Session& session,
                                                     const DecoderOptions& options) {
  auto decoder = Decoder::Create(*session.source, options);
  BITSHARD_RETURN_IF_ERROR(session.comm->AgreeOnStatus(decoder.status()));
  ReturnFreedMemory();
  return decoder;
}

absl::StatusOr<std::unique_ptr<Replica>> MakeReplica(const Session& session,
                                                     const DecoderOptions& options) {
  const ReplicaArgs args{.config = &session.config,
                         .source = session.source.get(),
                         .comm = session.comm,
                         .decoder = options};
  if (session.config.compute.device == DeviceKind::kCuda) return session.devices->MakeReplica(args);
  auto replica = MakeHostReplica(args);
  BITSHARD_RETURN_IF_ERROR(session.comm->AgreeOnStatus(replica.status()));
  ReturnFreedMemory();
  return replica;
}

absl::StatusOr<Plan> PlanOf(const Session& session, int world_size) {
  const int64_t max_tokens = session.data->max_micro_batch_tokens();
  const int64_t max_sample_tokens = session.data->max_sample_tokens();
  const auto measured = MeasureRuntimeBytes(
      session.source->config(), DecoderOptionsOf(session.config, max_tokens, max_sample_tokens));
  BITSHARD_RETURN_IF_ERROR(session.comm->AgreeOnStatus(measured.status()));
  BITSHARD_ASSIGN_OR_RETURN(const int64_t runtime_bytes, session.comm->MaxInt64(*measured));
  const PromptSizes prompts = PromptsOf(session);
  return MakePlan({.config = &session.config,
                   .model = &session.source->config(),
                   .devices = session.devices,
                   .world_size = world_size,
                   .runtime_bytes = runtime_bytes,
                   .cache_bytes = session.data->cache_bytes(),
                   .max_tokens = max_tokens,
                   .max_sample_tokens = max_sample_tokens,
                   .num_prompts = prompts.count,
                   .prompt_tokens = prompts.longest_tokens,
                   .text_process_bytes = session.text_process_peak_bytes});
}

}  // namespace bitshard::trainer
