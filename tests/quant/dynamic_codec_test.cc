// The encoder that CUDA kernels use for the dynamic tables against the search that defines the
// codes, on the host: the bits of float32 operations are the same there. By default a sample of all
// floats in [-1, 1], with BITSHARD_EXHAUSTIVE=1 all.
#include "quant/dynamic_codec.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "core/numeric.h"
#include "quant/codebook.h"

namespace bitshard::quant {
namespace {

template <bool kSigned>
void ExpectCode(const DynamicTable& table, float t) {
  const CodeTable& codes = kSigned ? SignedDynamicTable() : UnsignedDynamicTable();
  ASSERT_EQ(int{DynamicCodec<kSigned>{&table}.Encode(t)}, int{NearestCode(codes, t)})
      << (kSigned ? "signed" : "unsigned") << " table, bits " << core::FloatBits(t);
}

constexpr uint32_t kOne = 0x3F800000u;
constexpr uint32_t kSign = 0x80000000u;

template <bool kSigned>
void ExpectCodesAround(const DynamicTable& table, const CodeTable& codes) {
  for (int k = 0; k < 255; ++k) {
    for (const float point : {codes.midpoints[k], codes.values[k], codes.values[k + 1]}) {
      for (uint32_t delta = 0; delta < 7; ++delta) {
        const float t = core::FloatFromBits(core::FloatBits(point) + delta - 3);
        if (t >= -1.0f && t <= 1.0f) ExpectCode<kSigned>(table, t);
      }
    }
  }
}

TEST(DynamicCodec, EncodesDecisionPointsAndTheirNeighboursAsTheSearch) {
  ExpectCodesAround<true>(SignedDynamicCodecTable(), SignedDynamicTable());
  ExpectCodesAround<false>(UnsignedDynamicCodecTable(), UnsignedDynamicTable());
}

TEST(DynamicCodec, EncodesAllFloatsAsTheSearch) {
  const char* all = std::getenv("BITSHARD_EXHAUSTIVE");
  const uint32_t stride = all != nullptr && std::string(all) == "1" ? 1 : 1021;
  const DynamicTable first = SignedDynamicCodecTable(), second = UnsignedDynamicCodecTable();
  for (uint32_t bits = 0; bits <= kOne; bits += stride) {
    for (const uint32_t sign : {0u, kSign}) {
      ExpectCode<true>(first, core::FloatFromBits(bits | sign));
      ExpectCode<false>(second, core::FloatFromBits(bits | sign));
    }
    if (HasFatalFailure()) return;
  }
}

TEST(DynamicCodec, DecodesEveryCodeToItsTableEntry) {
  const DynamicTable first = SignedDynamicCodecTable(), second = UnsignedDynamicCodecTable();
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(DynamicCodec<true>{&first}.Decode(static_cast<uint8_t>(code)),
              SignedDynamicTable().values[code]);
    EXPECT_EQ(DynamicCodec<false>{&second}.Decode(static_cast<uint8_t>(code)),
              UnsignedDynamicTable().values[code]);
  }
  EXPECT_EQ(DynamicCodec<true>::kZeroCode, SignedDynamicTable().zero_code);
  EXPECT_EQ(DynamicCodec<false>::kZeroCode, UnsignedDynamicTable().zero_code);
}

}  // namespace
}  // namespace bitshard::quant
