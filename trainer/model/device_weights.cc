#include "trainer/model/device_weights.h"

#include <hwy/base.h>

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"
#include "core/cuda_status.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "quant/blockwise.h"
#include "quant/blockwise_cuda.h"
#include "trainer/model/kernels.h"

namespace bitshard::trainer {
core::DType TypeOf(ActivationType compute) {
  return compute == ActivationType::kFloat32 ? core::DType::kFloat32 : core::DType::kBFloat16;
}

// The embedding and head in `embeddings`, everything else in `base`.
void DeviceWeights::Place(const ModelConfig& config, const DecoderOptions& options, Pieces* base,
                          Pieces* embeddings) {
  const int64_t element = core::ByteSize(TypeOf(options.compute));
  const int64_t table_bytes = config.vocab_size * config.hidden_size * element;
  embedding_ = embeddings->Take(table_bytes);
  head_ = config.tie_word_embeddings ? embedding_ : embeddings->Take(table_bytes);
  base->Take(&final_norm_, config.hidden_size);
  layers_.resize(static_cast<size_t>(config.num_hidden_layers));
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    Layer& layer = layers_[static_cast<size_t>(i)];
    for (const VectorSpec& spec : VectorsOf(config, i)) {
      base->Take(&layer.vectors[spec.which], spec.n);
    }
    for (int m = 0; m < kNumModules; ++m) {
      LinearWeight& weight = layer.linear[static_cast<size_t>(m)];
      const int64_t n = ShapeOf(config, static_cast<Module>(m)).numel();
      if (!options.load_in_4bit) {
        weight.dense = base->Take(n * element);
        continue;
      }
      const int64_t scales = quant::NumBlocks(n, options.quant_block_size);
      base->Take(&weight.packed, quant::PackedBytes(n));
      if (options.double_quant) {
        base->Take(&weight.nested_codes, scales);
        base->Take(&weight.nested_absmax, quant::NumBlocks(scales, 256));
      } else {
        base->Take(&weight.absmax, scales);
      }
    }
  }
}

DecoderCost DeviceWeights::Cost(const ModelConfig& config, const DecoderOptions& options) {
  DeviceWeights weights;
  Pieces base(nullptr), embeddings(nullptr);
  weights.Place(config, options, &base, &embeddings);
  return {.base_weights = base.used(), .embeddings = embeddings.used()};
}

absl::Status DeviceWeights::Load(const io::WeightSource& source, const DecoderOptions& options,
                                 cudaStream_t stream) {
  config_ = source.config();
  options_ = options;
  type_ = TypeOf(options.compute);
  stream_ = stream;
  const DecoderCost cost = Cost(config_, options);
  BITSHARD_ASSIGN_OR_RETURN(base_memory_, paging::Allocation<paging::DeviceResource>::Create(
                                              &device_, cost.base_weights, "base weights"));
  BITSHARD_ASSIGN_OR_RETURN(embedding_memory_, paging::Allocation<paging::DeviceResource>::Create(
                                                   &device_, cost.embeddings, "embeddings"));
  Pieces base(base_memory_.memory().data()), embeddings(embedding_memory_.memory().data());
  Place(config_, options, &base, &embeddings);
  BITSHARD_RETURN_IF_ERROR(LoadTable(source, "model.embed_tokens.weight", embedding_));
  if (!config_.tie_word_embeddings)
    BITSHARD_RETURN_IF_ERROR(LoadTable(source, "lm_head.weight", head_));
  BITSHARD_RETURN_IF_ERROR(
      LoadVector(source, "model.norm.weight", config_.hidden_size, final_norm_));
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    for (const VectorSpec& spec : VectorsOf(config_, layer)) {
      BITSHARD_RETURN_IF_ERROR(LoadVector(source, spec.name, spec.n,
                                          layers_[static_cast<size_t>(layer)].vectors[spec.which]));
    }
    for (int m = 0; m < kNumModules; ++m) {
      BITSHARD_RETURN_IF_ERROR(LoadLinear(source, layer, static_cast<Module>(m)));
    }
  }
  read_ = std::vector<float>();  // Assigning {} would keep its memory.
  return absl::OkStatus();
}

// The caller goes on to change `from`. CUDA stages pageable memory before the call returns, except
// where the device reads it by itself (cudaDevAttrPageableMemoryAccess): so this waits.
absl::Status DeviceWeights::Upload(void* to, const void* from, int64_t bytes) const {
  if (bytes == 0) return absl::OkStatus();
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_)));
  return BITSHARD_CUDA_STATUS(cudaStreamSynchronize(stream_));
}

