// The product widens int8 to int16, multiplies pairs and adds them in int32 (pmaddwd, vpdpwssd):
// no step can saturate, as the pairs of 8-bit products of pmaddubsw could.
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/numeric.h"
#include "core/parallel.h"
#include "core/status_macros.h"
#include "quant/block_codec.h"
#include "quant/int8.h"

#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/int8_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef BITSHARD_QUANT_INT8_CPU_ONCE_
#define BITSHARD_QUANT_INT8_CPU_ONCE_
namespace bitshard::quant {

// Part of a product: `rows` of a, widened, times `cols` of b.
struct WideProduct {
  const int16_t* a;  // [rows, stride]; zeros from depth to stride
  size_t stride;
  const int8_t* b;  // [cols, depth]
  size_t depth;
  size_t rows;
  size_t cols;
  int32_t* out;  // [rows, out_stride]
  size_t out_stride;
};

// The stride is a multiple of the widest vector, in int16.
inline constexpr int64_t kWideAlign = 32;

}  // namespace bitshard::quant
#endif  // BITSHARD_QUANT_INT8_CPU_ONCE_

HWY_BEFORE_NAMESPACE();
namespace bitshard::quant::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using WideTag = hn::CappedTag<int16_t, kWideAlign>;
using SumTag = hn::RepartitionToWide<WideTag>;
using NarrowTag = hn::Rebind<int8_t, WideTag>;
inline constexpr size_t kLanes = hn::MaxLanes(WideTag());

// The sums of kRows times kCols pairs of rows, in registers. `high` is used by targets that split
// the sums of even and odd pairs.
template <size_t kRows, size_t kCols>
struct Sums {
  hn::Vec<SumTag> low[kRows][kCols];
  hn::Vec<SumTag> high[kRows][kCols];

  HWY_INLINE Sums() {
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t c = 0; c < kCols; ++c) low[r][c] = high[r][c] = hn::Zero(SumTag());
    }
  }

  HWY_INLINE void Add(const int16_t* a, size_t stride, const int8_t* b, size_t b_stride) {
    hn::Vec<WideTag> wide[kCols];
    for (size_t c = 0; c < kCols; ++c)
      wide[c] = hn::PromoteTo(WideTag(), hn::LoadU(NarrowTag(), b + c * b_stride));
    for (size_t r = 0; r < kRows; ++r) {
      const auto row = hn::LoadU(WideTag(), a + r * stride);
      for (size_t c = 0; c < kCols; ++c)
        low[r][c] = hn::ReorderWidenMulAccumulate(SumTag(), row, wide[c], low[r][c], high[r][c]);
    }
  }
};

template <size_t kRows, size_t kCols>
HWY_INLINE void MultiplyTile(const WideProduct& p, size_t row, size_t col) {
  const int16_t* a = p.a + row * p.stride;
  const int8_t* b = p.b + col * p.depth;
  Sums<kRows, kCols> sums;
  size_t k = 0;
  for (; k + kLanes <= p.depth; k += kLanes) sums.Add(a + k, p.stride, b + k, p.depth);
  if (k < p.depth) {
    int8_t tail[kCols * kLanes] = {};
    for (size_t c = 0; c < kCols; ++c)
      std::copy(b + c * p.depth + k, b + (c + 1) * p.depth, tail + c * kLanes);
    sums.Add(a + k, p.stride, tail, kLanes);
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kCols; ++c) {
      const auto sum = hn::Add(sums.low[r][c], sums.high[r][c]);
      p.out[(row + r) * p.out_stride + col + c] = hn::GetLane(hn::SumOfLanes(SumTag(), sum));
    }
  }
}

// 4 x 3 sums, 3 columns and a row fill the 16 registers of AVX2.
constexpr size_t kTileRows = 4;
constexpr size_t kTileCols = 3;

template <size_t kCols>
HWY_INLINE void MultiplyColumns(const WideProduct& p, size_t col) {
  size_t row = 0;
  for (; row + kTileRows <= p.rows; row += kTileRows) MultiplyTile<kTileRows, kCols>(p, row, col);
  for (; row < p.rows; ++row) MultiplyTile<1, kCols>(p, row, col);
}

void MultiplyWide(const WideProduct& p) {
  size_t col = 0;
  for (; col + kTileCols <= p.cols; col += kTileCols) MultiplyColumns<kTileCols>(p, col);
  for (; col < p.cols; ++col) MultiplyColumns<1>(p, col);
}

