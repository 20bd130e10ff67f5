#include "optim/name_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace bitshard::optim {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(NamePattern, StandsForAWholeName) {
  for (const char* pattern : {"a.b.c", "*", "a*", "*c", "*.b.*", "a.?.c", "**", "a*b*c", "a.b.c*"})
    EXPECT_EQ(PatternDistance(pattern, "a.b.c"), 0) << pattern;
  EXPECT_EQ(PatternDistance("b", "a.b.c"), 4);
  EXPECT_EQ(PatternDistance("a.b.", "a.b.c"), 1);
  EXPECT_EQ(PatternDistance("?a.b.c", "a.b.c"), 1);
  EXPECT_EQ(PatternDistance("*x*", "a.b.c"), 1);
  EXPECT_EQ(PatternDistance("", "a"), 1);
  EXPECT_EQ(PatternDistance("", ""), 0);
}

TEST(NamePattern, TakesOtherCharactersForThemselves) {
  EXPECT_EQ(PatternDistance("a.[bc]", "a.b"), 3);
  EXPECT_EQ(PatternDistance("a.[bc]", "a.[bc]"), 0);
  EXPECT_EQ(PatternDistance("a\\*", "a\\b"), 0);
  EXPECT_EQ(PatternDistance("A", "a"), 1);
}

TEST(NamePattern, FindsEveryNameOrTheNearest) {
  const std::vector<std::string> names = {"q.weight", "k.weight", "k.bias"};
  EXPECT_THAT(MatchNames("?.weight", names).places, ElementsAre(0, 1));
  EXPECT_THAT(MatchNames("k.*", names).places, ElementsAre(1, 2));
  const PatternMatches none = MatchNames("k.baas", names);
  EXPECT_THAT(none.places, IsEmpty());
  EXPECT_EQ(NoMatchFault(none),
            "matches no tensor; the nearest is k.bias (* stands for any characters)");
  EXPECT_EQ(MatchNames("v.weight", names).nearest, "q.weight");  // The first of two as near.
  EXPECT_EQ(NoMatchFault(MatchNames("*", {})), "matches no tensor, for there is none");
}

}  // namespace
}  // namespace bitshard::optim
