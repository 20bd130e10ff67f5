// 8-bit blockwise quantisation against the rule written out plainly, at every SIMD target.
#include "quant/blockwise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/error.h"
#include "core/numeric.h"
#include "core/parallel.h"
#include "quant/codebook.h"
#include "quant/streaming.h"
#include "tests/quant/for_each_target.h"

namespace bitshard::quant {
namespace {

using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct NamedTable {
  std::string name;
  std::vector<float> values;
};

// bitsandbytes' create_linear_map(signed=True): 255 even steps with a second zero in the middle.
std::vector<float> LinearTable() {
  std::vector<float> values;
  for (int i = 0; i < 127; ++i) values.push_back(static_cast<float>(i - 127) / 127.0f);
  values.insert(values.end(), 2, 0.0f);
  for (int i = 1; i <= 127; ++i) values.push_back(static_cast<float>(i) / 127.0f);
  return values;
}

// Its create_fp8_map(signed=True, 5, 2): all values of a float with 5 exponent and 2 mantissa bits,
// over the largest.
std::vector<float> Fp8Table() {
  std::vector<float> values;
  for (int code = 0; code < 128; ++code) {
    const int exponent = code >> 2;
    const double mantissa = (code & 3) / 4.0;
    const double value =
        exponent == 0 ? std::ldexp(mantissa, -16) : std::ldexp(1.0 + mantissa, exponent - 17);
    values.push_back(static_cast<float>(value));
    values.push_back(static_cast<float>(-value));
  }
  std::sort(values.begin(), values.end());
  const float largest = values.back();
  for (float& v : values) v /= largest;
  return values;
}

std::vector<NamedTable> Tables() {
  const auto copy = [](const CodeTable& t) { return std::vector<float>(t.values, t.values + 256); };
  return {{"signed dynamic", copy(SignedDynamicTable())},
          {"unsigned dynamic", copy(UnsignedDynamicTable())},
          {"linear", LinearTable()},
          {"fp8", Fp8Table()},
          {"constant", std::vector<float>(256, 0.25f)}};
}

// The rule of docs/numerics.md for one t, by scanning all decision points.
uint8_t PlainCode(const std::vector<float>& table, float t) {
  for (size_t k = 0; k < 255; ++k) {
    const float midpoint = (table[k] + table[k + 1]) * 0.5f;
    if (t < midpoint) return static_cast<uint8_t>(k);
    if (t == midpoint) return static_cast<uint8_t>(k % 2 == 0 ? k : k + 1);
  }
  return 255;
}

struct Quantised {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

Quantised PlainQuantise(const std::vector<float>& x, const std::vector<float>& table,
                        size_t block_size) {
  Quantised out;
  for (size_t begin = 0; begin < x.size(); begin += block_size) {
    const size_t end = std::min(x.size(), begin + block_size);
    float absmax = 0;
    bool finite = true;
    for (size_t i = begin; i < end; ++i) {
      finite = finite && std::isfinite(x[i]);
      absmax = std::max(absmax, std::fabs(x[i]));
    }
    const bool coded = finite && absmax >= 0x1p-126f;
    out.absmax.push_back(!finite ? kNan : coded ? absmax : 0.0f);
    for (size_t i = begin; i < end; ++i) {
      const float t = coded ? std::clamp(x[i] * (1.0f / absmax), -1.0f, 1.0f) : 0.0f;
      out.codes.push_back(PlainCode(table, t));
    }
  }
  return out;
}

Quantised Quantise(const std::vector<float>& x, const std::vector<float>& table,
                   int64_t block_size) {
  Quantised out;
  out.codes.resize(x.size());
  out.absmax.resize(static_cast<size_t>(NumBlocks(std::ssize(x), block_size)));
  EXPECT_EQ(QuantizeBlockwise(x, table, block_size, out.codes, out.absmax), absl::OkStatus());
  return out;
}

void ExpectSame(const Quantised& got, const Quantised& want) {
  ASSERT_EQ(got.codes.size(), want.codes.size());
  ASSERT_EQ(got.absmax.size(), want.absmax.size());
  for (size_t b = 0; b < want.absmax.size(); ++b) {
    EXPECT_EQ(core::FloatBits(got.absmax[b]), core::FloatBits(want.absmax[b]))
        << "absmax of block " << b;
  }
  for (size_t i = 0; i < want.codes.size(); ++i) {
    ASSERT_EQ(int{got.codes[i]}, int{want.codes[i]}) << "element " << i;
  }
}

std::vector<float> Normal(size_t n, float scale, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(n);
  for (float& e : x) e = normal(generator);
  return x;
}

TEST(QuantizeBlockwise, SendsTiesToTheEvenCodeAndNeighboursToTheNearest) {
  for (const NamedTable& table : Tables()) {
    std::vector<float> x;
    for (size_t k = 0; k < 255; ++k) {
      const float midpoint = (table.values[k] + table.values[k + 1]) * 0.5f;
      x.push_back(1.0f);  // a block of four: absmax 1, so t is x
      x.push_back(midpoint);
      x.push_back(std::nextafter(midpoint, -2.0f));
      x.push_back(std::nextafter(midpoint, 2.0f));
    }
    const Quantised want = PlainQuantise(x, table.values, 4);
    ForEachTarget([&] {
      SCOPED_TRACE(table.name);
      ExpectSame(Quantise(x, table.values, 4), want);
      const int64_t all = std::ssize(x);
      ExpectSame(Quantise(x, table.values, all), PlainQuantise(x, table.values, x.size()));
    });
  }
}

TEST(QuantizeBlockwise, FollowsTheRuleAtEveryLengthAndBlockSize) {
  for (const size_t n : {0u, 1u, 2u, 63u, 255u, 256u, 257u, 1000u, 5000u}) {
    const std::vector<float> x = Normal(n, 3e-4f, 7);
    for (const NamedTable& table : Tables()) {
      for (const int64_t block_size : {1, 7, 64, 256, 4096}) {
        const Quantised want = PlainQuantise(x, table.values, static_cast<size_t>(block_size));
        ForEachTarget([&] {
          SCOPED_TRACE(table.name + ", n " + std::to_string(n) + ", block " +
                       std::to_string(block_size));
          ExpectSame(Quantise(x, table.values, block_size), want);
        });
      }
    }
  }
}

TEST(QuantizeBlockwise, KeepsEveryMagnitudeOfAbsmax) {
  std::vector<float> x;
  for (const float absmax : {0.0f, -0.0f, 0x1p-149f, 0x1.fffffcp-127f, 0x1p-126f, 1e-38f, 1e-20f,
                             1.0f, 1e20f, 0x1p126f, 0x1.8p126f, 0x1p127f, 0x1.fffffep127f}) {
    const std::vector<float> block = Normal(256, 0.3f, 3);
    for (size_t i = 0; i < 256; ++i) x.push_back(std::clamp(block[i], -1.0f, 1.0f) * absmax);
    x[x.size() - 128] = -absmax;
  }
  for (const NamedTable& table : Tables()) {
    const Quantised want = PlainQuantise(x, table.values, 256);
    ForEachTarget([&] {
      SCOPED_TRACE(table.name);
      ExpectSame(Quantise(x, table.values, 256), want);
    });
  }
}

TEST(QuantizeBlockwise, StoresZeroForZeroAndDenormalBlocks) {
  const std::vector<float> x = {0.0f, -0.0f, 0x1.fffffcp-127f, -0x1p-149f};
  ForEachTarget([&] {
    const Quantised got = Quantise(x, Tables()[0].values, 4);
    EXPECT_EQ(core::FloatBits(got.absmax[0]), 0u);
    EXPECT_THAT(got.codes, ::testing::Each(127));
    EXPECT_THAT(Quantise(x, Tables()[1].values, 4).codes, ::testing::Each(0));
  });
}

TEST(QuantizeBlockwise, PoisonsOnlyTheBlockWithANonFiniteElement) {
  const std::vector<float> table = Tables()[0].values;
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const size_t at : {0u, 100u, 255u, 300u, 512u}) {
      std::vector<float> x = Normal(513, 1.0f, 11);
      x[at] = bad;
      ForEachTarget([&] {
        const Quantised got = Quantise(x, table, 256);
        ExpectSame(got, PlainQuantise(x, table, 256));
        std::vector<float> back(x.size());
        ASSERT_TRUE(DequantizeBlockwise(got.codes, table, got.absmax, 256, back).ok());
        for (size_t i = 0; i < x.size(); ++i) {
          EXPECT_EQ(std::isnan(back[i]), i / 256 == at / 256) << "element " << i;
        }
      });
    }
  }
}

TEST(DequantizeBlockwise, MultipliesTheEntryByTheScaleOfItsBlock) {
  std::vector<uint8_t> codes(1000);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 37);
  const std::vector<float> scales = {1.7f, 0.0f, 3e-39f, 2e38f, -1.0f,
                                     0.3f, 7.0f, 1e-3f,  5.5f,  0.1f};
  for (const NamedTable& table : Tables()) {
    ForEachTarget([&] {
      std::vector<float> out(codes.size());
      ASSERT_TRUE(DequantizeBlockwise(codes, table.values, scales, 100, out).ok());
      for (size_t i = 0; i < out.size(); ++i) {
        EXPECT_EQ(core::FloatBits(out[i]),
                  core::FloatBits(table.values[codes[i]] * scales[i / 100]))
            << table.name << " element " << i;
      }
    });
  }
}

