#include "trainer/io/model_checks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::trainer::io {
namespace {

constexpr std::array kModelTypes = {"llama", "mistral", "qwen2", "qwen3"};

absl::Status Fault(const std::string& where, const std::string& field, const std::string& problem) {
  return core::DataError(absl::StrCat(core::Escaped(where, 4096), ": ", field, ": ", problem));
}

absl::Status CheckRope(const ModelConfig& config, const std::string& where) {
  const RopeScaling& rope = config.rope_scaling;
  if (!(config.rope_theta > 0) || !std::isfinite(config.rope_theta)) {
    return Fault(where, "rope_theta", absl::StrCat("is ", config.rope_theta, ", want more than 0"));
  }
  if (rope.kind == "default") return absl::OkStatus();
  if (rope.kind != "linear" && rope.kind != "llama3") {
    return Fault(where, "rope_scaling",
                 absl::StrCat("kind \"", core::Escaped(rope.kind),
                              "\" is not supported; want default, linear or "
                              "llama3"));
  }
  if (!(rope.factor >= 1) || !std::isfinite(rope.factor)) {
    return Fault(where, "rope_scaling: factor",
                 absl::StrCat("is ", rope.factor, ", want 1 or more"));
  }
  if (rope.kind == "llama3" &&
      !(rope.low_freq_factor > 0 && rope.high_freq_factor > rope.low_freq_factor &&
        std::isfinite(rope.high_freq_factor) && rope.original_max_position_embeddings > 0)) {
    return Fault(where, "rope_scaling",
                 "want 0 < low_freq_factor < high_freq_factor and "
                 "original_max_position_embeddings > 0");
  }
  return absl::OkStatus();
}

absl::Status CheckTokenId(int64_t id, const char* field, const ModelConfig& config,
                          const std::string& where) {
  if (id >= -1 && id < config.vocab_size) return absl::OkStatus();
  return Fault(where, field,
               absl::StrCat("is ", id, ", but the vocabulary has ", config.vocab_size, " tokens"));
}

}  // namespace

std::string SupportedModelTypes() { return absl::StrJoin(kModelTypes, ", "); }

bool IsSupportedModelType(const std::string& model_type) {
  return std::find(kModelTypes.begin(), kModelTypes.end(), model_type) != kModelTypes.end();
}

absl::Status CheckModelConfig(const ModelConfig& config, const std::string& where) {
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    return Fault(
        where, "num_key_value_heads",
        absl::StrCat("is ", config.num_key_value_heads, ", want a divisor of num_attention_heads (",
                     config.num_attention_heads, ")"));
  }
  if (config.head_dim % 2 != 0) {
    return Fault(where, "head_dim", absl::StrCat("is ", config.head_dim, ", want an even number"));
  }
  if (!(config.rms_norm_eps >= 0) || !(config.rms_norm_eps < 1)) {
    return Fault(where, "rms_norm_eps", absl::StrCat("is ", config.rms_norm_eps, ", want 0 to 1"));
  }
  BITSHARD_RETURN_IF_ERROR(CheckRope(config, where));
  BITSHARD_RETURN_IF_ERROR(CheckTokenId(config.bos_token_id, "bos_token_id", config, where));
  BITSHARD_RETURN_IF_ERROR(CheckTokenId(config.pad_token_id, "pad_token_id", config, where));
  for (const int64_t id : config.eos_token_ids) {
    BITSHARD_RETURN_IF_ERROR(CheckTokenId(id, "eos_token_id", config, where));
  }
  return absl::OkStatus();
}

