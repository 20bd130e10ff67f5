// The one arena of a Decoder: saved activations, scratch and tables, laid out once from the shape
// of the model.
#ifndef BITSHARD_TRAINER_MODEL_WORKSPACE_H_
#define BITSHARD_TRAINER_MODEL_WORKSPACE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "core/aligned_buffer.h"
#include "trainer/model/adapter.h"
#include "trainer/model/decoder.h"

namespace bitshard::trainer {

/// Tokens whose logits exist at a time: the vocabulary is wide, and only this many rows of it are
/// ever in memory.
inline constexpr int64_t kLogitRows = 256;

/// Rows of a batch are padded with zeros to a multiple of this, and rows of logits to one of
/// kLogitRowsMultiple: oneDNN compiles and keeps a kernel for every number of rows that it meets.
inline constexpr int64_t kRowsMultiple = 64;
inline constexpr int64_t kLogitRowsMultiple = 32;
inline constexpr int64_t PadRows(int64_t rows, int64_t multiple) {
  return (rows + multiple - 1) / multiple * multiple;
}

/// What a block's backward pass needs from its forward pass, for up to max_tokens rows.
template <class T>
struct SavedBlock {
  T *q = nullptr, *k = nullptr, *v = nullptr;  ///< After normalisation and rotation.
  T *q_raw = nullptr, *k_raw = nullptr;        ///< Before q/k normalisation, where there is one.
  T* attention = nullptr;                      ///< [rows, heads * head_dim]
  T* hidden = nullptr;                         ///< After attention and its residual.
  T *gate = nullptr, *up = nullptr;
  float* log_sum_exp = nullptr;  ///< [heads, rows]
  float *input_inverse = nullptr, *hidden_inverse = nullptr, *q_inverse = nullptr,
        *k_inverse = nullptr;
  std::array<T*, kNumModules> z = {};  ///< A dropout(x) of each adapter, [rows, r].
};

template <class T>
struct Workspace {
  std::vector<T*> x;  ///< [layers + 1]: each block's input, and the last one's output.
  std::vector<SavedBlock<T>>
      saved;  ///< One a layer, or a single one with activation checkpointing.
  T *norm = nullptr, *swiglu = nullptr, *dropped = nullptr;
  T *grad = nullptr, *d_norm = nullptr, *d_attention = nullptr, *d_swiglu = nullptr, *d_z = nullptr;
  T *adapter_a = nullptr, *adapter_b = nullptr, *adapter_grad = nullptr;  ///< bfloat16 only.
  T* weight = nullptr;  ///< Dequantised: the largest Linear layer.
  T *logits = nullptr, *loss_hidden = nullptr, *loss_norm = nullptr, *loss_grad = nullptr;
  float* loss_inverse = nullptr;
  double* nats = nullptr;
  float* attention_scratch = nullptr;
  float *cosine = nullptr, *sine = nullptr;  ///< [max_sample_tokens, head_dim / 2]
  int32_t* positions = nullptr;

  const SavedBlock<T>& block(int64_t layer) const {
    return saved[saved.size() == 1 ? 0 : static_cast<size_t>(layer)];
  }

  /// Allocates. Errors: kMemory.
  absl::Status Create(const ModelConfig& config, const DecoderOptions& options,
                      const Adapter& adapter);
  core::AlignedBuffer buffer;
};

/// Bytes of the arena: activations, and apart from them the scratch for dequantised weights.
DecoderCost WorkspaceCost(const ModelConfig& config, const DecoderOptions& options,
                          const Adapter& adapter);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_WORKSPACE_H_
