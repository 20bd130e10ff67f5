#include "trainer/model/frozen_weights.h"

#include <type_traits>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/model/kernels.h"

namespace bitshard::trainer {
namespace {

int64_t LinearBytes(const LinearShape& shape, const DecoderOptions& options,
                    int64_t element_bytes) {
  const int64_t n = shape.numel();
  if (!options.load_in_4bit) return n * element_bytes;
  const int64_t scales = quant::NumBlocks(n, options.quant_block_size);
  const int64_t scale_bytes =
      options.double_quant ? scales + quant::NumBlocks(scales, 256) * 4 : scales * 4;
  return quant::PackedBytes(n) + scale_bytes;
}

absl::Status ReadVector(const io::WeightSource& source, const std::string& name, int64_t n,
                        std::vector<float>* out) {
  out->resize(static_cast<size_t>(n));
  return source.Read(name, std::span<float>(*out));
}

}  // namespace

std::vector<VectorSpec> VectorsOf(const ModelConfig& config, int64_t layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  std::vector<VectorSpec> specs = {
      {kInputNorm, absl::StrCat(prefix, "input_layernorm.weight"), config.hidden_size},
      {kPostAttentionNorm, absl::StrCat(prefix, "post_attention_layernorm.weight"),
       config.hidden_size}};
  if (config.qk_norm) {
    specs.push_back({kQNorm, absl::StrCat(prefix, "self_attn.q_norm.weight"), config.head_dim});
    specs.push_back({kKNorm, absl::StrCat(prefix, "self_attn.k_norm.weight"), config.head_dim});
  }
  if (config.qkv_bias) {
    const std::pair<LayerVector, Module> biases[] = {
        {kQBias, kQProj}, {kKBias, kKProj}, {kVBias, kVProj}};
    for (const auto& [which, module] : biases) {
      specs.push_back(
          {which, absl::StrCat(LinearName(layer, module), ".bias"), ShapeOf(config, module).out});
    }
  }
  return specs;
}

template <class T>
absl::Status FrozenWeights<T>::Load(const io::WeightSource& source, const DecoderOptions& options) {
  config_ = source.config();
  options_ = options;
  hidden_ = config_.hidden_size;
  const auto load_dense = [&](const std::string& name, std::vector<T>* out) -> absl::Status {
    const int64_t n = config_.vocab_size * hidden_;
    out->resize(static_cast<size_t>(n));
    // In slices: the whole embedding in float32 would be the largest thing that loading holds.
    const int64_t rows = std::max<int64_t>(1, (int64_t{1} << 20) / hidden_);
    for (int64_t row = 0; row < config_.vocab_size; row += rows) {
      const int64_t count = std::min(rows, config_.vocab_size - row);
      read_.resize(static_cast<size_t>(count * hidden_));
      BITSHARD_RETURN_IF_ERROR(source.ReadRows(name, row, std::span<float>(read_)));
      Convert(read_.data(), out->data() + row * hidden_, count * hidden_);
    }
    return absl::OkStatus();
  };
  BITSHARD_RETURN_IF_ERROR(load_dense("model.embed_tokens.weight", &embedding_));
  if (!config_.tie_word_embeddings) BITSHARD_RETURN_IF_ERROR(load_dense("lm_head.weight", &head_));
  BITSHARD_RETURN_IF_ERROR(ReadVector(source, "model.norm.weight", hidden_, &final_norm_));
  linear_.resize(static_cast<size_t>(config_.num_hidden_layers));
  vectors_.resize(static_cast<size_t>(config_.num_hidden_layers));
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    BITSHARD_RETURN_IF_ERROR(LoadVectors(source, layer));
    for (int m = 0; m < kNumModules; ++m) {
      BITSHARD_RETURN_IF_ERROR(LoadLinear(source, layer, static_cast<Module>(m)));
    }
  }
  read_ = std::vector<float>();  // Assigning {} would keep its memory.
  return absl::OkStatus();
}

template <class T>
absl::Status FrozenWeights<T>::LoadVectors(const io::WeightSource& source, int64_t layer) {
  LayerVectors& v = vectors_[static_cast<size_t>(layer)];
  std::vector<float>* const members[kNumLayerVectors] = {
      &v.input_norm, &v.post_attention_norm, &v.q_norm, &v.k_norm, &v.q_bias, &v.k_bias, &v.v_bias};
  for (const VectorSpec& spec : VectorsOf(config_, layer)) {
    BITSHARD_RETURN_IF_ERROR(ReadVector(source, spec.name, spec.n, members[spec.which]));
  }
  return absl::OkStatus();
}