absl::Status ForEachRequiredTensor(
    const ModelConfig& config, absl::FunctionRef<absl::Status(const WeightInfo& required)> visit) {
  const auto need = [&](const std::string& name, std::vector<int64_t> shape) {
    return visit({.name = name, .shape = std::move(shape)});
  };
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const int64_t q_size = config.num_attention_heads * config.head_dim;
  const int64_t kv_size = config.num_key_value_heads * config.head_dim;
  BITSHARD_RETURN_IF_ERROR(need("model.embed_tokens.weight", {config.vocab_size, hidden}));
  BITSHARD_RETURN_IF_ERROR(need("model.norm.weight", {hidden}));
  if (!config.tie_word_embeddings) {
    BITSHARD_RETURN_IF_ERROR(need("lm_head.weight", {config.vocab_size, hidden}));
  }
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
    BITSHARD_RETURN_IF_ERROR(need(layer + "input_layernorm.weight", {hidden}));
    BITSHARD_RETURN_IF_ERROR(need(layer + "post_attention_layernorm.weight", {hidden}));
    BITSHARD_RETURN_IF_ERROR(need(attention + "q_proj.weight", {q_size, hidden}));
    BITSHARD_RETURN_IF_ERROR(need(attention + "k_proj.weight", {kv_size, hidden}));
    BITSHARD_RETURN_IF_ERROR(need(attention + "v_proj.weight", {kv_size, hidden}));
    BITSHARD_RETURN_IF_ERROR(need(attention + "o_proj.weight", {hidden, q_size}));
    BITSHARD_RETURN_IF_ERROR(need(mlp + "gate_proj.weight", {inner, hidden}));
    BITSHARD_RETURN_IF_ERROR(need(mlp + "up_proj.weight", {inner, hidden}));
    BITSHARD_RETURN_IF_ERROR(need(mlp + "down_proj.weight", {hidden, inner}));
    if (config.qkv_bias) {
      BITSHARD_RETURN_IF_ERROR(need(attention + "q_proj.bias", {q_size}));
      BITSHARD_RETURN_IF_ERROR(need(attention + "k_proj.bias", {kv_size}));
      BITSHARD_RETURN_IF_ERROR(need(attention + "v_proj.bias", {kv_size}));
    }
    if (config.qk_norm) {
      BITSHARD_RETURN_IF_ERROR(need(attention + "q_norm.weight", {config.head_dim}));
      BITSHARD_RETURN_IF_ERROR(need(attention + "k_norm.weight", {config.head_dim}));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTensors(const ModelConfig& config, const std::vector<WeightInfo>& tensors,
                          const std::string& where) {
  const std::string file = core::Escaped(where, 4096);
  std::vector<bool> used(tensors.size(), false);
  BITSHARD_RETURN_IF_ERROR(ForEachRequiredTensor(config, [&](const WeightInfo& required) {
    const WeightInfo* found = FindSorted(tensors, required.name);
    if (found == nullptr) {
      return core::DataError(absl::StrCat(file, ": tensor ", required.name,
                                          " is missing, want it with shape ",
                                          ShapeText(required.shape)));
    }
    if (found->shape != required.shape) {
      return core::DataError(absl::StrCat(file, ": tensor ", required.name, " has shape ",
                                          ShapeText(found->shape), ", want ",
                                          ShapeText(required.shape)));
    }
    used[static_cast<size_t>(found - tensors.data())] = true;
    return absl::OkStatus();
  }));
  const auto unused = std::find(used.begin(), used.end(), false);
  if (unused == used.end()) return absl::OkStatus();
  const WeightInfo& extra = tensors[static_cast<size_t>(unused - used.begin())];
  return core::DataError(
      absl::StrCat(file, ": tensor ", core::Escaped(extra.name), " ", ShapeText(extra.shape),
                   " is no part of a ", config.model_type,
                   " model as its configuration describes it; leaving it out would change the "
                   "model"));
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

const WeightInfo* FindSorted(const std::vector<WeightInfo>& tensors, const std::string& name) {
  const auto at = std::lower_bound(
      tensors.begin(), tensors.end(), name,
      [](const WeightInfo& info, const std::string& key) { return info.name < key; });
  return at != tensors.end() && at->name == name ? &*at : nullptr;
}

}  // namespace bitshard::trainer::io