TEST(DequantizeBlockwise, GivesLargeOutputsTheBitsOfSmallOnes) {
  constexpr int64_t kBlock = 64;
  const size_t n = static_cast<size_t>(kStreamElems) + 100;
  std::vector<uint8_t> codes(n);
  for (size_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(i * 7919 >> 3);
  const std::vector<float> absmax = Normal(static_cast<size_t>(NumBlocks(n, kBlock)), 1.0f, 5);
  const auto buffer =
      core::AlignedBuffer::Create(static_cast<int64_t>(4 * (n + 1)), "output").value();
  const std::span<float> whole = buffer.as<float>();
  std::vector<float> part(1 << 20);
  ForEachTarget([&] {
    for (const std::span<const float> table :
         {std::span<const float>(SignedDynamicTable().values),
          std::span<const float>(UnsignedDynamicTable().values)}) {
      for (const size_t shift : {size_t{0}, size_t{1}}) {  // The second is not aligned.
        const std::span<float> out = whole.subspan(shift, n);
        std::fill(out.begin(), out.end(), kNan);
        ASSERT_TRUE(DequantizeBlockwise(codes, table, absmax, kBlock, out).ok());
        for (size_t at = 0; at < n; at += part.size()) {
          const size_t count = std::min(part.size(), n - at);
          const auto scales = std::span(absmax).subspan(
              at / kBlock, static_cast<size_t>(NumBlocks(static_cast<int64_t>(count), kBlock)));
          ASSERT_TRUE(DequantizeBlockwise(std::span(codes).subspan(at, count), table, scales,
                                          kBlock, std::span(part).first(count))
                          .ok());
          ASSERT_EQ(std::memcmp(part.data(), out.data() + at, 4 * count), 0) << at;
        }
      }
    }
  });
}

TEST(QuantizeBlockwise, GivesTheSameBytesAtAnyNumberOfThreads) {
  const std::vector<float> x = Normal(300001, 1.0f, 5);
  const int threads = core::NumThreads();
  core::SetNumThreads(1);
  const Quantised one = Quantise(x, Tables()[1].values, 256);
  core::SetNumThreads(3);
  const Quantised three = Quantise(x, Tables()[1].values, 256);
  core::SetNumThreads(threads);
  ExpectSame(three, one);
}

TEST(QuantizeBlockwise, RefusesSizesAndTablesThatDoNotFit) {
  std::vector<float> x(10), absmax(2), table = Tables()[0].values;
  std::vector<uint8_t> codes(10);
  const auto message = [&](int64_t block_size) {
    const absl::Status status = QuantizeBlockwise(x, table, block_size, codes, absmax);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(0), HasSubstr("block_size is 0"));
  EXPECT_THAT(message(4), HasSubstr("absmax has 2 entries, want 3"));
  codes.resize(9);
  EXPECT_THAT(message(5), HasSubstr("9 codes for 10 elements"));
  codes.resize(10);
  std::swap(table[3], table[9]);
  EXPECT_THAT(message(5), HasSubstr("want ascending order"));
  table = Tables()[0].values;
  table[255] = kInf;
  EXPECT_THAT(message(5), HasSubstr("entry 255"));
  table.resize(255);
  EXPECT_THAT(message(5), HasSubstr("255 entries, want 256"));
  const absl::Status status = DequantizeBlockwise(codes, table, absmax, 5, x);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace bitshard::quant
