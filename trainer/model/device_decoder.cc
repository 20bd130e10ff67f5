#include "trainer/model/device_decoder.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "core/cuda_status.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/model/device_decoder_engine.h"
#include "trainer/model/device_kernels.h"
#include "trainer/model/device_loss.h"
#include "trainer/model/pass_input.h"

namespace bitshard::trainer {

DeviceDecoderEngine::~DeviceDecoderEngine() {
  (void)BITSHARD_CUDA_STATUS(cudaStreamSynchronize(stream_));  // Before its memory goes.
}

absl::Status DeviceDecoderEngine::Load(const io::WeightSource& source) {
  if (config_.head_dim > kMaxDeviceHeadDim) {
    return core::ConfigError(absl::StrFormat(
        "base_model: heads of %d elements; a GPU's kernels have room for %d: set device: cpu",
        config_.head_dim, kMaxDeviceHeadDim));
  }
  BITSHARD_RETURN_IF_ERROR(weights_.Load(source, options_, stream_));
  BITSHARD_RETURN_IF_ERROR(w_.Create(config_, options_, adapter_));
  BITSHARD_ASSIGN_OR_RETURN(matmul_, DeviceMatMul::Create(stream_));
  const size_t angles = static_cast<size_t>(options_.max_sample_tokens * config_.head_dim / 2);
  std::vector<float> cosine(angles), sine(angles);
  FillRope(config_, options_.max_sample_tokens, cosine.data(), sine.data());
  for (const auto& [to, from] : {std::pair(w_.cosine, &cosine), std::pair(w_.sine, &sine)}) {
    BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemcpyAsync(
        to, from->data(), angles * sizeof(float), cudaMemcpyHostToDevice, stream_)));
  }
  Pieces batch(nullptr);
  DeviceBatch none;
  PlaceBatch(options_.max_tokens, &batch, &none);
  host_batch_.resize(static_cast<size_t>(batch.used()));
  host_nats_.resize(static_cast<size_t>(options_.max_tokens));
  return BITSHARD_CUDA_STATUS(cudaStreamSynchronize(stream_));
}

absl::Status DeviceDecoderEngine::Multiply(const DeviceMatrix& a, const DeviceMatrix& b,
                                           const DeviceMatrix& out, Scale scale) {
  return matmul_->Run({.a = a,
                       .b = b,
                       .out = out,
                       .alpha = scale.alpha,
                       .beta = scale.beta,
                       .type = type_,
                       .out_type = type_});
}

absl::Status DeviceDecoderEngine::Norm(void* x, const float* weight, void* y, float* inverse,
                                       int64_t rows, int64_t n) {
  return DeviceRmsNorm({.x = x,
                        .weight = weight,
                        .y = y,
                        .inverse_rms = inverse,
                        .rows = rows,
                        .n = n,
                        .eps = static_cast<float>(config_.rms_norm_eps),
                        .type = type_,
                        .stream = stream_});
}

absl::Status DeviceDecoderEngine::Rotate(const Pass& pass, void* x, int64_t heads, bool inverse) {
  return DeviceRope({.x = x,
                     .positions = w_.batch.positions,
                     .cosine = w_.cosine,
                     .sine = w_.sine,
                     .rows = pass.rows,
                     .heads = heads,
                     .head_dim = config_.head_dim,
                     .inverse = inverse,
                     .type = type_,
                     .stream = stream_});
}

absl::Status DeviceDecoderEngine::Copy(void* to, const void* from, int64_t elems) {
  return BITSHARD_CUDA_STATUS(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes_of(elems)),
                                              cudaMemcpyDeviceToDevice, stream_));
}

DeviceMatrix DeviceDecoderEngine::AdapterMatrix(const Pass& pass, int64_t tensor) const {
  const core::FlatTensor& t = adapter_.layout().tensor(tensor);
  if (type_ == core::DType::kFloat32)
    return {const_cast<float*>(pass.parameters) + t.offset(), t.shape[0], t.shape[1]};
  return {static_cast<std::byte*>(w_.adapter) + bytes_of(t.offset()), t.shape[0], t.shape[1]};
}