absl::Status DeviceWeights::UploadRounded(void* to, const std::vector<float>& from) const {
  const int64_t n = static_cast<int64_t>(from.size());
  if (type_ == core::DType::kFloat32) return Upload(to, from.data(), n * 4);
  std::vector<hwy::bfloat16_t> rounded(from.size());
  Convert(from.data(), rounded.data(), n);
  return Upload(to, rounded.data(), n * 2);
}

// In slices: the whole table in float32 would be the largest thing that loading holds.
absl::Status DeviceWeights::LoadTable(const io::WeightSource& source, const std::string& name,
                                      void* to) {
  const int64_t hidden = config_.hidden_size, element = core::ByteSize(type_);
  const int64_t rows = std::max<int64_t>(1, (int64_t{1} << 20) / hidden);
  for (int64_t row = 0; row < config_.vocab_size; row += rows) {
    const int64_t count = std::min(rows, config_.vocab_size - row);
    read_.resize(static_cast<size_t>(count * hidden));
    BITSHARD_RETURN_IF_ERROR(source.ReadRows(name, row, std::span<float>(read_)));
    BITSHARD_RETURN_IF_ERROR(
        UploadRounded(static_cast<std::byte*>(to) + row * hidden * element, read_));
  }
  return absl::OkStatus();
}

absl::Status DeviceWeights::LoadVector(const io::WeightSource& source, const std::string& name,
                                       int64_t n, float* to) {
  read_.resize(static_cast<size_t>(n));
  BITSHARD_RETURN_IF_ERROR(source.Read(name, std::span<float>(read_)));
  return Upload(to, read_.data(), n * 4);
}

absl::Status DeviceWeights::LoadLinear(const io::WeightSource& source, int64_t layer,
                                       Module module) {
  const std::string name = absl::StrCat(LinearName(layer, module), ".weight");
  LinearWeight& weight = layers_[static_cast<size_t>(layer)].linear[module];
  read_.resize(static_cast<size_t>(ShapeOf(config_, module).numel()));
  BITSHARD_RETURN_IF_ERROR(source.Read(name, std::span<float>(read_)));
  if (!options_.load_in_4bit) return UploadRounded(weight.dense, read_);
  quant::Tensor4Bit packed;
  BITSHARD_RETURN_IF_ERROR(core::AddContext(
      quant::QuantizeTensor4Bit(read_, options_.quant_type, options_.quant_block_size,
                                options_.double_quant, &packed),
      name));
  const auto upload = [&](auto* to, const auto& from) {
    return Upload(to, from.data(), static_cast<int64_t>(from.size() * sizeof(from[0])));
  };
  BITSHARD_RETURN_IF_ERROR(upload(weight.packed, packed.packed));
  if (!options_.double_quant) return upload(weight.absmax, packed.absmax);
  weight.offset = packed.nested.offset;
  BITSHARD_RETURN_IF_ERROR(upload(weight.nested_codes, packed.nested.codes));
  return upload(weight.nested_absmax, packed.nested.absmax);
}

absl::StatusOr<DeviceMatrix> DeviceWeights::Linear(int64_t layer, Module module, void* scratch,
                                                   float* scales) const {
  const LinearShape shape = ShapeOf(config_, module);
  const LinearWeight& weight = layers_[static_cast<size_t>(layer)].linear[module];
  if (!options_.load_in_4bit) return DeviceMatrix{weight.dense, shape.out, shape.in};
  if (options_.double_quant) {
    BITSHARD_RETURN_IF_ERROR(quant::DequantizeAbsmaxCuda(
        {.codes = weight.nested_codes,
         .n = quant::NumBlocks(shape.numel(), options_.quant_block_size),
         .absmax = weight.nested_absmax,
         .offset = weight.offset,
         .out = scales,
         .stream = stream_}));
  }
  BITSHARD_RETURN_IF_ERROR(
      quant::Dequantize4BitCuda({.packed = weight.packed,
                                 .n = shape.numel(),
                                 .absmax = options_.double_quant ? scales : weight.absmax,
                                 .type = options_.quant_type,
                                 .block_size = options_.quant_block_size,
                                 .out = scratch,
                                 .out_type = type_,
                                 .stream = stream_}));
  return DeviceMatrix{scratch, shape.out, shape.in};
}

DeviceMatrix DeviceWeights::head() const {
  return {head_, config_.vocab_size, config_.hidden_size};
}

}  // namespace bitshard::trainer
