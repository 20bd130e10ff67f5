// The options of each component, derived from the configuration. One place for every such
// derivation, so that a plan and the run that it describes can't differ.
#ifndef BITSHARD_TRAINER_RUN_OPTIONS_H_
#define BITSHARD_TRAINER_RUN_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/lr_schedule.h"
#include "optim/sharded_optimizer.h"
#include "trainer/config.h"
#include "trainer/model/decoder.h"

namespace bitshard::trainer {

/// bf16 where the processor has bfloat16 products (AVX512-BF16), else fp32; a given type stays.
ComputeType ResolveComputeType(ComputeType type);

/// `total_steps`: what warmup_ratio is a share of, and where the schedule ends.
optim::LrSchedule ScheduleOf(const Config& config, int64_t total_steps);

/// `max_tokens`: of the longest micro-batch; `max_sample_tokens`: of the longest sample in it.
DecoderOptions DecoderOptionsOf(const Config& config, int64_t max_tokens,
                                int64_t max_sample_tokens);

/// Of the decoder on the CPU that answers prompts where training is on a GPU: in the type of
/// training, but in fp32 where the processor does not multiply bfloat16.
DecoderOptions AnswerDecoderOptionsOf(const DecoderOptions& training);

/// What the optimizer is told wherever it runs. Errors: those of optim::ParseOptimizerName.
absl::StatusOr<optim::OptimizerSettings> OptimizerSettingsOf(const Config& config);

/// Of training on the CPU. Errors: those of OptimizerSettingsOf.
absl::StatusOr<optim::ShardedOptimizerOptions> OptimizerOptionsOf(const Config& config);

/// "12 tensors (9216 elements) with 8-bit state, 2 (300 elements) with 32-bit state, learning rate
/// 0.001": what is held how, and what else overrides say.
std::string DescribeShares(const Config& config, const std::vector<optim::StateShare>& shares);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_RUN_OPTIONS_H_
