// `bitshard train`: sets a run up, trains, and writes what it leaves.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/shard_map.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/parallel.h"
#include "core/status_macros.h"
#include "trainer/answers.h"
#include "trainer/checkpoint.h"
#include "trainer/commands.h"
#include "trainer/earlier_run.h"
#include "trainer/held_out.h"
#include "trainer/io/json.h"
#include "trainer/io/peft_adapter.h"
#include "trainer/metrics.h"
#include "trainer/process_memory.h"
#include "trainer/replica.h"
#include "trainer/run_lock.h"
#include "trainer/run_options.h"
#include "trainer/session.h"
#include "trainer/stopwatch.h"
#include "trainer/text_python.h"
#include "trainer/train_loop.h"
#include "trainer/version.h"

namespace bitshard::trainer {
namespace {

// The model before training: measured by each process anew, a resumed one's too.
struct Baseline {
  std::optional<double> held_out_loss;
  std::vector<std::string> answers;  // Rank 0.
};

class TrainRun {
 public:
  explicit TrainRun(std::unique_ptr<Session> session)
      : session_(std::move(session)), config_(session_->config), comm_(session_->comm) {}

  absl::Status Run() {
    BITSHARD_RETURN_IF_ERROR(WithAdvice(Prepare()));
    if (complete_) {
      Say(absl::StrFormat("the run in %s is complete (%d steps); nothing to do",
                          config_.output.directory, first_step_));
      return replica_->Close();
    }
    BITSHARD_RETURN_IF_ERROR(WithAdvice(MeasureBaseline()));
    BITSHARD_RETURN_IF_ERROR(Train());
    const absl::Status finished = WithAdvice(Finish());
    // A run that was asked to stop ends in order too.
    if (finished.ok() || core::KindOf(finished) == core::ErrorKind::kInterrupted)
      BITSHARD_RETURN_IF_ERROR(replica_->Close());
    return finished;
  }

 private:
  void Say(const std::string& text) { session_->console->Say(text); }
  bool is_first() const { return comm_->rank() == 0; }
  bool Reports(Report report) const {
    return std::ranges::count(config_.output.report_to, report) > 0;
  }
  std::string PathOf(const std::string& name) const {
    return absl::StrCat(config_.output.directory, "/", name);
  }

  absl::Status Prepare();
  absl::Status WithAdvice(const absl::Status& status) const;
  absl::Status LockOutput();
  absl::Status MakePlanAndParts();
  absl::Status MakeAnswers();
  absl::Status SetEarlierRunAside();
  absl::Status BeginOutput();
  absl::Status Resume();
  absl::Status CheckResumable(const FoundCheckpoint& found) const;
  absl::Status MeasureBaseline();
  absl::Status OpenMetrics();
  absl::Status Train();
  absl::Status Save(const LoopResult& done);
  absl::Status Finish();
  absl::Status WriteState();
  absl::Status WriteResults(std::optional<double> held_out_after,
                            const std::vector<std::string>& answers);
  absl::Status RecallSteps();
  absl::StatusOr<std::optional<double>> HeldOut(WhichModel which);
  absl::StatusOr<std::vector<std::string>> Answer(WhichModel which);
  std::vector<BlockSection> Sections(bool all_parameters);

