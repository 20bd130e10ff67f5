#include "core/simd.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

class SimdTest : public testing::Test {
 protected:
  ~SimdTest() override {
    unsetenv("BITSHARD_SIMD");
    EXPECT_TRUE(ForceSimdTarget("").ok());
  }
};

TEST_F(SimdTest, UsesTheBestTargetUnlessToldOtherwise) {
  const std::vector<std::string> targets = SupportedSimdTargets();
  ASSERT_FALSE(targets.empty());
  EXPECT_EQ(SimdTargetName(), targets.front());
  for (const std::string& target : targets) {
    ASSERT_TRUE(ForceSimdTarget(target).ok()) << target;
    EXPECT_EQ(SimdTargetName(), target);
    EXPECT_THAT(SupportedSimdTargets(), testing::Contains(target));
  }
  ASSERT_TRUE(ForceSimdTarget("").ok());
  EXPECT_EQ(SimdTargetName(), targets.front());
  EXPECT_EQ(SupportedSimdTargets(), targets);
}

TEST_F(SimdTest, RefusesATargetThatTheProcessorLacksAndNamesThoseItHas) {
  const absl::Status status = ForceSimdTarget("MMX");
  EXPECT_EQ(ExitCode(status), 2);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(testing::HasSubstr("MMX"),
                             testing::HasSubstr(SupportedSimdTargets().front())));
}

TEST_F(SimdTest, ReadsTheEnvironment) {
  const std::string last = SupportedSimdTargets().back();
  setenv("BITSHARD_SIMD", last.c_str(), 1);
  ASSERT_TRUE(InitSimdFromEnvironment().ok());
  EXPECT_EQ(SimdTargetName(), last);
  setenv("BITSHARD_SIMD", "avx2", 1);
  EXPECT_THAT(std::string(InitSimdFromEnvironment().message()),
              testing::HasSubstr("BITSHARD_SIMD"));
}

}  // namespace
}  // namespace bitshard::core
