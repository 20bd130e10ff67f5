// Vector form of the rounding rule for the two dynamic 8-bit tables: the same bits as
// quant/block_codec.h, held by tests/quant/vector_codec_test.cc over every float in [-1, 1].
// Included once per SIMD target, inside Highway's foreach_target (define HWY_WANT_AVX3_DL before
// highway.h to get the AVX-512 VBMI form).
//
//   const quant::HWY_NAMESPACE::DynamicCoder<true> m_coder;   // true: signed table
//   quant::HWY_NAMESPACE::DecodeBlock(m_coder, codes, n, absmax, m);
//   ... the rule, on plain float buffers ...
//   absmax = quant::HWY_NAMESPACE::EncodeBlock(m_coder, m, n, codes);
//
// A coder holds vectors in registers: make it a local of the loop's function, never a member or a
// static.

#if defined(BITSHARD_QUANT_BLOCK_CODEC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BITSHARD_QUANT_BLOCK_CODEC_INL_H_
#undef BITSHARD_QUANT_BLOCK_CODEC_INL_H_
#else
#define BITSHARD_QUANT_BLOCK_CODEC_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "quant/block_codec.h"
#include "quant/dynamic_coder_avx2-inl.h"
#include "quant/dynamic_coder_avx512-inl.h"
#include "quant/vector_tables.h"

HWY_BEFORE_NAMESPACE();
namespace bitshard::quant::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

/// Elements that one call of a coder takes: four vectors, at most 64.
inline constexpr int64_t kChunkElems = 4 * static_cast<int64_t>(hn::MaxLanes(FloatTag()));

#if HWY_TARGET != HWY_AVX3_DL && HWY_TARGET != HWY_AVX2

namespace detail {

// table[index[i]] for each lane. Plain loads and shuffles: with indices in memory they take two
// thirds of a gather's time (Zen 5).
HWY_INLINE FloatVec Lookup(const float* HWY_RESTRICT table, const uint8_t* HWY_RESTRICT index) {
#if HWY_TARGET == HWY_AVX3
  // Half by half: eight indices fit the integer registers, sixteen do not.
  const auto half = [table](const uint8_t* HWY_RESTRICT i) HWY_ATTR {
    return _mm256_setr_ps(table[i[0]], table[i[1]], table[i[2]], table[i[3]], table[i[4]],
                          table[i[5]], table[i[6]], table[i[7]]);
  };
  const __m256 lower = half(index), upper = half(index + 8);
  return FloatVec{_mm512_insertf32x8(_mm512_castps256_ps512(lower), upper, 1)};
#else
  HWY_ALIGN float values[hn::MaxLanes(FloatTag())];
  for (size_t i = 0; i < hn::Lanes(FloatTag()); ++i) values[i] = table[index[i]];
  return hn::Load(FloatTag(), values);
#endif
}

}  // namespace detail

template <bool kSigned>
class DynamicCoder {
  using IntTag = hn::RebindToSigned<FloatTag>;
  using CodeTag = hn::Rebind<uint8_t, FloatTag>;

 public:
  HWY_INLINE DynamicCoder() : tables_(kSigned ? &SignedVectorTables() : &UnsignedVectorTables()) {}

  HWY_INLINE uint8_t zero_code() const { return kSigned ? 127 : 0; }

  /// out[i] = value of codes[i] * scale, kChunkElems of them.
  HWY_INLINE void DecodeScaled(const uint8_t* HWY_RESTRICT codes, float scale,
                               float* HWY_RESTRICT out) const {
    const FloatTag d;
    for (size_t i = 0; i < 4 * hn::Lanes(d); i += hn::Lanes(d)) {
      hn::StoreU(hn::Mul(detail::Lookup(tables_->value, codes + i), hn::Set(d, scale)), d, out + i);
    }
  }

  /// codes [N i, N i + N) of t[i], N lanes; t must be in [-1 - 2^-20, 1 + 2^-20] and is taken as
  /// clamped to [-1, 1].
  HWY_INLINE void Encode(const FloatVec (&t)[4], uint8_t* HWY_RESTRICT codes) const {
    const size_t lanes = hn::Lanes(FloatTag());
    for (size_t i = 0; i < 4; ++i) {
      const auto rank = Rank(t[i]);
      if constexpr (kSigned) {
        const IntTag di;
        const auto zero = hn::Set(di, 127);
        const auto negative = hn::RebindMask(di, hn::Lt(t[i], hn::Zero(FloatTag())));
        const auto below = hn::Max(hn::Sub(zero, rank), hn::Zero(di));  // there is no -1
        hn::StoreU(hn::DemoteTo(CodeTag(), hn::IfThenElse(negative, below, hn::Add(zero, rank))),
                   CodeTag(), codes + i * lanes);
      } else {
        hn::StoreU(hn::DemoteTo(CodeTag(), rank), CodeTag(), codes + i * lanes);
      }
    }
  }

