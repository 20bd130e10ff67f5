#include "trainer/model/gemm.h"

#include <hwy/aligned_allocator.h>

#include <algorithm>

#include "core/check.h"
#include "core/parallel.h"

#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trainer/model/gemm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef BITSHARD_TRAINER_MODEL_GEMM_ONCE_
#define BITSHARD_TRAINER_MODEL_GEMM_ONCE_
namespace bitshard::trainer {

// Most of k that is summed up in registers at a time: that many rows of a panel of b (48 KiB with
// 16 columns) stream from the second-level cache while as much of a few rows of a stays in the
// first. Typical hidden and intermediate sizes are cut into few pieces.
constexpr int64_t kMostDepth = 768;

// Columns of b that are packed at a time: 96 x 768 floats take 288 KiB of a second-level cache of
// at least 512 KiB.
constexpr int64_t kPackedColumns = 96;

// Below, reading and writing the matrices takes longer than multiplying them.
constexpr int64_t kShortestSide = 96;

// Rows of a: as few as a Decoder pads to (workspace.h). What a token's row comes to then does not
// depend on how many others there are, and it is no slower: of 32 rows of logits the library takes
// 100 ms of a Zen 3 core and this 60.
constexpr int64_t kFewestRows = 32;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Pieces of k: as few as fit kMostDepth, of equal length.
inline int64_t DepthOf(int64_t k) { return CeilDiv(k, CeilDiv(k, kMostDepth)); }

// A part of out that one thread computes.
struct GemmPart {
  int64_t row_begin = 0, row_end = 0;
  int64_t column_begin = 0, column_end = 0;
};

// How the threads share out: [rows, columns] of a grid of parts.
struct GemmGrid {
  int64_t rows = 1;
  int64_t columns = 1;
};

// The grid whose largest part is smallest, in tiles; at equal size the one that packs less twice.
inline GemmGrid GridOf(int64_t row_tiles, int64_t column_tiles, int64_t threads) {
  GemmGrid best;
  int64_t least = INT64_MAX;
  for (int64_t rows = 1; rows <= threads; ++rows) {
    if (threads % rows != 0) continue;
    const int64_t columns = threads / rows;
    const int64_t size = CeilDiv(row_tiles, rows) * CeilDiv(column_tiles, columns);
    if (size < least) {
      least = size;
      best = {rows, columns};
    }
  }
  return best;
}

}  // namespace bitshard::trainer
#endif  // BITSHARD_TRAINER_MODEL_GEMM_ONCE_

HWY_BEFORE_NAMESPACE();
namespace bitshard::trainer {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A tile of out stays in registers: rows x vectors of sums, the vectors of b and one of a. 16
// registers hold 6 x 2, 32 hold 14 x 2.
constexpr int kVectors = 2;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif

HWY_INLINE int64_t Lanes() { return static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>())); }
HWY_INLINE int64_t TileColumns() { return kVectors * Lanes(); }

struct TileArgs {
  const float* a = nullptr;  // [rows, depth] with rows a_row apart
  int64_t a_row = 0;
  const float* b = nullptr;  // [depth, TileColumns()]
  float* out = nullptr;
  int64_t out_row = 0;
  int64_t columns = 0;  // Of out that exist; the panel's others are zeros.
  int64_t depth = 0;
  float alpha = 1;
  bool add = false;
};

// out (+)= alpha * a b for kRows rows.
template <int kRows>
HWY_NOINLINE void Tile(const TileArgs& t) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = Lanes();
  hn::Vec<decltype(d)> sum[static_cast<size_t>(kRows)][static_cast<size_t>(kVectors)];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int s = 0; s < kVectors; ++s) sum[r][s] = hn::Zero(d);
  }
  const float* a = t.a;
  const float* b = t.b;
  for (int64_t p = 0; p < t.depth; ++p, b += kVectors * lanes) {
    const auto b0 = hn::Load(d, b);
    const auto b1 = hn::Load(d, b + lanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto x = hn::Set(d, a[r * t.a_row + p]);
      sum[r][0] = hn::MulAdd(x, b0, sum[r][0]);
      sum[r][1] = hn::MulAdd(x, b1, sum[r][1]);
    }
  }
  const auto alpha = hn::Set(d, t.alpha);
  if (t.columns == kVectors * lanes) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int s = 0; s < kVectors; ++s) {
        float* out = t.out + r * t.out_row + s * lanes;
        const auto part = hn::Mul(alpha, sum[r][s]);
        hn::StoreU(t.add ? hn::Add(hn::LoadU(d, out), part) : part, d, out);
      }
    }
    return;
  }
  HWY_ALIGN float row[kVectors * HWY_MAX_BYTES / sizeof(float)];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int s = 0; s < kVectors; ++s) hn::Store(hn::Mul(alpha, sum[r][s]), d, row + s * lanes);
    float* out = t.out + r * t.out_row;
    for (int64_t j = 0; j < t.columns; ++j) out[j] = t.add ? out[j] + row[j] : row[j];
  }
}

// All rows of a part times one panel.
void Panel(TileArgs t, int64_t rows) {
  int64_t left = rows;
  const auto advance = [&](int64_t n) {
    t.a += n * t.a_row;
    t.out += n * t.out_row;
    left -= n;
  };
  for (; left >= kTileRows; advance(kTileRows)) Tile<kTileRows>(t);
  for (; left >= 4; advance(4)) Tile<4>(t);
  for (; left >= 1; advance(1)) Tile<1>(t);
}

// Four rows of four floats each, transposed.
HWY_INLINE void Transpose4x4(const float* from, int64_t from_row, float* to, int64_t to_row) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j) to[i * to_row + j] = from[j * from_row + i];
  }
