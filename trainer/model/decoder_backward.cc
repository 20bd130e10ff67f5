#include <cstring>
#include <type_traits>

#include "core/status_macros.h"
#include "trainer/model/decoder_of.h"
#include "trainer/model/dropout.h"
#include "trainer/model/kernels.h"

namespace bitshard::trainer {

template <class T>
void DecoderOf<T>::WriteGradient(const MatMulArgs<T>& product, float* out) {
  MatMulArgs<T> args = product;
  if constexpr (std::is_same_v<T, float>) {
    args.out.data = out;
    MatMul(args);
  } else {
    args.out.data = w_.adapter_grad;
    MatMul(args);
    Convert(w_.adapter_grad, out, args.out.rows * args.out.columns);
  }
}

// Gradients of A and B, and dx += the adapter's part, for y += scale * B (A dropout(x)). dx may be
// nullptr.
template <class T>
absl::Status DecoderOf<T>::AdapterBackward(const Pass& pass, int64_t layer, Module module,
                                           const T* x, const T* dy, T* dx) {
  const AdapterTensors tensors = adapter_.tensors(layer, module);
  if (tensors.a < 0) return absl::OkStatus();
  const int64_t rows = pass.rows(), r = adapter_.r();
  const LinearShape shape = ShapeOf(config_, module);
  const Matrix<T> d_out(const_cast<T*>(dy), rows, shape.out);
  const Matrix<T> z(w_.block(layer).z[module], rows, r);
  const Matrix<T> d_z(w_.d_z, rows, r);
  const DropoutKey key = DropoutKeyOf(pass, layer, module);

  WriteGradient({.a = d_out.Transposed(),
                 .b = z,
                 .out = Matrix<T>(nullptr, shape.out, r),
                 .alpha = adapter_.scale()},
                pass.gradients.data() + adapter_.layout().tensor(tensors.b).offset());
  BITSHARD_RETURN_IF_ERROR((*pass.ready)(tensors.b));
  MatMul(MatMulArgs<T>{.a = d_out,
                       .b = AdapterMatrix(pass, tensors.b, w_.adapter_b),
                       .out = d_z,
                       .alpha = adapter_.scale()});
  Matrix<T> input(const_cast<T*>(x), rows, shape.in);
  if (pass.dropout) {
    Dropout(key, *pass.batch, x, shape.in, w_.dropped);
    ZeroPadding(pass, w_.dropped, shape.in);
    input.data = w_.dropped;
  }
  WriteGradient({.a = d_z.Transposed(), .b = input, .out = Matrix<T>(nullptr, r, shape.in)},
                pass.gradients.data() + adapter_.layout().tensor(tensors.a).offset());
  BITSHARD_RETURN_IF_ERROR((*pass.ready)(tensors.a));
  if (dx == nullptr) return absl::OkStatus();
  const Matrix<T> a = AdapterMatrix(pass, tensors.a, w_.adapter_a);
  if (pass.dropout) {
    MatMul(MatMulArgs<T>{.a = d_z, .b = a, .out = Matrix<T>(w_.dropped, rows, shape.in)});
    AddDropout(key, *pass.batch, w_.dropped, shape.in, dx);
  } else {
    MatMul(MatMulArgs<T>{.a = d_z, .b = a, .out = Matrix<T>(dx, rows, shape.in), .beta = 1});
  }
  return absl::OkStatus();
}

// w_.grad: from the gradient of the block's output to that of `hidden`.
template <class T>
absl::Status DecoderOf<T>::MlpBackward(const Pass& pass, int64_t layer, const SavedBlock<T>& s) {
  const int64_t rows = pass.rows(), inner = config_.intermediate_size, hidden = config_.hidden_size;
  const Matrix<T> grad(w_.grad, rows, hidden), d_swiglu(w_.d_swiglu, rows, inner),
      d_norm(w_.d_norm, rows, hidden);
  MatMul(
      MatMulArgs<T>{.a = grad, .b = weights_.Linear(layer, kDownProj, w_.weight), .out = d_swiglu});
  BITSHARD_RETURN_IF_ERROR(
      AdapterBackward(pass, layer, kDownProj, w_.swiglu, w_.grad, w_.d_swiglu));
  SwiGluBackward(SwiGluBackwardArgs<T>{.gate = s.gate,
                                       .up = s.up,
                                       .d_out = w_.d_swiglu,
                                       .d_gate = s.gate,
                                       .d_up = s.up,
                                       .n = rows * inner});
  NormRows(s.hidden, weights_.vectors(layer).post_attention_norm, w_.norm, s.hidden_inverse, rows);
  MatMul(MatMulArgs<T>{.a = Matrix<T>(s.gate, rows, inner),
                       .b = weights_.Linear(layer, kGateProj, w_.weight),
                       .out = d_norm});
  BITSHARD_RETURN_IF_ERROR(AdapterBackward(pass, layer, kGateProj, w_.norm, s.gate, w_.d_norm));
  MatMul(MatMulArgs<T>{.a = Matrix<T>(s.up, rows, inner),
                       .b = weights_.Linear(layer, kUpProj, w_.weight),
                       .out = d_norm,
                       .beta = 1});
  BITSHARD_RETURN_IF_ERROR(AdapterBackward(pass, layer, kUpProj, w_.norm, s.up, w_.d_norm));
  RmsNormBackward(
      RmsNormBackwardArgs<T>{.x = s.hidden,
                             .weight = weights_.vectors(layer).post_attention_norm.data(),
                             .inverse_rms = s.hidden_inverse,
                             .dy = w_.d_norm,
                             .add = w_.grad,
                             .dx = w_.grad,
                             .rows = rows,
                             .n = hidden});
  return absl::OkStatus();
}

// w_.grad: from the gradient of `hidden` to that of the block's input. The first block's input
// needs none: the embedding is frozen.
template <class T>
absl::Status DecoderOf<T>::AttentionBlockBackward(const Pass& pass, int64_t layer,
                                                  const SavedBlock<T>& s) {
  const int64_t rows = pass.rows(), hidden = config_.hidden_size, hd = config_.head_dim;
  const int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  const LayerVectors& vectors = weights_.vectors(layer);
  MatMul(MatMulArgs<T>{.a = Matrix<T>(w_.grad, rows, hidden),
                       .b = weights_.Linear(layer, kOProj, w_.weight),
                       .out = Matrix<T>(w_.d_attention, rows, heads * hd)});
  BITSHARD_RETURN_IF_ERROR(
      AdapterBackward(pass, layer, kOProj, s.attention, w_.grad, w_.d_attention));
  AttentionBackward(AttentionBackwardArgs<T>{
      .forward = AttentionOf(pass, s), .d_out = w_.d_attention, .dq = s.q, .dk = s.k, .dv = s.v});
  ZeroPadding(pass, s.q, heads * hd);
  ZeroPadding(pass, s.k, kv_heads * hd);
  ZeroPadding(pass, s.v, kv_heads * hd);
  const auto unrotate = [&](T* x, int64_t n) {
    Rope(RopeArgs<T>{.x = x,
                     .positions = w_.positions,
                     .cosine = w_.cosine,
                     .sine = w_.sine,
                     .rows = rows,
                     .heads = n,
                     .head_dim = hd,
                     .inverse = true});
  };
  unrotate(s.q, heads);
  unrotate(s.k, kv_heads);
  if (config_.qk_norm) {
    RmsNormBackward(RmsNormBackwardArgs<T>{.x = s.q_raw,
                                           .weight = vectors.q_norm.data(),
                                           .inverse_rms = s.q_inverse,
                                           .dy = s.q,
                                           .dx = s.q,
                                           .rows = rows * heads,
                                           .n = hd});
    RmsNormBackward(RmsNormBackwardArgs<T>{.x = s.k_raw,
                                           .weight = vectors.k_norm.data(),
                                           .inverse_rms = s.k_inverse,
                                           .dy = s.k,
                                           .dx = s.k,
                                           .rows = rows * kv_heads,
                                           .n = hd});
  }
  T* x = w_.x[static_cast<size_t>(layer)];
  NormRows(x, vectors.input_norm, w_.norm, s.input_inverse, rows);
  T* d_norm = layer > 0 ? w_.d_norm : nullptr;
  const std::pair<Module, T*> parts[] = {{kQProj, s.q}, {kKProj, s.k}, {kVProj, s.v}};
  for (const auto& [module, d_out] : parts) {
    if (d_norm != nullptr) {
      MatMul(MatMulArgs<T>{.a = Matrix<T>(d_out, rows, ShapeOf(config_, module).out),
                           .b = weights_.Linear(layer, module, w_.weight),
                           .out = Matrix<T>(d_norm, rows, hidden),
                           .beta = module == kQProj ? 0.0f : 1.0f});
    }
    BITSHARD_RETURN_IF_ERROR(AdapterBackward(pass, layer, module, w_.norm, d_out, d_norm));
  }
  if (d_norm == nullptr) return absl::OkStatus();
  RmsNormBackward(RmsNormBackwardArgs<T>{.x = x,
                                         .weight = vectors.input_norm.data(),
                                         .inverse_rms = s.input_inverse,
                                         .dy = d_norm,
                                         .add = w_.grad,
                                         .dx = w_.grad,
                                         .rows = rows,
                                         .n = hidden});
  return absl::OkStatus();
}

template <class T>
absl::Status DecoderOf<T>::BlockBackward(const Pass& pass, int64_t layer) {
  const SavedBlock<T>& s = w_.block(layer);
  if (options_.activation_checkpointing) {
    BlockForward(pass, layer, /*with_output=*/false);
  } else {
    SwiGlu(s.gate, s.up, w_.swiglu, pass.rows() * config_.intermediate_size);
  }
  BITSHARD_RETURN_IF_ERROR(MlpBackward(pass, layer, s));
  return AttentionBlockBackward(pass, layer, s);
}

template class DecoderOf<float>;
template class DecoderOf<hwy::bfloat16_t>;

}  // namespace bitshard::trainer
