#include "trainer/model/workspace.h"

#include <algorithm>
#include <type_traits>

#include "core/parallel.h"
#include "core/status_macros.h"
#include "trainer/model/attention.h"
#include "trainer/model/pieces.h"

namespace bitshard::trainer {
namespace {

struct Sizes {
  int64_t tokens, q, kv, hidden, inner, vocab, largest_linear, largest_in, largest_out, heads, r;
};

Sizes SizesOf(const ModelConfig& c, const DecoderOptions& options, const Adapter& adapter) {
  Sizes s{.tokens = PadRows(options.max_tokens, kRowsMultiple),
          .q = c.num_attention_heads * c.head_dim,
          .kv = c.num_key_value_heads * c.head_dim,
          .hidden = c.hidden_size,
          .inner = c.intermediate_size,
          .vocab = c.vocab_size,
          .heads = c.num_attention_heads,
          .r = adapter.layout().num_tensors() == 0 ? 0 : adapter.r()};
  for (int m = 0; m < kNumModules; ++m) {
    const LinearShape shape = ShapeOf(c, static_cast<Module>(m));
    s.largest_linear = std::max(s.largest_linear, shape.numel());
    s.largest_in = std::max(s.largest_in, shape.in);
    s.largest_out = std::max(s.largest_out, shape.out);
  }
  return s;
}

template <class T>
void TakeBlock(const ModelConfig& c, const Sizes& s, const Adapter& adapter, Pieces* pieces,
               SavedBlock<T>* b) {
  pieces->Take(&b->q, s.tokens * s.q);
  pieces->Take(&b->k, s.tokens * s.kv);
  pieces->Take(&b->v, s.tokens * s.kv);
  if (c.qk_norm) {
    pieces->Take(&b->q_raw, s.tokens * s.q);
    pieces->Take(&b->k_raw, s.tokens * s.kv);
    pieces->Take(&b->q_inverse, s.tokens * c.num_attention_heads);
    pieces->Take(&b->k_inverse, s.tokens * c.num_key_value_heads);
  }
  pieces->Take(&b->attention, s.tokens * s.q);
  pieces->Take(&b->hidden, s.tokens * s.hidden);
  pieces->Take(&b->gate, s.tokens * s.inner);
  pieces->Take(&b->up, s.tokens * s.inner);
  pieces->Take(&b->log_sum_exp, s.heads * s.tokens);
  pieces->Take(&b->input_inverse, s.tokens);
  pieces->Take(&b->hidden_inverse, s.tokens);
  for (int m = 0; m < kNumModules; ++m) {
    bool targeted = false;
    for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
      targeted |= adapter.tensors(layer, static_cast<Module>(m)).a >= 0;
    }
    if (targeted) pieces->Take(&b->z[static_cast<size_t>(m)], s.tokens * s.r);
  }
}

// Everything but the dequantised weight.
template <class T>
void TakeActivations(const ModelConfig& c, const DecoderOptions& options, const Adapter& adapter,
                     Pieces* pieces, Workspace<T>* w) {
  const Sizes s = SizesOf(c, options, adapter);
  w->x.resize(static_cast<size_t>(c.num_hidden_layers) + 1);
  for (T*& x : w->x) pieces->Take(&x, s.tokens * s.hidden);
  w->saved.resize(options.activation_checkpointing ? 1 : static_cast<size_t>(c.num_hidden_layers));
  for (SavedBlock<T>& block : w->saved) TakeBlock(c, s, adapter, pieces, &block);
  pieces->Take(&w->norm, s.tokens * s.hidden);
  pieces->Take(&w->swiglu, s.tokens * s.inner);
  if (options.lora.dropout > 0) pieces->Take(&w->dropped, s.tokens * s.largest_in);
  pieces->Take(&w->grad, s.tokens * s.hidden);
  pieces->Take(&w->d_norm, s.tokens * s.hidden);
  pieces->Take(&w->d_attention, s.tokens * s.q);
  pieces->Take(&w->d_swiglu, s.tokens * s.inner);
  pieces->Take(&w->d_z, s.tokens * s.r);
  if (!std::is_same_v<T, float>) {
    pieces->Take(&w->adapter_a, s.r * s.largest_in);
    pieces->Take(&w->adapter_b, s.r * s.largest_out);
    pieces->Take(&w->adapter_grad, s.r * std::max(s.largest_in, s.largest_out));
  }
  pieces->Take(&w->logits, kLogitRows * s.vocab);
  pieces->Take(&w->loss_hidden, kLogitRows * s.hidden);
  pieces->Take(&w->loss_norm, kLogitRows * s.hidden);
  pieces->Take(&w->loss_grad, kLogitRows * s.hidden);
  pieces->Take(&w->loss_inverse, kLogitRows);
  pieces->Take(&w->nats, kLogitRows);
  const AttentionShape attention{
      .heads = c.num_attention_heads, .kv_heads = c.num_key_value_heads, .head_dim = c.head_dim};
  pieces->Take(&w->attention_scratch,
               AttentionScratchBytes(attention, options.max_sample_tokens, core::NumThreads()) /
                   static_cast<int64_t>(sizeof(float)));
  pieces->Take(&w->cosine, options.max_sample_tokens * c.head_dim / 2);
  pieces->Take(&w->sine, options.max_sample_tokens * c.head_dim / 2);
  pieces->Take(&w->positions, s.tokens);
}

template <class T>
void TakeWeight(const ModelConfig& c, const DecoderOptions& options, const Adapter& adapter,
                Pieces* pieces, Workspace<T>* w) {
  if (options.load_in_4bit) pieces->Take(&w->weight, SizesOf(c, options, adapter).largest_linear);
}

template <class T>
DecoderCost CostOf(const ModelConfig& c, const DecoderOptions& options, const Adapter& adapter) {
  Workspace<T> w;
  Pieces activations(nullptr), weight(nullptr);
  TakeActivations(c, options, adapter, &activations, &w);
  TakeWeight(c, options, adapter, &weight, &w);
  return {.activations = activations.used(), .dequantized = weight.used()};
}

}  // namespace

template <class T>
absl::Status Workspace<T>::Create(const ModelConfig& config, const DecoderOptions& options,
                                  const Adapter& adapter) {
  const DecoderCost cost = CostOf<T>(config, options, adapter);
  BITSHARD_ASSIGN_OR_RETURN(buffer, core::AlignedBuffer::Create(cost.total(), "activations"));
  Pieces pieces(buffer.bytes().data());
  TakeActivations(config, options, adapter, &pieces, this);
  TakeWeight(config, options, adapter, &pieces, this);
  return absl::OkStatus();
}

DecoderCost WorkspaceCost(const ModelConfig& config, const DecoderOptions& options,
                          const Adapter& adapter) {
  return options.compute == ActivationType::kFloat32
             ? CostOf<float>(config, options, adapter)
             : CostOf<hwy::bfloat16_t>(config, options, adapter);
}

template struct Workspace<float>;
template struct Workspace<hwy::bfloat16_t>;

}  // namespace bitshard::trainer
