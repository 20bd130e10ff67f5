#include "core/number_range.h"

#include <gtest/gtest.h>

#include <cmath>

namespace bitshard::core {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(NumberRange, ContainsItsEndsUnlessTheyAreLeftOut) {
  EXPECT_TRUE(Contains({.max = 1}, 0) && Contains({.max = 1}, -0.0) && Contains({.max = 1}, 1));
  EXPECT_FALSE(Contains({.above_min = true}, 0));
  EXPECT_FALSE(Contains({.max = 1, .below_max = true}, 1));
  EXPECT_FALSE(Contains({.max = 1}, std::nextafter(1, 2)));
  EXPECT_FALSE(Contains({}, -std::numeric_limits<double>::denorm_min()));
  EXPECT_TRUE(Contains({.max = 1, .below_max = true}, std::nextafter(1, 0)));
}

TEST(NumberRange, HoldsNoNanAndInfinityOnlyWhereThatIsItsEnd) {
  for (const NumberRange& range : {NumberRange{}, NumberRange{.max = kInfinity}, kFinite})
    EXPECT_FALSE(Contains(range, kNan));
  EXPECT_FALSE(Contains({}, kInfinity));
  EXPECT_TRUE(Contains({.max = kInfinity}, kInfinity));
  EXPECT_FALSE(Contains(kFinite, kInfinity) || Contains(kFinite, -kInfinity));
  EXPECT_TRUE(Contains(kFinite, -1e308) && Contains(kFinite, 1e308));
}

TEST(NumberRange, SaysWhatIsWanted) {
  EXPECT_EQ(RangeFault(0.5, {.max = 1}), "");
  EXPECT_EQ(RangeFault(-1, {}), "got -1, want at least 0");
  EXPECT_EQ(RangeFault(1, {.max = 1, .below_max = true}), "got 1, want at least 0 and below 1");
  EXPECT_EQ(RangeFault(0, {.max = 2, .above_min = true}), "got 0, want above 0 and at most 2");
  EXPECT_EQ(RangeFault(kInfinity, {}), "got inf, want a finite number at least 0");
  EXPECT_EQ(RangeFault(kNan, {.max = kInfinity}), "got nan, want a number at least 0");
  EXPECT_EQ(RangeFault(-kInfinity, kFinite), "got -inf, want a finite number");
}

}  // namespace
}  // namespace bitshard::core