// The batch and, in bfloat16, the rounded adapter come to the device.
absl::Status DeviceDecoderEngine::Begin(const MicroBatch& batch, Pass* pass) {
  BITSHARD_RETURN_IF_ERROR(CheckBatch(batch, config_, options_));
  pass->rows = batch.num_tokens();
  const TrainedRows trained = TrainedRowsOf(batch);
  pass->trained_rows = static_cast<int64_t>(trained.rows.size());
  Pieces pieces(host_batch_.data());
  DeviceBatch host;
  PlaceBatch(options_.max_tokens, &pieces, &host);
  std::ranges::copy(batch.tokens, host.tokens);
  std::ranges::copy(trained.rows, host.trained_rows);
  std::ranges::copy(trained.targets, host.targets);
  for (size_t s = 0; s + 1 < batch.starts.size(); ++s) {
    for (int32_t t = batch.starts[s]; t < batch.starts[s + 1]; ++t) {
      host.positions[t] = t - batch.starts[s];
      host.sample_ids[t] = batch.sample_ids[s];
    }
  }
  // Read by the end of the pass at the latest, which waits for the stream (FetchLoss).
  BITSHARD_RETURN_IF_ERROR(
      BITSHARD_CUDA_STATUS(cudaMemcpyAsync(w_.batch.sample_ids, host_batch_.data(),
                                           host_batch_.size(), cudaMemcpyHostToDevice, stream_)));
  if (type_ == core::DType::kFloat32 || pass->parameters == nullptr) return absl::OkStatus();
  return DeviceConvert({.x = pass->parameters,
                        .x_type = core::DType::kFloat32,
                        .y = w_.adapter,
                        .y_type = type_,
                        .n = adapter_.layout().padded_elems(),
                        .stream = stream_});
}

absl::StatusOr<DeviceMatrix> DeviceDecoderEngine::Dropped(const Pass& pass, int64_t layer,
                                                          Module module, void* x) {
  const int64_t n = ShapeOf(config_, module).in;
  if (!pass.dropout) return DeviceMatrix{x, pass.rows, n};
  BITSHARD_RETURN_IF_ERROR(DeviceDropout({.key = DropoutKeyOf(pass, layer, module),
                                          .positions = w_.batch.positions,
                                          .sample_ids = w_.batch.sample_ids,
                                          .x = x,
                                          .y = w_.dropped,
                                          .rows = pass.rows,
                                          .n = n,
                                          .type = type_,
                                          .stream = stream_}));
  return DeviceMatrix{w_.dropped, pass.rows, n};
}

DropoutKey DeviceDecoderEngine::DropoutKeyOf(const Pass& pass, int64_t layer, Module module) const {
  return {.seed = pass.seed,
          .step = pass.step,
          .layer = layer,
          .module = module,
          .probability = adapter_.dropout()};
}

// z = A dropout(x), saved in the block.
absl::Status DeviceDecoderEngine::AdapterDown(const Pass& pass, int64_t layer, Module module,
                                              void* x) {
  if (!HasAdapter(pass, layer, module)) return absl::OkStatus();
  BITSHARD_ASSIGN_OR_RETURN(const DeviceMatrix input, Dropped(pass, layer, module, x));
  return Multiply(input, AdapterMatrix(pass, adapter_.tensors(layer, module).a).Transposed(),
                  {w_.block(layer).z[module], pass.rows, adapter_.r()}, {});
}

