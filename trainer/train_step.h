// One optimizer step: this rank's micro-batches forward and backward, gradients summed over all
// ranks, clipped, and the adapter updated.
#ifndef BITSHARD_TRAINER_TRAIN_STEP_H_
#define BITSHARD_TRAINER_TRAIN_STEP_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "trainer/config.h"
#include "trainer/replica.h"
#include "trainer/training_data.h"

namespace bitshard::trainer {

/// What a step works on; all outlive it.
struct StepParts {
  const Config* config = nullptr;
  comm::Communicator* comm = nullptr;
  TrainingData* data = nullptr;
  Replica* replica = nullptr;
};

/// Wall seconds of this rank by phase.
struct StepSeconds {
  double data = 0;
  double forward_backward = 0;
  double exposed_communication = 0;  ///< Waiting for gradients after the last backward pass.
  double optimizer = 0;              ///< Norm, update and the gathering of parameters.
  double total = 0;
};

/// The same on every rank but for `seconds` and `bytes_sent`.
struct StepResult {
  int64_t step = 0;
  double loss = 0;  ///< Nats per trained token of the global batch.
  int64_t trained_tokens = 0;
  int64_t tokens = 0;
  double gradient_norm = 0;  ///< Of the mean loss, before clipping.
  double learning_rate = 0;
  bool skipped = false;  ///< Non-finite, and the configuration says skip: nothing was changed.
  bool stop_requested = false;  ///< Some rank was asked to stop.
  StepSeconds seconds;
  int64_t bytes_sent = 0;
};

/// Runs step `step` (from 1). The same configuration gives the same parameters, losses and norms,
/// bit for bit, at any world size: gradients and losses are summed in an order given by the global
/// micro-batch index alone. Errors: kNumerics for a non-finite loss or gradient when the
/// configuration says stop, agreed; kPeer.
absl::StatusOr<StepResult> RunStep(const StepParts& parts, int64_t step, double learning_rate,
                                   bool stop_requested);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_TRAIN_STEP_H_
