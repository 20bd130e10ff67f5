// A block of threads keeps a tile of queries of one head and runs over the keys that any of them
// sees, with the online softmax: when a row's maximum grows, what it has summed so far shrinks.
//
// The tiles are as large as 48 KB of shared memory allow with room for several blocks on a
// multiprocessor, and near a balance between the reads of shared memory and the multiplications of
// the two products.
#include <cmath>

#include "core/launch.h"
#include "trainer/model/device_attention.h"
#include "trainer/model/device_attention_tile.h"
#include "trainer/model/device_math.h"
#include "trainer/model/device_reduce.h"

namespace bitshard::trainer {
namespace {

// What a thread knows of its rows of queries.
template <class Shape>
struct QueryRows {
  static constexpr size_t kCount = Extent(Shape::kRowsOfThread);
  int64_t row[kCount];
  int64_t first_key[kCount];  // Above `row` where there is no row: it sees nothing.
  float top[kCount];
  float sum[kCount];

  __device__ QueryRows(const DeviceAttentionArgs& a, int64_t first) {
    BITSHARD_UNROLL
    for (int i = 0; i < Shape::kRowsOfThread; ++i) {
      row[i] = first + TileY() + i * kTileY;
      first_key[i] = row[i] < a.rows ? FirstKey(a, row[i]) : row[i] + 1;
      top[i] = kLowestScore;
      sum[i] = 0.0f;
    }
  }
};

// From products of queries and keys to exp(score - top), 0 where not seen; what was summed before
// is brought to the new top.
template <class Shape>
__device__ void UpdateSoftmax(int64_t begin, float scale, QueryRows<Shape>* rows,
                              typename Shape::Scores& s, typename Shape::Elems& out) {
  BITSHARD_UNROLL
  for (int i = 0; i < Shape::kRowsOfThread; ++i) {
    float top = rows->top[i];
    bool seen[Shape::kColsOfThread];
    BITSHARD_UNROLL
    for (int j = 0; j < Shape::kColsOfThread; ++j) {
      const int64_t key = begin + TileX() + j * kTileX;
      seen[j] = key >= rows->first_key[i] && key <= rows->row[i];
      s[i][j] = s[i][j] * scale;
      if (seen[j]) top = core::MaxFloat(s[i][j], top);
    }
    top = MaxOfLanes(top, kTileX);
    float sum = 0.0f;
    BITSHARD_UNROLL
    for (int j = 0; j < Shape::kColsOfThread; ++j) {
      s[i][j] = seen[j] ? Exp(s[i][j] - top) : 0.0f;
      sum += s[i][j];
    }
    const float keep = Exp(rows->top[i] - top);
    rows->sum[i] = rows->sum[i] * keep + SumOfLanes(sum, kTileX);
    rows->top[i] = top;
    BITSHARD_UNROLL
    for (int e = 0; e < Shape::kElemsOfThread; ++e) out[i][e] = out[i][e] * keep;
  }
}

template <class T, class Shape>
__global__ void __launch_bounds__(kTileThreads)
    AttentionKernel(DeviceAttentionArgs a, bool aligned) {
  BITSHARD_SHARED(typename Shape::Rows, queries);
  BITSHARD_SHARED(typename Shape::Cols, keys);  // Then values.
  BITSHARD_SHARED(typename Shape::ScoreTile, weights);
  // The last tiles have the most keys: they start first.
  const int64_t block = int64_t{gridDim.x} - 1 - blockIdx.x;
  const int64_t head = block % a.shape.heads;
  const int64_t kv_head = head / (a.shape.heads / a.shape.kv_heads);
  const int64_t first = block / a.shape.heads * Shape::kRows;
  const auto q = HeadOf<const T>(a.q, head, a.shape.heads, a, aligned);
  const auto k = HeadOf<const T>(a.k, kv_head, a.shape.kv_heads, a, aligned);
  const auto v = HeadOf<const T>(a.v, kv_head, a.shape.kv_heads, a, aligned);
  const float scale = ScoreScale(a);
  const int64_t end = first + Shape::kRows < a.rows ? first + Shape::kRows : a.rows;

  LoadRows<Shape::kRows, Shape::kDim>(q, first, queries.at);
  QueryRows<Shape> rows(a, first);
  typename Shape::Elems out;
  Clear<Shape>(out);
  for (int64_t begin = FirstKey(a, first); begin < end; begin += Shape::kCols) {
    __syncthreads();  // All are done with the values before.
    LoadRows<Shape::kCols, Shape::kDim>(k, begin, keys.at);
    __syncthreads();
    typename Shape::Scores s;
    Dots<Shape>(queries, keys, q.head_dim, s);
    UpdateSoftmax<Shape>(begin, scale, &rows, s, out);
    StoreScores<Shape>(s, &weights);
    __syncthreads();  // All are done with the keys.
    LoadRows<Shape::kCols, Shape::kDim>(v, begin, keys.at);
    __syncthreads();
    AddProduct<Shape>(weights, keys, out);
  }
  const auto to = HeadOf<T>(a.out, head, a.shape.heads, a, aligned);
  BITSHARD_UNROLL
  for (int i = 0; i < Shape::kRowsOfThread; ++i) {
    const float inverse = 1.0f / rows.sum[i];
    BITSHARD_UNROLL
    for (int e = 0; e < Shape::kElemsOfThread; ++e) out[i][e] = out[i][e] * inverse;
    StoreRow<Shape>(to, first, i, out[i]);
    if (TileX() == 0 && rows.row[i] < a.rows) {
      a.log_sum_exp[head * a.rows + rows.row[i]] =
          rows.top[i] + static_cast<float>(Log(static_cast<double>(rows.sum[i])));
    }
  }
}

template <class T, class Shape>
absl::Status LaunchAttention(const DeviceAttentionArgs& a) {
  return core::Launch("attention", AttentionKernel<T, Shape>,
                      GridOfTiles<Shape>(a.rows, a.shape.heads), dim3(kTileThreads), 0, a.stream, a,
                      AreRowsAligned<T>(a.shape.head_dim, {a.q, a.k, a.v, a.out}));
}

}  // namespace

absl::Status DeviceAttention(const DeviceAttentionArgs& a) {
  const absl::Status checked = CheckAttention("DeviceAttention", a);
  if (!checked.ok()) return checked;
  return ForDeviceType("DeviceAttention", a.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (a.rows == 0) return absl::OkStatus();
    if (a.shape.head_dim <= 64) return LaunchAttention<T, TileShape<64, 64, 32>>(a);
    if (a.shape.head_dim <= 128) return LaunchAttention<T, TileShape<128, 32, 32>>(a);
    return LaunchAttention<T, TileShape<kMaxDeviceHeadDim, 16, 16>>(a);
  });
}

}  // namespace bitshard::trainer
