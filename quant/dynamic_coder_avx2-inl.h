// The coder of quant/block_codec-inl.h for AVX2: no search, no gather, no table of thresholds.
// Included by that file only.
//
// Encoding: the decade's affine form gives the position in the table as fixed point, with 16 bits
// after the point. Its integer part is the code, unless the position is within kUnsureUnits of a
// decision point, where rounding may have moved it across: such a chunk, about one in 300, is done
// again with the exact decision points.

#if defined(BITSHARD_QUANT_DYNAMIC_CODER_AVX2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BITSHARD_QUANT_DYNAMIC_CODER_AVX2_INL_H_
#undef BITSHARD_QUANT_DYNAMIC_CODER_AVX2_INL_H_
#else
#define BITSHARD_QUANT_DYNAMIC_CODER_AVX2_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "quant/vector_tables.h"

#if HWY_TARGET == HWY_AVX2

HWY_BEFORE_NAMESPACE();
namespace bitshard::quant::HWY_NAMESPACE {

using Vec256f = hwy::HWY_NAMESPACE::Vec256<float>;

namespace detail {

// table[code] of eight codes. Loads and inserts: a gather takes twice the time on Zen 3. Half of
// the codes are loaded one by one, half are cut out of a word, so that neither the load units nor
// the integer units wait for the other: decoding alone takes a tenth less (Zen 3).
HWY_INLINE __m256 LookupCodes(const float* HWY_RESTRICT table, const uint8_t* HWY_RESTRICT codes) {
  uint32_t word;
  std::memcpy(&word, codes, sizeof(word));
  const uint32_t upper = word >> 16;
  return _mm256_setr_ps(table[word & 0xFF], table[word >> 8 & 0xFF], table[upper & 0xFF],
                        table[upper >> 8], table[codes[4]], table[codes[5]], table[codes[6]],
                        table[codes[7]]);
}

}  // namespace detail

template <bool kSigned>
class DynamicCoder {
 public:
  HWY_INLINE DynamicCoder()
      : tables_(kSigned ? &SignedVectorTables() : &UnsignedVectorTables()),
        scale_(_mm256_load_ps(tables_->fixed_scale)),
        offset_(_mm256_load_ps(tables_->fixed_offset)),
        lower_(_mm256_load_ps(tables_->fixed_lower)) {}

  HWY_INLINE uint8_t zero_code() const { return kSigned ? 127 : 0; }

  /// out[i] = value of codes[i] * scale, 32 of them.
  HWY_INLINE void DecodeScaled(const uint8_t* HWY_RESTRICT codes, float scale,
                               float* HWY_RESTRICT out) const {
    const __m256 scales = _mm256_set1_ps(scale);
    for (int i = 0; i < 32; i += 8) {
      const __m256 value = detail::LookupCodes(tables_->value, codes + i);
      _mm256_storeu_ps(out + i, _mm256_mul_ps(value, scales));
    }
  }

  /// codes [8 i, 8 i + 8) of t[i], which must be in [-1 - 2^-20, 1 + 2^-20] and is taken as
  /// clamped to [-1, 1].
  HWY_INLINE void Encode(const Vec256f (&t)[4], uint8_t* HWY_RESTRICT codes) const {
    __m256i position[4];
    for (int i = 0; i < 4; ++i) position[i] = Position(Magnitude(t[i].raw));
    if (HWY_UNLIKELY(AnyUnsure(position))) {
      EncodeUnsure(t[0].raw, t[1].raw, t[2].raw, t[3].raw, codes);
    } else {
      Pack(t[0].raw, t[1].raw, t[2].raw, t[3].raw, position, codes);
    }
  }

