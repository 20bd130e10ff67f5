#include "trainer/io/hf_config.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/io/model_checks.h"

namespace bitshard::trainer::io {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;
constexpr IntRange kPositionRange = {1, int64_t{1} << 40};

absl::Status RefuseWhatIsNotModelled(const JsonObject& json, const std::string& model_type) {
  if (json.Has("quantization_config")) {
    return json.Error(
        "quantization_config",
        "the weights are already quantised; give the folder of the model in full precision");
  }
  BITSHARD_ASSIGN_OR_RETURN(const std::string activation, json.GetStringOr("hidden_act", "silu"));
  if (activation != "silu") {
    return json.Error("hidden_act",
                      absl::StrCat("is \"", core::Escaped(activation), "\", want silu"));
  }
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    // Qwen2 has biases on q, k and v whatever its configuration says.
    if (model_type == "qwen2") continue;
    BITSHARD_ASSIGN_OR_RETURN(const bool bias, json.GetBoolOr(key, false));
    if (bias) return json.Error(key, absl::StrCat("true is not supported for ", model_type));
  }
  BITSHARD_ASSIGN_OR_RETURN(const double rotary, json.GetNumberOr("partial_rotary_factor", 1.0));
  if (rotary != 1.0) {
    return json.Error("partial_rotary_factor", absl::StrCat("is ", rotary, ", want 1"));
  }
  return absl::OkStatus();
}

absl::Status ReadSizes(const JsonObject& json, ModelConfig* config) {
  BITSHARD_ASSIGN_OR_RETURN(config->vocab_size, json.GetInt("vocab_size", kSizeRange));
  BITSHARD_ASSIGN_OR_RETURN(config->hidden_size, json.GetInt("hidden_size", kSizeRange));
  BITSHARD_ASSIGN_OR_RETURN(config->intermediate_size,
                            json.GetInt("intermediate_size", kSizeRange));
  BITSHARD_ASSIGN_OR_RETURN(config->num_hidden_layers,
                            json.GetInt("num_hidden_layers", kLayerRange));
  BITSHARD_ASSIGN_OR_RETURN(config->num_attention_heads,
                            json.GetInt("num_attention_heads", kHeadRange));
  BITSHARD_ASSIGN_OR_RETURN(
      config->num_key_value_heads,
      json.GetIntOr("num_key_value_heads", config->num_attention_heads, kHeadRange));
  BITSHARD_ASSIGN_OR_RETURN(config->max_position_embeddings,
                            json.GetInt("max_position_embeddings", kPositionRange));
  BITSHARD_ASSIGN_OR_RETURN(config->rms_norm_eps, json.GetNumberOr("rms_norm_eps", 1e-6));
  BITSHARD_ASSIGN_OR_RETURN(config->tie_word_embeddings,
                            json.GetBoolOr("tie_word_embeddings", false));
  if (json.Has("head_dim")) {
    BITSHARD_ASSIGN_OR_RETURN(config->head_dim, json.GetInt("head_dim", kHeadRange));
  } else if (config->model_type == "qwen3") {
    config->head_dim = 128;  // Qwen3Config's default; the others divide.
  } else if (config->hidden_size % config->num_attention_heads == 0) {
    config->head_dim = config->hidden_size / config->num_attention_heads;
  } else {
    return json.Error("head_dim", absl::StrCat("missing, and hidden_size ", config->hidden_size,
                                               " is no multiple of num_attention_heads ",
                                               config->num_attention_heads));
  }
  return absl::OkStatus();
}

// `json` holds rope_type (or type) and the parameters of that type.
absl::Status ReadRopeScaling(const JsonObject& json, ModelConfig* config) {
  RopeScaling& rope = config->rope_scaling;
  BITSHARD_ASSIGN_OR_RETURN(const std::string type, json.GetStringOr("type", "default"));
  BITSHARD_ASSIGN_OR_RETURN(rope.kind, json.GetStringOr("rope_type", type));
  BITSHARD_ASSIGN_OR_RETURN(const double rotary, json.GetNumberOr("partial_rotary_factor", 1.0));
  if (rotary != 1.0) {
    return json.Error("partial_rotary_factor", absl::StrCat("is ", rotary, ", want 1"));
  }
  for (const auto& [key, value] : json.json().items()) {
    // transformers 5 may hold one set of parameters for each kind of layer.
    if (value.is_object()) {
      return json.Error(key, "parameters for some layers only are not supported");
    }
  }
  if (rope.kind == "default") return absl::OkStatus();
  if (rope.kind != "linear" && rope.kind != "llama3") {
    return json.Error("rope_type",
                      absl::StrCat("\"", core::Escaped(rope.kind),
                                   "\" is not supported; want default, linear or llama3"));
  }
  BITSHARD_ASSIGN_OR_RETURN(rope.factor, json.GetNumber("factor"));
  if (rope.kind == "linear") return absl::OkStatus();
  BITSHARD_ASSIGN_OR_RETURN(rope.low_freq_factor, json.GetNumber("low_freq_factor"));
  BITSHARD_ASSIGN_OR_RETURN(rope.high_freq_factor, json.GetNumber("high_freq_factor"));
  BITSHARD_ASSIGN_OR_RETURN(rope.original_max_position_embeddings,
                            json.GetIntOr("original_max_position_embeddings",
                                          config->max_position_embeddings, kPositionRange));
  return absl::OkStatus();
}

