// What the kernels of attention share: tiles of rows in shared memory and the two matrix products
// on them. Only `.cu` files include this.
//
// A block of 128 threads is a grid of 16 rows by 8 columns. A thread works on rows y, y + 16, ...
// of a tile and on columns x, x + 8, ... of its scores, or on quads 4x, 4x + 32, ... of a head.
// Rows in shared memory are a quad longer than they need be, so that the eight x of a product read
// different banks; neighbouring y then do too, and one read serves all lanes of equal x or y.
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_ATTENTION_TILE_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_ATTENTION_TILE_H_

#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/host_device.h"
#include "core/launch.h"
#include "trainer/model/device_attention.h"
#include "trainer/model/device_pack.h"

namespace bitshard::trainer {

inline constexpr int kTileThreads = 128;
inline constexpr int kTileY = 16;
inline constexpr int kTileX = kTileThreads / kTileY;
inline constexpr int kQuad = 4;
// Below every score, and a score minus this is finite or infinity, never NaN.
inline constexpr float kLowestScore = -3.402823466e38f;

/// Shared memory that packs are read from and written to.
template <size_t kElems>
struct alignas(kPackBytes) TileArray {
  float at[kElems];
};

constexpr size_t Extent(int n) { return static_cast<size_t>(n); }

/// kRows rows that stay and kCols that stream past them, of heads of up to kDim elements.
template <int kDimElems, int kRowsOfTile, int kColsOfTile>
struct TileShape {
  static constexpr int kDim = kDimElems;
  static constexpr int kRows = kRowsOfTile;
  static constexpr int kCols = kColsOfTile;
  static constexpr int kRowsOfThread = kRows / kTileY;
  static constexpr int kColsOfThread = kCols / kTileX;
  static constexpr int kElemsOfThread = kDim / kTileX;
  static constexpr int kStride = kDim + kQuad;
  static constexpr int kScoreStride = kCols + kQuad;
  static_assert(kRows % kTileY == 0 && kCols % kTileX == 0 && kDim % (kQuad * kTileX) == 0);

  static constexpr int kRowFloats = kRows * kStride;
  static constexpr int kColFloats = kCols * kStride;
  static constexpr int kScoreFloats = kRows * kScoreStride;

  using Rows = TileArray<Extent(kRowFloats)>;
  using Cols = TileArray<Extent(kColFloats)>;
  using ScoreTile = TileArray<Extent(kScoreFloats)>;
  /// A thread's part of kRows x kCols and of kRows x kDim.
  using Scores = float[Extent(kRowsOfThread)][Extent(kColsOfThread)];
  using Elems = float[Extent(kRowsOfThread)][Extent(kElemsOfThread)];
};

__device__ inline int TileX() { return static_cast<int>(threadIdx.x) % kTileX; }
__device__ inline int TileY() { return static_cast<int>(threadIdx.x) / kTileX; }

/// One head of an activation [rows, heads * head_dim].
template <class T>
struct HeadRows {
  T* data;  // Of row 0.
  int64_t row_stride;
  int64_t rows;
  int head_dim;
  bool aligned;  // Whole packs from multiples of 16 bytes.
};

template <class T, class V>
__device__ HeadRows<T> HeadOf(V* data, int64_t head, int64_t heads, const DeviceAttentionArgs& a,
                              bool aligned) {
  return {.data = static_cast<T*>(data) + head * a.shape.head_dim,
          .row_stride = heads * a.shape.head_dim,
          .rows = a.rows,
          .head_dim = static_cast<int>(a.shape.head_dim),
          .aligned = aligned};
}

/// Rows [first, first + kCount) in shared memory; zeros where there is no row or element.
template <int kCount, int kDim, class T>
__device__ void LoadRows(const HeadRows<const T>& from, int64_t first, float* tile) {
  constexpr int kPacks = kDim / kPack<T>;
  for (int item = static_cast<int>(threadIdx.x); item < kCount * kPacks; item += kTileThreads) {
    const int64_t row = first + item / kPacks;
    const int i = item % kPacks * kPack<T>;
    Pack<T> p = {};
    if (row < from.rows) {
      p = RowAccess<const T>{from.data + row * from.row_stride, from.head_dim, from.aligned}.Load(
          i);
    }
    float* const to = tile + item / kPacks * (kDim + kQuad) + i;
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; j += kQuad) {
      StorePack(to + j, Pack<float>{{p.at[j], p.at[j + 1], p.at[j + 2], p.at[j + 3]}});
    }
  }
}

/// s = rows times columns, transposed: sums over the head in the order of its elements.
template <class Shape>
__device__ void Dots(const typename Shape::Rows& rows, const typename Shape::Cols& cols,
                     int head_dim, typename Shape::Scores& s) {
  BITSHARD_UNROLL
  for (int i = 0; i < Shape::kRowsOfThread; ++i) {
    BITSHARD_UNROLL
    for (int j = 0; j < Shape::kColsOfThread; ++j) s[i][j] = 0.0f;
  }
  const float* const my_rows = rows.at + TileY() * Shape::kStride;
  const float* const my_cols = cols.at + TileX() * Shape::kStride;
  for (int d = 0; d < head_dim; d += kQuad) {
    Pack<float> a[Shape::kRowsOfThread], b[Shape::kColsOfThread];
    BITSHARD_UNROLL
    for (int i = 0; i < Shape::kRowsOfThread; ++i) {
      a[i] = LoadPack(my_rows + i * kTileY * Shape::kStride + d);
    }
    BITSHARD_UNROLL
    for (int j = 0; j < Shape::kColsOfThread; ++j) {
      b[j] = LoadPack(my_cols + j * kTileX * Shape::kStride + d);
    }
    BITSHARD_UNROLL
    for (int i = 0; i < Shape::kRowsOfThread; ++i) {
      BITSHARD_UNROLL
      for (int j = 0; j < Shape::kColsOfThread; ++j) {
        BITSHARD_UNROLL
        for (int k = 0; k < kQuad; ++k) s[i][j] = fmaf(a[i].at[k], b[j].at[k], s[i][j]);
      }
    }
  }
}

