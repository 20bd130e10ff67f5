// LLM.int8() against plain loops in 64-bit integers and float64, at every SIMD target.
#include "quant/int8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/quant/for_each_target.h"

namespace bitshard::quant {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<int8_t> RandomBytes(int64_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> any(-128, 127);
  std::vector<int8_t> x(static_cast<size_t>(n));
  for (int8_t& e : x) e = static_cast<int8_t>(any(generator));
  return x;
}

std::vector<float> Normal(int64_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& e : x) e = normal(generator);
  return x;
}

struct Shape {
  int64_t rows, cols, depth;
};

std::vector<int32_t> Product(const std::vector<int8_t>& a, const std::vector<int8_t>& b,
                             Shape shape) {
  std::vector<int32_t> out(static_cast<size_t>(shape.rows * shape.cols), -1);
  const absl::Status status = MultiplyInt8(
      {.a = a, .b = b, .rows = shape.rows, .cols = shape.cols, .depth = shape.depth, .out = out});
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

int64_t PlainSum(const std::vector<int8_t>& a, const std::vector<int8_t>& b, Shape shape,
                 int64_t row, int64_t col) {
  int64_t sum = 0;
  for (int64_t k = 0; k < shape.depth; ++k) {
    sum += int64_t{a[static_cast<size_t>(row * shape.depth + k)]} *
           int64_t{b[static_cast<size_t>(col * shape.depth + k)]};
  }
  return sum;
}

TEST(MultiplyInt8, IsExactForEveryShape) {
  // Tails of the tile (4 rows, 3 columns), of every vector, and of a panel (96 columns).
  const Shape shapes[] = {{1, 1, 1},  {1, 3, 7},   {2, 5, 8},       {4, 3, 16},
                          {5, 7, 31}, {3, 97, 33}, {9, 200, 65},    {37, 11, 0},
                          {0, 4, 5},  {4, 0, 5},   {130, 100, 1500}};
  ForEachTarget([&] {
    for (const Shape shape : shapes) {
      SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.cols << " x " << shape.depth);
      const auto a = RandomBytes(shape.rows * shape.depth, 1);
      const auto b = RandomBytes(shape.cols * shape.depth, 2);
      const auto out = Product(a, b, shape);
      for (int64_t row = 0; row < shape.rows; ++row) {
        for (int64_t col = 0; col < shape.cols; ++col) {
          ASSERT_EQ(out[static_cast<size_t>(row * shape.cols + col)],
                    PlainSum(a, b, shape, row, col))
              << row << ", " << col;
        }
      }
    }
  });
}

TEST(MultiplyInt8, DoesNotSaturate) {
  constexpr Shape kShape{.rows = 2, .cols = 4, .depth = kMaxInt8Depth};
  for (const int value : {-128, 127}) {
    const std::vector<int8_t> a(static_cast<size_t>(kShape.rows * kShape.depth), -128);
    const std::vector<int8_t> b(static_cast<size_t>(kShape.cols * kShape.depth),
                                static_cast<int8_t>(value));
    const int64_t want = kShape.depth * -128 * value;
    ForEachTarget([&] { EXPECT_THAT(Product(a, b, kShape), Each(want)); });
  }
}

TEST(MultiplyInt8, RefusesWhatDoesNotFit) {
  std::vector<int8_t> a(6), b(6);
  std::vector<int32_t> out(4);
  const absl::Status size =
      MultiplyInt8({.a = a, .b = b, .rows = 2, .cols = 2, .depth = 4, .out = out});
  EXPECT_THAT(std::string(size.message()), HasSubstr("a has 6 elements, want 8"));
  const absl::Status depth =
      MultiplyInt8({.a = {}, .b = {}, .rows = 0, .cols = 0, .depth = kMaxInt8Depth + 1, .out = {}});
  EXPECT_THAT(std::string(depth.message()), HasSubstr("depth is 131072"));
}

// Rows at one scale each; returns codes and scales.
struct Rows {
  std::vector<int8_t> q;
  std::vector<float> stats;
};

