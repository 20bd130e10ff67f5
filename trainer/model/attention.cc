#include "trainer/model/attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trainer/model/attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "trainer/model/small_gemm-inl.h"
#include "trainer/model/vector_io-inl.h"

#ifndef BITSHARD_TRAINER_MODEL_ATTENTION_LAYOUT_
#define BITSHARD_TRAINER_MODEL_ATTENTION_LAYOUT_
namespace bitshard::trainer {

// Query rows worked on at a time: a tile of scores is this by the sample's length.
inline constexpr int64_t kTileRows = 48;

// Columns are padded to whole vectors of the widest target.
inline int64_t PadColumns(int64_t n) { return (n + 15) / 16 * 16; }

// One thread's scratch, in floats. Padded head_dim is dim, padded sample length is len.
struct AttentionScratch {
  float *q, *k, *v, *k_transposed, *v_transposed, *out, *d_out, *dq, *dk, *dv, *scores, *d_scores;
  static int64_t Floats(int64_t dim, int64_t len) {
    return 8 * len * dim + 2 * dim * len + 2 * kTileRows * len;
  }
  AttentionScratch(float* base, int64_t dim, int64_t len) {
    const auto take = [&base](int64_t floats) {
      float* at = base;
      base += floats;
      return at;
    };
    for (float** p : {&q, &k, &v, &out, &d_out, &dq, &dk, &dv}) *p = take(len * dim);
    for (float** p : {&k_transposed, &v_transposed}) *p = take(dim * len);
    for (float** p : {&scores, &d_scores}) *p = take(kTileRows * len);
  }
};

}  // namespace bitshard::trainer
#endif  // BITSHARD_TRAINER_MODEL_ATTENTION_LAYOUT_

HWY_BEFORE_NAMESPACE();
namespace bitshard::trainer {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One head of one sample, widened to float32 and padded with zeros.
template <class T>
void Widen(const T* from, int64_t row_stride, int64_t rows, int64_t columns, int64_t dim,
           float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    float* out = to + r * dim;
    ForEachVector(columns, [&](auto d, int64_t i) HWY_ATTR {
      hn::StoreU(LoadWide(d, from + r * row_stride + i), d, out + i);
    });
    std::fill(out + columns, out + dim, 0.0f);
  }
}

template <class T>
void Narrow(const float* from, int64_t dim, int64_t rows, int64_t columns, T* to,
            int64_t row_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    ForEachVector(columns, [&](auto d, int64_t i) HWY_ATTR {
      StoreRounded(hn::LoadU(d, from + r * dim + i), d, to + r * row_stride + i);
    });
  }
}

void Transpose(const float* from, int64_t rows, int64_t dim, int64_t len, float* to) {
  for (int64_t c = 0; c < dim; ++c) {
    for (int64_t r = 0; r < rows; ++r) to[c * len + r] = from[r * dim + c];
    std::fill(to + c * len + rows, to + c * len + PadColumns(rows), 0.0f);
  }
}

struct Tile {
  int64_t first;  // Query rows [first, first + rows) of the sample.
  int64_t rows;
  int64_t columns;  // Keys that any of them sees, padded.
};

// Keys that query row i sees: [begin, i].
HWY_INLINE int64_t FirstKey(const AttentionShape& shape, int64_t i) {
  return shape.window > 0 ? std::max<int64_t>(0, i - shape.window + 1) : 0;
}

// probabilities[r, j] = exp(scale * scores - lse), 0 where not seen.
void Probabilities(const AttentionShape& shape, const Tile& tile, float scale, const float* lse,
                   int64_t len, float* scores) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* row = scores + r * len;
    const int64_t i = tile.first + r;
    const int64_t begin = FirstKey(shape, i);
    std::fill(row, row + begin, 0.0f);
    ForEachVector(i + 1 - begin, [&](auto d, int64_t j) HWY_ATTR {
      const auto s =
          hn::Sub(hn::Mul(hn::LoadU(d, row + begin + j), hn::Set(d, scale)), hn::Set(d, lse[r]));
      hn::StoreU(hn::Exp(d, s), d, row + begin + j);
    });
    std::fill(row + i + 1, row + tile.columns, 0.0f);
  }
}

