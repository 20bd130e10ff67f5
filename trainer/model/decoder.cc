#include "trainer/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/model/decoder_of.h"
#include "trainer/model/dropout.h"
#include "trainer/model/kernels.h"
#include "trainer/model/pass_input.h"

namespace bitshard::trainer {

template <class T>
absl::Status DecoderOf<T>::Load(const io::WeightSource& source) {
  BITSHARD_RETURN_IF_ERROR(weights_.Load(source, options_));
  BITSHARD_RETURN_IF_ERROR(w_.Create(config_, options_, adapter_));
  FillRope(config_, options_.max_sample_tokens, w_.cosine, w_.sine);
  return absl::OkStatus();
}

template <class T>
absl::Status DecoderOf<T>::CheckPass(const MicroBatch& batch,
                                     std::span<const float> parameters) const {
  BITSHARD_RETURN_IF_ERROR(CheckBatch(batch, config_, options_));
  if (!parameters.empty() &&
      static_cast<int64_t>(parameters.size()) != adapter_.layout().padded_elems()) {
    return core::ConfigError(absl::StrFormat("adapter of %d elements, want %d", parameters.size(),
                                             adapter_.layout().padded_elems()));
  }
  return absl::OkStatus();
}

template <class T>
void DecoderOf<T>::ZeroPadding(const Pass& pass, T* x, int64_t n) const {
  std::memset(x + pass.tokens() * n, 0,
              static_cast<size_t>((pass.rows() - pass.tokens()) * n) * sizeof(T));
}

template <class T>
void DecoderOf<T>::NormRows(const T* x, const std::vector<float>& weight, T* y, float* inverse,
                            int64_t rows) const {
  RmsNorm(RmsNormArgs<T>{.x = x,
                         .weight = weight.data(),
                         .y = y,
                         .inverse_rms = inverse,
                         .rows = rows,
                         .n = static_cast<int64_t>(weight.size()),
                         .eps = static_cast<float>(config_.rms_norm_eps)});
}

template <class T>
Matrix<T> DecoderOf<T>::AdapterMatrix(const Pass& pass, int64_t tensor, T* scratch) const {
  const core::FlatTensor& t = adapter_.layout().tensor(tensor);
  const float* from = pass.parameters.data() + t.offset();
  if constexpr (std::is_same_v<T, float>) {
    return {const_cast<float*>(from), t.shape[0], t.shape[1]};
  } else {
    Convert(from, scratch, t.numel);
    return {scratch, t.shape[0], t.shape[1]};
  }
}

template <class T>
void DecoderOf<T>::Embed(const Pass& pass) {
  const MicroBatch& batch = *pass.batch;
  const size_t row_bytes = static_cast<size_t>(config_.hidden_size) * sizeof(T);
  for (int64_t t = 0; t < pass.tokens(); ++t) {
    std::memcpy(w_.x[0] + t * config_.hidden_size,
                weights_.embedding_row(batch.tokens[static_cast<size_t>(t)]), row_bytes);
  }
  for (size_t s = 0; s + 1 < batch.starts.size(); ++s) {
    for (int32_t t = batch.starts[s]; t < batch.starts[s + 1]; ++t)
      w_.positions[t] = t - batch.starts[s];
  }
  std::fill(w_.positions + pass.tokens(), w_.positions + pass.rows(), 0);
}

// y (+)= W x, and the adapter's part: y += scale * B (A dropout(x)).
template <class T>
void DecoderOf<T>::LinearForward(const Pass& pass, int64_t layer, Module module, const T* x, T* y,
                                 bool accumulate) {
  const int64_t rows = pass.rows();
  const LinearShape shape = ShapeOf(config_, module);
  const Matrix<T> output(y, rows, shape.out);
  MatMul(MatMulArgs<T>{.a = Matrix<T>(const_cast<T*>(x), rows, shape.in),
                       .b = weights_.Linear(layer, module, w_.weight).Transposed(),
                       .out = output,
                       .beta = accumulate ? 1.0f : 0.0f});
  const LayerVectors& vectors = weights_.vectors(layer);
  const std::vector<float>* bias = module == kQProj   ? &vectors.q_bias
                                   : module == kKProj ? &vectors.k_bias
                                   : module == kVProj ? &vectors.v_bias
                                                      : nullptr;
  if (bias != nullptr && !bias->empty()) AddBias(y, bias->data(), rows, shape.out);
  if (!AdapterDown(pass, layer, module, x)) return;
  MatMul(MatMulArgs<T>{
      .a = Matrix<T>(w_.block(layer).z[module], rows, adapter_.r()),
      .b = AdapterMatrix(pass, adapter_.tensors(layer, module).b, w_.adapter_b).Transposed(),
      .out = output,
      .alpha = adapter_.scale(),
      .beta = 1});
}

// z = A dropout(x), saved in the block; false where there is no adapter.
template <class T>
bool DecoderOf<T>::AdapterDown(const Pass& pass, int64_t layer, Module module, const T* x) {
  const AdapterTensors tensors = adapter_.tensors(layer, module);
  if (pass.parameters.empty() || tensors.a < 0) return false;
  const int64_t rows = pass.rows(), n = ShapeOf(config_, module).in;
  Matrix<T> input(const_cast<T*>(x), rows, n);
  if (pass.dropout) {
    Dropout(DropoutKeyOf(pass, layer, module), *pass.batch, x, n, w_.dropped);
    ZeroPadding(pass, w_.dropped, n);
    input.data = w_.dropped;
  }
  MatMul(MatMulArgs<T>{.a = input,
                       .b = AdapterMatrix(pass, tensors.a, w_.adapter_a).Transposed(),
                       .out = Matrix<T>(w_.block(layer).z[module], rows, adapter_.r())});
  return true;
}

template <class T>
DropoutKey DecoderOf<T>::DropoutKeyOf(const Pass& pass, int64_t layer, Module module) const {
  return {.seed = pass.seed,
          .step = pass.step,
          .layer = layer,
          .module = module,
          .probability = adapter_.dropout()};
}

// w_.norm = normalised input; q, k, v with rotation.
template <class T>
void DecoderOf<T>::QkvForward(const Pass& pass, int64_t layer, const SavedBlock<T>& s) {
  const LayerVectors& vectors = weights_.vectors(layer);
  const int64_t rows = pass.rows(), hd = config_.head_dim;
  const int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  NormRows(w_.x[static_cast<size_t>(layer)], vectors.input_norm, w_.norm, s.input_inverse, rows);
  LinearForward(pass, layer, kQProj, w_.norm, config_.qk_norm ? s.q_raw : s.q, false);
  LinearForward(pass, layer, kKProj, w_.norm, config_.qk_norm ? s.k_raw : s.k, false);
  LinearForward(pass, layer, kVProj, w_.norm, s.v, false);
  if (config_.qk_norm) {
    NormRows(s.q_raw, vectors.q_norm, s.q, s.q_inverse, rows * heads);
    NormRows(s.k_raw, vectors.k_norm, s.k, s.k_inverse, rows * kv_heads);
  }
  RopeArgs<T> rope{.x = s.q,
                   .positions = w_.positions,
                   .cosine = w_.cosine,
                   .sine = w_.sine,
                   .rows = rows,
                   .heads = heads,
                   .head_dim = hd};
  Rope(rope);
  rope.x = s.k;
  rope.heads = kv_heads;
  Rope(rope);
}

template <class T>
AttentionArgs<T> DecoderOf<T>::AttentionOf(const Pass& pass, const SavedBlock<T>& s) {
  return {.shape = {.heads = config_.num_attention_heads,
                    .kv_heads = config_.num_key_value_heads,
                    .head_dim = config_.head_dim,
                    .window = config_.sliding_window},
          .starts = &pass.batch->starts,
          .q = s.q,
          .k = s.k,
          .v = s.v,
          .out = s.attention,
          .log_sum_exp = s.log_sum_exp,
          .rows = pass.rows(),
          .scratch = w_.attention_scratch,
          .max_sample_tokens = options_.max_sample_tokens};
}

// x[layer + 1] from x[layer]. Without output: only what the backward pass needs, w_.swiglu and z of
// down_proj among it.
template <class T>
void DecoderOf<T>::BlockForward(const Pass& pass, int64_t layer, bool with_output) {
  const SavedBlock<T>& s = w_.block(layer);
  QkvForward(pass, layer, s);
  Attention(AttentionOf(pass, s));
  ZeroPadding(pass, s.attention, config_.num_attention_heads * config_.head_dim);
  MlpForward(pass, layer, with_output);
}

// What follows attention: its output projection, both residuals, the MLP.
template <class T>
void DecoderOf<T>::MlpForward(const Pass& pass, int64_t layer, bool with_output) {
  const SavedBlock<T>& s = w_.block(layer);
  const int64_t rows = pass.rows();
  const size_t hidden_bytes = static_cast<size_t>(rows * config_.hidden_size) * sizeof(T);
  std::memcpy(s.hidden, w_.x[static_cast<size_t>(layer)], hidden_bytes);
  LinearForward(pass, layer, kOProj, s.attention, s.hidden, true);
  NormRows(s.hidden, weights_.vectors(layer).post_attention_norm, w_.norm, s.hidden_inverse, rows);
  LinearForward(pass, layer, kGateProj, w_.norm, s.gate, false);
  LinearForward(pass, layer, kUpProj, w_.norm, s.up, false);
  SwiGlu(s.gate, s.up, w_.swiglu, rows * config_.intermediate_size);
  T* y = w_.x[static_cast<size_t>(layer) + 1];
  if (with_output) {
    std::memcpy(y, s.hidden, hidden_bytes);
    LinearForward(pass, layer, kDownProj, w_.swiglu, y, true);
  } else {
    AdapterDown(pass, layer, kDownProj, w_.swiglu);
  }
}

template <class T>
void DecoderOf<T>::RunBlocks(const Pass& pass) {
  Embed(pass);
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer)
    BlockForward(pass, layer, true);
}

