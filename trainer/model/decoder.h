// Decoder: a frozen transformer of the Llama family, in 4 bits or dense, with LoRA adapters, whose
// forward and backward passes are written out by hand over one arena of activations. No autograd
// graph, no allocation while it runs: what a pass needs is known before (Decoder::Cost), so
// `bitshard plan` can say it.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto decoder, Decoder::Create(*source, options));
//   decoder->InitAdapter(seed, arena);
//   BITSHARD_ASSIGN_OR_RETURN(LossSum loss, decoder->ForwardBackward(batch, {.parameters = arena,
//   ...}));
#ifndef BITSHARD_TRAINER_MODEL_DECODER_H_
#define BITSHARD_TRAINER_MODEL_DECODER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/flat_layout.h"
#include "quant/blockwise.h"
#include "trainer/data/micro_batch.h"
#include "trainer/io/weight_source.h"
#include "trainer/model/model_config.h"

namespace bitshard::trainer {

enum class ActivationType { kFloat32, kBFloat16 };

struct AdapterOptions {
  int64_t r = 16;  ///< 0: no adapter.
  double alpha = 32;
  double dropout = 0;
  bool rslora = false;  ///< Scale alpha / sqrt(r) instead of alpha / r.
  /// Suffixes of Linear names ("q_proj"), full names, or the single entry "all-linear".
  std::vector<std::string> target_modules = {"all-linear"};
};

struct DecoderOptions {
  ActivationType compute = ActivationType::kFloat32;
  bool load_in_4bit = true;  ///< All Linear layers of the blocks; embeddings and norms stay dense.
  quant::Type4Bit quant_type = quant::Type4Bit::kNf4;
  int64_t quant_block_size = 64;
  bool double_quant = true;
  AdapterOptions lora;
  bool activation_checkpointing =
      true;                       ///< Keep one activation a layer and run each layer forward twice.
  int64_t max_tokens = 0;         ///< Most tokens in a MicroBatch.
  int64_t max_sample_tokens = 0;  ///< Longest sample.
};

/// Host memory by purpose, bytes.
struct DecoderCost {
  int64_t base_weights = 0;  ///< Packed 4-bit (or dense) Linear weights, norms.
  int64_t embeddings = 0;    ///< Token embedding and output head.
  int64_t activations =
      0;  ///< The arena: saved activations and scratch of forward, backward and the loss.
  int64_t dequantized = 0;  ///< Scratch for dequantised weights.
  int64_t packed =
      0;  ///< What LibTorch takes for itself: oneDNN packs the head for bfloat16 products.
  int64_t total() const { return base_weights + embeddings + activations + dequantized + packed; }
};

/// Sums over the trained tokens of a micro-batch, in token order (float64).
struct LossSum {
  double nats = 0;
  int64_t trained_tokens = 0;
  int64_t tokens = 0;
};

struct PassArgs {
  std::span<const float> parameters;  ///< Adapter arena, float32 [adapter_layout().padded_elems()].
  std::span<float>
      gradients;      ///< Same layout; every element of every tensor is written, not added.
  uint64_t seed = 0;  ///< With step: the key of dropout.
  int64_t step = 0;
  double loss_scale = 1;  ///< Gradients are those of loss_scale * (sum of nats).
};

/// Threads: one thread calls it; inside it uses core::ParallelFor and LibTorch's matrix products.
class Decoder {
 public:
  /// Quantises tensor by tensor as it reads. Errors: kData, kConfig (target_modules that match
  /// nothing), kMemory.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(const io::WeightSource& source,
                                                         const DecoderOptions& options);
  static absl::StatusOr<core::FlatLayout> AdapterLayout(const ModelConfig& config,
                                                        const AdapterOptions& lora);
  static DecoderCost Cost(const ModelConfig& config, const DecoderOptions& options);
  virtual ~Decoder() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const DecoderOptions& options() const = 0;

  /// Trainable tensors, named as PEFT names them without the "base_model.model." prefix
  /// ("model.layers.29.mlp.down_proj.lora_B.weight"), in the order in which backward finishes them.
  virtual const core::FlatLayout& adapter_layout() const = 0;

  /// PEFT's initialisation: A uniform in +-1/sqrt(in) (Kaiming with a = sqrt(5)), B zero; padding
  /// zero.
  virtual void InitAdapter(uint64_t seed, std::span<float> parameters) const = 0;

  /// Loss and gradients of one micro-batch. `ready` is called once for each tensor of
  /// adapter_layout(), as soon as its gradient is written; backward goes on after it returns; an
  /// error from it ends the pass. Numerics: the same batch, parameters, processor type and threads
  /// give the same bits.
  virtual absl::StatusOr<LossSum> ForwardBackward(
      const MicroBatch& batch, const PassArgs& args,
      absl::FunctionRef<absl::Status(int64_t tensor)> ready) = 0;

  /// Loss only, without dropout. `per_token` (empty, or [num_tokens]) gets each target's nats, 0
  /// where not trained.
  virtual absl::StatusOr<LossSum> Evaluate(const MicroBatch& batch,
                                           std::span<const float> parameters,
                                           std::span<float> per_token) = 0;

  /// Logits of every token: out [num_tokens, vocab_size]. For tests and tools: whole vocabulary at
  /// once.
  virtual absl::Status Logits(const MicroBatch& batch, std::span<const float> parameters,
                              std::span<float> out) = 0;

  /// Greedy continuation of each prompt, until an end token, `stop_tokens` or max_new_tokens.
  /// Returns the new tokens, end token left out. Prompts are decoded together. An empty
  /// `parameters` generates with the base alone.
  /// Errors: kConfig for more prompts or longer ones than the decoder was made for; kInterrupted.
  struct GenerateOptions {
    int64_t max_new_tokens = 64;
    std::vector<int32_t> stop_tokens;
    /// Asked before each prompt and each token; true ends with kInterrupted. May be empty.
    std::function<bool()> stop_requested;
  };
  virtual absl::StatusOr<std::vector<std::vector<int32_t>>> Generate(
      const std::vector<std::vector<int32_t>>& prompts, std::span<const float> parameters,
      const GenerateOptions& options) = 0;

  /// The frozen Linear weight `name` as the passes use it, dequantised to float32 (for export and
  /// merge).
  virtual absl::Status DequantizedWeight(const std::string& name, std::span<float> out) const = 0;

  /// Frozen bytes in use now, by purpose: what Cost promised.
  virtual DecoderCost cost() const = 0;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DECODER_H_
