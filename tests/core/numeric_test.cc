#include "core/numeric.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/dtype.h"
#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The value of an IEEE number with the fields given, by the definition, in double.
double ValueOfFields(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double fraction =
      std::ldexp(static_cast<double>(bits & ((1u << mantissa_bits) - 1)), -mantissa_bits);
  const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) return fraction == 0 ? sign * kInf : std::nan("");
  return sign * (exponent == 0 ? std::ldexp(fraction, 1 - bias)
                               : std::ldexp(1 + fraction, exponent - bias));
}

TEST(FloatFromFp16, IsExactForAll65536) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float got = FloatFromFp16(static_cast<uint16_t>(bits));
    const double want = ValueOfFields(bits, 5, 10);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << bits;
    } else {
      EXPECT_EQ(static_cast<double>(got), want) << bits;
    }
    EXPECT_EQ(std::signbit(got), bits >> 15 != 0) << bits;
  }
}

TEST(FloatFromBf16, IsExactForAll65536) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float got = FloatFromBf16(static_cast<uint16_t>(bits));
    const double want = ValueOfFields(bits, 8, 7);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << bits;
    } else {
      EXPECT_EQ(static_cast<double>(got), want) << bits;
    }
    EXPECT_EQ(std::signbit(got), bits >> 15 != 0) << bits;
  }
}

// Rounding is monotone, so the points around every midpoint decide it everywhere.
TEST(Bf16FromFloat, RoundsToNearestEvenAroundEveryMidpoint) {
  for (const uint32_t sign : {0u, 0x8000u}) {
    for (uint32_t low = 0; low < 0x7F80; ++low) {
      const uint32_t high =
          low + 1;  // The next larger magnitude; after the largest finite one, infinity.
      // Infinity stands for 2^128, the value that its bits would have with one more exponent.
      const double low_value = std::fabs(ValueOfFields(low, 8, 7));
      const double high_value = high == 0x7F80 ? std::ldexp(1.0, 128) : ValueOfFields(high, 8, 7);
      const float midpoint = static_cast<float>((low_value + high_value) / 2);
      ASSERT_EQ(static_cast<double>(midpoint), (low_value + high_value) / 2);
      const uint32_t even = low % 2 == 0 ? low : high;
      const float factor = sign != 0 ? -1.0f : 1.0f;
      const auto rounded = [&](float magnitude) {
        return uint32_t{Bf16FromFloat(factor * magnitude)};
      };
      ASSERT_EQ(rounded(static_cast<float>(low_value)), sign | low);
      ASSERT_EQ(rounded(std::nextafter(midpoint, 0.0f)), sign | low);
      ASSERT_EQ(rounded(midpoint), sign | even);
      ASSERT_EQ(rounded(std::nextafter(midpoint, kInf)), sign | high);
    }
  }
}

TEST(Bf16FromFloat, KeepsInfinitiesAndMakesEveryNanQuiet) {
  EXPECT_EQ(Bf16FromFloat(kInf), 0x7F80);
  EXPECT_EQ(Bf16FromFloat(-kInf), 0xFF80);
  for (const uint32_t bits : {0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu}) {
    EXPECT_EQ(Bf16FromFloat(FloatFromBits(bits)), 0x7FC0);
    EXPECT_EQ(Bf16FromFloat(FloatFromBits(bits | 0x80000000u)), 0xFFC0);
  }
}

TEST(Sign0, IsZeroForZerosAndNan) {
  EXPECT_EQ(Sign0(3.0f), 1.0f);
  EXPECT_EQ(Sign0(-kInf), -1.0f);
  EXPECT_EQ(Sign0(std::numeric_limits<float>::denorm_min()), 1.0f);
  for (const float x : {0.0f, -0.0f, kNan}) EXPECT_EQ(FloatBits(Sign0(x)), 0u);
}

TEST(IsFinite, IsFalseForNanAndInfinitiesOnly) {
  for (const float x : {kInf, -kInf, kNan, -kNan, FloatFromBits(0x7F800001u)})
    EXPECT_FALSE(IsFinite(x));
  for (const float x : {0.0f, -0.0f, FloatFromBits(1u), std::numeric_limits<float>::max()})
    EXPECT_TRUE(IsFinite(x));
}

