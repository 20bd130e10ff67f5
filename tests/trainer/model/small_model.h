// Small models with random weights, and a batch for them.
#ifndef BITSHARD_TESTS_TRAINER_MODEL_SMALL_MODEL_H_
#define BITSHARD_TESTS_TRAINER_MODEL_SMALL_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "trainer/data/micro_batch.h"
#include "trainer/io/weight_source.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer {

// Evenly distributed around `middle`, by name and index.
inline void Fill(const std::string& name, float middle, float width, std::span<float> out) {
  uint64_t key = 5;
  for (const char c : name)
    key = core::RngKey(key, core::RngPurpose::kInit, static_cast<uint64_t>(c));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = middle + width * (core::UniformFloat(core::Philox(key, i, 0).word[0]) - 0.5f);
}

// Random weights of the shape that a ModelConfig asks for, as large as training leaves them.
class RandomSource : public io::WeightSource {
 public:
  explicit RandomSource(ModelConfig config) : config_(std::move(config)) {}
  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return path_; }
  const std::vector<io::WeightInfo>& tensors() const override { return tensors_; }
  absl::Status Read(const std::string& name, std::span<float> out) const override {
    const bool norm = name.find("norm") != std::string::npos;
    Fill(name, norm ? 1.0f : 0.0f, norm ? 0.5f : 0.4f, out);
    return absl::OkStatus();
  }
  absl::Status ReadRows(const std::string& name, int64_t row, std::span<float> out) const override {
    std::vector<float> whole(static_cast<size_t>(config_.vocab_size * config_.hidden_size));
    Fill(name, 0, 0.4f, whole);
    const auto first = whole.begin() + row * config_.hidden_size;
    std::copy_n(first, out.size(), out.begin());
    return absl::OkStatus();
  }

 private:
  ModelConfig config_;
  std::string path_ = "random";
  std::vector<io::WeightInfo> tensors_;
};

// Of each family that has features of its own.
inline ModelConfig Family(const std::string& kind) {
  ModelConfig c{.model_type = kind,
                .vocab_size = 101,
                .hidden_size = 64,
                .intermediate_size = 96,
                .num_hidden_layers = 2,
                .num_attention_heads = 4,
                .num_key_value_heads = 2,
                .head_dim = 16,
                .max_position_embeddings = 512,
                .rms_norm_eps = 1e-5};
  if (kind == "llama") {
    c.tie_word_embeddings = true;
    c.rope_scaling = {.kind = "llama3", .factor = 8, .original_max_position_embeddings = 64};
  }
  if (kind == "mistral") c.sliding_window = 7;
  if (kind == "qwen2") c.qkv_bias = true;
  if (kind == "qwen3") {
    c.qk_norm = true;
    c.head_dim = 24;
  }
  return c;
}

// Three samples, of which one has a single token; not every token is trained.
inline MicroBatch Batch() {
  MicroBatch batch{.starts = {0}};
  for (const int64_t length : {13, 1, 22}) {
    for (int64_t i = 0; i < length; ++i) {
      batch.tokens.push_back(static_cast<int32_t>((i * 37 + length * 5) % 101));
      const bool trained = i > 2 && i + 1 < length;
      batch.targets.push_back(trained ? static_cast<int32_t>(((i + 1) * 37 + length * 5) % 101)
                                      : -1);
    }
    batch.sample_ids.push_back(100 + batch.num_samples());
    batch.starts.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  return batch;
}

}  // namespace bitshard::trainer

#endif  // BITSHARD_TESTS_TRAINER_MODEL_SMALL_MODEL_H_
