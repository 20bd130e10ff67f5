// The loop over steps: learning rate, step, metrics, evaluation, checkpoints, stopping.
#ifndef BITSHARD_TRAINER_TRAIN_LOOP_H_
#define BITSHARD_TRAINER_TRAIN_LOOP_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/metrics.h"
#include "trainer/progress.h"
#include "trainer/train_step.h"

namespace bitshard::trainer {

struct LoopResult {
  int64_t step = 0;          ///< The last step done.
  int64_t total_tokens = 0;  ///< Since the run began, over resumes; so is the next.
  int64_t total_trained_tokens = 0;
  double seconds = 0;  ///< In steps of this process, evaluation and saving left out.
  int64_t tokens = 0;  ///< In steps of this process.
  double last_loss = 0;
  int64_t bytes_sent_last_step = 0;
  bool interrupted = false;
};

struct LoopParts {
  StepParts step;
  Console* console = nullptr;
  MetricsWriter* metrics = nullptr;  ///< Rank 0's; nullptr elsewhere.
  /// Saves a checkpoint of the state after done.step. A collective.
  std::function<absl::Status(const LoopResult& done)> save;
  int64_t first_step = 0;  ///< Steps done before: 0, or the resumed checkpoint's.
  int64_t total_steps = 0;
  int64_t total_tokens = 0;  ///< Tokens of the steps done before; so is the next.
  int64_t total_trained_tokens = 0;
};

/// Runs steps first_step + 1 .. total_steps. A failed save is told and training goes on; it is
/// returned at the end when no later save succeeded. A request to stop ends the loop after a save.
/// Errors: those of RunStep and of evaluation; kStorage when the last save failed.
absl::StatusOr<LoopResult> RunTrainLoop(const LoopParts& parts);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_TRAIN_LOOP_H_