 private:
  static HWY_INLINE __m256 Magnitude(__m256 t) {
    const __m256 floor = _mm256_set1_ps(kMinMagnitude);
    if constexpr (!kSigned) return _mm256_max_ps(t, floor);
    return _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), t), floor);
  }

  // Rank in the upper half of each lane, fraction in the lower one.
  HWY_INLINE __m256i Position(__m256 magnitude) const {
    const __m256i factor =
        _mm256_set1_epi32((kSigned ? kSignedSlotFactor : kUnsignedSlotFactor) << 16);
    __m256i product = _mm256_madd_epi16(_mm256_castps_si256(magnitude), factor);
    if constexpr (!kSigned)
      product = _mm256_add_epi32(product, _mm256_set1_epi32(kUnsignedSlotOffset));
    const __m256i slot = _mm256_srli_epi32(product, kFixedSlotShift);
    const __m256 lower = _mm256_permutevar8x32_ps(lower_, slot);
    const __m256 below = _mm256_cmp_ps(magnitude, lower, _CMP_LT_OQ);
    const __m256 step_down = _mm256_and_ps(below, _mm256_set1_ps(kFixedStepDown));
    const __m256 offset = _mm256_sub_ps(_mm256_permutevar8x32_ps(offset_, slot), step_down);
    return _mm256_cvttps_epi32(
        _mm256_fmadd_ps(magnitude, _mm256_permutevar8x32_ps(scale_, slot), offset));
  }

  static HWY_INLINE bool AnyUnsure(const __m256i (&position)[4]) {
    __m256i least = position[0];  // By halves: fractions in the lower ones.
    for (int i = 1; i < 4; ++i) least = _mm256_min_epu16(least, position[i]);
    const __m256i sure = _mm256_set1_epi32(static_cast<int32_t>(kFixedUnsure));
    const __m256i is_sure = _mm256_cmpeq_epi16(_mm256_max_epu16(least, sure), least);
    return _mm256_movemask_epi8(is_sure) != -1;
  }

  // With the exact decision points. Takes values and finds the positions anew, so that the usual
  // case keeps all of them in registers.
  HWY_NOINLINE void EncodeUnsure(__m256 t0, __m256 t1, __m256 t2, __m256 t3, uint8_t* codes) const {
    const __m256i position[4] = {Decided(Magnitude(t0)), Decided(Magnitude(t1)),
                                 Decided(Magnitude(t2)), Decided(Magnitude(t3))};
    Pack(t0, t1, t2, t3, position, codes);
  }

  // The exact rank in each upper half.
  __m256i Decided(__m256 magnitude) const {
    const __m256i back = _mm256_set1_epi32(static_cast<int32_t>(kFixedUnsure));
    const __m256i low = _mm256_srli_epi32(_mm256_sub_epi32(Position(magnitude), back), 16);
    const __m256 threshold = _mm256_i32gather_ps(tables_->threshold, low, 4);
    const __m256 above = _mm256_cmp_ps(magnitude, threshold, _CMP_GT_OQ);
    return _mm256_slli_epi32(_mm256_sub_epi32(low, _mm256_castps_si256(above)), 16);
  }

  static HWY_INLINE __m256i SignedRank(__m256i position, __m256 t) {
    const __m256i rank = _mm256_srli_epi32(position, 16);
    return kSigned ? _mm256_sign_epi32(rank, _mm256_castps_si256(t)) : rank;
  }

  static HWY_INLINE void Pack(__m256 t0, __m256 t1, __m256 t2, __m256 t3,
                              const __m256i (&position)[4], uint8_t* HWY_RESTRICT codes) {
    __m256i low = _mm256_packs_epi32(SignedRank(position[0], t0), SignedRank(position[1], t1));
    __m256i high = _mm256_packs_epi32(SignedRank(position[2], t2), SignedRank(position[3], t3));
    if constexpr (kSigned) {
      low = _mm256_add_epi16(low, _mm256_set1_epi16(127));
      high = _mm256_add_epi16(high, _mm256_set1_epi16(127));
    }
    // Saturation: there is no -1, so rank 128 on the negative side is code 0, as rank 127 is.
    const __m256i mixed = _mm256_packus_epi16(low, high);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes),
                        _mm256_permutevar8x32_epi32(mixed, order));
  }

  const VectorTables* tables_;
  __m256 scale_;
  __m256 offset_;
  __m256 lower_;
};

}  // namespace bitshard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET == HWY_AVX2

#endif  // BITSHARD_QUANT_DYNAMIC_CODER_AVX2_INL_H_