  std::unique_ptr<Session> session_;
  const Config& config_;
  comm::Communicator* comm_;
  std::unique_ptr<RunLock> lock_;
  Plan plan_;
  DecoderOptions decoder_options_;
  std::unique_ptr<Replica> replica_;
  std::unique_ptr<Checkpointer> checkpoints_;
  std::unique_ptr<Answers> answers_;
  std::unique_ptr<MetricsWriter> metrics_;
  Baseline baseline_;
  int64_t first_step_ = 0;
  bool continues_ = false;  // Resumed from a checkpoint of output_dir.
  bool complete_ = false;   // Resumed from the last step, and its results are there.
  int64_t total_tokens_ = 0, total_trained_tokens_ = 0;  // Of the steps before first_step_.
  LoopResult result_;
};

// Everything that can be refused: until BeginOutput, an output_dir that was there is as it was, and
// one that was not there goes again with an error.
absl::Status TrainRun::Prepare() {
  BITSHARD_RETURN_IF_ERROR(LockOutput());
  BITSHARD_RETURN_IF_ERROR(OpenData(session_.get()));
  BITSHARD_RETURN_IF_ERROR(MakePlanAndParts());
  BITSHARD_RETURN_IF_ERROR(Resume());
  const bool done = is_first() && first_step_ >= session_->data->total_steps() &&
                    std::filesystem::exists(PathOf("summary.json"));
  BITSHARD_ASSIGN_OR_RETURN(const int64_t complete, comm_->MaxInt64(done ? 1 : 0));
  complete_ = complete != 0;
  if (complete_) return absl::OkStatus();
  BITSHARD_RETURN_IF_ERROR(MakeAnswers());
  return BeginOutput();
}

// A request to stop outside of a step: what is saved, and how to go on.
absl::Status TrainRun::WithAdvice(const absl::Status& status) const {
  const int64_t saved = std::max(first_step_, result_.step);
  if (saved == 0) return AdviseIfStopped(status, "nothing was trained yet: start it again");
  return AdviseIfStopped(status, absl::StrFormat("%d steps are saved in %s: go on with --resume",
                                                 saved, config_.output.directory));
}

absl::Status TrainRun::LockOutput() {
  absl::Status status;
  if (is_first()) {
    auto lock = RunLock::Acquire(config_.output.directory);
    status = lock.status();
    if (status.ok()) {
      lock_ = *std::move(lock);
      if (!lock_->taken_over_from().empty())
        Say("taking over from " + lock_->taken_over_from() + ", which ended early");
    }
  }
  return comm_->AgreeOnStatus(status);
}

absl::Status TrainRun::SetEarlierRunAside() {
  BITSHARD_ASSIGN_OR_RETURN(const std::string aside,
                            trainer::SetEarlierRunAside(config_.output.directory));
  if (!aside.empty()) {
    session_->console->Warn(absl::StrCat("output_dir: an earlier run was in it, which is now in ",
                                         core::Escaped(aside, 4096)));
  }
  return absl::OkStatus();
}

absl::Status TrainRun::BeginOutput() {
  absl::Status status;
  if (is_first()) {
    lock_->Keep();
    if (!continues_) status = SetEarlierRunAside();
    if (status.ok())
      status = core::WriteFileAtomically(PathOf("config.yaml"), ConfigToYaml(config_));
  }
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(status));
  return OpenMetrics();
}

absl::Status TrainRun::MakePlanAndParts() {
  auto plan = PlanOf(*session_, comm_->world_size());
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(plan.status()));
  plan_ = *std::move(plan);
  Say(DescribePlan(plan_));
  Stopwatch watch;
  decoder_options_ = DecoderOptionsOf(config_, session_->data->max_micro_batch_tokens(),
                                      session_->data->max_sample_tokens());
  BITSHARD_ASSIGN_OR_RETURN(replica_, MakeReplica(*session_, decoder_options_));
  Say(absl::StrFormat("model: %s, %d layers, loaded in %.1f s",
                      core::Escaped(session_->source->path(), 4096),
                      session_->source->config().num_hidden_layers, watch.Lap()));
  for (const std::string& notice : replica_->notices()) session_->console->Warn(notice);
  if (config_.comm.reduction == comm::Reduction::kFast && comm_->world_size() > 1)
    session_->console->Warn(
        "comm.reduction: fast: the adapter's bits depend on the number of ranks");
  Say(absl::StrCat(config_.optimizer.name, ": ", DescribeShares(config_, replica_->shares())));
  BITSHARD_ASSIGN_OR_RETURN(
      checkpoints_, Checkpointer::Create({.directory = config_.output.directory,
                                          .save_total_limit = config_.output.save_total_limit,
                                          .layout = &replica_->layout()},
                                         comm_));
  return absl::OkStatus();
}

// What a checkpoint holds: parameters and optimizer state, by blocks. Every rank loads all
// parameters.
std::vector<BlockSection> TrainRun::Sections(bool all_parameters) {
  constexpr int64_t kParameterBytes = core::kBlockElems * 4;
  const std::vector<core::BlockRange> mine = replica_->shards().RunsOf(comm_->rank());
  const std::vector<core::BlockRange> all = {{0, replica_->layout().num_blocks()}};
  const auto bytes_of = [this](core::BlockRange blocks) {
    return std::as_writable_bytes(
        replica_->parameters().subspan(static_cast<size_t>(blocks.begin * core::kBlockElems),
                                       static_cast<size_t>(blocks.size() * core::kBlockElems)));
  };
  const BlockSection parameter_blocks{
      .name = "parameters",
      .runs = all_parameters ? all : mine,
      .block_bytes = [](int64_t) { return kParameterBytes; },
      .export_blocks =
          [bytes_of](core::BlockRange blocks, std::span<std::byte> out) {
            std::ranges::copy(bytes_of(blocks), out.begin());
            return absl::OkStatus();
          },
      .import_blocks =
          [bytes_of](core::BlockRange blocks, std::span<const std::byte> in) {
            std::ranges::copy(in, bytes_of(blocks).begin());
            return absl::OkStatus();
          }};
  const BlockSection optimizer_blocks{
      .name = "optimizer",
      .runs = mine,
      .block_bytes = [this](int64_t block) { return replica_->BlockStateBytes(block); },
      .export_blocks = [this](
                           core::BlockRange blocks,
                           std::span<std::byte> out) { return replica_->ExportState(blocks, out); },
      .import_blocks =
          [this](core::BlockRange blocks, std::span<const std::byte> in) {
            return replica_->ImportState(blocks, in);
          }};
  return {parameter_blocks, optimizer_blocks};
}

