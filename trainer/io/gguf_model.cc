#include "trainer/io/gguf_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/status_macros.h"
#include "trainer/io/gguf.h"
#include "trainer/io/model_checks.h"

namespace bitshard::trainer::io {
namespace {

struct NamePair {
  const char* gguf;
  const char* hugging_face;
};

constexpr std::array kTopNames = {
    NamePair{"token_embd.weight", "model.embed_tokens.weight"},
    NamePair{"output_norm.weight", "model.norm.weight"},
    NamePair{"output.weight", "lm_head.weight"},
};

// blk.N.<first> is model.layers.N.<second>.
constexpr std::array kLayerNames = {
    NamePair{"attn_norm.weight", "input_layernorm.weight"},
    NamePair{"ffn_norm.weight", "post_attention_layernorm.weight"},
    NamePair{"attn_q.weight", "self_attn.q_proj.weight"},
    NamePair{"attn_q.bias", "self_attn.q_proj.bias"},
    NamePair{"attn_k.weight", "self_attn.k_proj.weight"},
    NamePair{"attn_k.bias", "self_attn.k_proj.bias"},
    NamePair{"attn_v.weight", "self_attn.v_proj.weight"},
    NamePair{"attn_v.bias", "self_attn.v_proj.bias"},
    NamePair{"attn_output.weight", "self_attn.o_proj.weight"},
    NamePair{"attn_q_norm.weight", "self_attn.q_norm.weight"},
    NamePair{"attn_k_norm.weight", "self_attn.k_norm.weight"},
    NamePair{"ffn_gate.weight", "mlp.gate_proj.weight"},
    NamePair{"ffn_up.weight", "mlp.up_proj.weight"},
    NamePair{"ffn_down.weight", "mlp.down_proj.weight"},
};

constexpr char kRopeFactors[] =
    "rope_freqs.weight";  // Divisors of the rotary frequencies; no weight.

// "" when GGUF has no such name for this family.
std::string HuggingFaceName(const std::string& name) {
  for (const NamePair& pair : kTopNames) {
    if (name == pair.gguf) return pair.hugging_face;
  }
  const size_t dot = name.find('.', 4);
  int64_t layer = 0;
  if (name.rfind("blk.", 0) != 0 || dot == std::string::npos ||
      !absl::SimpleAtoi(name.substr(4, dot - 4), &layer)) {
    return "";
  }
  const std::string number = absl::StrCat(layer);
  if (name.compare(4, dot - 4, number) != 0) return "";  // "blk.007.": not how numbers are written
  for (const NamePair& pair : kLayerNames) {
    if (name.compare(dot + 1, std::string::npos, pair.gguf) == 0) {
      return absl::StrCat("model.layers.", number, ".", pair.hugging_face);
    }
  }
  return "";
}

// Rows (or bias elements) of q and k that GGUF's llama stores in interleaved rotary order; 0 heads:
// not this one.
int64_t PermutedHeads(const ModelConfig& config, const std::string& name) {
  if (config.model_type != "llama") return 0;
  if (name.find(".q_proj.") != std::string::npos) return config.num_attention_heads;
  if (name.find(".k_proj.") != std::string::npos) return config.num_key_value_heads;
  return 0;
}

class GgufModel : public WeightSource {
 public:
  static absl::StatusOr<std::unique_ptr<WeightSource>> Open(const std::string& path);

  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return file_->path(); }
  const std::vector<WeightInfo>& tensors() const override { return infos_; }
  absl::Status Read(const std::string& name, std::span<float> out) const override;
  absl::Status ReadRows(const std::string& name, int64_t row, std::span<float> out) const override;

 private:
  explicit GgufModel(std::unique_ptr<GgufFile> file) : file_(std::move(file)) {}
  absl::Status ReadConfig();
  absl::Status ReadSizes();
  absl::Status ReadHeads();
  absl::Status ReadRope();
  absl::Status ReadRopeFactors();
  absl::Status ReadTokens();
  absl::Status RefuseWhatIsNotModelled() const;
  absl::Status MapTensors();
  std::string Key(const std::string& name) const {
    return absl::StrCat(config_.model_type, ".", name);
  }