 private:
  HWY_INLINE hn::Vec<IntTag> Rank(FloatVec t) const {
    const FloatTag d;
    const IntTag di;
    const auto magnitude = hn::Max(kSigned ? hn::Abs(t) : t, hn::Set(d, kMinMagnitude));
    const auto bits = hn::ConvertTo(d, hn::BitCast(di, magnitude));
    const auto slot =
        hn::ConvertTo(di, hn::MulAdd(bits, hn::Set(d, kSlot8Factor), hn::Set(d, kSlot8Offset)));
    const auto guess = hn::ConvertTo(
        di, hn::MulAdd(magnitude, BySlot(tables_->scale8, slot), BySlot(tables_->offset8, slot)));
    const auto threshold = hn::GatherIndex(d, tables_->threshold, guess);
    const auto above = hn::VecFromMask(di, hn::RebindMask(di, hn::Gt(magnitude, threshold)));
    return hn::Sub(guess, above);  // a true lane is -1
  }

  static HWY_INLINE FloatVec BySlot(const float* table, hn::Vec<IntTag> slot) {
    const FloatTag d;
    if constexpr (hn::MaxLanes(FloatTag()) >= 8) {
      return hn::TableLookupLanes(hn::Load(d, table), hn::IndicesFromVec(d, slot));
    } else {
      return hn::GatherIndex(d, table, slot);
    }
  }

  const VectorTables* tables_;
};

#endif  // HWY_TARGET != HWY_AVX3_DL && HWY_TARGET != HWY_AVX2

// --- blocks ---

/// The maximum of MaxAbsBits over x[0, n).
HWY_INLINE uint32_t BlockMaxAbsBits(const float* HWY_RESTRICT x, int64_t n) {
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> du;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto max0 = hn::Zero(du);
  auto max1 = max0;
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    max0 = hn::Max(max0, hn::BitCast(du, hn::Abs(hn::LoadU(d, x + i))));
    max1 = hn::Max(max1, hn::BitCast(du, hn::Abs(hn::LoadU(d, x + i + lanes))));
  }
  uint32_t max_bits = hn::GetLane(hn::MaxOfLanes(du, hn::Max(max0, max1)));
  for (const float* at = x + i; at != x + n; ++at) max_bits = MaxAbsBits(max_bits, *at);
  return max_bits;
}

/// out[i] = value(codes[i]) * absmax for i < n.
template <class Coder>
HWY_INLINE void DecodeBlock(const Coder& coder, const uint8_t* HWY_RESTRICT codes, int64_t n,
                            float absmax, float* HWY_RESTRICT out) {
  int64_t i = 0;
  for (; i + kChunkElems <= n; i += kChunkElems) coder.DecodeScaled(codes + i, absmax, out + i);
  if (i == n) return;
  uint8_t tail_codes[kChunkElems] = {};
  float tail[kChunkElems];
  std::copy(codes + i, codes + n, tail_codes);
  coder.DecodeScaled(tail_codes, absmax, tail);
  std::copy(tail, tail + (n - i), out + i);
}

/// Calls decode(begin, count, to) for pieces of [0, n) and brings each to out[begin] past the
/// caches (quant/streaming.h). out must be aligned to a vector. hwy::FlushStream() afterwards.
template <class DecodePiece>
HWY_INLINE void StreamDecoded(int64_t n, float* HWY_RESTRICT out, DecodePiece decode) {
  constexpr int64_t kPieceElems = 256;
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN float piece[kPieceElems];
  for (int64_t begin = 0; begin < n; begin += kPieceElems) {
    const int64_t count = std::min(kPieceElems, n - begin);
    decode(begin, count, piece);
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) hn::Stream(hn::Load(d, piece + i), d, out + begin + i);
    std::copy(piece + i, piece + count, out + begin + i);
  }
}

/// Codes of x[0, n) at a scale that ScaleOfBlock made.
template <class Coder>
HWY_INLINE void EncodeScaled(const Coder& coder, const float* HWY_RESTRICT x, int64_t n,
                             BlockScale scale, uint8_t* HWY_RESTRICT codes) {
  if (!scale.coded()) {
    std::fill(codes, codes + n, coder.zero_code());
    return;
  }
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto reciprocal = hn::Set(d, scale.reciprocal);
  FloatVec t[4];
  int64_t i = 0;
  for (; i + kChunkElems <= n; i += kChunkElems) {
    for (int64_t k = 0; k < 4; ++k) t[k] = hn::Mul(hn::LoadU(d, x + i + k * lanes), reciprocal);
    coder.Encode(t, codes + i);
  }
  if (i == n) return;
  float tail[kChunkElems] = {};
  uint8_t tail_codes[kChunkElems];
  std::copy(x + i, x + n, tail);
  for (int64_t k = 0; k < 4; ++k) t[k] = hn::Mul(hn::LoadU(d, tail + k * lanes), reciprocal);
  coder.Encode(t, tail_codes);
  std::copy(tail_codes, tail_codes + (n - i), codes + i);
}

/// Quantises x[0, n) as one block; returns the absmax to store.
template <class Coder>
HWY_INLINE float EncodeBlock(const Coder& coder, const float* HWY_RESTRICT x, int64_t n,
                             uint8_t* HWY_RESTRICT codes) {
  const BlockScale scale = ScaleOfBlock(BlockMaxAbsBits(x, n));
  EncodeScaled(coder, x, n, scale, codes);
  return scale.absmax;
}

}  // namespace bitshard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // BITSHARD_QUANT_BLOCK_CODEC_INL_H_