float RowMax(const float* x, int64_t n) {
  float best = x[0];
  for (int64_t i = 1; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// log(sum(exp(scale * scores))) of each row of the tile.
void LogSumExp(const AttentionShape& shape, const Tile& tile, float scale, const float* scores,
               int64_t len, float* lse) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.first + r;
    const int64_t begin = FirstKey(shape, i);
    const float* row = scores + r * len + begin;
    const float top = RowMax(row, i + 1 - begin) * scale;
    const float sum = SumOverVectors(i + 1 - begin, [&](auto d, int64_t j) HWY_ATTR {
      return hn::Exp(d,
                     hn::Sub(hn::Mul(hn::LoadU(d, row + j), hn::Set(d, scale)), hn::Set(d, top)));
    });
    lse[r] = top + std::log(sum);
  }
}

void TileScores(const float* q, const float* transposed, const Tile& tile, int64_t dim, int64_t len,
                float* scores) {
  SmallGemm({.a = q + tile.first * dim,
             .a_row = dim,
             .b = transposed,
             .b_row = len,
             .c = scores,
             .c_row = len,
             .m = tile.rows,
             .n = tile.columns,
             .k = dim});
}

// All tiles of a sample of n tokens.
template <class Body>
void ForEachTile(int64_t n, Body&& body) {
  for (int64_t first = 0; first < n; first += kTileRows) {
    const int64_t rows = std::min(kTileRows, n - first);
    body(Tile{.first = first, .rows = rows, .columns = PadColumns(first + rows)});
  }
}

template <class T>
void ForwardHead(const AttentionArgs<T>& a, int64_t sample, int64_t head, const AttentionScratch& s,
                 int64_t dim, int64_t len) {
  const int64_t begin = (*a.starts)[static_cast<size_t>(sample)];
  const int64_t n = (*a.starts)[static_cast<size_t>(sample) + 1] - begin;
  const int64_t hd = a.shape.head_dim;
  const int64_t kv = head / (a.shape.heads / a.shape.kv_heads);
  const int64_t q_row = a.shape.heads * hd, kv_row = a.shape.kv_heads * hd;
  const float scale = 1.0f / std::sqrt(static_cast<float>(hd));
  Widen(a.q + begin * q_row + head * hd, q_row, n, hd, dim, s.q);
  Widen(a.k + begin * kv_row + kv * hd, kv_row, n, hd, dim, s.k);
  Widen(a.v + begin * kv_row + kv * hd, kv_row, n, hd, dim, s.v);
  Transpose(s.k, n, dim, len, s.k_transposed);
  float* lse = a.log_sum_exp + head * a.rows + begin;
  ForEachTile(n, [&](const Tile& tile) {
    TileScores(s.q, s.k_transposed, tile, dim, len, s.scores);
    LogSumExp(a.shape, tile, scale, s.scores, len, lse + tile.first);
    Probabilities(a.shape, tile, scale, lse + tile.first, len, s.scores);
    SmallGemm({.a = s.scores,
               .a_row = len,
               .b = s.v,
               .b_row = dim,
               .c = s.out + tile.first * dim,
               .c_row = dim,
               .m = tile.rows,
               .n = dim,
               .k = std::min(tile.columns, n)});
  });
  Narrow(s.out, dim, n, hd, a.out + begin * q_row + head * hd, q_row);
}