void Widen(const int8_t* from, int64_t n, int16_t* HWY_RESTRICT to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// One row of QuantizeRowsInt8.
void QuantizeRow(const float* HWY_RESTRICT x, int64_t n, float limit, int8_t* HWY_RESTRICT q,
                 float* stat) {
  // NaN is no outlier, and its bits are above those of every limit.
  const uint32_t limit_bits = core::FloatBits(limit);
  uint32_t max_bits = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = MaxAbsBits(0, x[i]);
    const bool outlier = bits >= limit_bits && bits <= 0x7F800000u;
    max_bits = std::max(max_bits, outlier ? 0u : bits);
  }
  *stat = core::FloatFromBits(max_bits);
  const float scale = 127.0f / *stat;
  if (!core::IsFinite(*stat) || !core::IsFinite(scale)) {
    std::fill(q, q + n, int8_t{0});
    return;
  }
  // Adding 1.5 * 2^23 leaves the integer nearest to the product, ties to even, in the low bits.
  constexpr float kRound = 12582912.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float t = std::fabs(x[i]) >= limit ? 0.0f : x[i] * scale;
    const uint32_t rounded = core::FloatBits(t + kRound) - core::FloatBits(kRound);
    q[i] = static_cast<int8_t>(static_cast<int32_t>(rounded));
  }
}

void DequantizeRow(const int8_t* HWY_RESTRICT q, int64_t n, float stat, float* HWY_RESTRICT out) {
  constexpr float kInverse = static_cast<float>(1.0 / 127.0);
  for (int64_t i = 0; i < n; ++i) out[i] = (static_cast<float>(q[i]) * stat) * kInverse;
}

// One row of DequantizeInt8Product.
void DequantizeProductRow(const Int8Dequantization& args, int64_t row) {
  constexpr float kInverse = static_cast<float>(1.0 / (127.0 * 127.0));
  const int64_t cols = std::ssize(args.col_stats);
  const int32_t* HWY_RESTRICT product = args.product.data() + row * cols;
  const float* HWY_RESTRICT col_stats = args.col_stats.data();
  const float* HWY_RESTRICT bias = args.bias.data();
  const float stat = args.row_stats[static_cast<size_t>(row)];
  float* HWY_RESTRICT out = args.out.data() + row * cols;
  if (args.bias.empty()) {
    for (int64_t c = 0; c < cols; ++c)
      out[c] = (static_cast<float>(product[c]) * (stat * col_stats[c])) * kInverse;
  } else {
    for (int64_t c = 0; c < cols; ++c)
      out[c] = (static_cast<float>(product[c]) * (stat * col_stats[c])) * kInverse + bias[c];
  }
}

}  // namespace bitshard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace bitshard::quant {
namespace {

HWY_EXPORT(MultiplyWide);
HWY_EXPORT(Widen);
HWY_EXPORT(QuantizeRow);
HWY_EXPORT(DequantizeRow);
HWY_EXPORT(DequantizeProductRow);

constexpr int64_t kGrainElems = 1 << 15;

int64_t GrainRows(int64_t cols) {
  return std::max<int64_t>(1, kGrainElems / std::max<int64_t>(cols, 1));
}

absl::Status CheckCount(const char* what, int64_t got, int64_t want) {
  if (got == want) return absl::OkStatus();
  return core::ConfigError(absl::StrCat(what, " has ", got, " elements, want ", want));
}

absl::Status CheckSize(const char* function, int64_t rows, int64_t cols) {
  if (rows >= 0 && cols >= 0) return absl::OkStatus();
  return core::ConfigError(
      absl::StrCat(function, ": a matrix of ", rows, " rows and ", cols, " columns"));
}

// Rows of `a` that stay in a core's second-level cache beside some rows of b.
int64_t RowsInCache(int64_t stride) {
  constexpr int64_t kElems = 1 << 16;
  return std::max<int64_t>(4, kElems / stride / 4 * 4);
}

std::vector<int16_t> WidenRows(const Int8Product& args, int64_t stride) {
  std::vector<int16_t> wide(static_cast<size_t>(args.rows * stride));
  core::ParallelFor(args.rows, GrainRows(args.depth), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) HWY_DYNAMIC_DISPATCH(Widen)
    (args.a.data() + row * args.depth, args.depth, wide.data() + row * stride);
  });
  return wide;
}

}  // namespace

absl::Status QuantizeRowsInt8(std::span<const float> x, MatrixSize size, float threshold,
                              std::span<int8_t> q, std::span<float> stats) {
  BITSHARD_RETURN_IF_ERROR(CheckSize("QuantizeRowsInt8", size.rows, size.cols));
  const int64_t elems = size.rows * size.cols;
  BITSHARD_RETURN_IF_ERROR(CheckCount("QuantizeRowsInt8: x", std::ssize(x), elems));
  BITSHARD_RETURN_IF_ERROR(CheckCount("QuantizeRowsInt8: q", std::ssize(q), elems));
  BITSHARD_RETURN_IF_ERROR(CheckCount("QuantizeRowsInt8: stats", std::ssize(stats), size.rows));
  // No magnitude is at or above NaN.
  const float limit = threshold > 0.0f ? threshold : core::FloatFromBits(0x7FC00000u);
  core::ParallelFor(size.rows, GrainRows(size.cols), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) HWY_DYNAMIC_DISPATCH(QuantizeRow)
    (x.data() + row * size.cols, size.cols, limit, q.data() + row * size.cols, stats.data() + row);
  });
  return absl::OkStatus();
}

