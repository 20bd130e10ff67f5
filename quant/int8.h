// LLM.int8() on the CPU (Dettmers et al. 2022, arXiv 2208.07339): rows quantised to int8 by their
// largest magnitude, the product of two such matrices in exact integers, and the way back.
// Arithmetic: docs/numerics.md; the layouts are bitsandbytes'.
//
//   quant::QuantizeRowsInt8(x, {.rows = m, .cols = k}, 0.0f, qx, x_stats);
//   quant::MultiplyInt8({.a = qx, .b = qw, .rows = m, .cols = n, .depth = k, .out = product});
//   quant::DequantizeInt8Product({.product = product, .row_stats = x_stats, .col_stats = w_stats,
//                                 .bias = {}, .out = y});
//
// Matrices are row-major without gaps. All functions use core::NumThreads() threads; any thread may
// call them. Errors of all: kInvalidArgument for sizes that don't fit together.
#ifndef BITSHARD_QUANT_INT8_H_
#define BITSHARD_QUANT_INT8_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"

namespace bitshard::quant {

struct MatrixSize {
  int64_t rows = 0;
  int64_t cols = 0;
};

/// The deepest product whose sums can't leave int32: depth * (-128)^2 < 2^31.
inline constexpr int64_t kMaxInt8Depth = (int64_t{1} << 17) - 1;

/// Shapes: x and q [rows, cols], stats [rows]. stats[r] = max |x[r, c]|, q = x * (127 / stats[r])
/// rounded to the nearest integer, ties to even. Elements with |x| >= threshold are outliers where
/// threshold > 0: no part of the maximum, and their q is 0. A row of zeros, and one so small that
/// 127 / stats overflows, has q 0; one with a NaN, or with an infinity that is no outlier, has q 0
/// and that as its stats, so that it comes back as NaN.
absl::Status QuantizeRowsInt8(std::span<const float> x, MatrixSize size, float threshold,
                              std::span<int8_t> q, std::span<float> stats);

/// out[r, c] = (q[r, c] * stats[r]) * float32(1 / 127).
absl::Status DequantizeRowsInt8(std::span<const int8_t> q, MatrixSize size,
                                std::span<const float> stats, std::span<float> out);

struct Int8Product {
  std::span<const int8_t> a;  ///< [rows, depth]
  std::span<const int8_t> b;  ///< [cols, depth]
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t depth = 0;       ///< At most kMaxInt8Depth.
  std::span<int32_t> out;  ///< [rows, cols]
};

/// out = a times the transpose of b, exact for every int8, -128 too. Memory: a once more, at 16
/// bits.
absl::Status MultiplyInt8(const Int8Product& args);

struct Int8Dequantization {
  std::span<const int32_t> product;  ///< [rows, cols], row_stats.size() times col_stats.size()
  std::span<const float> row_stats;  ///< [rows], of the left matrix's rows
  std::span<const float> col_stats;  ///< [cols], of the right matrix's rows
  std::span<const float> bias;       ///< [cols], or empty: none
  std::span<float> out;              ///< [rows, cols]
};

/// out[r, c] = (product * (row_stats[r] * col_stats[c])) * float32(1 / 127^2) + bias[c].
absl::Status DequantizeInt8Product(const Int8Dequantization& args);

}  // namespace bitshard::quant

#endif  // BITSHARD_QUANT_INT8_H_