absl::Status TrainRun::CheckResumable(const FoundCheckpoint& found) const {
  const CheckpointInfo& info = found.manifest.info;
  if (info.config_hash != ConfigHash(config_)) {
    BITSHARD_ASSIGN_OR_RETURN(const Config before, ParseConfig(info.config_text, found.path));
    std::vector<ConfigDifference> differences = DiffConfigs(before, config_);
    std::erase_if(differences, [](const ConfigDifference& d) { return !d.changes_result; });
    return core::ConfigError(
        absl::StrCat(core::Escaped(found.path, 4096),
                     " was made with another configuration: ", DescribeDifferences(differences),
                     ". Set these keys back, or start anew in another output_dir"));
  }
  const std::string data = core::HexDigest(session_->data->content_hash());
  if (info.data_fingerprint != data) {
    return core::DataError(absl::StrCat(
        core::Escaped(found.path, 4096), " was trained on other data (", info.data_fingerprint,
        ", now ", data, "): give back the data files it was made with, or start anew"));
  }
  return absl::OkStatus();
}

absl::Status TrainRun::Resume() {
  const std::string& from = config_.output.resume_from_checkpoint;
  if (from.empty()) return absl::OkStatus();
  std::optional<FoundCheckpoint> found;
  if (from == "true" || from == "auto") {
    BITSHARD_ASSIGN_OR_RETURN(found, checkpoints_->FindNewest());
    if (!found.has_value()) {
      if (from == "auto") return absl::OkStatus();
      return comm_->AgreeOnStatus(
          core::DataError(absl::StrCat(core::Escaped(config_.output.directory, 4096),
                                       ": no checkpoint to resume from; start without --resume")));
    }
  } else {
    BITSHARD_ASSIGN_OR_RETURN(found, checkpoints_->Open(from));
  }
  for (const std::string& skipped : found->skipped) session_->console->Warn("skipped " + skipped);
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(CheckResumable(*found)));
  BITSHARD_RETURN_IF_ERROR(checkpoints_->Load(*found, Sections(/*all_parameters=*/true)));
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(replica_->WriteParameters()));
  first_step_ = found->manifest.info.step;
  std::error_code error;
  continues_ =
      std::filesystem::equivalent(std::filesystem::canonical(found->path, error).parent_path(),
                                  config_.output.directory, error);
  total_tokens_ = found->manifest.info.total_tokens;
  total_trained_tokens_ = found->manifest.info.trained_tokens;
  replica_->set_optimizer_step(found->manifest.info.optimizer_step);
  Say(absl::StrFormat("resuming from %s: %d of %d steps done", core::Escaped(found->path, 4096),
                      first_step_, session_->data->total_steps()));
  return absl::OkStatus();
}

absl::StatusOr<std::optional<double>> TrainRun::HeldOut(WhichModel which) {
  if (session_->data->num_held_out_micro_batches() == 0) return std::optional<double>();
  BITSHARD_ASSIGN_OR_RETURN(
      const HeldOutLoss loss,
      EvaluateHeldOut(comm_, session_->data.get(), [this, which](const MicroBatch& batch) {
        return replica_->Evaluate(batch, which);
      }));
  Say(absl::StrFormat("held-out loss %s: %.4f nats per token (%d tokens, %.1f s)",
                      which == WhichModel::kBase ? "of the base" : "after training", loss.loss,
                      loss.trained_tokens, loss.seconds));
  return std::optional<double>(loss.loss);
}

// Needs ReadParameters where the adapter is asked for.
absl::StatusOr<std::vector<std::string>> TrainRun::Answer(WhichModel which) {
  if (answers_ == nullptr) return std::vector<std::string>();
  const auto decoder = replica_->HostDecoder();
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(decoder.status()));
  const bool base = which == WhichModel::kBase;
  return answers_->Generate(decoder->get(),
                            base ? std::span<const float>() : replica_->parameters());
}