absl::Status ReadRope(const JsonObject& json, ModelConfig* config) {
  BITSHARD_ASSIGN_OR_RETURN(config->rope_theta, json.GetNumberOr("rope_theta", 10000.0));
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!json.Has(key)) continue;
    BITSHARD_ASSIGN_OR_RETURN(const JsonObject rope, json.GetObject(key));
    BITSHARD_RETURN_IF_ERROR(ReadRopeScaling(rope, config));
    BITSHARD_ASSIGN_OR_RETURN(config->rope_theta,
                              rope.GetNumberOr("rope_theta", config->rope_theta));
  }
  return absl::OkStatus();
}

// Mistral's window holds for all layers. Qwen2 and Qwen3 use it only when asked to, from layer
// max_window_layers on; newer configurations list the layers.
absl::Status ReadWindow(const JsonObject& json, ModelConfig* config) {
  if (config->model_type == "llama") return absl::OkStatus();
  BITSHARD_ASSIGN_OR_RETURN(const int64_t window,
                            json.GetIntOr("sliding_window", 0, {0, kPositionRange.most}));
  const bool is_mistral = config->model_type == "mistral";
  BITSHARD_ASSIGN_OR_RETURN(const bool use, json.GetBoolOr("use_sliding_window", is_mistral));
  if (!use || window == 0) return absl::OkStatus();
  const int64_t layers = config->num_hidden_layers;
  int64_t sliding = layers;
  if (json.Has("layer_types")) {
    BITSHARD_ASSIGN_OR_RETURN(const std::vector<std::string> types, json.GetStrings("layer_types"));
    if (static_cast<int64_t>(types.size()) != layers) {
      return json.Error("layer_types",
                        absl::StrCat("has ", types.size(), " entries, want one a layer: ", layers));
    }
    sliding = std::count(types.begin(), types.end(), "sliding_attention");
  } else if (!is_mistral) {
    BITSHARD_ASSIGN_OR_RETURN(const int64_t first,
                              json.GetIntOr("max_window_layers", layers, {0, 1 << 20}));
    sliding = std::max<int64_t>(0, layers - first);
  }
  if (sliding != 0 && sliding != layers) {
    return json.Error("sliding_window", absl::StrCat("holds for ", sliding, " of ", layers,
                                                     " layers; only all or none are supported"));
  }
  config->sliding_window = sliding == 0 ? 0 : window;
  return absl::OkStatus();
}

// Adds the ids of `key` (a number or a list) that are not there yet.
absl::Status AddEndTokens(const JsonObject& json, const std::string& key,
                          std::vector<int64_t>* ids) {
  if (!json.Has(key)) return absl::OkStatus();
  std::vector<int64_t> found;
  if (json.json()[key].is_array()) {
    BITSHARD_ASSIGN_OR_RETURN(found, json.GetInts(key, {0, kTokenRange.most}));
  } else {
    BITSHARD_ASSIGN_OR_RETURN(const int64_t id, json.GetInt(key, kTokenRange));
    if (id >= 0) found.push_back(id);
  }
  for (const int64_t id : found) {
    if (std::find(ids->begin(), ids->end(), id) == ids->end()) ids->push_back(id);
  }
  return absl::OkStatus();
}

nlohmann::ordered_json TokenId(int64_t id) {
  return id < 0 ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(id);
}

nlohmann::ordered_json EndTokens(const ModelConfig& config) {
  if (config.eos_token_ids.empty()) return nullptr;
  if (config.eos_token_ids.size() == 1) return config.eos_token_ids[0];
  return config.eos_token_ids;
}

nlohmann::ordered_json RopeScalingJson(const RopeScaling& rope) {
  if (rope.kind == "default") return nullptr;
  nlohmann::ordered_json json = {{"rope_type", rope.kind}, {"factor", rope.factor}};
  if (rope.kind == "llama3") {
    json["low_freq_factor"] = rope.low_freq_factor;
    json["high_freq_factor"] = rope.high_freq_factor;
    json["original_max_position_embeddings"] = rope.original_max_position_embeddings;
  }
  return json;
}

