// 4-bit blockwise loops. A block's sixteen products value * absmax are computed once; its elements
// are looked up.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/numeric.h"
#include "core/parallel.h"
#include "core/status_macros.h"
#include "quant/block_codec.h"
#include "quant/blockwise_4bit.h"
#include "quant/codebook.h"
#include "quant/streaming.h"

#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/blockwise_4bit_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "quant/block_codec-inl.h"

#ifndef BITSHARD_QUANT_BLOCKWISE_4BIT_CPU_ONCE_
#define BITSHARD_QUANT_BLOCKWISE_4BIT_CPU_ONCE_
namespace bitshard::quant {

// What a code stands for, and what the two codes of a byte stand for.
struct Values4Bit {
  explicit Values4Bit(std::span<const float, 16> values);
  float value[16];
  alignas(64) float pair[256][2];
};

}  // namespace bitshard::quant
#endif  // BITSHARD_QUANT_BLOCKWISE_4BIT_CPU_ONCE_

HWY_BEFORE_NAMESPACE();
namespace bitshard::quant::HWY_NAMESPACE {

using U32Tag = hn::RebindToUnsigned<FloatTag>;
using I32Tag = hn::RebindToSigned<FloatTag>;
using ByteTag = hn::Rebind<uint8_t, FloatTag>;
inline constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(FloatTag()));
// Vectors of four lanes or less take the scalar loops: a table of 16 entries doesn't pay there.
inline constexpr bool kLookupPays = kLanes >= 8;

// Sixteen 32-bit entries in registers. Indices must be in [0, 16).
template <class Tag>
class Table16 {
 public:
  HWY_INLINE explicit Table16(const hn::TFromD<Tag>* entries)
      : low_(hn::LoadU(Tag(), entries)), high_(hn::LoadU(Tag(), entries + 16 - kLanes)) {}

  HWY_INLINE hn::Vec<Tag> At(hn::Vec<I32Tag> index) const {
    const I32Tag di;
    if constexpr (kLanes >= 16) {
      return hn::TableLookupLanes(low_, hn::IndicesFromVec(Tag(), index));
    } else {
      const auto lane = hn::IndicesFromVec(Tag(), hn::And(index, hn::Set(di, 7)));
      const auto upper = hn::RebindMask(Tag(), hn::Gt(index, hn::Set(di, 7)));
      return hn::IfThenElse(upper, hn::TableLookupLanes(high_, lane),
                            hn::TableLookupLanes(low_, lane));
    }
  }

 private:
  hn::Vec<Tag> low_;
  hn::Vec<Tag> high_;
};

// The nibbles of kLanes bytes: even elements are the high ones.
struct Nibbles {
  hn::Vec<I32Tag> even;
  hn::Vec<I32Tag> odd;
};

HWY_INLINE Nibbles LoadNibbles(const uint8_t* packed) {
  const I32Tag di;
  const auto bytes = hn::PromoteTo(di, hn::LoadU(ByteTag(), packed));
  return {hn::ShiftRight<4>(bytes), hn::And(bytes, hn::Set(di, 15))};
}

// --- decode ---

// core::Bf16FromFloat of each lane.
HWY_INLINE hn::Vec<U32Tag> Bf16Bits(FloatVec x) {
  const U32Tag du;
  const auto bits = hn::BitCast(du, x);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFF))));
  const auto quiet_nan = hn::Or(hn::And(upper, hn::Set(du, 0x8000)), hn::Set(du, 0x7FC0));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet_nan, rounded);
}

