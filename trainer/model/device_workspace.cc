#include "trainer/model/device_workspace.h"

#include <algorithm>

#include "core/dtype.h"
#include "core/status_macros.h"
#include "quant/formats.h"
#include "trainer/model/device_weights.h"

namespace bitshard::trainer {
namespace {

class Layouter {
 public:
  Layouter(const ModelConfig& config, const DecoderOptions& options, const Adapter& adapter)
      : c_(config),
        options_(options),
        adapter_(adapter),
        element_(core::ByteSize(TypeOf(options.compute))),
        tokens_(options.max_tokens),
        q_(config.num_attention_heads * config.head_dim),
        kv_(config.num_key_value_heads * config.head_dim),
        r_(adapter.layout().num_tensors() == 0 ? 0 : adapter.r()) {
    for (int m = 0; m < kNumModules; ++m) {
      const LinearShape shape = ShapeOf(config, static_cast<Module>(m));
      largest_linear_ = std::max(largest_linear_, shape.numel());
      largest_in_ = std::max(largest_in_, shape.in);
    }
  }

  // Everything but the dequantised weight.
  void TakeActivations(Pieces* pieces, DeviceWorkspace* w) const {
    w->x.resize(static_cast<size_t>(c_.num_hidden_layers) + 1);
    for (void*& x : w->x) x = Rows(pieces, c_.hidden_size);
    w->saved.resize(options_.activation_checkpointing ? 1
                                                      : static_cast<size_t>(c_.num_hidden_layers));
    for (DeviceSavedBlock& block : w->saved) TakeBlock(pieces, &block);
    TakeScratch(pieces, w);
    const int64_t logits = kDeviceLogitRows;
    w->logits = pieces->Take(logits * c_.vocab_size * element_);
    w->loss_hidden = pieces->Take(logits * c_.hidden_size * element_);
    w->loss_norm = pieces->Take(logits * c_.hidden_size * element_);
    w->loss_grad = pieces->Take(logits * c_.hidden_size * element_);
    pieces->Take(&w->loss_inverse, logits);
    pieces->Take(&w->nats, tokens_);
    pieces->Take(&w->cosine, options_.max_sample_tokens * c_.head_dim / 2);
    pieces->Take(&w->sine, options_.max_sample_tokens * c_.head_dim / 2);
    PlaceBatch(tokens_, pieces, &w->batch);
  }

  void TakeWeight(Pieces* pieces, DeviceWorkspace* w) const {
    if (!options_.load_in_4bit) return;
    w->weight = pieces->Take(largest_linear_ * element_);
    if (options_.double_quant)
      pieces->Take(&w->scales, quant::NumBlocks(largest_linear_, options_.quant_block_size));
  }

 private:
  void* Rows(Pieces* pieces, int64_t n) const { return pieces->Take(tokens_ * n * element_); }

  void TakeBlock(Pieces* pieces, DeviceSavedBlock* b) const {
    b->q = Rows(pieces, q_);
    b->k = Rows(pieces, kv_);
    b->v = Rows(pieces, kv_);
    if (c_.qk_norm) {
      b->q_raw = Rows(pieces, q_);
      b->k_raw = Rows(pieces, kv_);
      pieces->Take(&b->q_inverse, tokens_ * c_.num_attention_heads);
      pieces->Take(&b->k_inverse, tokens_ * c_.num_key_value_heads);
    }
    b->attention = Rows(pieces, q_);
    b->hidden = Rows(pieces, c_.hidden_size);
    b->gate = Rows(pieces, c_.intermediate_size);
    b->up = Rows(pieces, c_.intermediate_size);
    pieces->Take(&b->log_sum_exp, c_.num_attention_heads * tokens_);
    pieces->Take(&b->input_inverse, tokens_);
    pieces->Take(&b->hidden_inverse, tokens_);
    for (int m = 0; m < kNumModules; ++m) {
      bool targeted = false;
      for (int64_t layer = 0; layer < c_.num_hidden_layers; ++layer) {
        targeted |= adapter_.tensors(layer, static_cast<Module>(m)).a >= 0;
      }
      if (targeted) b->z[static_cast<size_t>(m)] = Rows(pieces, r_);
    }
  }

  void TakeScratch(Pieces* pieces, DeviceWorkspace* w) const {
    w->norm = Rows(pieces, c_.hidden_size);
    w->swiglu = Rows(pieces, c_.intermediate_size);
    if (options_.lora.dropout > 0) w->dropped = Rows(pieces, largest_in_);
    w->grad = Rows(pieces, c_.hidden_size);
    w->d_norm = Rows(pieces, c_.hidden_size);
    w->d_attention = Rows(pieces, q_);
    w->d_swiglu = Rows(pieces, c_.intermediate_size);
    w->d_z = Rows(pieces, r_);
    w->d_q = Rows(pieces, q_);
    w->d_k = Rows(pieces, kv_);
    w->d_v = Rows(pieces, kv_);
    pieces->Take(&w->dots, c_.num_attention_heads * tokens_);
    if (options_.compute == ActivationType::kBFloat16)
      w->adapter = pieces->Take(adapter_.layout().padded_elems() * element_);
  }

  const ModelConfig& c_;
  const DecoderOptions& options_;
  const Adapter& adapter_;
  const int64_t element_, tokens_, q_, kv_, r_;
  int64_t largest_linear_ = 0, largest_in_ = 0;
};

}  // namespace

void PlaceBatch(int64_t max_tokens, Pieces* pieces, DeviceBatch* batch) {
  pieces->Take(&batch->sample_ids, max_tokens);
  pieces->Take(&batch->tokens, max_tokens);
  pieces->Take(&batch->positions, max_tokens);
  pieces->Take(&batch->trained_rows, max_tokens);
  pieces->Take(&batch->targets, max_tokens);
}

DecoderCost DeviceWorkspace::Cost(const ModelConfig& config, const DecoderOptions& options,
                                  const Adapter& adapter) {
  DeviceWorkspace w;
  const Layouter layouter(config, options, adapter);
  Pieces activations(nullptr), weight(nullptr);
  layouter.TakeActivations(&activations, &w);
  layouter.TakeWeight(&weight, &w);
  return {.activations = activations.used(), .dequantized = weight.used()};
}

absl::Status DeviceWorkspace::Create(const ModelConfig& config, const DecoderOptions& options,
                                     const Adapter& lora) {
  const DecoderCost cost = Cost(config, options, lora);
  BITSHARD_ASSIGN_OR_RETURN(memory, paging::Allocation<paging::DeviceResource>::Create(
                                        &device, cost.total(), "activations"));
  const Layouter layouter(config, options, lora);
  Pieces pieces(memory.memory().data());
  layouter.TakeActivations(&pieces, this);
  layouter.TakeWeight(&pieces, this);
  return absl::OkStatus();
}

}  // namespace bitshard::trainer
