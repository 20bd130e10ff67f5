#include "trainer/train_step.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/gradient_reducer.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/micro_batch_sums.h"
#include "trainer/stopwatch.h"

namespace bitshard::trainer {
namespace {

// Forward and backward over this rank's micro-batches; sums[i] belongs to micro-batch range.begin +
// i.
absl::StatusOr<std::vector<LossSum>> RunMicroBatches(const StepParts& parts, int64_t step,
                                                     comm::MicroBatchRange range,
                                                     StepSeconds* seconds) {
  std::vector<LossSum> sums;
  for (int64_t index = range.begin; index < range.end; ++index) {
    Stopwatch watch;
    BITSHARD_ASSIGN_OR_RETURN(const MicroBatch batch, parts.data->TrainMicroBatch(step, index));
    seconds->data += watch.Lap();
    BITSHARD_ASSIGN_OR_RETURN(const LossSum sum, parts.replica->RunMicroBatch(batch, step));
    sums.push_back(sum);
    seconds->forward_backward += watch.Lap();
  }
  return sums;
}

absl::Status NonFiniteError(const StepResult& result, const std::vector<LossSum>& sums) {
  std::string where;
  for (size_t i = 0; i < sums.size() && where.empty(); ++i) {
    if (!std::isfinite(sums[i].nats))
      where = absl::StrCat(" (micro-batch ", i, " has loss ", sums[i].nats, ")");
  }
  return core::NumericsError(
      absl::StrFormat("step %d: loss %g, gradient norm %g%s: not finite. The parameters are those "
                      "of step %d. Lower learning_rate, "
                      "use compute_type: fp32, or set nonfinite: skip",
                      result.step, result.loss, result.gradient_norm, where, result.step - 1));
}

}  // namespace

absl::StatusOr<StepResult> RunStep(const StepParts& parts, int64_t step, double learning_rate,
                                   bool stop_requested) {
  const Config& config = *parts.config;
  StepResult result{.step = step, .learning_rate = learning_rate};
  const int64_t sent_before = parts.replica->bytes_sent();
  const int64_t micro_batches = config.batch.micro_batches_per_step();
  const comm::MicroBatchRange range =
      comm::MicroBatchesOf(parts.comm->rank(), parts.comm->world_size(), micro_batches);
  Stopwatch total;

  parts.replica->BeginStep();
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<LossSum> mine,
                            RunMicroBatches(parts, step, range, &result.seconds));
  BITSHARD_RETURN_IF_ERROR(parts.replica->FinishGradients());
  result.seconds.exposed_communication = parts.replica->exposed_seconds();

  Stopwatch watch;
  BITSHARD_ASSIGN_OR_RETURN(const GatheredSums all,
                            GatherMicroBatchSums(parts.comm, mine, micro_batches, stop_requested));
  result.stop_requested = all.any_flag;
  result.trained_tokens = all.total.trained_tokens;
  result.tokens = all.total.tokens;
  const double per_token = 1.0 / static_cast<double>(std::max<int64_t>(result.trained_tokens, 1));
  result.loss = all.total.nats * per_token;
  BITSHARD_ASSIGN_OR_RETURN(result.gradient_norm, parts.replica->GradientNorm(per_token));

  if (!std::isfinite(result.loss) || !std::isfinite(result.gradient_norm)) {
    // Every rank sees the same sums; agreed, so that one rank speaks for all.
    if (config.compute.nonfinite == NonFinite::kStop)
      return parts.comm->AgreeOnStatus(NonFiniteError(result, all.sums));
    result.skipped = true;
  } else {
    double scale = per_token;
    if (config.optimizer.max_grad_norm > 0) {
      // torch.nn.utils.clip_grad_norm_'s coefficient.
      scale *= std::min(1.0, config.optimizer.max_grad_norm / (result.gradient_norm + 1e-6));
    }
    BITSHARD_RETURN_IF_ERROR(
        parts.replica->Update({.gradient_scale = scale, .learning_rate = learning_rate}));
  }
  result.seconds.optimizer = watch.Lap();
  result.seconds.total = total.Lap();
  result.bytes_sent = parts.replica->bytes_sent() - sent_before;
  return result;
}

}  // namespace bitshard::trainer