absl::Status TrainRun::MakeAnswers() {
  std::vector<std::string> held_out = session_->data->held_out_prompts();
  if (config_.generate.heldout_prompts == 0) held_out.clear();
  if (config_.generate.prompts.empty() && held_out.empty()) return absl::OkStatus();
  BITSHARD_ASSIGN_OR_RETURN(
      answers_,
      Answers::Create({.python = TextPythonOf(),
                       .tokenizer = TokenizerOf(*session_),
                       .prompts_key = "generate.prompts",
                       .prompts = config_.generate.prompts,
                       .held_out = std::move(held_out),
                       .num_held_out = config_.generate.heldout_prompts,
                       .max_prompt_tokens = std::min(decoder_options_.max_tokens,
                                                     decoder_options_.max_sample_tokens),
                       .context_tokens = session_->source->config().max_position_embeddings,
                       .max_new_tokens = config_.generate.max_new_tokens},
                      comm_));
  return absl::OkStatus();
}

absl::Status TrainRun::MeasureBaseline() {
  if (config_.eval.on_start) {
    BITSHARD_ASSIGN_OR_RETURN(baseline_.held_out_loss, HeldOut(WhichModel::kBase));
    if (metrics_ != nullptr && baseline_.held_out_loss.has_value())
      metrics_->WriteScalar("eval/loss", 0, *baseline_.held_out_loss);
  }
  BITSHARD_ASSIGN_OR_RETURN(baseline_.answers, Answer(WhichModel::kBase));
  return absl::OkStatus();
}

absl::Status TrainRun::OpenMetrics() {
  absl::Status status;
  if (is_first()) {
    auto metrics = MetricsWriter::Open({.directory = config_.output.directory,
                                        .resumed_step = first_step_,
                                        .jsonl = Reports(Report::kJsonl),
                                        .tensorboard = Reports(Report::kTensorBoard),
                                        .csv = Reports(Report::kCsv)});
    status = metrics.status();
    if (status.ok()) metrics_ = *std::move(metrics);
  }
  return comm_->AgreeOnStatus(status);
}

absl::Status TrainRun::Save(const LoopResult& done) {
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(replica_->ReadParameters()));
  return checkpoints_->Save({.step = done.step,
                             .optimizer_step = replica_->optimizer_step(),
                             .data_position = done.step * config_.batch.global_batch_size,
                             .total_tokens = done.total_tokens,
                             .trained_tokens = done.total_trained_tokens,
                             .data_fingerprint = core::HexDigest(session_->data->content_hash()),
                             .config_hash = ConfigHash(config_),
                             .config_text = ConfigToYaml(config_),
                             .program_version = kVersion},
                            Sections(/*all_parameters=*/false));
}

absl::Status TrainRun::Train() {
  const LoopParts parts{.step = {.config = &config_,
                                 .comm = comm_,
                                 .data = session_->data.get(),
                                 .replica = replica_.get()},
                        .console = session_->console.get(),
                        .metrics = metrics_.get(),
                        .save = [this](const LoopResult& done) { return Save(done); },
                        .first_step = first_step_,
                        .total_steps = session_->data->total_steps(),
                        .total_tokens = total_tokens_,
                        .total_trained_tokens = total_trained_tokens_};
  BITSHARD_ASSIGN_OR_RETURN(result_, RunTrainLoop(parts));
  return absl::OkStatus();
}

absl::Status TrainRun::Finish() {
  if (result_.interrupted) {
    return comm_->AgreeOnStatus(core::InterruptedError("asked to stop"));
  }
  BITSHARD_ASSIGN_OR_RETURN(const std::optional<double> after, HeldOut(WhichModel::kAdapted));
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(replica_->ReadParameters()));
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<std::string> answers, Answer(WhichModel::kAdapted));
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(RecallSteps()));
  return WriteResults(after, answers);
}

absl::Status TrainRun::WriteState() {
  const std::string state = PathOf("trainer_state.json"), metrics = PathOf("metrics.jsonl");
  if (Reports(Report::kJsonl) && std::filesystem::exists(metrics))
    return WriteTrainerState(state, metrics, std::max<int64_t>(1, config_.output.logging_steps));
  std::error_code ignored;  // Of before a resume: one that reports elsewhere repeats no metrics.
  std::filesystem::remove(state, ignored);
  return absl::OkStatus();
}