HWY_INLINE void LookUpBlock(const uint8_t* packed, int64_t n, const float (&products)[16],
                            uint16_t* out) {
  uint32_t even[16];  // bfloat16 bits in the lower half: a pair of elements is one 32-bit lane
  uint32_t odd[16];   // ... in the upper half
  const U32Tag du;
  for (size_t k = 0; k < 16; k += hn::Lanes(du)) {
    const auto bits = Bf16Bits(hn::LoadU(FloatTag(), products + k));
    hn::StoreU(bits, du, even + k);
    hn::StoreU(hn::ShiftLeft<16>(bits), du, odd + k);
  }
  int64_t i = 0;
  if constexpr (kLookupPays) {
    const Table16<U32Tag> even_table(even);
    const Table16<U32Tag> odd_table(odd);
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      const Nibbles codes = LoadNibbles(packed + i / 2);
      const auto pair = hn::Or(even_table.At(codes.even), odd_table.At(codes.odd));
      hn::StoreU(pair, U32Tag(), reinterpret_cast<uint32_t*>(out + i));
    }
  }
  for (; i < n; ++i) {
    out[i] = static_cast<uint16_t>(even[i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15]);
  }
}

HWY_INLINE void MultiplyValues(const Values4Bit& values, float scale, float (&products)[16]) {
  for (int k = 0; k < 16; ++k) products[k] = values.value[k] * scale;
}

void DequantizeBf16(const uint8_t* packed, const float* absmax, int64_t n, const Values4Bit& values,
                    int64_t block_size, uint16_t* out) {
  for (int64_t begin = 0; begin < n; begin += block_size) {
    float products[16];
    MultiplyValues(values, *absmax++, products);
    LookUpBlock(packed + begin / 2, std::min(block_size, n - begin), products, out + begin);
  }
}

#if HWY_TARGET == HWY_AVX2

// The eight elements of four bytes. A byte's two are one load, where a permutation of eight lanes
// takes two operations on Zen and the table has sixteen entries.
HWY_INLINE __m256 LoadPairs(const float (&pairs)[256][2], uint32_t bytes) {
  const auto pair = [&](int shift) {
    return reinterpret_cast<const __m64*>(pairs[bytes >> shift & 0xFF]);
  };
  const __m128 zero = _mm_setzero_ps();
  const __m128 low = _mm_loadh_pi(_mm_loadl_pi(zero, pair(0)), pair(8));
  const __m128 high = _mm_loadh_pi(_mm_loadl_pi(zero, pair(16)), pair(24));
  return _mm256_set_m128(high, low);
}

template <bool kStream>
HWY_INLINE void DecodeBlock4(const uint8_t* packed, int64_t n, const Values4Bit& values,
                             float scale, float* out) {
  const auto store = [](float* to, __m256 x) {
    kStream ? _mm256_stream_ps(to, x) : _mm256_storeu_ps(to, x);
  };
  const __m256 scales = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    uint64_t bytes;
    std::memcpy(&bytes, packed + i / 2, sizeof(bytes));
    const __m256 first = LoadPairs(values.pair, static_cast<uint32_t>(bytes));
    const __m256 second = LoadPairs(values.pair, static_cast<uint32_t>(bytes >> 32));
    store(out + i, _mm256_mul_ps(first, scales));
    store(out + i + 8, _mm256_mul_ps(second, scales));
  }
  for (; i < n; ++i) out[i] = values.pair[packed[i / 2]][i % 2] * scale;
}

#else

HWY_INLINE void LookUpBlock(const uint8_t* packed, int64_t n, const float (&products)[16],
                            float* out) {
  int64_t i = 0;
  if constexpr (kLookupPays) {
    const Table16<FloatTag> table(products);
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      const Nibbles codes = LoadNibbles(packed + i / 2);
      hn::StoreInterleaved2(table.At(codes.even), table.At(codes.odd), FloatTag(), out + i);
    }
  }
  for (; i < n; ++i) out[i] = products[i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15];
}

template <bool kStream>
HWY_INLINE void DecodeBlock4(const uint8_t* packed, int64_t n, const Values4Bit& values,
                             float scale, float* out) {
  float products[16];
  MultiplyValues(values, scale, products);
  if constexpr (kStream) {
    StreamDecoded(n, out, [&](int64_t at, int64_t count, float* to) {
      LookUpBlock(packed + at / 2, count, products, to);
    });
  } else {
    LookUpBlock(packed, n, products, out);
  }
}