// w_.logits [count, vocab] of rows[first ..] of the last block's output; w_.loss_hidden holds those
// rows.
template <class T>
void DecoderOf<T>::LogitRows(const std::vector<int32_t>& rows, int64_t first, int64_t count) {
  const int64_t hidden = config_.hidden_size;
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(w_.loss_hidden + i * hidden,
                w_.x.back() + rows[static_cast<size_t>(first + i)] * hidden,
                static_cast<size_t>(hidden) * sizeof(T));
  }
  NormRows(w_.loss_hidden, weights_.final_norm(), w_.loss_norm, w_.loss_inverse, count);
  const int64_t padded = PadRows(count, kLogitRowsMultiple);
  std::memset(w_.loss_norm + count * hidden, 0,
              static_cast<size_t>((padded - count) * hidden) * sizeof(T));
  MatMul(MatMulArgs<T>{.a = Matrix<T>(w_.loss_norm, padded, hidden),
                       .b = weights_.head().Transposed(),
                       .out = Matrix<T>(w_.logits, padded, config_.vocab_size)});
}

template <class T>
LossSum DecoderOf<T>::Loss(const Pass& pass, bool gradient, std::span<float> per_token) {
  const MicroBatch& batch = *pass.batch;
  const int64_t hidden = config_.hidden_size;
  const auto [rows, targets] = TrainedRowsOf(batch);
  std::fill(per_token.begin(), per_token.end(), 0.0f);
  if (gradient) std::memset(w_.grad, 0, static_cast<size_t>(pass.rows() * hidden) * sizeof(T));
  LossSum sum{.trained_tokens = static_cast<int64_t>(rows.size()), .tokens = pass.tokens()};
  for (int64_t first = 0; first < sum.trained_tokens; first += kLogitRows) {
    const int64_t count = std::min(kLogitRows, sum.trained_tokens - first);
    LogitRows(rows, first, count);
    CrossEntropy(CrossEntropyArgs<T>{.logits = w_.logits,
                                     .targets = targets.data() + first,
                                     .nats = w_.nats,
                                     .rows = count,
                                     .vocab = config_.vocab_size,
                                     .loss_scale = pass.loss_scale,
                                     .gradient = gradient});
    for (int64_t i = 0; i < count; ++i) {
      sum.nats += w_.nats[i];
      if (!per_token.empty())
        per_token[static_cast<size_t>(rows[static_cast<size_t>(first + i)])] =
            static_cast<float>(w_.nats[i]);
    }
    if (!gradient) continue;
    const int64_t padded = PadRows(count, kLogitRowsMultiple);
    MatMul(MatMulArgs<T>{.a = Matrix<T>(w_.logits, padded, config_.vocab_size),
                         .b = weights_.head(),
                         .out = Matrix<T>(w_.loss_norm, padded, hidden)});
    RmsNormBackward(RmsNormBackwardArgs<T>{.x = w_.loss_hidden,
                                           .weight = weights_.final_norm().data(),
                                           .inverse_rms = w_.loss_inverse,
                                           .dy = w_.loss_norm,
                                           .dx = w_.loss_grad,
                                           .rows = count,
                                           .n = hidden});
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(w_.grad + rows[static_cast<size_t>(first + i)] * hidden,
                  w_.loss_grad + i * hidden, static_cast<size_t>(hidden) * sizeof(T));
    }
  }
  return sum;
}