// A run that ended between its last checkpoint and its results has no step left: what the steps
// took is what their lines say.
absl::Status TrainRun::RecallSteps() {
  const std::string lines = PathOf("metrics.jsonl");
  if (!is_first() || result_.step > first_step_ || !Reports(Report::kJsonl) ||
      !std::filesystem::exists(lines))
    return absl::OkStatus();
  BITSHARD_ASSIGN_OR_RETURN(const StepTotals totals, ReadStepTotals(lines));
  result_.tokens = totals.tokens;
  result_.seconds = totals.seconds;
  result_.last_loss = totals.last_loss;
  result_.bytes_sent_last_step = totals.last_bytes_sent;
  return absl::OkStatus();
}

absl::Status TrainRun::WriteResults(std::optional<double> held_out_after,
                                    const std::vector<std::string>& answers) {
  BITSHARD_ASSIGN_OR_RETURN(const ProcessMemory memory, ReadProcessMemory());
  BITSHARD_ASSIGN_OR_RETURN(const int64_t peak, comm_->MaxInt64(memory.peak_rss_bytes));
  BITSHARD_ASSIGN_OR_RETURN(const int64_t sent, comm_->MaxInt64(result_.bytes_sent_last_step));
  if (!is_first()) return comm_->AgreeOnStatus(absl::OkStatus());
  const double rate =
      result_.seconds > 0 ? static_cast<double>(result_.tokens) / result_.seconds : 0;
  const RunSummary summary{
      .version = kVersion,
      .config_hash = ConfigHash(config_),
      .world_size = comm_->world_size(),
      .threads_per_rank = core::NumThreads(),
      .compute_type = config_.compute.type == ComputeType::kBFloat16 ? "bf16" : "fp32",
      .steps = result_.step,
      .total_tokens = result_.total_tokens,
      .seconds = result_.seconds,
      .tokens_per_second = rate,
      .heldout_loss_before = baseline_.held_out_loss,
      .heldout_loss_after = held_out_after,
      .train_loss = result_.last_loss,
      .trainable_parameters = replica_->layout().numel(),
      .planned_peak_rss_bytes = plan_.largest().peak_rss_bytes,
      .peak_rss_bytes = peak,
      .planned_bytes_sent_per_step = plan_.most_bytes_sent(),
      .bytes_sent_per_step = sent};
  const auto write = [&]() -> absl::Status {
    BITSHARD_RETURN_IF_ERROR(
        io::WritePeftAdapter(PathOf("adapter"),
                             {.r = config_.lora.r,
                              .alpha = static_cast<double>(config_.lora.alpha),
                              .dropout = config_.lora.dropout,
                              .rslora = config_.lora.use_rslora,
                              .target_modules = decoder_options_.lora.target_modules,
                              .base_model = config_.model.base_model},
                             replica_->layout(), replica_->parameters()));
    nlohmann::ordered_json pairs = nlohmann::ordered_json::array();
    for (size_t i = 0; i < answers.size(); ++i) {
      pairs.push_back({{"prompt", answers_->prompts()[i]},
                       {"before", baseline_.answers[i]},
                       {"after", answers[i]}});
      Say(absl::StrCat("\nQ: ", answers_->prompts()[i], "\nbefore: ", baseline_.answers[i],
                       "\nafter:  ", answers[i]));
    }
    BITSHARD_RETURN_IF_ERROR(
        core::WriteFileAtomically(PathOf("answers.json"), io::JsonText(pairs)));
    metrics_->Sync();
    if (held_out_after.has_value())
      metrics_->WriteScalar("eval/loss", result_.step, *held_out_after);
    BITSHARD_RETURN_IF_ERROR(WriteState());
    return WriteSummary(PathOf("summary.json"), summary);
  };
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(write()));
  Say(absl::StrFormat("\n%d steps, %.0f tokens/s; peak %s, planned %s; adapter in %s/adapter",
                      result_.step, rate, Megabytes(peak),
                      Megabytes(plan_.largest().peak_rss_bytes), config_.output.directory));
  for (const absl::Status& status : {metrics_->status(), session_->console->status()}) {
    if (!status.ok()) session_->console->Warn(std::string(status.message()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunTrain(const CommandLine& line, comm::Communicator* comm, const Devices& devices) {
  BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<Session> session, OpenSession(line, comm, devices));
  BITSHARD_RETURN_IF_ERROR(
      comm->AgreeOnStatus(ValidateWorldSize(session->config, comm->world_size())));
  return TrainRun(std::move(session)).Run();
}

}  // namespace bitshard::trainer
