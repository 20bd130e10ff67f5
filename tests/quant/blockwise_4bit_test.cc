// NF4, FP4 and double quantisation against the rule written out plainly, at every SIMD target.
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
#include "core/numeric.h"
#include "quant/block_codec.h"
#include "quant/blockwise.h"
#include "quant/codebook.h"
#include "quant/streaming.h"
#include "tests/quant/for_each_target.h"

namespace bitshard::quant {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr Type4Bit kTypes[] = {Type4Bit::kNf4, Type4Bit::kFp4};

// FP4's decisions as bitsandbytes' CUDA kernel nests them.
int PlainFp4(float t) {
  const int sign = t < 0.0f ? 8 : 0;
  const float a = std::fabs(t);
  if (a > 0.29166667f) {
    if (a > 0.583333f) return sign + (a > 0.8333333f ? 3 : 2);
    return sign + (a > 0.4166667f ? 5 : 4);
  }
  if (a > 0.0859375f) return sign + (a > 0.20833333f ? 7 : 6);
  return sign + (a > 0.00260417f ? 1 : 0);
}

int PlainNf4(float t) {
  const auto values = Nf4Values();
  size_t code = 0;
  while (code < 15 && t > (values[code] + values[code + 1]) * 0.5f) ++code;
  return static_cast<int>(code);
}

int PlainCode(Type4Bit type, float t) { return type == Type4Bit::kNf4 ? PlainNf4(t) : PlainFp4(t); }

int Element(const std::vector<uint8_t>& packed, size_t i) {
  return i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
}

std::vector<float> Normal(size_t n, float scale, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(n);
  for (float& e : x) e = normal(generator);
  return x;
}

struct Packed {
  std::vector<uint8_t> bytes;
  std::vector<float> absmax;
};

Packed Quantise(const std::vector<float>& x, Type4Bit type, int64_t block_size) {
  Packed out;
  out.bytes.resize(static_cast<size_t>(PackedBytes(std::ssize(x))));
  out.absmax.resize(static_cast<size_t>(NumBlocks(std::ssize(x), block_size)));
  EXPECT_EQ(Quantize4Bit(x, type, block_size, out.bytes, out.absmax), absl::OkStatus());
  return out;
}

void ExpectFollowsTheRule(const std::vector<float>& x, Type4Bit type, size_t block_size) {
  const Packed got = Quantise(x, type, static_cast<int64_t>(block_size));
  const int zero = PlainCode(type, 0.0f);
  for (size_t begin = 0; begin < x.size(); begin += block_size) {
    const size_t end = std::min(x.size(), begin + block_size);
    float absmax = 0;
    bool finite = true;
    for (size_t i = begin; i < end; ++i) {
      finite = finite && std::isfinite(x[i]);
      absmax = std::max(absmax, std::fabs(x[i]));
    }
    const bool coded = finite && absmax >= 0x1p-126f;
    const float want = !finite ? kNan : coded ? absmax : 0.0f;
    EXPECT_EQ(core::FloatBits(got.absmax[begin / block_size]), core::FloatBits(want));
    for (size_t i = begin; i < end; ++i) {
      const float t = coded ? std::clamp(x[i] * (1.0f / absmax), -1.0f, 1.0f) : 0.0f;
      ASSERT_EQ(Element(got.bytes, i), coded ? PlainCode(type, t) : zero)
          << "element " << i << ", t = " << t;
    }
  }
  if (x.size() % 2 == 1) {
    EXPECT_EQ(got.bytes.back() & 15, zero) << "the unused nibble";
  }
}

TEST(Quantize4Bit, BoundariesOfNf4AreTheMidpointsOfItsTable) {
  const auto values = Nf4Values();
  for (size_t k = 0; k < 15; ++k) {
    EXPECT_EQ(Nf4Codec::Bounds().at[k], Midpoint(values[k], values[k + 1]));
  }
}

TEST(Quantize4Bit, MovesUpOnlyAboveABoundary) {
  for (const Type4Bit type : kTypes) {
    std::vector<float> bounds;
    if (type == Type4Bit::kNf4) {
      for (const float b : Nf4Codec::Bounds().at) bounds.push_back(b);
    } else {
      for (const float b : Fp4Codec::Bounds().at) bounds.insert(bounds.end(), {b, -b});
    }
    std::vector<float> x(64, 1.0f);
    for (const float b : bounds) {
      for (const float e : {b, std::nextafter(b, -2.0f), std::nextafter(b, 2.0f)}) x.push_back(e);
    }
    for (const float e : {0.0f, -0.0f, 0x1p-149f, -0x1p-149f, 1e-6f, -1e-6f, 1.0f, -1.0f})
      x.push_back(e);
    ForEachTarget([&] { ExpectFollowsTheRule(x, type, 256); });
  }
}

TEST(Quantize4Bit, FollowsTheRuleAtEveryLengthAndBlockSize) {
  for (const size_t n : {0u, 1u, 2u, 3u, 31u, 63u, 64u, 65u, 127u, 255u, 256u, 257u, 1001u}) {
    for (const Type4Bit type : kTypes) {
      for (const size_t block_size : {2u, 10u, 32u, 64u, 256u, 4096u}) {
        ForEachTarget([&] {
          SCOPED_TRACE("n " + std::to_string(n) + ", block " + std::to_string(block_size));
          ExpectFollowsTheRule(Normal(n, 0.02f, 9), type, block_size);
        });
      }
    }
  }
}

TEST(Quantize4Bit, HandlesZeroDenormalHugeAndNonFiniteBlocks) {
  std::vector<float> x;
  for (const float absmax :
       {0.0f, 0x1.fffffcp-127f, 0x1p-126f, 1e20f, 0x1.8p126f, 0x1.fffffep127f, kInf, kNan}) {
    for (const float e : Normal(64, 0.3f, 3)) x.push_back(std::clamp(e, -1.0f, 1.0f) * absmax);
    x[x.size() - 31] = -absmax;
  }
  for (const Type4Bit type : kTypes) {
    ForEachTarget([&] { ExpectFollowsTheRule(x, type, 64); });
  }
  EXPECT_THAT(Quantise(std::vector<float>(64, -0.0f), Type4Bit::kNf4, 64).bytes, Each(0x77));
  EXPECT_THAT(Quantise(std::vector<float>(64, -0.0f), Type4Bit::kFp4, 64).bytes, Each(0x00));
}

TEST(Dequantize4Bit, MultipliesTheEntryByTheScaleAndRoundsOnceToBfloat16) {
  std::vector<uint8_t> packed(256);
  for (size_t i = 0; i < 256; ++i) packed[i] = static_cast<uint8_t>(i * 91 + 5);
  const std::vector<float> scales = {1.7f, 0.0f, 3e-39f, 2e38f, kNan, kInf, 0.3f, 1e-3f, 77.0f};
  for (const Type4Bit type : kTypes) {
    const float* values = type == Type4Bit::kNf4 ? Nf4Values().data() : Fp4Values().data();
    for (const size_t n : {511u, 512u}) {
      ForEachTarget([&] {
        const std::vector<float> absmax(scales.begin(),
                                        scales.begin() + NumBlocks(static_cast<int64_t>(n), 58));
        std::vector<float> out(n + 1, 42.0f);
        std::vector<uint16_t> bf16(n + 1, 42);
        ASSERT_TRUE(Dequantize4Bit(packed, absmax, type, 58, std::span(out).first(n)).ok());
        ASSERT_TRUE(Dequantize4BitToBf16(packed, absmax, type, 58, std::span(bf16).first(n)).ok());
        for (size_t i = 0; i < n; ++i) {
          const float want = values[Element(packed, i)] * absmax[i / 58];
          EXPECT_TRUE(core::FloatBits(out[i]) == core::FloatBits(want) ||
                      (std::isnan(out[i]) && std::isnan(want)));
          // The sign of a NaN is not part of the rule.
          const uint16_t mask = std::isnan(want) ? 0x7FFF : 0xFFFF;
          EXPECT_EQ(bf16[i] & mask, core::Bf16FromFloat(want) & mask) << "element " << i;
        }
        EXPECT_EQ(out[n], 42.0f);
        EXPECT_EQ(bf16[n], 42);
      });
    }
  }
}

TEST(Dequantize4Bit, GivesLargeOutputsTheBitsOfSmallOnes) {
  constexpr int64_t kBlock = 64;
  const size_t n = static_cast<size_t>(kStreamElems) + 101;
  std::vector<uint8_t> packed((n + 1) / 2);
  for (size_t i = 0; i < packed.size(); ++i) packed[i] = static_cast<uint8_t>(i * 7919 >> 3);
  const std::vector<float> absmax = Normal(n / kBlock + 1, 1.0f, 5);
  const auto buffer = core::AlignedBuffer::Create(static_cast<int64_t>(4 * n), "output").value();
  const std::span<float> out = buffer.as<float>();
  std::vector<float> part(1 << 20);
  ForEachTarget([&] {
    for (const Type4Bit type : kTypes) {
      std::fill(out.begin(), out.end(), kNan);
      ASSERT_TRUE(Dequantize4Bit(packed, absmax, type, kBlock, out).ok());
      for (size_t at = 0; at < n; at += part.size()) {
        const size_t count = std::min(part.size(), n - at);
        const auto codes = std::span(packed).subspan(at / 2, (count + 1) / 2);
        const auto scales = std::span(absmax).subspan(at / kBlock, (count + kBlock - 1) / kBlock);
        ASSERT_TRUE(Dequantize4Bit(codes, scales, type, kBlock, std::span(part).first(count)).ok());
        ASSERT_EQ(std::memcmp(part.data(), out.data() + at, 4 * count), 0) << at;
      }
    }
  });
}

TEST(QuantizeAbsmax, TakesTheMeanInDoubleAndQuantisesTheDifference) {
  std::vector<float> absmax(700);
  for (size_t i = 0; i < absmax.size(); ++i)
    absmax[i] = 0.05f + 1e-4f * static_cast<float>(i * 7919 % 613);
  absmax[5] = 16777216.0f;  // a float32 sum would lose every scale after this one
  ForEachTarget([&] {
    DoubleQuantizedAbsmax nested;
    ASSERT_TRUE(QuantizeAbsmax(absmax, &nested).ok());
    double sum = 0;
    for (const float a : absmax) sum += static_cast<double>(a);
    EXPECT_EQ(nested.offset, static_cast<float>(sum / 700.0));
    std::vector<float> difference(700);
    for (size_t i = 0; i < 700; ++i) difference[i] = absmax[i] - nested.offset;
    std::vector<uint8_t> codes(700);
    std::vector<float> scales(3);
    const CodeTable& table = SignedDynamicTable();
    ASSERT_TRUE(QuantizeBlockwise(difference, table.values, 256, codes, scales).ok());
    EXPECT_EQ(nested.codes, codes);
    EXPECT_EQ(nested.absmax, scales);
    std::vector<float> back(700);
    ASSERT_TRUE(DequantizeAbsmax(nested, back).ok());
    for (size_t i = 0; i < 700; ++i) {
      const float product = table.values[codes[i]] * scales[i / 256];
      EXPECT_EQ(back[i], product + nested.offset);
    }
  });
  DoubleQuantizedAbsmax empty;
  ASSERT_TRUE(QuantizeAbsmax({}, &empty).ok());
  EXPECT_EQ(empty.offset, 0.0f);
  EXPECT_TRUE(empty.codes.empty());
}

TEST(Tensor4Bit, GivesAnyRunOfBlocksAsTheWholeTensorDoes) {
  const std::vector<float> x = Normal(64 * 600 + 33, 0.02f, 1);
  for (const bool double_quant : {false, true}) {
    for (const Type4Bit type : kTypes) {
      Tensor4Bit tensor;
      ASSERT_TRUE(QuantizeTensor4Bit(x, type, 64, double_quant, &tensor).ok());
      const Packed packed = Quantise(x, type, 64);
      EXPECT_EQ(tensor.packed, packed.bytes);
      std::vector<float> scales = packed.absmax;
      if (double_quant) {
        DoubleQuantizedAbsmax nested;
        ASSERT_TRUE(QuantizeAbsmax(packed.absmax, &nested).ok());
        ASSERT_TRUE(DequantizeAbsmax(nested, scales).ok());
        EXPECT_TRUE(tensor.absmax.empty());
        EXPECT_EQ(tensor.bytes(), std::ssize(packed.bytes) + 601 + 4 * 3 + 4);
      } else {
        EXPECT_EQ(tensor.bytes(), std::ssize(packed.bytes) + 4 * 601);
      }
      std::vector<float> want(x.size());
      std::vector<uint16_t> want_bf16(x.size());
      ASSERT_TRUE(Dequantize4Bit(packed.bytes, scales, type, 64, want).ok());
      ASSERT_TRUE(Dequantize4BitToBf16(packed.bytes, scales, type, 64, want_bf16).ok());
      for (const int64_t begin : {0, 64, 64 * 300, 64 * 600}) {
        for (const int64_t end : {int64_t{64} * 600, std::ssize(x), begin}) {
          if (end < begin) continue;
          const size_t count = static_cast<size_t>(end - begin);
          std::vector<float> out(count);
          std::vector<uint16_t> bf16(count);
          ASSERT_TRUE(DequantizeTensor4Bit(tensor, begin, out).ok());
          ASSERT_TRUE(DequantizeTensor4BitToBf16(tensor, begin, bf16).ok());
          EXPECT_TRUE(std::equal(out.begin(), out.end(), want.begin() + begin));
          EXPECT_TRUE(std::equal(bf16.begin(), bf16.end(), want_bf16.begin() + begin));
        }
      }
    }
  }
}

TEST(Tensor4Bit, RefusesRangesAndSizesThatDoNotFit) {
  Tensor4Bit tensor;
  ASSERT_TRUE(QuantizeTensor4Bit(Normal(1000, 1.0f, 2), Type4Bit::kNf4, 64, true, &tensor).ok());
  std::vector<float> out(64);
  const auto message = [&](int64_t begin) {
    const absl::Status status = DequantizeTensor4Bit(tensor, begin, out);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(-64), HasSubstr("elements [-64, 0)"));
  EXPECT_THAT(message(32), HasSubstr("multiples of block_size 64"));
  EXPECT_THAT(message(960), HasSubstr("of 1000"));
  tensor.nested.codes.pop_back();
  EXPECT_THAT(message(0), HasSubstr("15 codes"));
  tensor.packed.pop_back();
  EXPECT_THAT(message(0), HasSubstr("499 packed bytes for 1000"));
  EXPECT_EQ(QuantizeTensor4Bit(out, Type4Bit::kNf4, 63, true, &tensor).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(QuantizeTensor4Bit(out, Type4Bit::kNf4, 0, true, &tensor).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace bitshard::quant