#else
  const hn::FixedTag<float, 4> d;
  const hn::FixedTag<double, 2> pairs;
  const auto load = [&](int64_t row) HWY_ATTR { return hn::LoadU(d, from + row * from_row); };
  const auto store = [&](auto v, int64_t row)
                         HWY_ATTR { hn::StoreU(hn::BitCast(d, v), d, to + row * to_row); };
  const auto r0 = load(0), r1 = load(1), r2 = load(2), r3 = load(3);
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));
  const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
  const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
  const auto high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  store(hn::InterleaveLower(pairs, low01, low23), 0);
  store(hn::InterleaveUpper(pairs, low01, low23), 1);
  store(hn::InterleaveLower(pairs, high01, high23), 2);
  store(hn::InterleaveUpper(pairs, high01, high23), 3);
#endif
}

// Rows [row, row + depth) of `columns` columns of b from `column` on, zeros up to TileColumns().
void PackPanel(const Matrix<float>& b, int64_t row, int64_t depth, int64_t column, int64_t columns,
               float* panel) {
  const int64_t width = TileColumns();
  const float* from = b.data + row * b.row_stride + column * b.column_stride;
  if (columns < width) std::fill(panel, panel + depth * width, 0.0f);
  if (b.column_stride == 1) {
    const hn::ScalableTag<float> d;
    for (int64_t p = 0; p < depth; ++p, from += b.row_stride, panel += width) {
      if (columns == width) {
        for (int64_t j = 0; j < width; j += Lanes())
          hn::Store(hn::LoadU(d, from + j), d, panel + j);
      } else {
        std::copy(from, from + columns, panel);
      }
    }
    return;
  }
  int64_t j = 0;
  for (; j + 4 <= columns; j += 4) {
    const float* block = from + j * b.column_stride;
    int64_t p = 0;
    for (; p + 4 <= depth; p += 4)
      Transpose4x4(block + p, b.column_stride, panel + p * width + j, width);
    for (; p < depth; ++p) {
      for (int64_t i = 0; i < 4; ++i) panel[p * width + j + i] = block[i * b.column_stride + p];
    }
  }
  for (; j < columns; ++j) {
    for (int64_t p = 0; p < depth; ++p) panel[p * width + j] = from[j * b.column_stride + p];
  }
}

void GemmPartImpl(const MatMulArgs<float>& g, const GemmPart& part, float* packed) {
  const int64_t k = g.a.columns, width = TileColumns();
  const int64_t depth = DepthOf(k);
  for (int64_t p = 0; p < k; p += depth) {
    const int64_t now = std::min(depth, k - p);
    for (int64_t first = part.column_begin; first < part.column_end; first += kPackedColumns) {
      const int64_t end = std::min(first + kPackedColumns, part.column_end);
      for (int64_t j = first; j < end; j += width)
        PackPanel(g.b, p, now, j, std::min(width, end - j), packed + (j - first) * now);
      // Few rows of a with every panel, so that they stay in the first-level cache.
      for (int64_t i = part.row_begin; i < part.row_end; i += kTileRows) {
        for (int64_t j = first; j < end; j += width) {
          Panel({.a = g.a.data + i * g.a.row_stride + p,
                 .a_row = g.a.row_stride,
                 .b = packed + (j - first) * now,
                 .out = g.out.data + i * g.out.row_stride + j,
                 .out_row = g.out.row_stride,
                 .columns = std::min(width, end - j),
                 .depth = now,
                 .alpha = g.alpha,
                 .add = g.beta != 0 || p > 0},
                std::min<int64_t>(kTileRows, part.row_end - i));
        }
      }
    }
  }
}

void GemmImpl(const MatMulArgs<float>& g) {
  static_assert(kPackedColumns % (kVectors * 4) == 0);
  const int64_t width = TileColumns();
  const int64_t row_tiles = CeilDiv(g.out.rows, kTileRows);
  const int64_t column_tiles = CeilDiv(g.out.columns, width);
  const GemmGrid grid = GridOf(row_tiles, column_tiles, core::NumThreads());
  const int64_t rows = CeilDiv(row_tiles, grid.rows) * kTileRows;
  const int64_t columns = CeilDiv(column_tiles, grid.columns) * width;
  core::ParallelFor(grid.rows * grid.columns, 1, [&](int64_t begin, int64_t end) {
    // Kept by each worker for the next product.
    static thread_local const auto packed =
        hwy::AllocateAligned<float>(static_cast<size_t>(kPackedColumns * kMostDepth));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / grid.columns * rows, column = i % grid.columns * columns;
      GemmPartImpl(g,
                   {.row_begin = std::min(row, g.out.rows),
                    .row_end = std::min(row + rows, g.out.rows),
                    .column_begin = std::min(column, g.out.columns),
                    .column_end = std::min(column + columns, g.out.columns)},
                   packed.get());
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace bitshard::trainer
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bitshard::trainer {
HWY_EXPORT(GemmImpl);

bool GemmTakes(const MatMulArgs<float>& g) {
  return g.a.column_stride == 1 && g.out.column_stride == 1 &&
         (g.b.column_stride == 1 || g.b.row_stride == 1) && (g.beta == 0 || g.beta == 1) &&
         g.out.rows >= kFewestRows && std::min(g.out.columns, g.a.columns) >= kShortestSide;
}

void Gemm(const MatMulArgs<float>& g) {
  BITSHARD_DCHECK(GemmTakes(g));
  HWY_DYNAMIC_DISPATCH(GemmImpl)(g);
}

}  // namespace bitshard::trainer
#endif  // HWY_ONCE
