#include "trainer/held_out.h"

#include <algorithm>
#include <vector>

#include "comm/gradient_reducer.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/micro_batch_sums.h"
#include "trainer/signals.h"
#include "trainer/stopwatch.h"

namespace bitshard::trainer {
namespace {

using Evaluate = absl::FunctionRef<absl::StatusOr<LossSum>(const MicroBatch& batch)>;

absl::StatusOr<std::vector<LossSum>> EvaluateMine(TrainingData* data, comm::MicroBatchRange range,
                                                  Evaluate evaluate) {
  std::vector<LossSum> sums;
  for (int64_t index = range.begin; index < range.end; ++index) {
    if (StopSignal() != 0) return core::InterruptedError("asked to stop while evaluating");
    BITSHARD_ASSIGN_OR_RETURN(const MicroBatch batch, data->HeldOutMicroBatch(index));
    BITSHARD_ASSIGN_OR_RETURN(const LossSum sum, evaluate(batch));
    sums.push_back(sum);
  }
  return sums;
}

}  // namespace

absl::StatusOr<HeldOutLoss> EvaluateHeldOut(comm::Communicator* comm, TrainingData* data,
                                            Evaluate evaluate) {
  Stopwatch watch;
  const int64_t micro_batches = data->num_held_out_micro_batches();
  const comm::MicroBatchRange range =
      comm::MicroBatchesOf(comm->rank(), comm->world_size(), micro_batches);
  const auto mine = EvaluateMine(data, range, evaluate);
  BITSHARD_RETURN_IF_ERROR(comm->AgreeOnStatus(mine.status()));
  BITSHARD_ASSIGN_OR_RETURN(const GatheredSums all,
                            GatherMicroBatchSums(comm, *mine, micro_batches, false));
  HeldOutLoss result{.trained_tokens = all.total.trained_tokens};
  result.loss = all.total.nats / static_cast<double>(std::max<int64_t>(result.trained_tokens, 1));
  result.seconds = watch.Lap();
  return result;
}

}  // namespace bitshard::trainer