const char* ArchitectureName(const std::string& model_type) {
  if (model_type == "mistral") return "MistralForCausalLM";
  if (model_type == "qwen2") return "Qwen2ForCausalLM";
  if (model_type == "qwen3") return "Qwen3ForCausalLM";
  return "LlamaForCausalLM";
}

}  // namespace

absl::StatusOr<ModelConfig> ReadHfConfig(const std::string& folder) {
  const std::string path = folder + "/config.json";
  BITSHARD_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path, {.max_bytes = kMaxConfigBytes}));
  BITSHARD_ASSIGN_OR_RETURN(ModelConfig config, ParseHfConfig(json, path));
  const std::string generation_path = folder + "/generation_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(generation_path, ignored)) {
    BITSHARD_ASSIGN_OR_RETURN(const Json generation,
                              ReadJsonFile(generation_path, {.max_bytes = kMaxConfigBytes}));
    BITSHARD_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(generation, generation_path));
    BITSHARD_RETURN_IF_ERROR(AddEndTokens(object, "eos_token_id", &config.eos_token_ids));
  }
  BITSHARD_RETURN_IF_ERROR(CheckModelConfig(config, path));
  return config;
}

absl::StatusOr<ModelConfig> ParseHfConfig(const Json& json, const std::string& where) {
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, where));
  ModelConfig config;
  BITSHARD_ASSIGN_OR_RETURN(config.model_type, object.GetString("model_type"));
  if (!IsSupportedModelType(config.model_type)) {
    return object.Error("model_type",
                        absl::StrCat("\"", core::Escaped(config.model_type),
                                     "\" is not supported; what works: ", SupportedModelTypes()));
  }
  BITSHARD_RETURN_IF_ERROR(RefuseWhatIsNotModelled(object, config.model_type));
  config.qkv_bias = config.model_type == "qwen2";
  config.qk_norm = config.model_type == "qwen3";
  BITSHARD_RETURN_IF_ERROR(ReadSizes(object, &config));
  BITSHARD_RETURN_IF_ERROR(ReadRope(object, &config));
  BITSHARD_RETURN_IF_ERROR(ReadWindow(object, &config));
  BITSHARD_ASSIGN_OR_RETURN(config.bos_token_id, object.GetIntOr("bos_token_id", -1, kTokenRange));
  BITSHARD_ASSIGN_OR_RETURN(config.pad_token_id, object.GetIntOr("pad_token_id", -1, kTokenRange));
  BITSHARD_RETURN_IF_ERROR(AddEndTokens(object, "eos_token_id", &config.eos_token_ids));
  BITSHARD_RETURN_IF_ERROR(CheckModelConfig(config, where));
  return config;
}

nlohmann::ordered_json HfConfigJson(const ModelConfig& config, core::DType stored) {
  nlohmann::ordered_json json = {{"architectures", {ArchitectureName(config.model_type)}},
                                 {"model_type", config.model_type},
                                 {"hidden_act", "silu"},
                                 {"vocab_size", config.vocab_size},
                                 {"hidden_size", config.hidden_size},
                                 {"intermediate_size", config.intermediate_size},
                                 {"num_hidden_layers", config.num_hidden_layers},
                                 {"num_attention_heads", config.num_attention_heads},
                                 {"num_key_value_heads", config.num_key_value_heads},
                                 {"head_dim", config.head_dim},
                                 {"max_position_embeddings", config.max_position_embeddings},
                                 {"rms_norm_eps", config.rms_norm_eps},
                                 {"rope_theta", config.rope_theta},
                                 {"rope_scaling", RopeScalingJson(config.rope_scaling)},
                                 {"tie_word_embeddings", config.tie_word_embeddings},
                                 {"bos_token_id", TokenId(config.bos_token_id)},
                                 {"eos_token_id", EndTokens(config)},
                                 {"pad_token_id", TokenId(config.pad_token_id)},
                                 {"torch_dtype", core::Name(stored)},
                                 {"use_cache", true}};
  if (config.model_type == "llama" || config.model_type == "qwen3") json["attention_bias"] = false;
  if (config.model_type == "llama") json["mlp_bias"] = false;
  const bool windowed = config.sliding_window > 0;
  if (config.model_type != "llama") {
    json["sliding_window"] = windowed ? nlohmann::ordered_json(config.sliding_window) : nullptr;
  }
  if (config.model_type == "qwen2" || config.model_type == "qwen3") {
    json["use_sliding_window"] = windowed;
    json["max_window_layers"] = windowed ? 0 : config.num_hidden_layers;
  }
  return json;
}

nlohmann::ordered_json HfGenerationConfigJson(const ModelConfig& config) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (!config.eos_token_ids.empty()) json["eos_token_id"] = EndTokens(config);
  if (config.pad_token_id >= 0) json["pad_token_id"] = config.pad_token_id;
  return json;
}

}  // namespace bitshard::trainer::io