template <class T>
absl::StatusOr<LossSum> DecoderOf<T>::ForwardBackward(
    const MicroBatch& batch, const PassArgs& args,
    absl::FunctionRef<absl::Status(int64_t tensor)> ready) {
  BITSHARD_RETURN_IF_ERROR(CheckPass(batch, args.parameters));
  if (adapter_.layout().num_tensors() == 0)
    return core::ConfigError("lora_r is 0: there is nothing to train");
  const Pass pass{.batch = &batch,
                  .parameters = args.parameters,
                  .gradients = args.gradients,
                  .seed = args.seed,
                  .step = args.step,
                  .loss_scale = static_cast<float>(args.loss_scale),
                  .dropout = adapter_.dropout() > 0,
                  .ready = &ready,
                  .padded_rows = PadRows(batch.num_tokens(), kRowsMultiple)};
  RunBlocks(pass);
  const LossSum sum = Loss(pass, /*gradient=*/true, {});
  for (int64_t layer = config_.num_hidden_layers - 1; layer >= 0; --layer) {
    BITSHARD_RETURN_IF_ERROR(BlockBackward(pass, layer));
  }
  return sum;
}

template <class T>
absl::StatusOr<LossSum> DecoderOf<T>::Evaluate(const MicroBatch& batch,
                                               std::span<const float> parameters,
                                               std::span<float> per_token) {
  BITSHARD_RETURN_IF_ERROR(CheckPass(batch, parameters));
  const Pass pass{.batch = &batch,
                  .parameters = parameters,
                  .padded_rows = PadRows(batch.num_tokens(), kRowsMultiple)};
  RunBlocks(pass);
  return Loss(pass, /*gradient=*/false, per_token);
}

