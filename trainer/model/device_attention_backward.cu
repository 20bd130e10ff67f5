// Three kernels, none of which adds to what another thread block adds to: the dots of outputs and
// their gradients; the queries' gradients, by tiles of queries that run over the keys they see; the
// keys' and values' gradients, by tiles of keys that run over the queries that see them.
//
// With p = exp(score - log_sum_exp) and dp = d_out . v, the score's gradient is p (dp - dot).
#include <cmath>

#include "core/launch.h"
#include "core/status_macros.h"
#include "trainer/model/device_attention.h"
#include "trainer/model/device_attention_tile.h"
#include "trainer/model/device_math.h"
#include "trainer/model/device_reduce.h"

namespace bitshard::trainer {
namespace {

// Eight lanes for the dot of a head of a row.
constexpr int kDotLanes = 8;
constexpr int kDotThreads = 256;
constexpr int kDotsPerCta = kDotThreads / kDotLanes;

template <class T>
__global__ void __launch_bounds__(kDotThreads)
    AttentionDotsKernel(DeviceAttentionBackwardArgs b, bool aligned) {
  const int64_t heads = b.forward.shape.heads, head_dim = b.forward.shape.head_dim;
  const int64_t items = b.forward.rows * heads;
  const int64_t item = int64_t{blockIdx.x} * kDotsPerCta + threadIdx.x / kDotLanes;
  const int64_t lane = threadIdx.x % kDotLanes;
  float dot = 0.0f;
  if (item < items) {
    const RowAccess<const T> out{static_cast<const T*>(b.forward.out) + item * head_dim, head_dim,
                                 aligned};
    const RowAccess<const T> d_out{static_cast<const T*>(b.d_out) + item * head_dim, head_dim,
                                   aligned};
    for (int64_t i = lane * kPack<T>; i < head_dim; i += kDotLanes * kPack<T>) {
      const Pack<T> x = out.Load(i);
      const Pack<T> y = d_out.Load(i);
      BITSHARD_UNROLL
      for (int j = 0; j < kPack<T>; ++j) dot = fmaf(x.at[j], y.at[j], dot);
    }
  }
  dot = SumOfLanes(dot, kDotLanes);
  if (lane == 0 && item < items) b.dots[item % heads * b.forward.rows + item / heads] = dot;
}

// What the gradient of a score needs of its query.
struct Query {
  int64_t row;
  int64_t first_key;  // Above `row` where there is no row: it sees nothing.
  float log_sum_exp;
  float dot;
};

__device__ Query LoadQuery(const DeviceAttentionBackwardArgs& b, int64_t head, int64_t row) {
  const DeviceAttentionArgs& a = b.forward;
  if (row >= a.rows) return {.row = row, .first_key = row + 1, .log_sum_exp = 0.0f, .dot = 0.0f};
  const int64_t at = head * a.rows + row;
  return {.row = row,
          .first_key = FirstKey(a, row),
          .log_sum_exp = a.log_sum_exp[at],
          .dot = b.dots[at]};
}

// The softmax of a score; 0 where the query does not see the key.
__device__ float Probability(const Query& query, int64_t key, float score) {
  const bool seen = key >= query.first_key && key <= query.row;
  return seen ? Exp(score - query.log_sum_exp) : 0.0f;
}

__device__ float ScoreGradient(const Query& query, float probability, float dp, float scale) {
  return probability * (dp - query.dot) * scale;
}

template <class T, class Shape>
__global__ void __launch_bounds__(kTileThreads)
    QueryGradientKernel(DeviceAttentionBackwardArgs b, bool aligned) {
  BITSHARD_SHARED(typename Shape::Rows, queries);
  BITSHARD_SHARED(typename Shape::Rows, d_outs);
  BITSHARD_SHARED(typename Shape::Cols, keys);  // Before them, values.
  BITSHARD_SHARED(typename Shape::ScoreTile, gradients);
  const DeviceAttentionArgs& a = b.forward;
  const int64_t block = int64_t{gridDim.x} - 1 - blockIdx.x;  // The longest first.
  const int64_t head = block % a.shape.heads;
  const int64_t kv_head = head / (a.shape.heads / a.shape.kv_heads);
  const int64_t first = block / a.shape.heads * Shape::kRows;
  const auto q = HeadOf<const T>(a.q, head, a.shape.heads, a, aligned);
  const auto d_out = HeadOf<const T>(b.d_out, head, a.shape.heads, a, aligned);
  const auto k = HeadOf<const T>(a.k, kv_head, a.shape.kv_heads, a, aligned);
  const auto v = HeadOf<const T>(a.v, kv_head, a.shape.kv_heads, a, aligned);
  const float scale = ScoreScale(a);
  const int64_t end = first + Shape::kRows < a.rows ? first + Shape::kRows : a.rows;

  LoadRows<Shape::kRows, Shape::kDim>(q, first, queries.at);
  LoadRows<Shape::kRows, Shape::kDim>(d_out, first, d_outs.at);
  Query mine[Shape::kRowsOfThread];
  BITSHARD_UNROLL
  for (int i = 0; i < Shape::kRowsOfThread; ++i) {
    mine[i] = LoadQuery(b, head, first + TileY() + i * kTileY);
  }
  typename Shape::Elems dq;
  Clear<Shape>(dq);
  for (int64_t begin = FirstKey(a, first); begin < end; begin += Shape::kCols) {
    typename Shape::Scores s, dp;
    __syncthreads();  // All are done with the keys before.
    LoadRows<Shape::kCols, Shape::kDim>(v, begin, keys.at);
    __syncthreads();
    Dots<Shape>(d_outs, keys, q.head_dim, dp);
    __syncthreads();  // All are done with the values.
    LoadRows<Shape::kCols, Shape::kDim>(k, begin, keys.at);
    __syncthreads();
    Dots<Shape>(queries, keys, q.head_dim, s);
    BITSHARD_UNROLL
    for (int i = 0; i < Shape::kRowsOfThread; ++i) {
      BITSHARD_UNROLL
      for (int j = 0; j < Shape::kColsOfThread; ++j) {
        const float p = Probability(mine[i], begin + TileX() + j * kTileX, s[i][j] * scale);
        s[i][j] = ScoreGradient(mine[i], p, dp[i][j], scale);
      }
    }
    StoreScores<Shape>(s, &gradients);
    __syncthreads();
    AddProduct<Shape>(gradients, keys, dq);
  }
  const auto to = HeadOf<T>(b.dq, head, a.shape.heads, a, aligned);
  BITSHARD_UNROLL
  for (int i = 0; i < Shape::kRowsOfThread; ++i) StoreRow<Shape>(to, first, i, dq[i]);
}

template <class T, class Shape>
__global__ void __launch_bounds__(kTileThreads)
    KeyGradientKernel(DeviceAttentionBackwardArgs b, bool aligned) {
  BITSHARD_SHARED(typename Shape::Rows, keys);
  BITSHARD_SHARED(typename Shape::Rows, values);
  BITSHARD_SHARED(typename Shape::Cols, queries);  // In between, gradients of their outputs.
  BITSHARD_SHARED(typename Shape::ScoreTile, scores);
  const DeviceAttentionArgs& a = b.forward;
  const int64_t group = a.shape.heads / a.shape.kv_heads;
  const int64_t kv_head = blockIdx.x % a.shape.kv_heads;
  const int64_t first = blockIdx.x / a.shape.kv_heads * Shape::kRows;
  const int64_t end = first + Shape::kRows;
  const float scale = ScoreScale(a);
  LoadRows<Shape::kRows, Shape::kDim>(HeadOf<const T>(a.k, kv_head, a.shape.kv_heads, a, aligned),
                                      first, keys.at);
  LoadRows<Shape::kRows, Shape::kDim>(HeadOf<const T>(a.v, kv_head, a.shape.kv_heads, a, aligned),
                                      first, values.at);
  typename Shape::Elems dk, dv;
  Clear<Shape>(dk);
  Clear<Shape>(dv);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const auto q = HeadOf<const T>(a.q, head, a.shape.heads, a, aligned);
    const auto d_out = HeadOf<const T>(b.d_out, head, a.shape.heads, a, aligned);
    // Queries see keys before them, and from some query on none of this tile's.
    for (int64_t begin = first; begin < a.rows && FirstKey(a, begin) < end; begin += Shape::kCols) {
      typename Shape::Scores s, dp;
      __syncthreads();  // All are done with the queries before.
      LoadRows<Shape::kCols, Shape::kDim>(q, begin, queries.at);
      __syncthreads();
      Dots<Shape>(keys, queries, q.head_dim, s);
      __syncthreads();
      LoadRows<Shape::kCols, Shape::kDim>(d_out, begin, queries.at);
      __syncthreads();
      Dots<Shape>(values, queries, q.head_dim, dp);
      BITSHARD_UNROLL
      for (int j = 0; j < Shape::kColsOfThread; ++j) {
        const Query query = LoadQuery(b, head, begin + TileX() + j * kTileX);
        BITSHARD_UNROLL
        for (int i = 0; i < Shape::kRowsOfThread; ++i) {
          s[i][j] = Probability(query, first + TileY() + i * kTileY, s[i][j] * scale);
          dp[i][j] = ScoreGradient(query, s[i][j], dp[i][j], scale);
        }
      }
      StoreScores<Shape>(s, &scores);
      __syncthreads();
      AddProduct<Shape>(scores, queries, dv);
      __syncthreads();  // All are done with the probabilities and the gradients of outputs.
      StoreScores<Shape>(dp, &scores);
      LoadRows<Shape::kCols, Shape::kDim>(q, begin, queries.at);
      __syncthreads();
      AddProduct<Shape>(scores, queries, dk);
    }
  }
  const auto to_k = HeadOf<T>(b.dk, kv_head, a.shape.kv_heads, a, aligned);
  const auto to_v = HeadOf<T>(b.dv, kv_head, a.shape.kv_heads, a, aligned);
  BITSHARD_UNROLL
  for (int i = 0; i < Shape::kRowsOfThread; ++i) {
    StoreRow<Shape>(to_k, first, i, dk[i]);
    StoreRow<Shape>(to_v, first, i, dv[i]);
  }
}

template <class T, class Shape>
absl::Status LaunchBackward(const DeviceAttentionBackwardArgs& b) {
  const DeviceAttentionArgs& a = b.forward;
  const bool aligned =
      AreRowsAligned<T>(a.shape.head_dim, {a.q, a.k, a.v, a.out, b.d_out, b.dq, b.dk, b.dv});
  BITSHARD_RETURN_IF_ERROR(core::Launch("attention dots", AttentionDotsKernel<T>,
                                        GridFor(a.rows * a.shape.heads, kDotsPerCta),
                                        dim3(kDotThreads), 0, a.stream, b, aligned));
  BITSHARD_RETURN_IF_ERROR(core::Launch(
      "attention backward to queries", QueryGradientKernel<T, Shape>,
      GridOfTiles<Shape>(a.rows, a.shape.heads), dim3(kTileThreads), 0, a.stream, b, aligned));
  return core::Launch("attention backward to keys", KeyGradientKernel<T, Shape>,
                      GridOfTiles<Shape>(a.rows, a.shape.kv_heads), dim3(kTileThreads), 0, a.stream,
                      b, aligned);
}

}  // namespace

absl::Status DeviceAttentionBackward(const DeviceAttentionBackwardArgs& b) {
  BITSHARD_RETURN_IF_ERROR(CheckAttention("DeviceAttentionBackward", b.forward));
  return ForDeviceType("DeviceAttentionBackward", b.forward.type, [&](auto t) -> absl::Status {
    using T = decltype(t);
    if (b.forward.rows == 0) return absl::OkStatus();
    const int64_t head_dim = b.forward.shape.head_dim;
    if (head_dim <= 64) return LaunchBackward<T, TileShape<64, 32, 32>>(b);
    if (head_dim <= 128) return LaunchBackward<T, TileShape<128, 32, 16>>(b);
    return LaunchBackward<T, TileShape<kMaxDeviceHeadDim, 16, 8>>(b);
  });
}

}  // namespace bitshard::trainer