// y = W x + beta * y, and the adapter's part: y += scale * B (A dropout(x)).
absl::Status DeviceDecoderEngine::LinearForward(const Pass& pass, int64_t layer, Module module,
                                                void* x, void* y, float beta) {
  const LinearShape shape = ShapeOf(config_, module);
  const DeviceMatrix output{y, pass.rows, shape.out};
  BITSHARD_ASSIGN_OR_RETURN(const DeviceMatrix weight,
                            weights_.Linear(layer, module, w_.weight, w_.scales));
  BITSHARD_RETURN_IF_ERROR(
      Multiply({x, pass.rows, shape.in}, weight.Transposed(), output, {.beta = beta}));
  if (module <= kVProj) {
    const float* bias = weights_.vector(layer, static_cast<LayerVector>(int{kQBias} + int{module}));
    if (bias != nullptr) {
      BITSHARD_RETURN_IF_ERROR(DeviceAddBias({.y = y,
                                              .bias = bias,
                                              .rows = pass.rows,
                                              .n = shape.out,
                                              .type = type_,
                                              .stream = stream_}));
    }
  }
  if (!HasAdapter(pass, layer, module)) return absl::OkStatus();
  BITSHARD_RETURN_IF_ERROR(AdapterDown(pass, layer, module, x));
  return Multiply({w_.block(layer).z[module], pass.rows, adapter_.r()},
                  AdapterMatrix(pass, adapter_.tensors(layer, module).b).Transposed(), output,
                  {.alpha = adapter_.scale(), .beta = 1});
}

DeviceAttentionArgs DeviceDecoderEngine::AttentionOf(const Pass& pass,
                                                     const DeviceSavedBlock& s) const {
  return {.shape = {.heads = config_.num_attention_heads,
                    .kv_heads = config_.num_key_value_heads,
                    .head_dim = config_.head_dim,
                    .window = config_.sliding_window},
          .positions = w_.batch.positions,
          .q = s.q,
          .k = s.k,
          .v = s.v,
          .out = s.attention,
          .log_sum_exp = s.log_sum_exp,
          .rows = pass.rows,
          .type = type_,
          .stream = stream_};
}

// w_.norm = normalised input; q, k, v with rotation.
absl::Status DeviceDecoderEngine::QkvForward(const Pass& pass, int64_t layer,
                                             const DeviceSavedBlock& s) {
  const int64_t hd = config_.head_dim;
  const int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
  BITSHARD_RETURN_IF_ERROR(Norm(w_.x[static_cast<size_t>(layer)],
                                weights_.vector(layer, kInputNorm), w_.norm, s.input_inverse,
                                pass.rows, config_.hidden_size));
  const bool norms = config_.qk_norm;
  BITSHARD_RETURN_IF_ERROR(LinearForward(pass, layer, kQProj, w_.norm, norms ? s.q_raw : s.q, 0));
  BITSHARD_RETURN_IF_ERROR(LinearForward(pass, layer, kKProj, w_.norm, norms ? s.k_raw : s.k, 0));
  BITSHARD_RETURN_IF_ERROR(LinearForward(pass, layer, kVProj, w_.norm, s.v, 0));
  if (norms) {
    BITSHARD_RETURN_IF_ERROR(
        Norm(s.q_raw, weights_.vector(layer, kQNorm), s.q, s.q_inverse, pass.rows * heads, hd));
    BITSHARD_RETURN_IF_ERROR(
        Norm(s.k_raw, weights_.vector(layer, kKNorm), s.k, s.k_inverse, pass.rows * kv_heads, hd));
  }
  BITSHARD_RETURN_IF_ERROR(Rotate(pass, s.q, heads, /*inverse=*/false));
  return Rotate(pass, s.k, kv_heads, /*inverse=*/false);
}

// What follows attention: its output projection, both residuals, the MLP.
absl::Status DeviceDecoderEngine::MlpForward(const Pass& pass, int64_t layer, bool with_output) {
  const DeviceSavedBlock& s = w_.block(layer);
  const int64_t elems = pass.rows * config_.hidden_size;
  BITSHARD_RETURN_IF_ERROR(Copy(s.hidden, w_.x[static_cast<size_t>(layer)], elems));
  BITSHARD_RETURN_IF_ERROR(LinearForward(pass, layer, kOProj, s.attention, s.hidden, 1));
  BITSHARD_RETURN_IF_ERROR(Norm(s.hidden, weights_.vector(layer, kPostAttentionNorm), w_.norm,
                                s.hidden_inverse, pass.rows, config_.hidden_size));
  BITSHARD_RETURN_IF_ERROR(LinearForward(pass, layer, kGateProj, w_.norm, s.gate, 0));
  BITSHARD_RETURN_IF_ERROR(LinearForward(pass, layer, kUpProj, w_.norm, s.up, 0));
  BITSHARD_RETURN_IF_ERROR(DeviceSwiGlu({.gate = s.gate,
                                         .up = s.up,
                                         .out = w_.swiglu,
                                         .n = pass.rows * config_.intermediate_size,
                                         .type = type_,
                                         .stream = stream_}));
  if (!with_output) return AdapterDown(pass, layer, kDownProj, w_.swiglu);
  void* y = w_.x[static_cast<size_t>(layer) + 1];
  BITSHARD_RETURN_IF_ERROR(Copy(y, s.hidden, elems));
  return LinearForward(pass, layer, kDownProj, w_.swiglu, y, 1);
}

