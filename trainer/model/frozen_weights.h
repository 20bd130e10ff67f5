// The frozen base: Linear weights in 4 bits or dense, norms, embeddings. T is float or
// hwy::bfloat16_t.
#ifndef BITSHARD_TRAINER_MODEL_FROZEN_WEIGHTS_H_
#define BITSHARD_TRAINER_MODEL_FROZEN_WEIGHTS_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "quant/blockwise.h"
#include "trainer/io/weight_source.h"
#include "trainer/model/adapter.h"
#include "trainer/model/decoder.h"
#include "trainer/model/matmul.h"

namespace bitshard::trainer {

/// A vector of a layer's norm weights or biases; empty where the architecture has none.
struct LayerVectors {
  std::vector<float> input_norm, post_attention_norm;
  std::vector<float> q_norm, k_norm;
  std::vector<float> q_bias, k_bias, v_bias;
};

/// The vectors of LayerVectors, by number.
enum LayerVector : int {
  kInputNorm,
  kPostAttentionNorm,
  kQNorm,
  kKNorm,
  kQBias,
  kKBias,
  kVBias,
  kNumLayerVectors
};

/// A vector that a layer of this architecture has.
struct VectorSpec {
  LayerVector which = kInputNorm;
  std::string name;
  int64_t n = 0;
};
std::vector<VectorSpec> VectorsOf(const ModelConfig& config, int64_t layer);

template <class T>
class FrozenWeights {
 public:
  /// Reads tensor by tensor, quantising at once.
  absl::Status Load(const io::WeightSource& source, const DecoderOptions& options);

  /// [out, in]. In 4 bits: dequantised into `scratch`, which holds the largest Linear layer.
  Matrix<T> Linear(int64_t layer, Module module, T* scratch) const;
  const LayerVectors& vectors(int64_t layer) const { return vectors_[static_cast<size_t>(layer)]; }
  const std::vector<float>& final_norm() const { return final_norm_; }
  const T* embedding_row(int64_t token) const { return embedding_.data() + token * hidden_; }
  /// [vocab, hidden]: the embedding itself where they are tied.
  Matrix<T> head() const;
  void DequantizeLinear(int64_t layer, Module module, std::span<float> out) const;

  int64_t base_bytes() const;
  int64_t embedding_bytes() const;

 private:
  absl::Status LoadLinear(const io::WeightSource& source, int64_t layer, Module module);
  absl::Status LoadVectors(const io::WeightSource& source, int64_t layer);

  struct LinearWeight {
    quant::Tensor4Bit packed;
    std::vector<T> dense;
  };
  ModelConfig config_;
  DecoderOptions options_;
  int64_t hidden_ = 0;
  std::vector<std::array<LinearWeight, kNumModules>> linear_;
  std::vector<LayerVectors> vectors_;
  std::vector<float> final_norm_;
  std::vector<T> embedding_;
  std::vector<T> head_;
  std::vector<float> read_;  // The tensor being read.
};

/// Bytes that FrozenWeights<T> holds, by purpose.
DecoderCost FrozenCost(const ModelConfig& config, const DecoderOptions& options);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_FROZEN_WEIGHTS_H_