// Adds one query head's part to s.dk and s.dv and writes its dq.
template <class T>
void BackwardHead(const AttentionBackwardArgs<T>& b, int64_t begin, int64_t n, int64_t head,
                  const AttentionScratch& s, int64_t dim, int64_t len) {
  const AttentionArgs<T>& a = b.forward;
  const int64_t hd = a.shape.head_dim;
  const int64_t q_row = a.shape.heads * hd;
  const float scale = 1.0f / std::sqrt(static_cast<float>(hd));
  const int64_t offset = begin * q_row + head * hd;
  Widen(a.q + offset, q_row, n, hd, dim, s.q);
  Widen(a.out + offset, q_row, n, hd, dim, s.out);
  Widen(b.d_out + offset, q_row, n, hd, dim, s.d_out);
  const float* lse = a.log_sum_exp + head * a.rows + begin;
  ForEachTile(n, [&](const Tile& tile) {
    const int64_t keys = std::min(tile.columns, n);
    TileScores(s.q, s.k_transposed, tile, dim, len, s.scores);
    Probabilities(a.shape, tile, scale, lse + tile.first, len, s.scores);
    TileScores(s.d_out, s.v_transposed, tile, dim, len, s.d_scores);
    SmallGemm({.a = s.scores,
               .a_row = 1,
               .a_column = len,
               .b = s.d_out + tile.first * dim,
               .b_row = dim,
               .c = s.dv,
               .c_row = dim,
               .m = keys,
               .n = dim,
               .k = tile.rows,
               .accumulate = true});
    for (int64_t r = 0; r < tile.rows; ++r) {
      const float* out = s.out + (tile.first + r) * dim;
      const float* d_out = s.d_out + (tile.first + r) * dim;
      const float dot = SumOverVectors(dim, [&](auto d, int64_t j) HWY_ATTR {
        return hn::Mul(hn::LoadU(d, out + j), hn::LoadU(d, d_out + j));
      });
      const float* p = s.scores + r * len;
      float* ds = s.d_scores + r * len;
      ForEachVector(tile.columns, [&](auto d, int64_t j) HWY_ATTR {
        const auto x = hn::Sub(hn::LoadU(d, ds + j), hn::Set(d, dot));
        hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, p + j), x), hn::Set(d, scale)), d, ds + j);
      });
    }
    SmallGemm({.a = s.d_scores,
               .a_row = len,
               .b = s.k,
               .b_row = dim,
               .c = s.dq + tile.first * dim,
               .c_row = dim,
               .m = tile.rows,
               .n = dim,
               .k = keys});
    SmallGemm({.a = s.d_scores,
               .a_row = 1,
               .a_column = len,
               .b = s.q + tile.first * dim,
               .b_row = dim,
               .c = s.dk,
               .c_row = dim,
               .m = keys,
               .n = dim,
               .k = tile.rows,
               .accumulate = true});
  });
  Narrow(s.dq, dim, n, hd, b.dq + offset, q_row);
}

template <class T>
void BackwardGroup(const AttentionBackwardArgs<T>& b, int64_t sample, int64_t kv,
                   const AttentionScratch& s, int64_t dim, int64_t len) {
  const AttentionArgs<T>& a = b.forward;
  const int64_t begin = (*a.starts)[static_cast<size_t>(sample)];
  const int64_t n = (*a.starts)[static_cast<size_t>(sample) + 1] - begin;
  const int64_t hd = a.shape.head_dim;
  const int64_t kv_row = a.shape.kv_heads * hd;
  const int64_t offset = begin * kv_row + kv * hd;
  const int64_t group = a.shape.heads / a.shape.kv_heads;
  Widen(a.k + offset, kv_row, n, hd, dim, s.k);
  Widen(a.v + offset, kv_row, n, hd, dim, s.v);
  Transpose(s.k, n, dim, len, s.k_transposed);
  Transpose(s.v, n, dim, len, s.v_transposed);
  std::fill(s.dk, s.dk + n * dim, 0.0f);
  std::fill(s.dv, s.dv + n * dim, 0.0f);
  for (int64_t head = kv * group; head < (kv + 1) * group; ++head)
    BackwardHead(b, begin, n, head, s, dim, len);
  Narrow(s.dk, dim, n, hd, b.dk + offset, kv_row);
  Narrow(s.dv, dim, n, hd, b.dv + offset, kv_row);
}

template <class T, class Body>
void ForEachTask(const AttentionArgs<T>& a, int64_t heads, Body&& body) {
  const int64_t dim = PadColumns(a.shape.head_dim);
  const int64_t len = PadColumns(a.max_sample_tokens);
  const int64_t samples = static_cast<int64_t>(a.starts->size()) - 1;
  core::ParallelFor(samples * heads, 1, [&](int64_t begin, int64_t end) {
    const AttentionScratch scratch(
        a.scratch + omp_get_thread_num() * AttentionScratch::Floats(dim, len), dim, len);
    for (int64_t task = begin; task < end; ++task)
      body(task / heads, task % heads, scratch, dim, len);
  });
}

template <class T>
void AttentionImpl(const AttentionArgs<T>& a) {
  ForEachTask(a, a.shape.heads,
              [&](int64_t sample, int64_t head, const AttentionScratch& s, int64_t dim,
                  int64_t len) { ForwardHead(a, sample, head, s, dim, len); });
}

template <class T>
void AttentionBackwardImpl(const AttentionBackwardArgs<T>& b) {
  ForEachTask(b.forward, b.forward.shape.kv_heads,
              [&](int64_t sample, int64_t kv, const AttentionScratch& s, int64_t dim, int64_t len) {
                BackwardGroup(b, sample, kv, s, dim, len);
              });
}

