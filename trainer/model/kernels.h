// The elementwise and row-wise operations of the decoder, vectorised: T is float or
// hwy::bfloat16_t, arithmetic is float32, each result is rounded once. Shapes are row-major. Rows
// are independent of each other.
#ifndef BITSHARD_TRAINER_MODEL_KERNELS_H_
#define BITSHARD_TRAINER_MODEL_KERNELS_H_

#include <hwy/base.h>

#include <cstdint>

namespace bitshard::trainer {

/// y [rows, n] = x / sqrt(mean(x^2) + eps) * weight [n]; inverse_rms [rows] is kept for the
/// backward pass. Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
template <class T>
struct RmsNormArgs {
  const T* x = nullptr;
  const float* weight = nullptr;
  T* y = nullptr;
  float* inverse_rms = nullptr;
  int64_t rows = 0;
  int64_t n = 0;
  float eps = 0;
};
void RmsNorm(const RmsNormArgs<float>& args);
void RmsNorm(const RmsNormArgs<hwy::bfloat16_t>& args);

/// dx [rows, n] = (add, or 0) + gradient of RmsNorm with respect to x, for the gradient dy of its
/// output. dx may alias add or dy.
template <class T>
struct RmsNormBackwardArgs {
  const T* x = nullptr;
  const float* weight = nullptr;
  const float* inverse_rms = nullptr;
  const T* dy = nullptr;
  const T* add = nullptr;  ///< May be nullptr.
  T* dx = nullptr;
  int64_t rows = 0;
  int64_t n = 0;
};
void RmsNormBackward(const RmsNormBackwardArgs<float>& args);
void RmsNormBackward(const RmsNormBackwardArgs<hwy::bfloat16_t>& args);

/// Rotary embedding in place, split halves: (a, b) of a head's two halves becomes (a cos - b sin, b
/// cos + a sin); inverse: with -sin, which is its backward pass. Su et al., "RoFormer", 2021.
template <class T>
struct RopeArgs {
  T* x = nullptr;                      ///< [rows, heads * head_dim]
  const int32_t* positions = nullptr;  ///< [rows]
  const float* cosine = nullptr;       ///< [positions, head_dim / 2]
  const float* sine = nullptr;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  bool inverse = false;
};
void Rope(const RopeArgs<float>& args);
void Rope(const RopeArgs<hwy::bfloat16_t>& args);

/// out = silu(gate) * up. Shazeer, "GLU Variants Improve Transformer", 2020.
void SwiGlu(const float* gate, const float* up, float* out, int64_t n);
void SwiGlu(const hwy::bfloat16_t* gate, const hwy::bfloat16_t* up, hwy::bfloat16_t* out,
            int64_t n);
/// d_gate and d_up from d_out; they may alias gate and up.
template <class T>
struct SwiGluBackwardArgs {
  const T* gate = nullptr;
  const T* up = nullptr;
  const T* d_out = nullptr;
  T* d_gate = nullptr;
  T* d_up = nullptr;
  int64_t n = 0;
};
void SwiGluBackward(const SwiGluBackwardArgs<float>& args);
void SwiGluBackward(const SwiGluBackwardArgs<hwy::bfloat16_t>& args);

/// y += x.
void AddInPlace(float* y, const float* x, int64_t n);
void AddInPlace(hwy::bfloat16_t* y, const hwy::bfloat16_t* x, int64_t n);
/// Adds bias [n] to every row.
void AddBias(float* y, const float* bias, int64_t rows, int64_t n);
void AddBias(hwy::bfloat16_t* y, const float* bias, int64_t rows, int64_t n);
void Convert(const float* x, float* y, int64_t n);
void Convert(const float* x, hwy::bfloat16_t* y, int64_t n);
void Convert(const hwy::bfloat16_t* x, float* y, int64_t n);

/// Softmax cross-entropy of rows of logits, and its gradient in place of them.
/// Row i: nats[i] = log(sum(exp(logits))) - logits[target]; logits = (softmax - onehot(target)) *
/// loss_scale.
template <class T>
struct CrossEntropyArgs {
  T* logits = nullptr;  ///< [rows, vocab]
  const int32_t* targets = nullptr;
  double* nats = nullptr;
  int64_t rows = 0;
  int64_t vocab = 0;
  float loss_scale = 1;
  bool gradient = true;  ///< false: logits are left as they are.
};
void CrossEntropy(const CrossEntropyArgs<float>& args);
void CrossEntropy(const CrossEntropyArgs<hwy::bfloat16_t>& args);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_KERNELS_H_
