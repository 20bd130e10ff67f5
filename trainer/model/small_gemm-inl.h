// Products of small float32 matrices that stay in cache: the inner loops of attention.
#if defined(BITSHARD_TRAINER_MODEL_SMALL_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BITSHARD_TRAINER_MODEL_SMALL_GEMM_INL_H_
#undef BITSHARD_TRAINER_MODEL_SMALL_GEMM_INL_H_
#else
#define BITSHARD_TRAINER_MODEL_SMALL_GEMM_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace bitshard::trainer {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// c [m, n] (+)= a [m, k] b [k, n]: a is read one element at a time at a[i * a_row + j * a_column],
// b and c are row-major with n a multiple of the lanes of a vector.
struct SmallGemmArgs {
  const float* a = nullptr;
  int64_t a_row = 0;
  int64_t a_column = 1;
  const float* b = nullptr;
  int64_t b_row = 0;
  float* c = nullptr;
  int64_t c_row = 0;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool accumulate = false;
};

// Rows of c that are held in registers at a time: 6 x 2 vectors of sums, 2 of b and 1 of a fit 16
// registers.
constexpr int64_t kSmallGemmRows = 6;

template <int kRows, int kVectors>
HWY_INLINE void SmallGemmTile(const SmallGemmArgs& g, int64_t i, int64_t j) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sum[static_cast<size_t>(kRows)][static_cast<size_t>(kVectors)];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int s = 0; s < kVectors; ++s) {
      sum[r][s] =
          g.accumulate ? hn::LoadU(d, g.c + (i + r) * g.c_row + j + s * lanes) : hn::Zero(d);
    }
  }
  const float* a = g.a + i * g.a_row;
  const float* b = g.b + j;
  for (int64_t p = 0; p < g.k; ++p, a += g.a_column, b += g.b_row) {
    hn::Vec<decltype(d)> column[static_cast<size_t>(kVectors)];
#pragma GCC unroll 16
    for (int s = 0; s < kVectors; ++s) column[s] = hn::LoadU(d, b + s * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto x = hn::Set(d, a[r * g.a_row]);
#pragma GCC unroll 16
      for (int s = 0; s < kVectors; ++s) sum[r][s] = hn::MulAdd(x, column[s], sum[r][s]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int s = 0; s < kVectors; ++s)
      hn::StoreU(sum[r][s], d, g.c + (i + r) * g.c_row + j + s * lanes);
  }
}

template <int kVectors>
HWY_INLINE void SmallGemmColumns(const SmallGemmArgs& g, int64_t j) {
  int64_t i = 0;
  for (; i + kSmallGemmRows <= g.m; i += kSmallGemmRows)
    SmallGemmTile<kSmallGemmRows, kVectors>(g, i, j);
  for (; i + 2 <= g.m; i += 2) SmallGemmTile<2, kVectors>(g, i, j);
  for (; i < g.m; ++i) SmallGemmTile<1, kVectors>(g, i, j);
}

HWY_INLINE void SmallGemm(const SmallGemmArgs& g) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t j = 0;
  for (; j + 2 * lanes <= g.n; j += 2 * lanes) SmallGemmColumns<2>(g, j);
  for (; j + lanes <= g.n; j += lanes) SmallGemmColumns<1>(g, j);
}

}  // namespace HWY_NAMESPACE
}  // namespace bitshard::trainer
HWY_AFTER_NAMESPACE();

#endif  // BITSHARD_TRAINER_MODEL_SMALL_GEMM_INL_H_
