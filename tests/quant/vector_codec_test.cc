// The vector codec against the scalar rule, bit for bit, at every SIMD target of this machine. By
// default on every decision point and its neighbours, all 2^16 upper halves of a float and a sample
// of all floats in [-1, 1]; with BITSHARD_EXHAUSTIVE=1 in the environment on all of them (2^31 for
// the signed table).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/numeric.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "quant/block_codec.h"
#include "quant/codebook.h"
#include "tests/quant/for_each_target.h"

#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/quant/vector_codec_test.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "quant/block_codec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace bitshard::quant::HWY_NAMESPACE {

template <bool kSigned>
void EncodeAll(const float* t, int64_t n, uint8_t* codes) {
  EncodeScaled(DynamicCoder<kSigned>(), t, n, BlockScale{1.0f, 1.0f}, codes);
}
void EncodeSigned(const float* t, int64_t n, uint8_t* codes) { EncodeAll<true>(t, n, codes); }
void EncodeUnsigned(const float* t, int64_t n, uint8_t* codes) { EncodeAll<false>(t, n, codes); }

template <bool kSigned>
void DecodeAll(const uint8_t* codes, int64_t n, float* out) {
  DecodeBlock(DynamicCoder<kSigned>(), codes, n, 1.0f, out);
}
void DecodeSigned(const uint8_t* codes, int64_t n, float* out) { DecodeAll<true>(codes, n, out); }
void DecodeUnsigned(const uint8_t* codes, int64_t n, float* out) {
  DecodeAll<false>(codes, n, out);
}

float EncodeOneBlock(const float* x, int64_t n, uint8_t* codes) {
  return EncodeBlock(DynamicCoder<true>(), x, n, codes);
}
std::string CompiledTarget() { return hwy::TargetName(HWY_TARGET); }
uint32_t MaxBits(const float* x, int64_t n) { return BlockMaxAbsBits(x, n); }

}  // namespace bitshard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace bitshard::quant {
namespace {

HWY_EXPORT(EncodeSigned);
HWY_EXPORT(EncodeUnsigned);
HWY_EXPORT(DecodeSigned);
HWY_EXPORT(DecodeUnsigned);
HWY_EXPORT(EncodeOneBlock);
HWY_EXPORT(MaxBits);
HWY_EXPORT(CompiledTarget);

struct Table {
  const char* name;
  const CodeTable* codes;
  void (*encode)(const float*, int64_t, uint8_t*);
  void (*decode)(const uint8_t*, int64_t, float*);
};

std::vector<Table> Tables() {
  return {{"signed", &SignedDynamicTable(),
           [](const float* t, int64_t n, uint8_t* c) {
             HWY_DYNAMIC_DISPATCH(EncodeSigned)
             (t, n, c);
           },
           [](const uint8_t* c, int64_t n, float* o) {
             HWY_DYNAMIC_DISPATCH(DecodeSigned)
             (c, n, o);
           }},
          {"unsigned", &UnsignedDynamicTable(),
           [](const float* t, int64_t n, uint8_t* c) {
             HWY_DYNAMIC_DISPATCH(EncodeUnsigned)
             (t, n, c);
           },
           [](const uint8_t* c, int64_t n, float* o) {
             HWY_DYNAMIC_DISPATCH(DecodeUnsigned)
             (c, n, o);
           }}};
}

// The number of t whose vector code is not the scalar one; reports the first.
int64_t Mismatches(const Table& table, const std::vector<float>& t) {
  std::vector<uint8_t> codes(t.size());
  table.encode(t.data(), static_cast<int64_t>(t.size()), codes.data());
  int64_t wrong = 0;
  for (size_t i = 0; i < t.size(); ++i) {
    const uint8_t want = NearestCode(*table.codes, Normalize(t[i], 1.0f));
    if (codes[i] == want) continue;
    if (wrong++ == 0) {
      ADD_FAILURE() << table.name << ": t = " << t[i] << " (bits " << core::FloatBits(t[i])
                    << "): got code " << int{codes[i]} << ", want " << int{want};
    }
  }
  return wrong;
}

void Append(std::vector<float>* out, uint32_t bits) {
  const float t = core::FloatFromBits(bits);
  if (t >= -1.0f && t <= 1.0f) out->push_back(t);
}

TEST(VectorCodec, RunsTheTargetThatIsForced) {
  ForEachTarget([] {
    const std::string forced = core::SimdTargetName();
    if (forced == "EMU128")
      return;  // like SCALAR, a name for plain loops: a binary has one of the two
    EXPECT_EQ(HWY_DYNAMIC_DISPATCH(CompiledTarget)(), forced);
  });
}

TEST(VectorCodec, DecodesEveryCodeToItsTableEntry) {
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i * 167 + 13);
  ForEachTarget([&] {
    for (const Table& table : Tables()) {
      std::vector<float> got(256);
      table.decode(codes.data(), 256, got.data());
      for (size_t i = 0; i < 256; ++i) {
        EXPECT_EQ(core::FloatBits(got[i]), core::FloatBits(table.codes->values[codes[i]]))
            << table.name << " code " << int{codes[i]};
      }
    }
  });
}