Rows Quantized(const std::vector<float>& x, MatrixSize size, float threshold) {
  Rows out{.q = std::vector<int8_t>(x.size(), 99),
           .stats = std::vector<float>(static_cast<size_t>(size.rows), -1.0f)};
  const absl::Status status = QuantizeRowsInt8(x, size, threshold, out.q, out.stats);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

TEST(QuantizeRowsInt8, RoundsToTheNearestInteger) {
  constexpr MatrixSize kSize{.rows = 13, .cols = 301};
  const std::vector<float> x = Normal(kSize.rows * kSize.cols, 3);
  for (const float threshold : {0.0f, 1.5f}) {
    ForEachTarget([&] {
      const Rows got = Quantized(x, kSize, threshold);
      for (int64_t row = 0; row < kSize.rows; ++row) {
        const float* from = x.data() + row * kSize.cols;
        const auto outlier = [&](float e) { return threshold > 0 && std::fabs(e) >= threshold; };
        float absmax = 0;
        for (int64_t c = 0; c < kSize.cols; ++c)
          if (!outlier(from[c])) absmax = std::max(absmax, std::fabs(from[c]));
        ASSERT_EQ(got.stats[static_cast<size_t>(row)], absmax);
        const float scale = 127.0f / absmax;
        for (int64_t c = 0; c < kSize.cols; ++c) {
          const float want = outlier(from[c]) ? 0.0f : std::nearbyint(from[c] * scale);
          ASSERT_EQ(got.q[static_cast<size_t>(row * kSize.cols + c)], want) << row << ", " << c;
        }
      }
    });
  }
}

TEST(QuantizeRowsInt8, TakesTiesToTheEvenInteger) {
  ForEachTarget([&] {
    const Rows got = Quantized({127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f}, {.rows = 1, .cols = 6}, 0);
    EXPECT_THAT(got.q, ElementsAre(127, 0, 2, 2, 0, -2));
  });
}

TEST(QuantizeRowsInt8, KeepsSpecialRowsApart) {
  const std::vector<float> x = {0, -0.0f, 1e-40f, 1e-41f, kNan, 1, kInf, 2, 3, -1.5f};
  ForEachTarget([&] {
    const Rows got = Quantized(x, {.rows = 5, .cols = 2}, 0);
    EXPECT_THAT(got.q, ElementsAre(0, 0, 0, 0, 0, 0, 0, 0, 127, -64));
    EXPECT_EQ(got.stats[0], 0.0f);
    EXPECT_TRUE(std::isnan(got.stats[2]));
    EXPECT_EQ(got.stats[3], kInf);
    std::vector<float> back(x.size());
    ASSERT_TRUE(DequantizeRowsInt8(got.q, {.rows = 5, .cols = 2}, got.stats, back).ok());
    for (size_t i = 4; i < 8; ++i) EXPECT_TRUE(std::isnan(back[i])) << i;
  });
}

TEST(QuantizeRowsInt8, TakesAnInfinityForAnOutlierButNotANaN) {
  ForEachTarget([&] {
    const Rows got = Quantized({kInf, 1, 2, kNan, 1, 7}, {.rows = 2, .cols = 3}, 6.0f);
    EXPECT_THAT(got.q, ElementsAre(0, 64, 127, 0, 0, 0));
    EXPECT_EQ(got.stats[0], 2.0f);
    EXPECT_TRUE(std::isnan(got.stats[1]));
  });
}

TEST(DequantizeInt8Product, AddsTheBiasAfterBothScales) {
  const std::vector<int32_t> product = {16129, -16129, 1000000, 0, 7, -123456789};
  const std::vector<float> rows = {2.0f, 0.3f}, cols = {1.0f, 0.7f, 5.0f}, bias = {1, -2, 0.5f};
  for (const bool biased : {false, true}) {
    ForEachTarget([&] {
      std::vector<float> out(6);
      ASSERT_TRUE(DequantizeInt8Product(
                      {.product = product,
                       .row_stats = rows,
                       .col_stats = cols,
                       .bias = biased ? std::span<const float>(bias) : std::span<const float>(),
                       .out = out})
                      .ok());
      for (size_t i = 0; i < 6; ++i) {
        const double exact = product[i] / 16129.0 * double{rows[i / 3]} * double{cols[i % 3]} +
                             (biased ? double{bias[i % 3]} : 0.0);
        // Five roundings, each of half a unit in the last place.
        EXPECT_NEAR(out[i], exact, std::fabs(exact) * 5 * 0x1p-24 + 1e-7) << i;
      }
    });
  }
}

}  // namespace
}  // namespace bitshard::quant
