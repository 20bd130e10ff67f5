// Metrics of a run: metrics.jsonl (one line a step), TensorBoard events, CSV, and the JSON files
// written at the end. Rank 0 has the one writer. Writing never stops training: the first failure is
// kept and told at the end.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto metrics, MetricsWriter::Open({.directory = dir, .resumed_step =
//   40, .csv = true})); metrics->Write({.step = 41, .loss = 2.5, ...}); metrics->Sync(); // before
//   a checkpoint is published if (!metrics->status().ok()) ...              // at the end
#ifndef BITSHARD_TRAINER_METRICS_H_
#define BITSHARD_TRAINER_METRICS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bitshard::trainer {

/// One step. Times in seconds.
struct StepMetrics {
  int64_t step = 0;  ///< From 1.
  double epoch = 0;
  double loss = 0;  ///< Nats per trained token of the step, over all ranks.
  double learning_rate = 0;
  double grad_norm = 0;        ///< Before clipping.
  int64_t tokens = 0;          ///< Of the step, over all ranks.
  int64_t trained_tokens = 0;  ///< Those that count in the loss.
  int64_t total_tokens = 0;    ///< Since the run began, over resumes.
  bool skipped = false;        ///< Not applied because of non-finite values.
  double tokens_per_second = 0;
  double step_seconds = 0;
  /// Phases of the step in order, {"forward", 0.31}.
  std::vector<std::pair<std::string, double>> phase_seconds;
  int64_t bytes_sent = 0;  ///< By this rank, in the step.
  int64_t peak_rss_bytes = 0;
  /// Held-out loss after this step, where it was evaluated.
  std::optional<double> eval_loss;
};

struct MetricsOptions {
  std::string directory;     ///< output_dir; must exist.
  int64_t resumed_step = 0;  ///< Lines and rows after this step are cut; 0: a new run, all are.
  bool jsonl = true;
  bool tensorboard = true;
  bool csv = false;
};

/// A line of metrics.jsonl, without its newline. Doubles are printed so that they read back as the
/// same bits; values that are not finite, which JSON can't hold, as null.
std::string MetricsLine(const StepMetrics& metrics);

/// Threads: one thread calls it.
class MetricsWriter {
 public:
  /// Cuts what stands after `resumed_step`: after a resume each step stands once. A last line that
  /// a kill cut in half goes too. TensorBoard's earlier files stay; a session start tells it to
  /// forget their later steps. Errors: kStorage when a file can't be opened.
  static absl::StatusOr<std::unique_ptr<MetricsWriter>> Open(const MetricsOptions& options);
  virtual ~MetricsWriter() = default;

  /// Writes the step everywhere at once: what was written survives a kill of the process.
  virtual void Write(const StepMetrics& metrics) = 0;
  /// A single TensorBoard scalar that belongs to no step's line ("eval/loss" before training).
  virtual void WriteScalar(const std::string& tag, int64_t step, double value) = 0;
  /// fsync: what was written survives a power failure.
  virtual void Sync() = 0;
  /// The first failure, with the number of steps that are missing from a file because of it; OK if
  /// none.
  virtual absl::Status status() const = 0;
};

/// What summary.json says. Fields without a value are left out.
struct RunSummary {
  std::string version;
  std::string config_hash;
  int world_size = 1;
  int threads_per_rank = 1;
  std::string compute_type;
  int64_t steps = 0;
  int64_t total_tokens = 0;
  double seconds = 0;
  double tokens_per_second = 0;
  std::optional<double>
      heldout_loss_before;  ///< Nats per trained token, of the base as training sees it.
  std::optional<double> heldout_loss_after;
  std::optional<double> train_loss;  ///< Of the last step.
  int64_t trainable_parameters = 0;
  /// Of the rank that needs most, and of the one that sends most.
  int64_t planned_peak_rss_bytes = 0;
  int64_t peak_rss_bytes = 0;
  int64_t planned_bytes_sent_per_step = 0;
  int64_t bytes_sent_per_step = 0;
};

/// Writes `path` atomically. Errors: kStorage.
absl::Status WriteSummary(const std::string& path, const RunSummary& summary);

/// What the steps of a run come to.
struct StepTotals {
  int64_t tokens = 0;
  double seconds = 0;
  double last_loss = 0;
  int64_t last_bytes_sent = 0;
};

/// Of all lines of `metrics_path`. Errors: kData when they can't be read.
absl::StatusOr<StepTotals> ReadStepTotals(const std::string& metrics_path);

/// Writes trainer_state.json as transformers does (global_step, epoch, log_history), from the lines
/// of `metrics_path`, every `logging_steps`-th step. Errors: kStorage; kData when the lines can't
/// be read.
absl::Status WriteTrainerState(const std::string& path, const std::string& metrics_path,
                               int64_t logging_steps);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_METRICS_H_