// x[layer + 1] from x[layer]. Without output: only what the backward pass needs, w_.swiglu and z of
// down_proj among it.
absl::Status DeviceDecoderEngine::BlockForward(const Pass& pass, int64_t layer, bool with_output) {
  const DeviceSavedBlock& s = w_.block(layer);
  BITSHARD_RETURN_IF_ERROR(QkvForward(pass, layer, s));
  BITSHARD_RETURN_IF_ERROR(DeviceAttention(AttentionOf(pass, s)));
  return MlpForward(pass, layer, with_output);
}

absl::Status DeviceDecoderEngine::RunBlocks(const Pass& pass) {
  BITSHARD_RETURN_IF_ERROR(DeviceGather({.from = weights_.embedding(),
                                         .index = w_.batch.tokens,
                                         .out = w_.x[0],
                                         .rows = pass.rows,
                                         .n = config_.hidden_size,
                                         .type = type_,
                                         .stream = stream_}));
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    BITSHARD_RETURN_IF_ERROR(BlockForward(pass, layer, /*with_output=*/true));
  }
  return absl::OkStatus();
}

// Trained rows [first, first + count): their loss, and with `gradient` theirs of w_.grad.
absl::Status DeviceDecoderEngine::LossRows(const Pass& pass, int64_t first, int64_t count,
                                           bool gradient) {
  const int64_t hidden = config_.hidden_size;
  const int32_t* index = w_.batch.trained_rows + first;
  const DeviceMatrix norm{w_.loss_norm, count, hidden};
  const DeviceMatrix logits{w_.logits, count, config_.vocab_size};
  BITSHARD_RETURN_IF_ERROR(DeviceGather({.from = w_.x.back(),
                                         .index = index,
                                         .out = w_.loss_hidden,
                                         .rows = count,
                                         .n = hidden,
                                         .type = type_,
                                         .stream = stream_}));
  BITSHARD_RETURN_IF_ERROR(
      Norm(w_.loss_hidden, weights_.final_norm(), w_.loss_norm, w_.loss_inverse, count, hidden));
  BITSHARD_RETURN_IF_ERROR(Multiply(norm, weights_.head().Transposed(), logits, {}));
  BITSHARD_RETURN_IF_ERROR(DeviceCrossEntropy({.logits = w_.logits,
                                               .targets = w_.batch.targets + first,
                                               .nats = w_.nats + first,
                                               .rows = count,
                                               .vocab = config_.vocab_size,
                                               .loss_scale = pass.loss_scale,
                                               .gradient = gradient,
                                               .type = type_,
                                               .stream = stream_}));
  if (!gradient) return absl::OkStatus();
  BITSHARD_RETURN_IF_ERROR(Multiply(logits, weights_.head(), norm, {}));
  BITSHARD_RETURN_IF_ERROR(NormBackward(w_.loss_hidden, weights_.final_norm(), w_.loss_inverse,
                                        w_.loss_norm, nullptr, w_.loss_grad, count, hidden));
  return DeviceScatter({.from = w_.loss_grad,
                        .index = index,
                        .to = w_.grad,
                        .rows = count,
                        .n = hidden,
                        .type = type_,
                        .stream = stream_});
}