template <class T>
absl::Status FrozenWeights<T>::LoadLinear(const io::WeightSource& source, int64_t layer,
                                          Module module) {
  const std::string name = absl::StrCat(LinearName(layer, module), ".weight");
  LinearWeight& weight = linear_[static_cast<size_t>(layer)][module];
  BITSHARD_RETURN_IF_ERROR(ReadVector(source, name, ShapeOf(config_, module).numel(), &read_));
  if (options_.load_in_4bit) {
    return core::AddContext(
        quant::QuantizeTensor4Bit(read_, options_.quant_type, options_.quant_block_size,
                                  options_.double_quant, &weight.packed),
        name);
  }
  weight.dense.resize(read_.size());
  Convert(read_.data(), weight.dense.data(), static_cast<int64_t>(read_.size()));
  return absl::OkStatus();
}

template <class T>
Matrix<T> FrozenWeights<T>::Linear(int64_t layer, Module module, T* scratch) const {
  const LinearShape shape = ShapeOf(config_, module);
  const LinearWeight& weight = linear_[static_cast<size_t>(layer)][module];
  if (!options_.load_in_4bit) return {const_cast<T*>(weight.dense.data()), shape.out, shape.in};
  const size_t n = static_cast<size_t>(shape.numel());
  absl::Status status;
  if constexpr (std::is_same_v<T, float>) {
    status = quant::DequantizeTensor4Bit(weight.packed, 0, std::span<float>(scratch, n));
  } else {
    status = quant::DequantizeTensor4BitToBf16(weight.packed, 0,
                                               {reinterpret_cast<uint16_t*>(scratch), n});
  }
  BITSHARD_CHECK(status.ok()) << std::string(status.message());
  return {scratch, shape.out, shape.in};
}

template <class T>
Matrix<T> FrozenWeights<T>::head() const {
  const std::vector<T>& from = config_.tie_word_embeddings ? embedding_ : head_;
  return {const_cast<T*>(from.data()), config_.vocab_size, hidden_};
}

template <class T>
void FrozenWeights<T>::DequantizeLinear(int64_t layer, Module module, std::span<float> out) const {
  const LinearWeight& weight = linear_[static_cast<size_t>(layer)][module];
  if (options_.load_in_4bit) {
    const absl::Status status = quant::DequantizeTensor4Bit(weight.packed, 0, out);
    BITSHARD_CHECK(status.ok()) << std::string(status.message());
  } else {
    Convert(weight.dense.data(), out.data(), static_cast<int64_t>(out.size()));
  }
}

template <class T>
int64_t FrozenWeights<T>::base_bytes() const {
  size_t bytes = final_norm_.size() * sizeof(float);
  for (const auto& layer : linear_) {
    for (const LinearWeight& w : layer) {
      bytes += w.dense.size() * sizeof(T) +
               static_cast<size_t>(options_.load_in_4bit ? w.packed.bytes() : 0);
    }
  }
  for (const LayerVectors& v : vectors_) {
    for (const auto* part : {&v.input_norm, &v.post_attention_norm, &v.q_norm, &v.k_norm, &v.q_bias,
                             &v.k_bias, &v.v_bias}) {
      bytes += part->size() * sizeof(float);
    }
  }
  return static_cast<int64_t>(bytes);
}

template <class T>
int64_t FrozenWeights<T>::embedding_bytes() const {
  return static_cast<int64_t>((embedding_.size() + head_.size()) * sizeof(T));
}

DecoderCost FrozenCost(const ModelConfig& c, const DecoderOptions& options) {
  const int64_t element = options.compute == ActivationType::kFloat32 ? 4 : 2;
  DecoderCost cost;
  int64_t per_layer = 2 * c.hidden_size * 4;
  if (c.qk_norm) per_layer += 2 * c.head_dim * 4;
  for (int m = 0; m < kNumModules; ++m) {
    const LinearShape shape = ShapeOf(c, static_cast<Module>(m));
    per_layer += LinearBytes(shape, options, element);
    if (c.qkv_bias && m <= kVProj) per_layer += shape.out * 4;
  }
  cost.base_weights = c.num_hidden_layers * per_layer + c.hidden_size * 4;
  cost.embeddings = c.vocab_size * c.hidden_size * element * (c.tie_word_embeddings ? 1 : 2);
  return cost;
}

template class FrozenWeights<float>;
template class FrozenWeights<hwy::bfloat16_t>;

}  // namespace bitshard::trainer
