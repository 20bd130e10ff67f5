#include <utility>

#include "core/status_macros.h"
#include "trainer/model/device_decoder_engine.h"
#include "trainer/model/device_kernels.h"

namespace bitshard::trainer {

absl::Status DeviceDecoderEngine::NormBackward(void* x, const float* weight, float* inverse,
                                               void* dy, void* add, void* dx, int64_t rows,
                                               int64_t n) {
  return DeviceRmsNormBackward({.x = x,
                                .weight = weight,
                                .inverse_rms = inverse,
                                .dy = dy,
                                .add = add,
                                .dx = dx,
                                .rows = rows,
                                .n = n,
                                .type = type_,
                                .stream = stream_});
}

// Straight into the arena: sums of bfloat16 products are float32, and stay so.
absl::Status DeviceDecoderEngine::WriteGradient(const Pass& pass, int64_t tensor,
                                                const DeviceMatrix& a, const DeviceMatrix& b,
                                                float alpha) {
  float* const out = pass.gradients + adapter_.layout().tensor(tensor).offset();
  BITSHARD_RETURN_IF_ERROR(matmul_->Run({.a = a,
                                         .b = b,
                                         .out = {out, a.rows, b.columns},
                                         .alpha = alpha,
                                         .type = type_,
                                         .out_type = core::DType::kFloat32}));
  return (*pass.ready)(tensor);
}

// dx = W^T dy + beta * dx.
absl::Status DeviceDecoderEngine::MultiplyLinear(const DeviceMatrix& dy, int64_t layer,
                                                 Module module, const DeviceMatrix& dx,
                                                 float beta) {
  BITSHARD_ASSIGN_OR_RETURN(const DeviceMatrix weight,
                            weights_.Linear(layer, module, w_.weight, w_.scales));
  return Multiply(dy, weight, dx, {.beta = beta});
}

// Gradients of A and B, and dx += the adapter's part, for y += scale * B (A dropout(x)). dx may be
// nullptr.
absl::Status DeviceDecoderEngine::AdapterBackward(const Pass& pass, int64_t layer, Module module,
                                                  void* x, void* dy, void* dx) {
  if (!HasAdapter(pass, layer, module)) return absl::OkStatus();
  const AdapterTensors tensors = adapter_.tensors(layer, module);
  const int64_t rows = pass.rows, r = adapter_.r();
  const LinearShape shape = ShapeOf(config_, module);
  const DeviceMatrix d_out{dy, rows, shape.out}, d_z{w_.d_z, rows, r};
  const DeviceMatrix z{w_.block(layer).z[module], rows, r};
  BITSHARD_RETURN_IF_ERROR(WriteGradient(pass, tensors.b, d_out.Transposed(), z, adapter_.scale()));
  BITSHARD_RETURN_IF_ERROR(
      Multiply(d_out, AdapterMatrix(pass, tensors.b), d_z, {.alpha = adapter_.scale()}));
  BITSHARD_ASSIGN_OR_RETURN(const DeviceMatrix input, Dropped(pass, layer, module, x));
  BITSHARD_RETURN_IF_ERROR(WriteGradient(pass, tensors.a, d_z.Transposed(), input, 1));
  if (dx == nullptr) return absl::OkStatus();
  const DeviceMatrix a = AdapterMatrix(pass, tensors.a);
  if (!pass.dropout) return Multiply(d_z, a, {dx, rows, shape.in}, {.beta = 1});
  BITSHARD_RETURN_IF_ERROR(Multiply(d_z, a, {w_.dropped, rows, shape.in}, {}));
  return DeviceAddDropout({.key = DropoutKeyOf(pass, layer, module),
                           .positions = w_.batch.positions,
                           .sample_ids = w_.batch.sample_ids,
                           .x = w_.dropped,
                           .y = dx,
                           .rows = rows,
                           .n = shape.in,
                           .type = type_,
                           .stream = stream_});
}

// w_.grad: from the gradient of the block's output to that of `hidden`.
absl::Status DeviceDecoderEngine::MlpBackward(const Pass& pass, int64_t layer,
                                              const DeviceSavedBlock& s) {
  const int64_t rows = pass.rows, inner = config_.intermediate_size, hidden = config_.hidden_size;
  const DeviceMatrix d_norm{w_.d_norm, rows, hidden};
  BITSHARD_RETURN_IF_ERROR(
      MultiplyLinear({w_.grad, rows, hidden}, layer, kDownProj, {w_.d_swiglu, rows, inner}, 0));
  BITSHARD_RETURN_IF_ERROR(
      AdapterBackward(pass, layer, kDownProj, w_.swiglu, w_.grad, w_.d_swiglu));
  BITSHARD_RETURN_IF_ERROR(DeviceSwiGluBackward({.gate = s.gate,
                                                 .up = s.up,
                                                 .d_out = w_.d_swiglu,
                                                 .d_gate = s.gate,
                                                 .d_up = s.up,
                                                 .n = rows * inner,
                                                 .type = type_,
                                                 .stream = stream_}));
  const float* weight = weights_.vector(layer, kPostAttentionNorm);
  BITSHARD_RETURN_IF_ERROR(Norm(s.hidden, weight, w_.norm, s.hidden_inverse, rows, hidden));
  BITSHARD_RETURN_IF_ERROR(MultiplyLinear({s.gate, rows, inner}, layer, kGateProj, d_norm, 0));
  BITSHARD_RETURN_IF_ERROR(AdapterBackward(pass, layer, kGateProj, w_.norm, s.gate, w_.d_norm));
  BITSHARD_RETURN_IF_ERROR(MultiplyLinear({s.up, rows, inner}, layer, kUpProj, d_norm, 1));
  BITSHARD_RETURN_IF_ERROR(AdapterBackward(pass, layer, kUpProj, w_.norm, s.up, w_.d_norm));
  return NormBackward(s.hidden, weight, s.hidden_inverse, w_.d_norm, w_.grad, w_.grad, rows,
                      hidden);
}

// w_.d_q and w_.d_k: from the gradients of what attention sees to those of the projections.
absl::Status DeviceDecoderEngine::HeadsBackward(const Pass& pass, int64_t layer,
                                                const DeviceSavedBlock& s) {
  const int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  BITSHARD_RETURN_IF_ERROR(Rotate(pass, w_.d_q, heads, /*inverse=*/true));
  BITSHARD_RETURN_IF_ERROR(Rotate(pass, w_.d_k, kv_heads, /*inverse=*/true));
  if (!config_.qk_norm) return absl::OkStatus();
  BITSHARD_RETURN_IF_ERROR(NormBackward(s.q_raw, weights_.vector(layer, kQNorm), s.q_inverse,
                                        w_.d_q, nullptr, w_.d_q, pass.rows * heads,
                                        config_.head_dim));
  return NormBackward(s.k_raw, weights_.vector(layer, kKNorm), s.k_inverse, w_.d_k, nullptr, w_.d_k,
                      pass.rows * kv_heads, config_.head_dim);
}

// w_.grad: from the gradient of `hidden` to that of the block's input. The first block's input
// needs none: the embedding is frozen.
absl::Status DeviceDecoderEngine::AttentionBlockBackward(const Pass& pass, int64_t layer,
                                                         const DeviceSavedBlock& s) {
  const int64_t rows = pass.rows, hidden = config_.hidden_size;
  BITSHARD_RETURN_IF_ERROR(MultiplyLinear({w_.grad, rows, hidden}, layer, kOProj,
                                          {w_.d_attention, rows, ShapeOf(config_, kOProj).in}, 0));
  BITSHARD_RETURN_IF_ERROR(
      AdapterBackward(pass, layer, kOProj, s.attention, w_.grad, w_.d_attention));
  BITSHARD_RETURN_IF_ERROR(DeviceAttentionBackward({.forward = AttentionOf(pass, s),
                                                    .d_out = w_.d_attention,
                                                    .dots = w_.dots,
                                                    .dq = w_.d_q,
                                                    .dk = w_.d_k,
                                                    .dv = w_.d_v}));
  BITSHARD_RETURN_IF_ERROR(HeadsBackward(pass, layer, s));
  return QkvBackward(pass, layer, s);
}

absl::Status DeviceDecoderEngine::QkvBackward(const Pass& pass, int64_t layer,
                                              const DeviceSavedBlock& s) {
  const int64_t rows = pass.rows, hidden = config_.hidden_size;
  void* const x = w_.x[static_cast<size_t>(layer)];
  const float* weight = weights_.vector(layer, kInputNorm);
  BITSHARD_RETURN_IF_ERROR(Norm(x, weight, w_.norm, s.input_inverse, rows, hidden));
  void* const d_norm = layer > 0 ? w_.d_norm : nullptr;
  const std::pair<Module, void*> parts[] = {{kQProj, w_.d_q}, {kKProj, w_.d_k}, {kVProj, w_.d_v}};
  for (const auto& [module, d_out] : parts) {
    if (d_norm != nullptr) {
      BITSHARD_RETURN_IF_ERROR(MultiplyLinear({d_out, rows, ShapeOf(config_, module).out}, layer,
                                              module, {d_norm, rows, hidden},
                                              module == kQProj ? 0.0f : 1.0f));
    }
    BITSHARD_RETURN_IF_ERROR(AdapterBackward(pass, layer, module, w_.norm, d_out, d_norm));
  }
  if (d_norm == nullptr) return absl::OkStatus();
  return NormBackward(x, weight, s.input_inverse, d_norm, w_.grad, w_.grad, rows, hidden);
}

absl::Status DeviceDecoderEngine::BlockBackward(const Pass& pass, int64_t layer) {
  const DeviceSavedBlock& s = w_.block(layer);
  if (options_.activation_checkpointing) {
    BITSHARD_RETURN_IF_ERROR(BlockForward(pass, layer, /*with_output=*/false));
  } else {
    BITSHARD_RETURN_IF_ERROR(DeviceSwiGlu({.gate = s.gate,
                                           .up = s.up,
                                           .out = w_.swiglu,
                                           .n = pass.rows * config_.intermediate_size,
                                           .type = type_,
                                           .stream = stream_}));
  }
  BITSHARD_RETURN_IF_ERROR(MlpBackward(pass, layer, s));
  return AttentionBlockBackward(pass, layer, s);
}

}  // namespace bitshard::trainer