#endif

void DequantizeF32(const uint8_t* packed, const float* absmax, int64_t n, const Values4Bit& values,
                   int64_t block_size, float* out) {
  for (int64_t begin = 0; begin < n; begin += block_size)
    DecodeBlock4<false>(packed + begin / 2, std::min(block_size, n - begin), values, *absmax++,
                        out + begin);
}
void StreamF32(const uint8_t* packed, const float* absmax, int64_t n, const Values4Bit& values,
               int64_t block_size, float* out) {
  for (int64_t begin = 0; begin < n; begin += block_size)
    DecodeBlock4<true>(packed + begin / 2, std::min(block_size, n - begin), values, *absmax++,
                       out + begin);
  hwy::FlushStream();
}

// --- encode ---

// The number of boundaries below t, by halving; the table's unused end is +infinity.
class Ranker {
 public:
  template <size_t kCount>
  HWY_INLINE explicit Ranker(const Boundaries<kCount>& bounds)
      : first_(kCount / 2), middle_(bounds.at[kCount / 2]), table_(Padded<kCount>(bounds).at) {}

  HWY_INLINE hn::Vec<I32Tag> Rank(FloatVec t) const {
    const I32Tag di;
    const FloatTag d;
    auto rank = hn::IfThenElseZero(hn::RebindMask(di, hn::Gt(t, hn::Set(d, middle_))),
                                   hn::Set(di, first_ + 1));
    for (int32_t step = (first_ + 1) / 2; step != 0; step /= 2) {
      const auto bound = table_.At(hn::Add(rank, hn::Set(di, step - 1)));
      const auto above = hn::RebindMask(di, hn::Gt(t, bound));
      rank = hn::Add(rank, hn::IfThenElseZero(above, hn::Set(di, step)));
    }
    return rank;
  }

 private:
  template <size_t kCount>
  struct Padded {
    HWY_INLINE explicit Padded(const Boundaries<kCount>& bounds) {
      for (size_t k = 0; k < 16; ++k) at[k] = k < kCount ? bounds.at[k] : HUGE_VALF;
    }
    float at[16];
  };

  int32_t first_;
  float middle_;
  Table16<FloatTag> table_;
};

struct Nf4Vector {
  using Codec = Nf4Codec;
  static HWY_INLINE hn::Vec<I32Tag> Encode(const Ranker& ranker, FloatVec t) {
    return ranker.Rank(t);
  }
};

struct Fp4Vector {
  using Codec = Fp4Codec;
  static HWY_INLINE hn::Vec<I32Tag> Encode(const Ranker& ranker, FloatVec t) {
    const FloatTag d;
    const U32Tag du;
    const I32Tag di;
    const auto rank = hn::BitCast(du, ranker.Rank(hn::Abs(t)));
    const auto shifted = hn::Shr(hn::Set(du, Fp4Codec::kCodeOfRank), hn::ShiftLeft<2>(rank));
    const auto magnitude = hn::BitCast(di, hn::And(shifted, hn::Set(du, 7)));
    const auto negative = hn::RebindMask(di, hn::Lt(t, hn::Zero(d)));
    return hn::Or(magnitude, hn::IfThenElseZero(negative, hn::Set(di, 8)));
  }
};