  std::unique_ptr<GgufFile> file_;
  ModelConfig config_;
  std::vector<WeightInfo> infos_;
  absl::flat_hash_map<std::string, const GgufTensor*> stored_;
};

absl::StatusOr<std::unique_ptr<WeightSource>> GgufModel::Open(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  std::unique_ptr<GgufModel> model(new GgufModel(std::move(file)));
  BITSHARD_RETURN_IF_ERROR(model->ReadConfig());
  BITSHARD_RETURN_IF_ERROR(CheckModelConfig(model->config_, path));
  BITSHARD_RETURN_IF_ERROR(model->MapTensors());
  BITSHARD_RETURN_IF_ERROR(CheckTensors(model->config_, model->infos_, path));
  return model;
}

absl::Status GgufModel::ReadConfig() {
  BITSHARD_ASSIGN_OR_RETURN(config_.model_type, file_->GetString("general.architecture"));
  if (config_.model_type != "llama" && config_.model_type != "qwen2" &&
      config_.model_type != "qwen3") {
    return file_->Error("general.architecture",
                        absl::StrCat("is \"", core::Escaped(config_.model_type),
                                     "\", want llama (Mistral too), qwen2 or qwen3"));
  }
  BITSHARD_RETURN_IF_ERROR(RefuseWhatIsNotModelled());
  BITSHARD_RETURN_IF_ERROR(ReadSizes());
  BITSHARD_RETURN_IF_ERROR(ReadHeads());
  BITSHARD_RETURN_IF_ERROR(ReadRope());
  BITSHARD_RETURN_IF_ERROR(ReadTokens());
  config_.tie_word_embeddings = file_->FindTensor("output.weight") == nullptr;
  config_.qkv_bias = config_.model_type == "qwen2";
  config_.qk_norm = config_.model_type == "qwen3";
  return absl::OkStatus();
}

absl::Status GgufModel::RefuseWhatIsNotModelled() const {
  BITSHARD_ASSIGN_OR_RETURN(const int64_t experts,
                            file_->GetIntOr(Key("expert_count"), 0, {0, 1 << 20}));
  if (experts != 0) {
    return file_->Error(Key("expert_count"), "mixture-of-experts models are not supported");
  }
  BITSHARD_ASSIGN_OR_RETURN(const std::string kind, file_->GetStringOr("general.type", "model"));
  if (kind != "model") {
    return file_->Error("general.type",
                        absl::StrCat("is \"", core::Escaped(kind), "\", want a model"));
  }
  BITSHARD_ASSIGN_OR_RETURN(const int64_t parts, file_->GetIntOr("split.count", 1, {0, 1 << 16}));
  if (parts > 1) {
    return file_->Error("split.count",
                        "the model is split over files; join them with llama-gguf-split");
  }
  return absl::OkStatus();
}

absl::Status GgufModel::ReadSizes() {
  BITSHARD_ASSIGN_OR_RETURN(config_.num_hidden_layers,
                            file_->GetInt(Key("block_count"), kLayerRange));
  BITSHARD_ASSIGN_OR_RETURN(config_.hidden_size,
                            file_->GetInt(Key("embedding_length"), kSizeRange));
  BITSHARD_ASSIGN_OR_RETURN(config_.intermediate_size,
                            file_->GetInt(Key("feed_forward_length"), kSizeRange));
  BITSHARD_ASSIGN_OR_RETURN(config_.max_position_embeddings,
                            file_->GetInt(Key("context_length"), {1, int64_t{1} << 40}));
  BITSHARD_ASSIGN_OR_RETURN(config_.rms_norm_eps,
                            file_->GetNumber(Key("attention.layer_norm_rms_epsilon")));
  return absl::OkStatus();
}

absl::Status GgufModel::ReadHeads() {
  BITSHARD_ASSIGN_OR_RETURN(config_.num_attention_heads,
                            file_->GetInt(Key("attention.head_count"), kHeadRange));
  BITSHARD_ASSIGN_OR_RETURN(
      config_.num_key_value_heads,
      file_->GetIntOr(Key("attention.head_count_kv"), config_.num_attention_heads, kHeadRange));
  if (file_->FindKey(Key("attention.key_length")) == nullptr &&
      config_.hidden_size % config_.num_attention_heads != 0) {
    return file_->Error(Key("attention.head_count"),
                        absl::StrCat("is ", config_.num_attention_heads,
                                     ", want a divisor of embedding_length ", config_.hidden_size));
  }
  const int64_t even_share = config_.hidden_size / config_.num_attention_heads;
  BITSHARD_ASSIGN_OR_RETURN(config_.head_dim,
                            file_->GetIntOr(Key("attention.key_length"), even_share, kHeadRange));
  for (const char* same : {"attention.value_length", "rope.dimension_count"}) {
    BITSHARD_ASSIGN_OR_RETURN(const int64_t size,
                              file_->GetIntOr(Key(same), config_.head_dim, kHeadRange));
    if (size != config_.head_dim) {
      return file_->Error(Key(same),
                          absl::StrCat("is ", size, ", want the head size ", config_.head_dim));
    }
  }
  return absl::OkStatus();
}

absl::Status GgufModel::ReadRope() {
  BITSHARD_ASSIGN_OR_RETURN(config_.rope_theta, file_->GetNumberOr(Key("rope.freq_base"), 10000.0));
  BITSHARD_ASSIGN_OR_RETURN(const std::string kind,
                            file_->GetStringOr(Key("rope.scaling.type"), "none"));
  if (kind != "none" && kind != "linear") {
    return file_->Error(Key("rope.scaling.type"),
                        absl::StrCat("is \"", core::Escaped(kind), "\", want none or linear"));
  }
  BITSHARD_ASSIGN_OR_RETURN(const double old_factor,
                            file_->GetNumberOr(Key("rope.scale_linear"), 1.0));
  BITSHARD_ASSIGN_OR_RETURN(const double factor,
                            file_->GetNumberOr(Key("rope.scaling.factor"), old_factor));
  if (kind == "linear" || (file_->FindKey(Key("rope.scaling.type")) == nullptr && factor != 1.0)) {
    config_.rope_scaling = {.kind = "linear", .factor = factor};
  }
  return ReadRopeFactors();
}

// Llama 3's scaling is stored as a tensor: the divisor of each rotary frequency. Its one parameter
// that models differ in, the largest divisor, is read off, and the rest must then follow from the
// constants of Llama 3.1 (transformers, modeling_rope_utils._compute_llama3_parameters).
absl::Status GgufModel::ReadRopeFactors() {
  const GgufTensor* tensor = file_->FindTensor(kRopeFactors);
  if (tensor == nullptr) return absl::OkStatus();
  if (tensor->numel != config_.head_dim / 2 || config_.rope_scaling.kind != "default") {
    return file_->Error(kRopeFactors,
                        absl::StrCat("has ", tensor->numel, " elements, want half the head size ",
                                     config_.head_dim, " and no other rope scaling"));
  }
  std::vector<float> factors(static_cast<size_t>(tensor->numel));
  file_->Read(*tensor, 0, factors);
  const float largest = *std::max_element(factors.begin(), factors.end());
  RopeScaling scaling = {
      .kind = "llama3", .factor = largest, .low_freq_factor = 1, .high_freq_factor = 4};
  for (size_t i = 0; i < factors.size(); ++i) {
    const double wavelength =
        2 * std::numbers::pi *
        std::pow(config_.rope_theta,
                 2.0 * static_cast<double>(i) / static_cast<double>(config_.head_dim));
    const double turns = static_cast<double>(scaling.original_max_position_embeddings) / wavelength;
    const double smooth = std::clamp(
        (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor),
        0.0, 1.0);
    const double want = 1 / ((1 - smooth) / scaling.factor + smooth);
    if (!(std::abs(factors[i] - want) <= 1e-4 * want)) {
      return file_->Error(kRopeFactors,
                          absl::StrCat("entry ", i, " is ", factors[i], ", want ", want,
                                       ": only Llama 3's rope scaling is supported"));
    }
  }
  if (largest != 1.0f) config_.rope_scaling = scaling;
  return absl::OkStatus();
}

absl::Status GgufModel::ReadTokens() {
  if (file_->FindKey("tokenizer.ggml.tokens") != nullptr) {
    BITSHARD_ASSIGN_OR_RETURN(config_.vocab_size, file_->GetArrayCount("tokenizer.ggml.tokens"));
    if (config_.vocab_size < kSizeRange.least || config_.vocab_size > kSizeRange.most) {
      return file_->Error("tokenizer.ggml.tokens",
                          absl::StrCat("has ", config_.vocab_size, " tokens"));
    }
  } else {
    BITSHARD_ASSIGN_OR_RETURN(config_.vocab_size, file_->GetInt(Key("vocab_size"), kSizeRange));
  }
  BITSHARD_ASSIGN_OR_RETURN(config_.bos_token_id,
                            file_->GetIntOr("tokenizer.ggml.bos_token_id", -1, kTokenRange));
  BITSHARD_ASSIGN_OR_RETURN(config_.pad_token_id,
                            file_->GetIntOr("tokenizer.ggml.padding_token_id", -1, kTokenRange));
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    BITSHARD_ASSIGN_OR_RETURN(const int64_t id, file_->GetIntOr(key, -1, kTokenRange));
    std::vector<int64_t>& ids = config_.eos_token_ids;
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return absl::OkStatus();
}

absl::Status GgufModel::MapTensors() {
  for (const GgufTensor& tensor : file_->tensors()) {
    if (tensor.name == kRopeFactors) continue;
    const std::string name = HuggingFaceName(tensor.name);
    if (name.empty()) {
      return file_->Error(tensor.name, absl::StrCat("a tensor that ", config_.model_type,
                                                    " models do not have; it can't be left out"));
    }
    if (tensor.shape.size() == 1 && tensor.format->block_elems > 1) {
      return file_->Error(tensor.name, absl::StrCat("a vector stored as ", tensor.format->name,
                                                    ", want F32, F16 or BF16"));
    }
    stored_.emplace(name, &tensor);
    infos_.push_back({.name = name, .shape = tensor.shape, .stored_as = tensor.format->name});
  }
  std::sort(infos_.begin(), infos_.end(),
            [](const WeightInfo& a, const WeightInfo& b) { return a.name < b.name; });
  return absl::OkStatus();
}

absl::Status GgufModel::Read(const std::string& name, std::span<float> out) const {
  const WeightInfo* info = Find(name);
  BITSHARD_CHECK(info == nullptr || static_cast<int64_t>(out.size()) == info->numel()) << name;
  return ReadRows(name, 0, out);
}

absl::Status GgufModel::ReadRows(const std::string& name, int64_t row, std::span<float> out) const {
  const WeightInfo* info = Find(name);
  if (info == nullptr) return file_->Error(name, "the model has no such tensor");
  const GgufTensor& tensor = *stored_.at(name);
  const int64_t rows = info->shape[0], columns = info->numel() / rows;
  const int64_t count = static_cast<int64_t>(out.size()) / columns;
  BITSHARD_CHECK(row >= 0 && count <= rows - row &&
                 count * columns == static_cast<int64_t>(out.size()))
      << name << ": rows " << row << " + " << count << " of " << rows;
  const int64_t heads = PermutedHeads(config_, name);
  if (heads == 0) {
    file_->Read(tensor, row * columns, out);
    file_->Release(tensor);
    return absl::OkStatus();
  }
  // Row j of a head's second half stands behind row j of its first half.
  const int64_t head_dim = rows / heads, half = head_dim / 2;
  core::ParallelFor(
      count, std::max<int64_t>(1, kGgufGrainElems / columns), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t head = (row + i) / head_dim, place = (row + i) % head_dim;
          const int64_t stored_row = head * head_dim + 2 * (place % half) + place / half;
          file_->Read(tensor, stored_row * columns,
                      out.subspan(static_cast<size_t>(i * columns), static_cast<size_t>(columns)));
        }
      });
  file_->Release(tensor);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> OpenGgufModel(const std::string& path) {
  return GgufModel::Open(path);
}

}  // namespace bitshard::trainer::io