// Online softmax over the cached rows (Milakov and Gimelshein, 2018): one pass over keys and
// values.
template <class T>
void DecodeAttentionImpl(const DecodeAttentionArgs<T>& a) {
  const int64_t hd = a.shape.head_dim;
  const int64_t row = a.shape.kv_heads * hd;
  const float scale = 1.0f / std::sqrt(static_cast<float>(hd));
  const int64_t first = FirstKey(a.shape, a.length - 1);
  for (int64_t head = 0; head < a.shape.heads; ++head) {
    const int64_t kv = head / (a.shape.heads / a.shape.kv_heads);
    const T* q = a.q + head * hd;
    T* out = a.out + head * hd;
    float top = -HUGE_VALF, sum = 0;
    HWY_ALIGN float acc[512] = {};
    for (int64_t j = first; j < a.length; ++j) {
      const T* k = a.k + j * row + kv * hd;
      const T* v = a.v + j * row + kv * hd;
      const float score = scale * SumOverVectors(hd, [&](auto d, int64_t i) HWY_ATTR {
                            return hn::Mul(LoadWide(d, q + i), LoadWide(d, k + i));
                          });
      const float next = std::max(top, score);
      const float keep = std::exp(top - next), weight = std::exp(score - next);
      sum = sum * keep + weight;
      top = next;
      ForEachVector(hd, [&](auto d, int64_t i) HWY_ATTR {
        const auto old = hn::Mul(hn::LoadU(d, acc + i), hn::Set(d, keep));
        hn::StoreU(hn::MulAdd(hn::Set(d, weight), LoadWide(d, v + i), old), d, acc + i);
      });
    }
    ForEachVector(hd, [&](auto d, int64_t i) HWY_ATTR {
      StoreRounded(hn::Mul(hn::LoadU(d, acc + i), hn::Set(d, 1.0f / sum)), d, out + i);
    });
  }
}

void AttentionF32(const AttentionArgs<float>& a) { AttentionImpl(a); }
void AttentionBf16(const AttentionArgs<hwy::bfloat16_t>& a) { AttentionImpl(a); }
void AttentionBackwardF32(const AttentionBackwardArgs<float>& b) { AttentionBackwardImpl(b); }
void AttentionBackwardBf16(const AttentionBackwardArgs<hwy::bfloat16_t>& b) {
  AttentionBackwardImpl(b);
}
void DecodeAttentionF32(const DecodeAttentionArgs<float>& a) { DecodeAttentionImpl(a); }
void DecodeAttentionBf16(const DecodeAttentionArgs<hwy::bfloat16_t>& a) { DecodeAttentionImpl(a); }

}  // namespace HWY_NAMESPACE
}  // namespace bitshard::trainer
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bitshard::trainer {
HWY_EXPORT(AttentionF32);
HWY_EXPORT(AttentionBf16);
HWY_EXPORT(AttentionBackwardF32);
HWY_EXPORT(AttentionBackwardBf16);
HWY_EXPORT(DecodeAttentionF32);
HWY_EXPORT(DecodeAttentionBf16);

int64_t AttentionScratchBytes(const AttentionShape& shape, int64_t max_sample_tokens, int threads) {
  return AttentionScratch::Floats(PadColumns(shape.head_dim), PadColumns(max_sample_tokens)) *
         static_cast<int64_t>(sizeof(float)) * threads;
}

void Attention(const AttentionArgs<float>& a) { HWY_DYNAMIC_DISPATCH(AttentionF32)(a); }
void Attention(const AttentionArgs<hwy::bfloat16_t>& a) { HWY_DYNAMIC_DISPATCH(AttentionBf16)(a); }
void AttentionBackward(const AttentionBackwardArgs<float>& b) {
  HWY_DYNAMIC_DISPATCH(AttentionBackwardF32)(b);
}
void AttentionBackward(const AttentionBackwardArgs<hwy::bfloat16_t>& b) {
  HWY_DYNAMIC_DISPATCH(AttentionBackwardBf16)(b);
}
void DecodeAttention(const DecodeAttentionArgs<float>& a) {
  HWY_DYNAMIC_DISPATCH(DecodeAttentionF32)(a);
}
void DecodeAttention(const DecodeAttentionArgs<hwy::bfloat16_t>& a) {
  HWY_DYNAMIC_DISPATCH(DecodeAttentionBf16)(a);
}

}  // namespace bitshard::trainer
#endif  // HWY_ONCE