TEST(VectorCodec, EncodesDecisionPointsAndTheirNeighboursAsTheScalarRule) {
  ForEachTarget([&] {
    for (const Table& table : Tables()) {
      std::vector<float> t = {
          0.0f,      -0.0f,    1.0f,     -1.0f,           core::FloatFromBits(1),
          0x1p-126f, 0x1p-24f, 0x1p-23f, 1.0f + 0x1p-20f, -1.0f - 0x1p-20f};
      for (uint32_t delta = 0; delta < 7; ++delta) {
        for (int k = 0; k < 256; ++k) {
          if (k < 255) Append(&t, core::FloatBits(table.codes->midpoints[k]) + delta - 3);
          Append(&t, core::FloatBits(table.codes->values[k]) + delta - 3);
        }
        for (float power = 1e-7f; power < 1.0f; power *= 10.0f) {
          for (const uint32_t sign : {0u, 0x80000000u}) {
            Append(&t, (core::FloatBits(power) + delta - 3) | sign);
          }
        }
      }
      EXPECT_EQ(Mismatches(table, t), 0);
    }
  });
}

TEST(VectorCodec, EncodesEveryUpperHalfOfAFloatAsTheScalarRule) {
  ForEachTarget([&] {
    for (const Table& table : Tables()) {
      std::vector<float> t;
      for (uint32_t upper = 0; upper < 0x10000u; ++upper) {
        for (const uint32_t lower : {0u, 1u, 0x7FFFu, 0x8000u, 0xFFFFu}) {
          Append(&t, upper << 16 | lower);
        }
      }
      EXPECT_EQ(Mismatches(table, t), 0);
    }
  });
}

TEST(VectorCodec, EncodesAllFloatsAsTheScalarRule) {
  const char* all = std::getenv("BITSHARD_EXHAUSTIVE");
  const uint32_t stride = all != nullptr && std::string(all) == "1" ? 1 : 1021;
  constexpr uint32_t kOne = 0x3F800000u;
  ForEachTarget([&] {
    for (const Table& table : Tables()) {
      const int64_t count = (int64_t{kOne} + stride) / stride;
      core::ParallelFor(count, 1 << 16, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; chunk += 1 << 16) {
          std::vector<float> t;
          for (int64_t i = chunk; i < std::min<int64_t>(end, chunk + (1 << 16)); ++i) {
            const uint32_t bits = static_cast<uint32_t>(i) * stride;
            Append(&t, bits);
            Append(&t, bits | 0x80000000u);
          }
          if (Mismatches(table, t) != 0) return;
        }
      });
    }
  });
}

TEST(VectorCodec, FindsTheMaximumAndNonFiniteElementsAtEveryLength) {
  ForEachTarget([&] {
    for (int64_t n = 0; n <= 70; ++n) {
      std::vector<float> x(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i % 7) - 3.0f;
      for (int64_t at = 0; at < n; ++at) {
        for (const float special : {-9.0f, -HUGE_VALF, std::nanf("")}) {
          std::vector<float> y = x;
          y[static_cast<size_t>(at)] = special;
          EXPECT_EQ(HWY_DYNAMIC_DISPATCH(MaxBits)(y.data(), n),
                    core::FloatBits(special) & 0x7FFFFFFFu)
              << "n " << n << ", special element " << at;
        }
      }
    }
  });
}

TEST(VectorCodec, QuantisesABlockOfAnyLengthAsTheScalarRule) {
  const TableCodec codec{&SignedDynamicTable()};
  ForEachTarget([&] {
    for (const int64_t n : {0, 1, 3, 15, 16, 17, 63, 64, 65, 200, 255, 256, 257}) {
      std::vector<float> x(static_cast<size_t>(n));
      uint32_t state = 1;
      for (float& e : x) {
        state = state * 1664525u + 1013904223u;
        e = static_cast<float>(static_cast<int32_t>(state)) * 1e-7f;
      }
      uint32_t max_bits = 0;
      for (const float e : x) max_bits = MaxAbsBits(max_bits, e);
      const BlockScale scale = ScaleOfBlock(max_bits);
      std::vector<uint8_t> codes(x.size() + 1, 0xEE);
      EXPECT_EQ(HWY_DYNAMIC_DISPATCH(EncodeOneBlock)(x.data(), n, codes.data()), scale.absmax);
      for (size_t i = 0; i < x.size(); ++i) {
        EXPECT_EQ(codes[i], codec.Encode(Normalize(x[i], scale.reciprocal)))
            << "n " << n << " i " << i;
      }
      EXPECT_EQ(codes[x.size()], 0xEE) << "wrote beyond the block, n " << n;
    }
  });
}

}  // namespace
}  // namespace bitshard::quant

#endif  // HWY_ONCE