template <class Vector>
HWY_INLINE void EncodeBlock4(const Ranker& ranker, const float* x, int64_t n, BlockScale scale,
                             uint8_t* packed) {
  using Codec = typename Vector::Codec;
  constexpr uint8_t kZero = Codec::kZeroCode;
  if (!scale.coded()) {
    std::fill(packed, packed + PackedBytes(n), PackNibbles(kZero, kZero));
    return;
  }
  int64_t i = 0;
  if constexpr (kLookupPays) {
    const FloatTag d;
    // No clamp: what is above 1 by a few ulps has the code of 1.
    const auto reciprocal = hn::Set(d, scale.reciprocal);
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      FloatVec even, odd;
      hn::LoadInterleaved2(d, x + i, even, odd);
      const auto high = Vector::Encode(ranker, hn::Mul(even, reciprocal));
      const auto low = Vector::Encode(ranker, hn::Mul(odd, reciprocal));
      hn::StoreU(hn::DemoteTo(ByteTag(), hn::Or(hn::ShiftLeft<4>(high), low)), ByteTag(),
                 packed + i / 2);
    }
  }
  for (; i < n; i += 2) {
    const uint8_t even = Codec::Encode(Normalize(x[i], scale.reciprocal));
    const uint8_t odd = i + 1 < n ? Codec::Encode(Normalize(x[i + 1], scale.reciprocal)) : kZero;
    packed[i / 2] = PackNibbles(even, odd);
  }
}

template <class Vector>
HWY_INLINE void QuantizeBlocks4(const float* x, int64_t n, int64_t block_size, uint8_t* packed,
                                float* absmax) {
  const Ranker ranker(Vector::Codec::Bounds());
  for (int64_t begin = 0; begin < n; begin += block_size) {
    const int64_t count = std::min(block_size, n - begin);
    const BlockScale scale = ScaleOfBlock(BlockMaxAbsBits(x + begin, count));
    *absmax++ = scale.absmax;
    EncodeBlock4<Vector>(ranker, x + begin, count, scale, packed + begin / 2);
  }
}

void QuantizeNf4(const float* x, int64_t n, int64_t block_size, uint8_t* packed, float* absmax) {
  QuantizeBlocks4<Nf4Vector>(x, n, block_size, packed, absmax);
}
void QuantizeFp4(const float* x, int64_t n, int64_t block_size, uint8_t* packed, float* absmax) {
  QuantizeBlocks4<Fp4Vector>(x, n, block_size, packed, absmax);
}

}  // namespace bitshard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace bitshard::quant {

Values4Bit::Values4Bit(std::span<const float, 16> values) {
  std::copy(values.begin(), values.end(), value);
  for (size_t byte = 0; byte < 256; ++byte) {
    pair[byte][0] = values[byte >> 4];
    pair[byte][1] = values[byte & 15];
  }
}

namespace {

HWY_EXPORT(DequantizeF32);
HWY_EXPORT(StreamF32);
HWY_EXPORT(DequantizeBf16);
HWY_EXPORT(QuantizeNf4);
HWY_EXPORT(QuantizeFp4);

const Values4Bit& Values(Type4Bit type) {
  static const Values4Bit nf4(Nf4Values());
  static const Values4Bit fp4(Fp4Values());
  return type == Type4Bit::kNf4 ? nf4 : fp4;
}

absl::Status CheckSizes(const char* function, int64_t n, int64_t packed, int64_t absmax,
                        int64_t block_size) {
  if (block_size < 2 || block_size % 2 != 0) {
    return core::ConfigError(
        absl::StrCat(function, ": block_size is ", block_size, ", want an even number from 2"));
  }
  if (packed != PackedBytes(n)) {
    return core::ConfigError(absl::StrCat(function, ": ", packed, " packed bytes for ", n,
                                          " elements, want ", PackedBytes(n)));
  }
  if (absmax != NumBlocks(n, block_size)) {
    return core::ConfigError(absl::StrCat(function, ": absmax has ", absmax, " entries, want ",
                                          NumBlocks(n, block_size), " for ", n,
                                          " elements in blocks of ", block_size));
  }
  return absl::OkStatus();
}

// Calls run(first element, count, first block) on runs of whole blocks.
template <class Run>
void ForEachRun(int64_t n, int64_t block_size, Run run) {
  core::ParallelFor(NumBlocks(n, block_size), internal::GrainBlocks4Bit(block_size),
                    [&](int64_t first, int64_t last) {
                      const int64_t begin = first * block_size;
                      run(begin, std::min(n, last * block_size) - begin, first);
                    });
}

}  // namespace

