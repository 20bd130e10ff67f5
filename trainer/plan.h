// What a run needs in memory and sends, per rank, by purpose, known before anything is allocated:
// `bitshard plan` prints it, `bitshard train` compares it with what it measured.
//
//   BITSHARD_ASSIGN_OR_RETURN(const Plan plan, MakePlan({.config = &config, .model =
//   &source->config(), ...})); std::fputs(DescribePlan(plan).c_str(), stdout);
#ifndef BITSHARD_TRAINER_PLAN_H_
#define BITSHARD_TRAINER_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/config.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer {

class Devices;

struct PlanInput {
  const Config* config = nullptr;  ///< Its device is resolved.
  const ModelConfig* model = nullptr;
  const Devices* devices = nullptr;  ///< Asked where the device is a GPU.
  int world_size = 1;
  /// Resident bytes of a process that has used its libraries and loaded nothing: measured
  /// (MeasureRuntimeBytes).
  int64_t runtime_bytes = 0;
  /// Tokens in the caches, training and held out, which are mapped and count as resident once read.
  int64_t cache_bytes = 0;
  /// Tokens of the longest micro-batch; at most micro_batch_size * sequence_len.
  int64_t max_tokens = 0;
  int64_t max_sample_tokens = 0;
  /// Prompts that are answered before and after training, and tokens of the longest, its template
  /// included.
  int64_t num_prompts = 0;
  int64_t prompt_tokens = 0;
  /// Measured, of the Python process that made the caches; 0: there was none.
  int64_t text_process_bytes = 0;
};

/// Bytes for one purpose.
struct PlanLine {
  std::string purpose;
  int64_t bytes = 0;
};

/// One rank's needs.
struct RankPlan {
  int rank = 0;
  std::vector<PlanLine> memory;
  int64_t peak_rss_bytes = 0;           ///< Sum of `memory`.
  std::vector<PlanLine> device_memory;  ///< Of its GPU; empty on the CPU.
  int64_t gradient_bytes_sent = 0;      ///< To other ranks, a step; so are the next two.
  int64_t parameter_bytes_sent = 0;     ///< And the partial sums of the gradient's norm.
  int64_t loss_bytes_sent = 0;
  int64_t bytes_sent() const {
    return gradient_bytes_sent + parameter_bytes_sent + loss_bytes_sent;
  }
};

struct Plan {
  std::vector<RankPlan> ranks;
  int64_t text_process_bytes = 0;  ///< A process of its own, in no rank's sum.
  int64_t trainable_parameters = 0;
  int64_t micro_batches_per_step = 0;
  int64_t most_partials_per_rank = 1;  ///< Tree nodes that the busiest rank sends; 1 is the least.
  int64_t nearest_batch_without_extra_partials =
      0;  ///< A global_batch_size for which it would be 1.
  /// The rank that needs most.
  const RankPlan& largest() const;
  /// A step, by the rank that sends most.
  int64_t most_bytes_sent() const;
};

/// Errors: those of optim::ParseOptimizerName, Decoder::AdapterLayout, ValidateWorldSize and
/// Devices::MakePlan.
absl::StatusOr<Plan> MakePlan(const PlanInput& input);

/// A table for people.
std::string DescribePlan(const Plan& plan);

/// "12.3 MB": decimal megabytes, as the tables print them.
std::string Megabytes(int64_t bytes);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_PLAN_H_