TEST(MaxFloat, TakesTheLargerAndTheSecondBesideNan) {
  EXPECT_EQ(MaxFloat(1.0f, 2.0f), 2.0f);
  EXPECT_EQ(MaxFloat(2.0f, -1.0f), 2.0f);
  EXPECT_EQ(MaxFloat(kNan, 1.0f), 1.0f);
  EXPECT_TRUE(std::isnan(MaxFloat(1.0f, kNan)));
}

TEST(FloatBits, RoundTrips) {
  for (const uint32_t bits : {0u, 1u, 0x80000000u, 0x3F800000u, 0x7F800000u, 0xFFFFFFFFu}) {
    EXPECT_EQ(FloatBits(FloatFromBits(bits)), bits);
  }
  EXPECT_EQ(FloatBits(1.5f), std::bit_cast<uint32_t>(1.5f));
}

TEST(DType, HasTorchsNamesAndSizes) {
  EXPECT_EQ(Name(DType::kFloat32), "float32");
  EXPECT_EQ(Name(DType::kBFloat16), "bfloat16");
  EXPECT_EQ(ByteSize(DType::kFloat32), 4);
  EXPECT_EQ(ByteSize(DType::kFloat16), 2);
  EXPECT_EQ(ByteSize(DType::kBFloat16), 2);
  EXPECT_EQ(ByteSize(DType::kUInt8), 1);
  EXPECT_EQ(ByteSize(DType::kInt8), 1);
  EXPECT_EQ(ByteSize(DType::kInt32), 4);
  EXPECT_EQ(ByteSize(DType::kInt64), 8);
}

// Every representable value, the midpoints between neighbours and the floats beside them, and
// beyond the largest: against the compiler's own conversion.
TEST(Fp16FromFloat, RoundsAsTheCompilerDoes) {
  for (uint32_t half = 0; half < 0x7C00u; ++half) {
    const float low = FloatFromFp16(static_cast<uint16_t>(half));
    const float high = half == 0x7BFFu ? 65536.0f : FloatFromFp16(static_cast<uint16_t>(half + 1));
    const float middle = low + (high - low) * 0.5f;
    for (const float x :
         {low, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, kInf)}) {
      for (const float signed_x : {x, -x}) {
        const _Float16 want = static_cast<_Float16>(signed_x);
        ASSERT_EQ(Fp16FromFloat(signed_x), std::bit_cast<uint16_t>(want)) << signed_x;
      }
    }
  }
}

TEST(Fp16FromFloat, KeepsInfinitiesAndMakesEveryNanQuiet) {
  EXPECT_EQ(Fp16FromFloat(kInf), 0x7C00);
  EXPECT_EQ(Fp16FromFloat(-1e30f), 0xFC00);
  EXPECT_EQ(Fp16FromFloat(FloatFromBits(0x7F800001u)), 0x7E00);
  EXPECT_EQ(Fp16FromFloat(FloatFromBits(0xFFFFFFFFu)), 0xFE00);
}

// Of the 65536 random numbers, as many round up as the discarded bits say.
TEST(Bf16FromFloatStochastic, RoundsUpAsOftenAsTheDiscardedPartSays) {
  for (const uint32_t discarded : {0u, 1u, 0x1234u, 0x8000u, 0xFFFFu}) {
    for (const uint32_t upper : {0x3F80u, 0xBF80u, 0x0000u, 0x7F7Fu}) {
      uint32_t up = 0;
      for (uint32_t random = 0; random < 0x10000u; ++random) {
        const uint32_t got =
            Bf16FromFloatStochastic(FloatFromBits(upper << 16 | discarded), random << 16 | 0xABCDu);
        ASSERT_TRUE(got == upper || got == upper + 1) << got;
        up += got == upper + 1;
      }
      EXPECT_EQ(up, discarded) << upper;
    }
  }
}

TEST(Bf16FromFloatStochastic, KeepsInfinityAndNan) {
  EXPECT_EQ(Bf16FromFloatStochastic(kInf, 0xFFFFFFFFu), 0x7F80);
  EXPECT_EQ(Bf16FromFloatStochastic(-kInf, 0xFFFFFFFFu), 0xFF80);
  EXPECT_EQ(Bf16FromFloatStochastic(FloatFromBits(0x7FFFFFFFu), 0xFFFFFFFFu), 0x7FC0);
}

}  // namespace
}  // namespace bitshard::core
