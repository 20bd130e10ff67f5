// Gemm against sums in double, on every SIMD target of the machine.
#include "trainer/model/gemm.h"

#include <cmath>
#include <vector>

#include "core/numeric.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "gtest/gtest.h"
#include "tests/quant/for_each_target.h"

namespace bitshard::trainer {
namespace {

std::vector<float> Random(int64_t n, uint64_t key) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = 2.0f * core::UniformFloat(core::Philox(key, i, 0).word[0]) - 1.0f;
  return x;
}

struct Case {
  int64_t m, n, k;
  bool transposed_b = false;
  float alpha = 1;
  float beta = 0;
};

// Sides around tiles (6 or 14 rows, 8 to 32 columns), packed columns (96) and pieces of k (768).
constexpr Case kCases[] = {
    {96, 96, 96},           {96, 96, 96, true},           {97, 107, 769, true, 0.5f, 1},
    {131, 192, 100, false}, {101, 129, 1537, false, 2},   {200, 577, 101, true, 1, 1},
    {113, 98, 2305, true},  {98, 1000, 97, false, -1, 1}, {32, 200, 150, true},
    {45, 96, 770, false}};
constexpr int64_t kFewestRows = 32;

// `args` over buffers that outlive it.
struct Product {
  explicit Product(const Case& c)
      : shape(c),
        a(Random(c.m * c.k, 1)),
        b(Random(c.k * c.n, 2)),
        before(Random(c.m * c.n, 3)),
        out(before) {}
  MatMulArgs<float> args() {
    const Matrix<float> right = shape.transposed_b
                                    ? Matrix<float>(b.data(), shape.n, shape.k).Transposed()
                                    : Matrix<float>(b.data(), shape.k, shape.n);
    return {.a = Matrix<float>(a.data(), shape.m, shape.k),
            .b = right,
            .out = Matrix<float>(out.data(), shape.m, shape.n),
            .alpha = shape.alpha,
            .beta = shape.beta};
  }
  Case shape;
  std::vector<float> a, b, before, out;
};

TEST(Gemm, IsTheProductWithinTheRoundingOfItsSums) {
  quant::ForEachTarget([] {
    for (const Case& c : kCases) {
      Product p(c);
      const MatMulArgs<float> args = p.args();
      ASSERT_TRUE(GemmTakes(args));
      Gemm(args);
      for (int64_t i = 0; i < c.m; ++i) {
        for (int64_t j = 0; j < c.n; ++j) {
          const size_t at = static_cast<size_t>(i * c.n + j);
          double sum = 0, magnitude = 0;
          for (int64_t q = 0; q < c.k; ++q) {
            const double term =
                double{args.a.data[i * args.a.row_stride + q]} *
                double{args.b.data[q * args.b.row_stride + j * args.b.column_stride]};
            sum += term;
            magnitude += std::abs(term);
          }
          const double before = double{c.beta} * double{p.before[at]};
          const double want = c.alpha * sum + before;
          // k + 2 roundings, each at most 2^-24 of a partial sum, none of which exceeds this.
          const double bound = static_cast<double>(c.k + 2) * 0x1p-24 *
                               (std::abs(double{c.alpha}) * magnitude + std::abs(before));
          ASSERT_LE(std::abs(double{p.out[at]} - want), bound)
              << c.m << " x " << c.n << " x " << c.k << " at " << i << ", " << j;
        }
      }
    }
  });
}

TEST(Gemm, GivesTheSameBitsWithOtherRowsAndThreads) {
  const int threads = core::NumThreads();
  quant::ForEachTarget([] {
    for (const Case& c : kCases) {
      core::SetNumThreads(1);
      Product whole(c);
      Gemm(whole.args());
      core::SetNumThreads(3);
      Product part(c);
      MatMulArgs<float> args = part.args();
      const int64_t skipped = c.m - kFewestRows;  // The last rows alone: other tiles than before.
      args.a.data += skipped * c.k;
      args.out.data += skipped * c.n;
      args.a.rows = args.out.rows = kFewestRows;
      ASSERT_TRUE(GemmTakes(args));
      Gemm(args);
      for (size_t at = static_cast<size_t>(skipped * c.n); at < whole.out.size(); ++at)
        ASSERT_EQ(core::FloatBits(whole.out[at]), core::FloatBits(part.out[at])) << at;
      for (size_t at = 0; at < static_cast<size_t>(skipped * c.n); ++at)
        ASSERT_EQ(part.out[at], part.before[at]) << "written outside of out: " << at;
    }
  });
  core::SetNumThreads(threads);
}

TEST(Gemm, OverwritesNanWhereBetaIsZero) {
  Product p({96, 96, 96});
  p.out.assign(p.out.size(), NAN);
  Gemm(p.args());
  for (const float x : p.out) ASSERT_TRUE(std::isfinite(x));
}

TEST(Gemm, LeavesShortAndTransposedProductsToTheLibrary) {
  Product p({96, 96, 96});
  MatMulArgs<float> args = p.args();
  args.a = args.a.Transposed();
  EXPECT_FALSE(GemmTakes(args));
  Product narrow({96, 16, 96}), few({kFewestRows - 1, 96, 96});
  EXPECT_FALSE(GemmTakes(narrow.args()));
  EXPECT_FALSE(GemmTakes(few.args()));
}

}  // namespace
}  // namespace bitshard::trainer
