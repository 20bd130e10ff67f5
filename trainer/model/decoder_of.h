// DecoderOf<T>: the passes of a Decoder with activations of type T. Included by decoder.cc and
// generate.cc only.
#ifndef BITSHARD_TRAINER_MODEL_DECODER_OF_H_
#define BITSHARD_TRAINER_MODEL_DECODER_OF_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "trainer/model/adapter.h"
#include "trainer/model/attention.h"
#include "trainer/model/decoder.h"
#include "trainer/model/dropout.h"
#include "trainer/model/frozen_weights.h"
#include "trainer/model/workspace.h"

namespace bitshard::trainer {

template <class T>
class DecoderOf : public Decoder {
 public:
  DecoderOf(const ModelConfig& config, const DecoderOptions& options, Adapter adapter)
      : config_(config), options_(options), adapter_(std::move(adapter)) {}
  absl::Status Load(const io::WeightSource& source);

  const ModelConfig& config() const override { return config_; }
  const DecoderOptions& options() const override { return options_; }
  const core::FlatLayout& adapter_layout() const override { return adapter_.layout(); }
  void InitAdapter(uint64_t seed, std::span<float> parameters) const override {
    adapter_.Init(seed, parameters);
  }
  absl::StatusOr<LossSum> ForwardBackward(
      const MicroBatch& batch, const PassArgs& args,
      absl::FunctionRef<absl::Status(int64_t tensor)> ready) override;
  absl::StatusOr<LossSum> Evaluate(const MicroBatch& batch, std::span<const float> parameters,
                                   std::span<float> per_token) override;
  absl::Status Logits(const MicroBatch& batch, std::span<const float> parameters,
                      std::span<float> out) override;
  absl::StatusOr<std::vector<std::vector<int32_t>>> Generate(
      const std::vector<std::vector<int32_t>>& prompts, std::span<const float> parameters,
      const GenerateOptions& options) override;
  absl::Status DequantizedWeight(const std::string& name, std::span<float> out) const override;
  DecoderCost cost() const override;

 private:
  // One pass over one batch. `ready` is nullptr but in a backward pass.
  struct Pass {
    const MicroBatch* batch = nullptr;
    std::span<const float> parameters;  // Empty: no adapter.
    std::span<float> gradients;
    uint64_t seed = 0;
    int64_t step = 0;
    float loss_scale = 1;
    bool dropout = false;
    const absl::FunctionRef<absl::Status(int64_t)>* ready = nullptr;
    int64_t padded_rows = 0;  // 0: one row a token.
    int64_t tokens() const { return batch->num_tokens(); }
    // Rows that products work on: the tokens, then zeros.
    int64_t rows() const { return padded_rows > 0 ? padded_rows : tokens(); }
  };
  struct KvCache;

  void ZeroPadding(const Pass& pass, T* x, int64_t n) const;
  absl::Status CheckPass(const MicroBatch& batch, std::span<const float> parameters) const;

  // Forward.
  void Embed(const Pass& pass);
  void BlockForward(const Pass& pass, int64_t layer, bool with_output);
  void QkvForward(const Pass& pass, int64_t layer, const SavedBlock<T>& s);
  void LinearForward(const Pass& pass, int64_t layer, Module module, const T* x, T* y,
                     bool accumulate);
  bool AdapterDown(const Pass& pass, int64_t layer, Module module, const T* x);
  void MlpForward(const Pass& pass, int64_t layer, bool with_output);
  DropoutKey DropoutKeyOf(const Pass& pass, int64_t layer, Module module) const;
  AttentionArgs<T> AttentionOf(const Pass& pass, const SavedBlock<T>& s);
  void RunBlocks(const Pass& pass);

  // Backward.
  absl::Status BlockBackward(const Pass& pass, int64_t layer);
  absl::Status MlpBackward(const Pass& pass, int64_t layer, const SavedBlock<T>& s);
  absl::Status AttentionBlockBackward(const Pass& pass, int64_t layer, const SavedBlock<T>& s);
  absl::Status AdapterBackward(const Pass& pass, int64_t layer, Module module, const T* x,
                               const T* dy, T* dx);
  void WriteGradient(const MatMulArgs<T>& product, float* out);

  // Loss.
  LossSum Loss(const Pass& pass, bool gradient, std::span<float> per_token);
  void LogitRows(const std::vector<int32_t>& rows, int64_t first, int64_t count);

  // The adapter's matrix as T: the parameters themselves, or rounded into `scratch`.
  Matrix<T> AdapterMatrix(const Pass& pass, int64_t tensor, T* scratch) const;
  void NormRows(const T* x, const std::vector<float>& weight, T* y, float* inverse,
                int64_t rows) const;

  // Generation.
  absl::Status Prefill(std::span<const float> parameters, const std::vector<int32_t>& prompt,
                       KvCache* cache, int64_t sequence, int32_t* next);
  void DecodeStep(const Pass& pass, const std::vector<int64_t>& sequences, KvCache* cache);
  void DecodeBlock(const Pass& pass, int64_t layer, const std::vector<int64_t>& sequences,
                   KvCache* cache);
  int32_t Pick(int64_t row) const;

  ModelConfig config_;
  DecoderOptions options_;
  Adapter adapter_;
  FrozenWeights<T> weights_;
  Workspace<T> w_;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DECODER_OF_H_
