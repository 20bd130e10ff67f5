#include "trainer/train_loop.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "optim/lr_schedule.h"
#include "trainer/held_out.h"
#include "trainer/process_memory.h"
#include "trainer/run_options.h"
#include "trainer/signals.h"
#include "trainer/stopwatch.h"

namespace bitshard::trainer {
namespace {

class TrainLoop {
 public:
  explicit TrainLoop(const LoopParts& parts)
      : parts_(parts),
        config_(*parts.step.config),
        schedule_(ScheduleOf(config_, parts.total_steps)),
        progress_(parts.console, {.total_steps = parts.total_steps,
                                  .first_step = parts.first_step,
                                  .every = config_.output.logging_steps}) {
    result_.step = parts.first_step;
    result_.total_tokens = parts.total_tokens;
    result_.total_trained_tokens = parts.total_trained_tokens;
  }

  absl::StatusOr<LoopResult> Run() {
    for (int64_t step = parts_.first_step + 1; step <= parts_.total_steps; ++step) {
      BITSHARD_ASSIGN_OR_RETURN(const StepResult done,
                                RunStep(parts_.step, step, schedule_.At(step), StopSignal() != 0));
      result_.step = step;
      result_.last_loss = done.loss;
      result_.total_tokens += done.tokens;
      result_.total_trained_tokens += done.trained_tokens;
      result_.tokens += done.tokens;
      result_.seconds += done.seconds.total;
      result_.bytes_sent_last_step = done.bytes_sent;
      bool stop = done.stop_requested;
      std::optional<double> held_out;
      if (config_.eval.steps > 0 && step % config_.eval.steps == 0 && !stop &&
          step < parts_.total_steps) {
        const absl::StatusOr<HeldOutLoss> loss =
            EvaluateHeldOut(parts_.step.comm, parts_.step.data, [this](const MicroBatch& batch) {
              return parts_.step.replica->Evaluate(batch, WhichModel::kAdapted);
            });
        stop = core::KindOf(loss.status()) == core::ErrorKind::kInterrupted;
        if (!loss.ok() && !stop) return loss.status();
        if (loss.ok()) held_out = loss->loss;
      }
      Report(done, held_out);
      const bool save_now =
          stop || step == parts_.total_steps ||
          (config_.output.save_steps > 0 && step % config_.output.save_steps == 0);
      if (save_now) BITSHARD_RETURN_IF_ERROR(Save(step));
      if (stop) {
        result_.interrupted = step < parts_.total_steps;
        break;
      }
    }
    progress_.Finish();
    BITSHARD_RETURN_IF_ERROR(last_save_);
    return result_;
  }

 private:
  void Report(const StepResult& done, std::optional<double> held_out) {
    const double tokens_per_second = static_cast<double>(done.tokens) / done.seconds.total;
    progress_.Update(
        {.step = done.step, .loss = done.loss, .tokens_per_second = tokens_per_second});
    if (done.skipped) {
      parts_.console->Warn(
          absl::StrFormat("step %d: loss %g, gradient norm %g: skipped, nothing was changed",
                          done.step, done.loss, done.gradient_norm));
    }
    if (parts_.metrics == nullptr) return;
    const auto memory = ReadProcessMemory();
    parts_.metrics->Write(
        {.step = done.step,
         .epoch = parts_.step.data->EpochAfter(done.step),
         .loss = done.loss,
         .learning_rate = done.learning_rate,
         .grad_norm = done.gradient_norm,
         .tokens = done.tokens,
         .trained_tokens = done.trained_tokens,
         .total_tokens = result_.total_tokens,
         .skipped = done.skipped,
         .tokens_per_second = tokens_per_second,
         .step_seconds = done.seconds.total,
         .phase_seconds = {{"data", done.seconds.data},
                           {"forward_backward", done.seconds.forward_backward},
                           {"exposed_communication", done.seconds.exposed_communication},
                           {"optimizer", done.seconds.optimizer}},
         .bytes_sent = done.bytes_sent,
         .peak_rss_bytes = memory.ok() ? memory->peak_rss_bytes : 0,
         .eval_loss = held_out});
  }

  // A save that fails for want of storage leaves the older checkpoints and the training as they
  // were.
  absl::Status Save(int64_t step) {
    if (parts_.metrics != nullptr) parts_.metrics->Sync();
    last_save_ = parts_.save(result_);
    if (last_save_.ok()) return last_save_;
    if (core::KindOf(last_save_) != core::ErrorKind::kStorage) return last_save_;
    parts_.console->Warn(absl::StrCat("step ", step,
                                      ": the checkpoint could not be saved, training goes on: ",
                                      std::string(last_save_.message())));
    return absl::OkStatus();
  }

  const LoopParts& parts_;
  const Config& config_;
  const optim::LrSchedule schedule_;
  Progress progress_;
  LoopResult result_;
  absl::Status last_save_;
};

}  // namespace

absl::StatusOr<LoopResult> RunTrainLoop(const LoopParts& parts) { return TrainLoop(parts).Run(); }

}  // namespace bitshard::trainer