/// out += scores [kRows, kCols] times columns [kCols, kDim], in the order of columns.
template <class Shape>
__device__ void AddProduct(const typename Shape::ScoreTile& scores,
                           const typename Shape::Cols& cols, typename Shape::Elems& out) {
  const float* const my_scores = scores.at + TileY() * Shape::kScoreStride;
  const float* const my_cols = cols.at + TileX() * kQuad;
  for (int c = 0; c < Shape::kCols; c += kQuad) {
    Pack<float> s[Shape::kRowsOfThread];
    BITSHARD_UNROLL
    for (int i = 0; i < Shape::kRowsOfThread; ++i) {
      s[i] = LoadPack(my_scores + i * kTileY * Shape::kScoreStride + c);
    }
    BITSHARD_UNROLL
    for (int k = 0; k < kQuad; ++k) {
      BITSHARD_UNROLL
      for (int e = 0; e < Shape::kElemsOfThread; e += kQuad) {
        const Pack<float> v = LoadPack(my_cols + (c + k) * Shape::kStride + e * kTileX);
        BITSHARD_UNROLL
        for (int i = 0; i < Shape::kRowsOfThread; ++i) {
          BITSHARD_UNROLL
          for (int q = 0; q < kQuad; ++q) {
            out[i][e + q] = fmaf(s[i].at[k], v.at[q], out[i][e + q]);
          }
        }
      }
    }
  }
}

template <class Shape>
__device__ void StoreScores(const typename Shape::Scores& s, typename Shape::ScoreTile* to) {
  BITSHARD_UNROLL
  for (int i = 0; i < Shape::kRowsOfThread; ++i) {
    BITSHARD_UNROLL
    for (int j = 0; j < Shape::kColsOfThread; ++j) {
      to->at[(TileY() + i * kTileY) * Shape::kScoreStride + TileX() + j * kTileX] = s[i][j];
    }
  }
}

__device__ inline void StoreElems(float* to, float a, float b, float c, float d) {
  *reinterpret_cast<float4*>(to) = make_float4(a, b, c, d);
}
__device__ inline void StoreElems(Bf16* to, float a, float b, float c, float d) {
  *reinterpret_cast<uint2*>(to) =
      make_uint2(static_cast<uint32_t>(core::Bf16FromFloat(a)) |
                     static_cast<uint32_t>(core::Bf16FromFloat(b)) << 16,
                 static_cast<uint32_t>(core::Bf16FromFloat(c)) |
                     static_cast<uint32_t>(core::Bf16FromFloat(d)) << 16);
}

/// The thread's elements of row y + 16 i of the tile that begins at row `first`, rounded.
template <class Shape, class T>
__device__ void StoreRow(const HeadRows<T>& to, int64_t first, int i,
                         const float (&elems)[Shape::kElemsOfThread]) {
  const int64_t row = first + TileY() + i * kTileY;
  if (row >= to.rows) return;
  BITSHARD_UNROLL
  for (int e = 0; e < Shape::kElemsOfThread; e += kQuad) {
    const int column = e * kTileX + TileX() * kQuad;
    T* const at = to.data + row * to.row_stride + column;
    if (to.aligned && column < to.head_dim) {
      StoreElems(at, elems[e], elems[e + 1], elems[e + 2], elems[e + 3]);
    } else {
      BITSHARD_UNROLL
      for (int q = 0; q < kQuad; ++q) {
        if (column + q < to.head_dim) Round(elems[e + q], at + q);
      }
    }
  }
}

template <class Shape>
__device__ void Clear(typename Shape::Elems& x) {
  BITSHARD_UNROLL
  for (int i = 0; i < Shape::kRowsOfThread; ++i) {
    BITSHARD_UNROLL
    for (int e = 0; e < Shape::kElemsOfThread; ++e) x[i][e] = 0.0f;
  }
}

/// The keys that a row sees are [FirstKey(row), row]. Never smaller than that of the row before.
__device__ inline int64_t FirstKey(const DeviceAttentionArgs& a, int64_t row) {
  const int64_t start = row - a.positions[row];
  const int64_t in_window = a.shape.window > 0 ? row - a.shape.window + 1 : start;
  return in_window > start ? in_window : start;
}

__device__ inline float ScoreScale(const DeviceAttentionArgs& a) {
  return 1.0f / sqrtf(static_cast<float>(a.shape.head_dim));
}

inline absl::Status CheckAttention(const char* function, const DeviceAttentionArgs& a) {
  const AttentionShape& s = a.shape;
  BITSHARD_CHECK(s.kv_heads > 0 && s.heads % s.kv_heads == 0 && s.head_dim > 0)
      << function << ": " << s.heads << " heads, " << s.kv_heads << " of keys";
  if (s.head_dim <= kMaxDeviceHeadDim) return absl::OkStatus();
  return core::ConfigError(absl::StrCat(function, ": head_dim is ", s.head_dim, ", want at most ",
                                        kMaxDeviceHeadDim,
                                        " on a device; such a model is for device: cpu"));
}

/// A block of threads for each tile of rows of each head.
template <class Shape>
dim3 GridOfTiles(int64_t rows, int64_t heads) {
  return dim3(static_cast<unsigned>((rows + Shape::kRows - 1) / Shape::kRows * heads));
}

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_ATTENTION_TILE_H_
