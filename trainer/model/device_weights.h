// The frozen base in device memory: Linear weights in 4 bits or dense, norms, embeddings; what
// trainer/model/frozen_weights.h is on the CPU, with the same codes and scales. Built only with
// BITSHARD_CUDA.
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_WEIGHTS_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_WEIGHTS_H_

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/dtype.h"
#include "paging/cuda_resource.h"
#include "trainer/io/weight_source.h"
#include "trainer/model/adapter.h"
#include "trainer/model/decoder.h"
#include "trainer/model/device_matmul.h"
#include "trainer/model/frozen_weights.h"
#include "trainer/model/pieces.h"

namespace bitshard::trainer {

class DeviceWeights {
 public:
  /// Reads tensor by tensor, quantises on the host and copies. Waits for the copies. Errors:
  /// kMemory; those of the source.
  absl::Status Load(const io::WeightSource& source, const DecoderOptions& options,
                    cudaStream_t stream);
  /// Bytes on the device, by purpose: `base_weights` and `embeddings`.
  static DecoderCost Cost(const ModelConfig& config, const DecoderOptions& options);

  /// [out, in]. In 4 bits: its dequantisation into `scratch`, which holds the largest Linear layer,
  /// is enqueued; `scales` holds the float32 scales of that layer.
  absl::StatusOr<DeviceMatrix> Linear(int64_t layer, Module module, void* scratch,
                                      float* scales) const;
  /// nullptr where the architecture has none.
  const float* vector(int64_t layer, LayerVector which) const {
    return layers_[static_cast<size_t>(layer)].vectors[which];
  }
  const float* final_norm() const { return final_norm_; }
  const void* embedding() const { return embedding_; }
  /// [vocab, hidden]: the embedding itself where they are tied.
  DeviceMatrix head() const;

 private:
  // Pointers to device memory; `nested` of double-quantised scales.
  struct LinearWeight {
    void* dense = nullptr;
    uint8_t* packed = nullptr;
    float* absmax = nullptr;
    uint8_t* nested_codes = nullptr;
    float* nested_absmax = nullptr;
    float offset = 0;
  };
  struct Layer {
    std::array<LinearWeight, kNumModules> linear;
    std::array<float*, kNumLayerVectors> vectors = {};
  };

  void Place(const ModelConfig& config, const DecoderOptions& options, Pieces* base,
             Pieces* embeddings);
  absl::Status LoadTable(const io::WeightSource& source, const std::string& name, void* to);
  absl::Status LoadLinear(const io::WeightSource& source, int64_t layer, Module module);
  absl::Status LoadVector(const io::WeightSource& source, const std::string& name, int64_t n,
                          float* to);
  absl::Status Upload(void* to, const void* from, int64_t bytes) const;
  absl::Status UploadRounded(void* to, const std::vector<float>& from) const;

  ModelConfig config_;
  DecoderOptions options_;
  core::DType type_ = core::DType::kFloat32;
  cudaStream_t stream_ = nullptr;
  paging::DeviceResource device_;
  paging::Allocation<paging::DeviceResource> base_memory_, embedding_memory_;
  std::vector<Layer> layers_;
  float* final_norm_ = nullptr;
  void* embedding_ = nullptr;
  void* head_ = nullptr;
  std::vector<float> read_;  // The tensor being read.
};

/// float32 or bfloat16.
core::DType TypeOf(ActivationType compute);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_WEIGHTS_H_