namespace internal {

void QuantizeRun4Bit(const float* x, int64_t n, Type4Bit type, int64_t block_size, uint8_t* packed,
                     float* absmax) {
  if (type == Type4Bit::kNf4) {
    HWY_DYNAMIC_DISPATCH(QuantizeNf4)(x, n, block_size, packed, absmax);
  } else {
    HWY_DYNAMIC_DISPATCH(QuantizeFp4)(x, n, block_size, packed, absmax);
  }
}

void DequantizeRun4Bit(const uint8_t* packed, const float* absmax, int64_t n, Type4Bit type,
                       int64_t block_size, float* out) {
  HWY_DYNAMIC_DISPATCH(DequantizeF32)(packed, absmax, n, Values(type), block_size, out);
}

void DequantizeRun4BitToBf16(const uint8_t* packed, const float* absmax, int64_t n, Type4Bit type,
                             int64_t block_size, uint16_t* out) {
  HWY_DYNAMIC_DISPATCH(DequantizeBf16)(packed, absmax, n, Values(type), block_size, out);
}

int64_t GrainBlocks4Bit(int64_t block_size) { return std::max<int64_t>(1, (1 << 15) / block_size); }

}  // namespace internal

absl::Status Quantize4Bit(std::span<const float> x, Type4Bit type, int64_t block_size,
                          std::span<uint8_t> packed, std::span<float> absmax) {
  BITSHARD_RETURN_IF_ERROR(CheckSizes("Quantize4Bit", std::ssize(x), std::ssize(packed),
                                      std::ssize(absmax), block_size));
  ForEachRun(std::ssize(x), block_size, [&](int64_t begin, int64_t count, int64_t block) {
    internal::QuantizeRun4Bit(x.data() + begin, count, type, block_size, packed.data() + begin / 2,
                              absmax.data() + block);
  });
  return absl::OkStatus();
}

absl::Status Dequantize4Bit(std::span<const uint8_t> packed, std::span<const float> absmax,
                            Type4Bit type, int64_t block_size, std::span<float> out) {
  BITSHARD_RETURN_IF_ERROR(CheckSizes("Dequantize4Bit", std::ssize(out), std::ssize(packed),
                                      std::ssize(absmax), block_size));
  const bool stream = ShouldStream(out.data(), std::ssize(out), block_size);
  ForEachRun(std::ssize(out), block_size, [&](int64_t begin, int64_t count, int64_t block) {
    const uint8_t* const from = packed.data() + begin / 2;
    const float* const scales = absmax.data() + block;
    float* const to = out.data() + begin;
    if (stream) {
      HWY_DYNAMIC_DISPATCH(StreamF32)(from, scales, count, Values(type), block_size, to);
    } else {
      internal::DequantizeRun4Bit(from, scales, count, type, block_size, to);
    }
  });
  return absl::OkStatus();
}

absl::Status Dequantize4BitToBf16(std::span<const uint8_t> packed, std::span<const float> absmax,
                                  Type4Bit type, int64_t block_size, std::span<uint16_t> out) {
  BITSHARD_RETURN_IF_ERROR(CheckSizes("Dequantize4BitToBf16", std::ssize(out), std::ssize(packed),
                                      std::ssize(absmax), block_size));
  ForEachRun(std::ssize(out), block_size, [&](int64_t begin, int64_t count, int64_t block) {
    internal::DequantizeRun4BitToBf16(packed.data() + begin / 2, absmax.data() + block, count, type,
                                      block_size, out.data() + begin);
  });
  return absl::OkStatus();
}

}  // namespace bitshard::quant

#endif  // HWY_ONCE