absl::Status DequantizeRowsInt8(std::span<const int8_t> q, MatrixSize size,
                                std::span<const float> stats, std::span<float> out) {
  BITSHARD_RETURN_IF_ERROR(CheckSize("DequantizeRowsInt8", size.rows, size.cols));
  const int64_t elems = size.rows * size.cols;
  BITSHARD_RETURN_IF_ERROR(CheckCount("DequantizeRowsInt8: q", std::ssize(q), elems));
  BITSHARD_RETURN_IF_ERROR(CheckCount("DequantizeRowsInt8: out", std::ssize(out), elems));
  BITSHARD_RETURN_IF_ERROR(CheckCount("DequantizeRowsInt8: stats", std::ssize(stats), size.rows));
  core::ParallelFor(size.rows, GrainRows(size.cols), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) HWY_DYNAMIC_DISPATCH(DequantizeRow)
    (q.data() + row * size.cols, size.cols, stats[static_cast<size_t>(row)],
     out.data() + row * size.cols);
  });
  return absl::OkStatus();
}

absl::Status MultiplyInt8(const Int8Product& args) {
  BITSHARD_RETURN_IF_ERROR(CheckSize("MultiplyInt8", args.rows, args.cols));
  if (args.depth < 0 || args.depth > kMaxInt8Depth) {
    return core::ConfigError(absl::StrCat("MultiplyInt8: depth is ", args.depth, ", want 0 to ",
                                          kMaxInt8Depth, ": longer sums can leave int32"));
  }
  BITSHARD_RETURN_IF_ERROR(
      CheckCount("MultiplyInt8: a", std::ssize(args.a), args.rows * args.depth));
  BITSHARD_RETURN_IF_ERROR(
      CheckCount("MultiplyInt8: b", std::ssize(args.b), args.cols * args.depth));
  BITSHARD_RETURN_IF_ERROR(
      CheckCount("MultiplyInt8: out", std::ssize(args.out), args.rows * args.cols));
  const int64_t stride =
      std::max<int64_t>(1, (args.depth + kWideAlign - 1) / kWideAlign) * kWideAlign;
  const std::vector<int16_t> wide = WidenRows(args, stride);
  const int64_t tile_rows = RowsInCache(stride);
  constexpr int64_t kPanelCols = 96;
  const int64_t row_tiles = (args.rows + tile_rows - 1) / tile_rows;
  const int64_t panels = (args.cols + kPanelCols - 1) / kPanelCols;
  core::ParallelFor(row_tiles * panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t row = tile / panels * tile_rows;
      const int64_t col = tile % panels * kPanelCols;
      HWY_DYNAMIC_DISPATCH(MultiplyWide)
      ({.a = wide.data() + row * stride,
        .stride = static_cast<size_t>(stride),
        .b = args.b.data() + col * args.depth,
        .depth = static_cast<size_t>(args.depth),
        .rows = static_cast<size_t>(std::min(tile_rows, args.rows - row)),
        .cols = static_cast<size_t>(std::min(kPanelCols, args.cols - col)),
        .out = args.out.data() + row * args.cols + col,
        .out_stride = static_cast<size_t>(args.cols)});
    }
  });
  return absl::OkStatus();
}

absl::Status DequantizeInt8Product(const Int8Dequantization& args) {
  const int64_t rows = std::ssize(args.row_stats);
  const int64_t cols = std::ssize(args.col_stats);
  BITSHARD_RETURN_IF_ERROR(
      CheckCount("DequantizeInt8Product: product", std::ssize(args.product), rows * cols));
  BITSHARD_RETURN_IF_ERROR(
      CheckCount("DequantizeInt8Product: out", std::ssize(args.out), rows * cols));
  if (!args.bias.empty())
    BITSHARD_RETURN_IF_ERROR(
        CheckCount("DequantizeInt8Product: bias", std::ssize(args.bias), cols));
  core::ParallelFor(rows, GrainRows(cols), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      HWY_DYNAMIC_DISPATCH(DequantizeProductRow)(args, row);
  });
  return absl::OkStatus();
}

}  // namespace bitshard::quant

#endif  // HWY_ONCE
