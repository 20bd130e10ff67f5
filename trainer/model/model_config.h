// The shape of a decoder-only transformer of the Llama family (Llama, Mistral, Qwen2, Qwen3),
// whatever file it came from. Field names are those of Hugging Face's config.json.
#ifndef BITSHARD_TRAINER_MODEL_MODEL_CONFIG_H_
#define BITSHARD_TRAINER_MODEL_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

namespace bitshard::trainer {

/// Frequency scaling of rotary embeddings ("llama3", "linear"); kind "default" means none.
struct RopeScaling {
  std::string kind = "default";
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
};

struct ModelConfig {
  std::string model_type = "llama";  ///< llama | mistral | qwen2 | qwen3
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  int64_t sliding_window = 0;  ///< 0: none (Mistral 7B v0.1 has 4096).
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  ///< Biases on q, k, v (Qwen2).
  bool qk_norm = false;   ///< RMS norm of each head of q and k (Qwen3).
  int64_t bos_token_id = -1;
  std::vector<int64_t> eos_token_ids;
  int64_t pad_token_id = -1;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_MODEL_CONFIG_H_
