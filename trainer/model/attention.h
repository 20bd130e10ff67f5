// Causal attention inside each sample, with grouped key/value heads, without a matrix of sample x
// sample: scores are made tile by tile, and the backward pass makes them again from the saved
// log-sum-exp. Dao, "FlashAttention-2", 2023; Ainslie et al., "GQA", 2023.
#ifndef BITSHARD_TRAINER_MODEL_ATTENTION_H_
#define BITSHARD_TRAINER_MODEL_ATTENTION_H_

#include <hwy/base.h>

#include <cstdint>
#include <vector>

#include "trainer/model/attention_shape.h"

namespace bitshard::trainer {

/// Bytes of scratch that either pass needs for samples of at most `max_sample_tokens`, all threads
/// together.
int64_t AttentionScratchBytes(const AttentionShape& shape, int64_t max_sample_tokens, int threads);

template <class T>
struct AttentionArgs {
  AttentionShape shape;
  const std::vector<int32_t>* starts =
      nullptr;           ///< [samples + 1]: sample s is rows [starts[s], starts[s + 1]).
  const T* q = nullptr;  ///< [rows, heads * head_dim]
  const T* k = nullptr;  ///< [rows, kv_heads * head_dim]
  const T* v = nullptr;
  T* out = nullptr;              ///< [rows, heads * head_dim]
  float* log_sum_exp = nullptr;  ///< [heads, rows] of the scaled scores.
  int64_t rows = 0;
  float* scratch = nullptr;
  int64_t max_sample_tokens = 0;
};
void Attention(const AttentionArgs<float>& args);
void Attention(const AttentionArgs<hwy::bfloat16_t>& args);

/// dq, dk, dv from d_out and what the forward pass left. dq may alias q, dk k and dv v; d_out none.
template <class T>
struct AttentionBackwardArgs {
  AttentionArgs<T> forward;
  const T* d_out = nullptr;
  T* dq = nullptr;
  T* dk = nullptr;
  T* dv = nullptr;
};
void AttentionBackward(const AttentionBackwardArgs<float>& args);
void AttentionBackward(const AttentionBackwardArgs<hwy::bfloat16_t>& args);

/// One query row of a sequence against `length` cached rows of keys and values [length, kv_heads *
/// head_dim].
template <class T>
struct DecodeAttentionArgs {
  AttentionShape shape;
  const T* q = nullptr;  ///< [heads * head_dim]
  const T* k = nullptr;
  const T* v = nullptr;
  T* out = nullptr;  ///< [heads * head_dim]
  int64_t length = 0;
};
void DecodeAttention(const DecodeAttentionArgs<float>& args);
void DecodeAttention(const DecodeAttentionArgs<hwy::bfloat16_t>& args);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_ATTENTION_H_