template <class T>
absl::Status DecoderOf<T>::Logits(const MicroBatch& batch, std::span<const float> parameters,
                                  std::span<float> out) {
  BITSHARD_RETURN_IF_ERROR(CheckPass(batch, parameters));
  const Pass pass{.batch = &batch,
                  .parameters = parameters,
                  .padded_rows = PadRows(batch.num_tokens(), kRowsMultiple)};
  RunBlocks(pass);
  std::vector<int32_t> rows(static_cast<size_t>(pass.tokens()));
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
  for (int64_t first = 0; first < pass.tokens(); first += kLogitRows) {
    const int64_t count = std::min(kLogitRows, pass.tokens() - first);
    LogitRows(rows, first, count);
    Convert(w_.logits, out.data() + first * config_.vocab_size, count * config_.vocab_size);
  }
  return absl::OkStatus();
}

template <class T>
absl::Status DecoderOf<T>::DequantizedWeight(const std::string& name, std::span<float> out) const {
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    for (int m = 0; m < kNumModules; ++m) {
      const Module module = static_cast<Module>(m);
      if (name != absl::StrCat(LinearName(layer, module), ".weight")) continue;
      weights_.DequantizeLinear(layer, module, out);
      return absl::OkStatus();
    }
  }
  return absl::NotFoundError(absl::StrCat(core::Escaped(name), ": no Linear layer of the blocks"));
}

template <class T>
DecoderCost DecoderOf<T>::cost() const {
  DecoderCost cost = WorkspaceCost(config_, options_, adapter_);
  cost.base_weights = weights_.base_bytes();
  cost.embeddings = weights_.embedding_bytes();
  return cost;
}

template class DecoderOf<float>;
template class DecoderOf<hwy::bfloat16_t>;

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(const io::WeightSource& source,
                                                         const DecoderOptions& options) {
  BITSHARD_ASSIGN_OR_RETURN(Adapter adapter, Adapter::Create(source.config(), options.lora));
  if (options.compute == ActivationType::kFloat32) {
    auto decoder = std::make_unique<DecoderOf<float>>(source.config(), options, std::move(adapter));
    BITSHARD_RETURN_IF_ERROR(decoder->Load(source));
    return decoder;
  }
  auto decoder =
      std::make_unique<DecoderOf<hwy::bfloat16_t>>(source.config(), options, std::move(adapter));
  BITSHARD_RETURN_IF_ERROR(decoder->Load(source));
  return decoder;
}

absl::StatusOr<core::FlatLayout> Decoder::AdapterLayout(const ModelConfig& config,
                                                        const AdapterOptions& lora) {
  BITSHARD_ASSIGN_OR_RETURN(const Adapter adapter, Adapter::Create(config, lora));
  return adapter.layout();
}

DecoderCost Decoder::Cost(const ModelConfig& config, const DecoderOptions& options) {
  DecoderCost cost = FrozenCost(config, options);
  const auto adapter = Adapter::Create(config, options.lora);
  if (!adapter.ok()) return cost;
  const DecoderCost workspace = WorkspaceCost(config, options, *adapter);
  cost.activations = workspace.activations;
  cost.dequantized = workspace.dequantized;
  if (options.compute == ActivationType::kBFloat16)
    cost.packed = config.vocab_size * config.hidden_size * 2;
  return cost;
}

}  // namespace bitshard::trainer
