// MicroBatch: what one forward and backward pass works on.
#ifndef BITSHARD_TRAINER_DATA_MICRO_BATCH_H_
#define BITSHARD_TRAINER_DATA_MICRO_BATCH_H_

#include <cstdint>
#include <vector>

namespace bitshard::trainer {

/// Samples laid one after another, without padding between them: sample s is tokens
/// [starts[s], starts[s + 1]). Attention is causal within a sample and never crosses into another;
/// positions restart at 0 in each. Which samples stand together never depends on the world size.
struct MicroBatch {
  std::vector<int32_t> tokens;  ///< [num_tokens]
  std::vector<int32_t>
      targets;  ///< [num_tokens]: the next token of the same sample, or -1 where not trained.
  std::vector<int32_t> starts;      ///< [num_samples + 1], starts[0] = 0, last = num_tokens.
  std::vector<int64_t> sample_ids;  ///< [num_samples]: global sample numbers, the key of dropout.
  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_samples() const { return static_cast<int64_t>(sample_ids.size()); }
  int64_t num_trained() const {
    int64_t n = 0;
    for (const int32_t t : targets) n += t >= 0 ? 1 : 0;
    return n;
  }
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_DATA_MICRO_BATCH_H_
