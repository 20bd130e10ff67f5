// Matrix products: large float32 ones by trainer/model/gemm.h, the others by LibTorch (MKL for
// float32, oneDNN for bfloat16). The only place of the model that sees torch.
//
//   MatMul({.a = x, .b = w.Transposed(), .out = y});                         // y = x w^T
//   MatMul({.a = z, .b = b.Transposed(), .out = y, .alpha = 2, .beta = 1});  // y += 2 z b^T
#ifndef BITSHARD_TRAINER_MODEL_MATMUL_H_
#define BITSHARD_TRAINER_MODEL_MATMUL_H_

#include <hwy/base.h>

#include <cstdint>

namespace bitshard::trainer {

/// A row-major matrix of float or hwy::bfloat16_t, or the transposed view of one. Does not own its
/// elements.
template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;

  Matrix() = default;
  Matrix(T* d, int64_t r, int64_t c) : data(d), rows(r), columns(c), row_stride(c) {}
  Matrix Transposed() const {
    Matrix m = *this;
    m.rows = columns;
    m.columns = rows;
    m.row_stride = column_stride;
    m.column_stride = row_stride;
    return m;
  }
};

template <class T>
struct MatMulArgs {
  Matrix<T> a;    ///< [m, k]
  Matrix<T> b;    ///< [k, n]
  Matrix<T> out;  ///< [m, n], not transposed
  float alpha = 1;
  float beta = 0;  ///< 0: out is overwritten, whatever it holds.
};

/// out = alpha * a b + beta * out. Threads: core::NumThreads(). The same bits for the same shapes,
/// values and threads.
void MatMul(const MatMulArgs<float>& args);
void MatMul(const MatMulArgs<hwy::bfloat16_t>& args);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_MATMUL_H_