absl::Status DeviceDecoderEngine::Loss(const Pass& pass, bool gradient) {
  if (gradient) {
    const int64_t bytes = bytes_of(pass.rows * config_.hidden_size);
    BITSHARD_RETURN_IF_ERROR(
        BITSHARD_CUDA_STATUS(cudaMemsetAsync(w_.grad, 0, static_cast<size_t>(bytes), stream_)));
  }
  for (int64_t first = 0; first < pass.trained_rows; first += kDeviceLogitRows) {
    const int64_t count = std::min(kDeviceLogitRows, pass.trained_rows - first);
    BITSHARD_RETURN_IF_ERROR(LossRows(pass, first, count, gradient));
  }
  return absl::OkStatus();
}

// Waits for the stream.
absl::StatusOr<LossSum> DeviceDecoderEngine::FetchLoss(const Pass& pass) {
  LossSum sum{.trained_tokens = pass.trained_rows, .tokens = pass.rows};
  const size_t rows = static_cast<size_t>(pass.trained_rows);
  if (rows > 0) {
    BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemcpyAsync(
        host_nats_.data(), w_.nats, rows * sizeof(double), cudaMemcpyDeviceToHost, stream_)));
  }
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaStreamSynchronize(stream_)));
  for (size_t i = 0; i < rows; ++i) sum.nats += host_nats_[i];
  return sum;
}

absl::StatusOr<LossSum> DeviceDecoderEngine::ForwardBackward(
    const MicroBatch& batch, const DevicePassArgs& args,
    absl::FunctionRef<absl::Status(int64_t tensor)> ready) {
  if (adapter_.layout().num_tensors() == 0)
    return core::ConfigError("lora_r is 0: there is nothing to train");
  Pass pass{.parameters = args.parameters,
            .gradients = args.gradients,
            .seed = args.seed,
            .step = args.step,
            .loss_scale = static_cast<float>(args.loss_scale),
            .dropout = adapter_.dropout() > 0,
            .ready = &ready};
  BITSHARD_RETURN_IF_ERROR(Begin(batch, &pass));
  BITSHARD_RETURN_IF_ERROR(RunBlocks(pass));
  BITSHARD_RETURN_IF_ERROR(Loss(pass, /*gradient=*/true));
  for (int64_t layer = config_.num_hidden_layers - 1; layer >= 0; --layer) {
    BITSHARD_RETURN_IF_ERROR(BlockBackward(pass, layer));
  }
  return FetchLoss(pass);
}

absl::StatusOr<LossSum> DeviceDecoderEngine::Evaluate(const MicroBatch& batch,
                                                      const float* parameters) {
  Pass pass{.parameters = parameters};
  BITSHARD_RETURN_IF_ERROR(Begin(batch, &pass));
  BITSHARD_RETURN_IF_ERROR(RunBlocks(pass));
  BITSHARD_RETURN_IF_ERROR(Loss(pass, /*gradient=*/false));
  return FetchLoss(pass);
}

absl::StatusOr<std::unique_ptr<DeviceDecoder>> DeviceDecoder::Create(const io::WeightSource& source,
                                                                     const DecoderOptions& options,
                                                                     cudaStream_t stream) {
  BITSHARD_ASSIGN_OR_RETURN(Adapter adapter, Adapter::Create(source.config(), options.lora));
  auto engine =
      std::make_unique<DeviceDecoderEngine>(source.config(), options, std::move(adapter), stream);
  BITSHARD_RETURN_IF_ERROR(engine->Load(source));
  return engine;
}

absl::StatusOr<DecoderCost> DeviceDecoder::Cost(const ModelConfig& config,
                                                const DecoderOptions& options) {
  BITSHARD_ASSIGN_OR_RETURN(const Adapter adapter, Adapter::Create(config, options.lora));
  DecoderCost cost = DeviceWeights::Cost(config, options);
  const DecoderCost workspace = DeviceWorkspace::Cost(config, options, adapter);
  cost.activations = workspace.activations;
  cost.dequantized = workspace.dequantized;
  cost.packed = DeviceMatMul::kWorkspaceBytes;
  return cost;
}

}  // namespace bitshard::trainer
