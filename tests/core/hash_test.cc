#include "core/hash.h"

#include <string>

#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

TEST(Hash64, IsXxh3WithSeedZero) {
  // The digest of the empty input in the XXH3 specification.
  EXPECT_EQ(HexDigest(Hash64(nullptr, 0)), "2d06800538d394c2");
}

TEST(Hasher, GivesTheSameForPiecesAsForTheWhole) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i % 256);
  for (const size_t cut : {0u, 1u, 255u, 256u, 999u, 1000u}) {
    Hasher hasher;
    hasher.Update(text.data(), cut);
    hasher.Update(text.data() + cut, text.size() - cut);
    EXPECT_EQ(hasher.Digest(), Hash64(text.data(), text.size())) << cut;
  }
}

TEST(Hasher, FramesStrings) {
  const auto digest = [](const std::string& a, const std::string& b) {
    Hasher hasher;
    hasher.UpdateString(a);
    hasher.UpdateString(b);
    return hasher.Digest();
  };
  EXPECT_EQ(digest("a", "bc"), digest("a", "bc"));
  EXPECT_NE(digest("a", "bc"), digest("ab", "c"));
  EXPECT_NE(digest("", "abc"), digest("abc", ""));
}

TEST(Hasher, DistinguishesIntegers) {
  const auto digest = [](int64_t value) {
    Hasher hasher;
    hasher.UpdateInt(value);
    return hasher.Digest();
  };
  EXPECT_NE(digest(0), digest(1));
  EXPECT_NE(digest(1), digest(int64_t{1} << 32));
  EXPECT_NE(digest(-1), digest(0xFFFFFFFF));
}

TEST(HexDigest, HasSixteenDigits) { EXPECT_EQ(HexDigest(0xAB), "00000000000000ab"); }

}  // namespace
}  // namespace bitshard::core
