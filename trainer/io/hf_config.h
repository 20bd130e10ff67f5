// config.json and generation_config.json of Hugging Face folders, read into a ModelConfig and
// written from one.
#ifndef BITSHARD_TRAINER_IO_HF_CONFIG_H_
#define BITSHARD_TRAINER_IO_HF_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"
#include "core/dtype.h"
#include "trainer/io/json.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer::io {

/// Reads folder/config.json, as transformers 4 and 5 write it (`rope_theta` + `rope_scaling` or
/// `rope_parameters`; `eos_token_id` a number or a list; head_dim missing), and adds the end tokens
/// of folder/generation_config.json. What would make another model than the family's (another
/// activation, biases beyond q, k and v, partial rotary embeddings, windows in some layers only,
/// weights already quantised) is refused. Errors: kData naming the file and the key.
absl::StatusOr<ModelConfig> ReadHfConfig(const std::string& folder);

/// The same from a parsed config.json; `where` is its path.
absl::StatusOr<ModelConfig> ParseHfConfig(const Json& json, const std::string& where);

/// config.json that transformers 4.40 and later load; `stored` is the dtype of the weights beside
/// it.
nlohmann::ordered_json HfConfigJson(const ModelConfig& config, core::DType stored);

/// generation_config.json: the token ids that generation starts, ends and pads with.
nlohmann::ordered_json HfGenerationConfigJson(const ModelConfig& config);

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_HF_CONFIG_H_
