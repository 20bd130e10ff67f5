// exp and log of kernels against the C library's in a wider type.
#include "trainer/model/device_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace bitshard::trainer {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(DeviceMath, ExpIsWithinItsBound) {
  double worst = 0;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 1009) {
    const float x = core::FloatFromBits(static_cast<uint32_t>(bits));
    if (!(std::abs(x) < 88.72f || (x < 0 && x > -110))) continue;
    const double want = std::exp(static_cast<double>(x));
    int exponent = 0;
    std::frexp(want, &exponent);
    const double ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
    worst = std::max(worst, std::abs(static_cast<double>(Exp(x)) - want) / ulp);
  }
  EXPECT_LT(worst, 1.25);
  EXPECT_GT(worst, 0.5);  // Something was compared.
}

TEST(DeviceMath, ExpHasItsLimits) {
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-0.0f), 1.0f);
  EXPECT_EQ(Exp(88.73f), kInf);
  EXPECT_EQ(Exp(kInf), kInf);
  EXPECT_EQ(Exp(-104.0f), 0.0f);
  EXPECT_EQ(Exp(-kInf), 0.0f);
  EXPECT_EQ(Exp(-std::numeric_limits<float>::max()), 0.0f);
  EXPECT_TRUE(std::isnan(Exp(kNan)));
}

TEST(DeviceMath, LogIsWithinItsBound) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(0, 40);
  for (int i = 0; i < 200000; ++i) {
    const double x = i < 1000 ? 1 + i * 0x1p-23 : std::exp2(exponent(random));
    const long double want = std::log(static_cast<long double>(x));
    int places = 0;
    std::frexp(want, &places);
    ASSERT_LE(std::abs(static_cast<long double>(Log(x)) - want), std::ldexp(2.0L, places - 53))
        << x;
  }
  EXPECT_EQ(Log(1.0), 0.0);
  EXPECT_EQ(Log(static_cast<double>(kInf)), kInf);
  EXPECT_TRUE(std::isnan(Log(static_cast<double>(kNan))));
}

}  // namespace
}  // namespace bitshard::trainer
