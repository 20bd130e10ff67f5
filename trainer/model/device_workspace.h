// The one arena of a DeviceDecoder in device memory: saved activations, scratch, tables and the
// batch, laid out once from the shape of the model. Built only with BITSHARD_CUDA.
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_WORKSPACE_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_WORKSPACE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "paging/cuda_resource.h"
#include "trainer/model/adapter.h"
#include "trainer/model/decoder.h"
#include "trainer/model/pieces.h"

namespace bitshard::trainer {

/// Trained tokens whose logits exist at a time: enough rows for the head's product to fill a GPU.
inline constexpr int64_t kDeviceLogitRows = 512;

/// What a block's backward pass needs from its forward pass. Activations are of the decoder's type,
/// for up to max_tokens rows.
struct DeviceSavedBlock {
  void *q = nullptr, *k = nullptr, *v = nullptr;  ///< After normalisation and rotation.
  void *q_raw = nullptr, *k_raw = nullptr;        ///< Before q/k normalisation, where there is one.
  void* attention = nullptr;                      ///< [rows, heads * head_dim]
  void* hidden = nullptr;                         ///< After attention and its residual.
  void *gate = nullptr, *up = nullptr;
  float* log_sum_exp = nullptr;  ///< [heads, rows]
  float *input_inverse = nullptr, *hidden_inverse = nullptr, *q_inverse = nullptr,
        *k_inverse = nullptr;
  std::array<void*, kNumModules> z = {};  ///< A dropout(x) of each adapter, [rows, r].
};

/// What the kernels read of a batch: one copy from the host. [max_tokens] each.
struct DeviceBatch {
  int64_t* sample_ids = nullptr;  ///< Of each token.
  int32_t* tokens = nullptr;
  int32_t* positions = nullptr;
  int32_t* trained_rows = nullptr;  ///< Rows that have a target, and it.
  int32_t* targets = nullptr;
};

struct DeviceWorkspace {
  std::vector<void*> x;  ///< [layers + 1]: each block's input, and the last one's output.
  std::vector<DeviceSavedBlock>
      saved;  ///< One a layer, or a single one with activation checkpointing.
  void *norm = nullptr, *swiglu = nullptr, *dropped = nullptr;
  void *grad = nullptr, *d_norm = nullptr, *d_attention = nullptr, *d_swiglu = nullptr,
       *d_z = nullptr, *d_q = nullptr, *d_k = nullptr, *d_v = nullptr;
  float* dots = nullptr;    ///< [heads, rows]
  void* adapter = nullptr;  ///< The adapter arena, rounded; bfloat16 only.
  void* weight = nullptr;   ///< Dequantised: the largest Linear layer.
  float* scales = nullptr;  ///< Its scales.
  void *logits = nullptr, *loss_hidden = nullptr, *loss_norm = nullptr, *loss_grad = nullptr;
  float* loss_inverse = nullptr;
  double* nats = nullptr;                    ///< [max_tokens]: of each trained row.
  float *cosine = nullptr, *sine = nullptr;  ///< [max_sample_tokens, head_dim / 2]
  DeviceBatch batch;

  const DeviceSavedBlock& block(int64_t layer) const {
    return saved[saved.size() == 1 ? 0 : static_cast<size_t>(layer)];
  }

  /// Allocates. Errors: kMemory.
  absl::Status Create(const ModelConfig& config, const DecoderOptions& options,
                      const Adapter& adapter);
  /// Bytes on the device: `activations` and `dequantized`.
  static DecoderCost Cost(const ModelConfig& config, const DecoderOptions& options,
                          const Adapter& adapter);

  paging::DeviceResource device;
  paging::Allocation<paging::DeviceResource> memory;
};

/// The batch, where `pieces` has room for it. Its bytes are those of `pieces`.
void PlaceBatch(int64_t max_tokens, Pieces* pieces, DeviceBatch* batch);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_WORKSPACE_H_
