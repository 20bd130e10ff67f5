// What a model's files must agree on, whatever format they have: a sound configuration, and every
// tensor that the architecture needs with its right shape and no others.
#ifndef BITSHARD_TRAINER_IO_MODEL_CHECKS_H_
#define BITSHARD_TRAINER_IO_MODEL_CHECKS_H_

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "trainer/io/int_range.h"
#include "trainer/io/weight_source.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer::io {

/// What sizes may be: far above any model of today, and small enough that products of two fit in 63
/// bits.
inline constexpr IntRange kLayerRange = {1, 4096};
inline constexpr IntRange kHeadRange = {1, 1 << 16};
inline constexpr IntRange kSizeRange = {1, 1 << 24};
inline constexpr IntRange kTokenRange = {-1, (1 << 24) - 1};

/// "llama, mistral, qwen2, qwen3".
std::string SupportedModelTypes();
bool IsSupportedModelType(const std::string& model_type);

/// Relations between the fields: heads and key-value heads, an even head size, token ids inside the
/// vocabulary. Errors: kData with `where` (a file), the field and what was wanted.
absl::Status CheckModelConfig(const ModelConfig& config, const std::string& where);

/// Calls `visit` with the Hugging Face name and shape of each tensor that the architecture needs,
/// until it returns an error. The head's weight is left out when it is tied to the embedding.
absl::Status ForEachRequiredTensor(
    const ModelConfig& config, absl::FunctionRef<absl::Status(const WeightInfo& required)> visit);

/// Errors: kData naming file and tensor: one that is missing, has another shape, or that no part of
/// the model would use. `tensors` is sorted by name.
absl::Status CheckTensors(const ModelConfig& config, const std::vector<WeightInfo>& tensors,
                          const std::string& where);

/// "[576, 1536]".
std::string ShapeText(const std::vector<int64_t>& shape);

/// The entry of that name in a list sorted by name, or nullptr.
const WeightInfo* FindSorted(const std::vector<WeightInfo>& tensors, const std::string& name);

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_MODEL_CHECKS_H_
