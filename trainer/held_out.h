// The held-out loss: every held-out sample once, in nats per trained token.
#ifndef BITSHARD_TRAINER_HELD_OUT_H_
#define BITSHARD_TRAINER_HELD_OUT_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "trainer/model/decoder.h"
#include "trainer/training_data.h"

namespace bitshard::trainer {

struct HeldOutLoss {
  double loss = 0;  ///< Nats per trained token.
  int64_t trained_tokens = 0;
  double seconds = 0;
};

/// Ranks share the micro-batches; the result is the same on all of them and has the same bits at
/// any world size. `evaluate`: the loss of one of them. A collective. Errors: kInterrupted when a
/// rank was asked to stop; those of `evaluate`; agreed.
absl::StatusOr<HeldOutLoss> EvaluateHeldOut(
    comm::Communicator* comm, TrainingData* data,
    absl::FunctionRef<absl::StatusOr<LossSum>(const MicroBatch& batch)> evaluate);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_HELD_OUT_H_
