#include "core/check.h"

#include <string>

#include "core/error.h"
#include "core/status_macros.h"
#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

TEST(CheckDeathTest, AbortsWithPlaceConditionAndText) {
  const int blocks = 3;
  EXPECT_DEATH(BITSHARD_CHECK(blocks == 4) << "bucket " << blocks,
               "check_test.cc:[0-9]+: .*blocks == 4 bucket 3");
}

TEST(Check, EvaluatesItsTextOnlyWhenItFails) {
  int evaluated = 0;
  const auto text = [&] { return ++evaluated; };
  BITSHARD_CHECK(true) << text();
  EXPECT_EQ(evaluated, 0);
}

TEST(Check, BindsAsOneStatement) {
  bool reached_else = false;
  if (reached_else)
    BITSHARD_CHECK(true);
  else
    reached_else = true;
  EXPECT_TRUE(reached_else);
}

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return DataError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  BITSHARD_ASSIGN_OR_RETURN(const int half, Half(value));
  BITSHARD_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

absl::Status Divisible(int value, int* steps) {
  ++*steps;
  BITSHARD_RETURN_IF_ERROR(Quarter(value).status());
  ++*steps;
  return absl::OkStatus();
}

TEST(StatusMacros, PassOnTheValueOrReturnTheError) {
  EXPECT_EQ(*Quarter(12), 3);
  EXPECT_EQ(ExitCode(Quarter(6).status()), 3);
  EXPECT_EQ(ExitCode(Quarter(5).status()), 3);
  int steps = 0;
  EXPECT_TRUE(Divisible(8, &steps).ok());
  EXPECT_EQ(steps, 2);
  EXPECT_FALSE(Divisible(6, &steps).ok());
  EXPECT_EQ(steps, 3);
}

}  // namespace
}  // namespace bitshard::core
