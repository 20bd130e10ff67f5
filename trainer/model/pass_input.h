// What a pass on the CPU and one on a device begin with: the check of the batch, its rows that have
// a target, and the angles of the rotary embedding.
#ifndef BITSHARD_TRAINER_MODEL_PASS_INPUT_H_
#define BITSHARD_TRAINER_MODEL_PASS_INPUT_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "trainer/data/micro_batch.h"
#include "trainer/model/decoder.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer {

/// Errors: kConfig for more tokens than the decoder was made for; kData for a token beyond the
/// vocabulary.
absl::Status CheckBatch(const MicroBatch& batch, const ModelConfig& config,
                        const DecoderOptions& options);

/// The rows of a batch that are trained on, and what should follow them.
struct TrainedRows {
  std::vector<int32_t> rows;
  std::vector<int32_t> targets;
};
TrainedRows TrainedRowsOf(const MicroBatch& batch);

/// cosine and sine [positions, head_dim / 2]: angles in float32 as transformers computes them.
/// "llama3" scaling: Llama 3.1's frequency bands.
void FillRope(const ModelConfig& config, int64_t positions, float* cosine, float* sine);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_PASS_INPUT_H_
