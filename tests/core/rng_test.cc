#include "core/rng.h"

#include <cmath>
#include <cstdint>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

using testing::ElementsAre;

// The known answers of Random123 (file kat_vectors, lines philox4x32 10): counter words, key words,
// result.
TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  EXPECT_THAT(Philox(0, 0, 0).word,
              ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  constexpr uint64_t kOnes = ~uint64_t{0};
  EXPECT_THAT(Philox(kOnes, kOnes, kOnes).word,
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  // Counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: digits of pi, first word
  // lowest.
  EXPECT_THAT(Philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e).word,
              ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(RngKey, DiffersWithEveryPartOfItsName) {
  std::set<uint64_t> keys;
  int made = 0;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{42}, uint64_t{1} << 63}) {
    for (const RngPurpose purpose : {RngPurpose::kInit, RngPurpose::kDataOrder,
                                     RngPurpose::kDropout, RngPurpose::kStochasticRounding}) {
      for (const uint64_t a :
           {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, (uint64_t{1} << 32) + 1}) {
        for (const uint64_t b : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
          keys.insert(RngKey(seed, purpose, a, b));
          ++made;
        }
      }
    }
  }
  EXPECT_EQ(static_cast<int>(keys.size()), made);
}

// These values are the contract: were one to change, a resumed run would draw other numbers than
// the one that was stopped. The definition was computed by a second program.
TEST(RngKey, StaysWhatItWas) {
  EXPECT_EQ(RngKey(42, RngPurpose::kInit), 0x42e0b8b37dbf5de8u);
  EXPECT_EQ(RngKey(42, RngPurpose::kDataOrder, 3), 0x9873a8d48162fb92u);
  EXPECT_EQ(RngKey(42, RngPurpose::kDropout, 17, 5), 0xfdb248caaa6173fu);
}

TEST(UniformFloat, CoversTheHalfOpenUnitInterval) {
  EXPECT_EQ(UniformFloat(0), 0.0f);
  EXPECT_EQ(UniformFloat(0xFF), 0.0f);
  EXPECT_EQ(UniformFloat(0x100), std::ldexp(1.0f, -24));
  EXPECT_EQ(UniformFloat(0x80000000u), 0.5f);
  EXPECT_EQ(UniformFloat(0xFFFFFFFFu), 1.0f - std::ldexp(1.0f, -24));
}

TEST(UniformFloat, IsSpreadEvenly) {
  // 64 cells, 2^16 numbers: each cell's count is binomial with mean 1024 and standard
  // deviation 31.7; 6 of those are exceeded once in 10^9 cells.
  int counts[64] = {};
  for (uint64_t i = 0; i < 1 << 14; ++i) {
    for (const uint32_t word : Philox(RngKey(1, RngPurpose::kDropout), i, 0).word) {
      ++counts[static_cast<int>(UniformFloat(word) * 64)];
    }
  }
  for (const int count : counts) EXPECT_NEAR(count, 1024, 6 * 31.7);
}

}  // namespace
}  // namespace bitshard::core
