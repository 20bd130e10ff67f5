// The coder of quant/block_codec-inl.h for AVX-512 with VBMI: a look-up of 64 bytes in a table of
// 128 is one instruction there, so a table of floats is looked up as its four byte planes. Included
// by that file only.

#if defined(BITSHARD_QUANT_DYNAMIC_CODER_AVX512_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BITSHARD_QUANT_DYNAMIC_CODER_AVX512_INL_H_
#undef BITSHARD_QUANT_DYNAMIC_CODER_AVX512_INL_H_
#else
#define BITSHARD_QUANT_DYNAMIC_CODER_AVX512_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "quant/vector_tables.h"

#if HWY_TARGET == HWY_AVX3_DL

HWY_BEFORE_NAMESPACE();
namespace bitshard::quant::HWY_NAMESPACE {

using Vec512f = hwy::HWY_NAMESPACE::Vec512<float>;

namespace detail {

// Spreads 64 bytes' worth of float bytes, one plane per byte of the float, into four vectors of
// floats. The planes come in lane order (see LaneOrder), the floats leave in natural order.
HWY_INLINE void JoinPlanes(const __m512i (&p)[4], __m512 (&v)[4]) {
  const __m512i lo01 = _mm512_unpacklo_epi8(p[0], p[1]);
  const __m512i hi01 = _mm512_unpackhi_epi8(p[0], p[1]);
  const __m512i lo23 = _mm512_unpacklo_epi8(p[2], p[3]);
  const __m512i hi23 = _mm512_unpackhi_epi8(p[2], p[3]);
  v[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(lo01, lo23));
  v[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(lo01, lo23));
  v[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(hi01, hi23));
  v[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(hi01, hi23));
}

// Natural order -> lane order and back (its own inverse): dword k of 128-bit lane l <-> dword l of
// lane k, so that in-lane unpacking of byte planes gives elements 16 v .. 16 v + 15 in vector v.
HWY_INLINE __m512i LaneOrder(__m512i bytes) {
  const __m512i index = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(index, bytes);
}

HWY_INLINE __m512i LoadPlane(const uint8_t* plane, int part) {
  return _mm512_load_si512(plane + 64 * part);
}

// Look-up of 64 bytes in a table of 128, by the low seven bits.
HWY_INLINE __m512i Lookup128(const uint8_t* plane, __m512i index) {
  return _mm512_permutex2var_epi8(LoadPlane(plane, 0), index, LoadPlane(plane, 1));
}

// ... in a table of 256; `upper` is the index's bit 7.
HWY_INLINE __m512i Lookup256(const uint8_t* plane, __m512i index, __mmask64 upper) {
  const __m512i low = Lookup128(plane, index);
  const __m512i high = Lookup128(plane + 128, index);
  return _mm512_mask_mov_epi8(low, upper, high);
}

// Where byte kByte of each of 64 dwords goes, for a look-up in vectors 0 and 1 and one in 2 and 3.
template <int kByte, bool kLaneOrder>
struct alignas(64) PackOrder {
  constexpr PackOrder() {
    for (int i = 0; i < 64; ++i) {
      const int element = kLaneOrder ? i / 4 % 4 * 16 + i / 16 * 4 + i % 4 : i;
      index[i] = static_cast<uint8_t>(element % 32 * 4 + kByte);
      if (element >= 32) from_upper |= uint64_t{1} << i;
    }
  }
  uint8_t index[64] = {};
  uint64_t from_upper = 0;
};

// Byte kByte of each of 64 dwords: in lane order, or in natural order.
template <int kByte, bool kLaneOrder>
HWY_INLINE __m512i PackBytes(const __m512i (&v)[4]) {
  static constexpr PackOrder<kByte, kLaneOrder> kOrder;
  const __m512i index = _mm512_load_si512(kOrder.index);
  const __m512i lower = _mm512_permutex2var_epi8(v[0], index, v[1]);
  const __m512i upper = _mm512_permutex2var_epi8(v[2], index, v[3]);
  return _mm512_mask_mov_epi8(lower, kOrder.from_upper, upper);
}

}  // namespace detail

template <bool kSigned>
class DynamicCoder {
 public:
  HWY_INLINE DynamicCoder()
      : tables_(kSigned ? &SignedVectorTables() : &UnsignedVectorTables()),
        scale_(_mm512_load_ps(tables_->scale)),
        offset_(_mm512_add_ps(_mm512_load_ps(tables_->offset), _mm512_set1_ps(kFixedPoint))) {}

  HWY_INLINE uint8_t zero_code() const { return kSigned ? 127 : 0; }

  /// out[i] = value of codes[i] * scale, 64 of them.
  HWY_INLINE void DecodeScaled(const uint8_t* HWY_RESTRICT codes, float scale,
                               float* HWY_RESTRICT out) const {
    const __m512i code = detail::LaneOrder(_mm512_loadu_si512(codes));
    const auto& planes = tables_->value_planes;
    __m512i p[4];
    if constexpr (kSigned) {
      const __m512i difference = _mm512_sub_epi8(code, _mm512_set1_epi8(127));
      const __m512i rank = _mm512_abs_epi8(difference);  // 0..128
      const __mmask64 negative = _mm512_cmplt_epu8_mask(code, _mm512_set1_epi8(127));
      const __mmask64 one =
          _mm512_movepi8_mask(rank);  // rank 128, which looks up rank 0: the value 0
      for (int b = 0; b < 4; ++b) p[b] = detail::Lookup128(planes[b], rank);
      p[2] = _mm512_mask_mov_epi8(p[2], one, _mm512_set1_epi8(static_cast<char>(0x80)));
      p[3] = _mm512_mask_mov_epi8(p[3], one, _mm512_set1_epi8(0x3F));
      p[3] = _mm512_mask_add_epi8(p[3], negative, p[3], _mm512_set1_epi8(static_cast<char>(0x80)));
    } else {
      const __mmask64 upper = _mm512_movepi8_mask(code);
      for (int b = 0; b < 4; ++b) p[b] = detail::Lookup256(planes[b], code, upper);
    }
    __m512 value[4];
    detail::JoinPlanes(p, value);
    const __m512 scales = _mm512_set1_ps(scale);
    for (int i = 0; i < 4; ++i) _mm512_storeu_ps(out + 16 * i, _mm512_mul_ps(value[i], scales));
  }

  /// codes [16 i, 16 i + 16) of t[i], which must be in [-1 - 2^-20, 1 + 2^-20] and is taken as
  /// clamped to [-1, 1].
  HWY_INLINE void Encode(const Vec512f (&t)[4], uint8_t* HWY_RESTRICT codes) const {
    __m512 magnitude[4];
    __m512i guess[4];
    for (int i = 0; i < 4; ++i) {
      magnitude[i] = Magnitude(t[i].raw);
      guess[i] = Guess(magnitude[i]);
    }
    const __m512i rank_lane_order = detail::PackBytes<1, true>(guess);
    const __mmask64 above = Above(magnitude, rank_lane_order);
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i code = detail::LaneOrder(rank_lane_order);
    code = _mm512_mask_add_epi8(code, above, code, ones);
    if constexpr (kSigned) {
      __m512i bits[4];
      for (int i = 0; i < 4; ++i) bits[i] = _mm512_castps_si512(t[i].raw);
      const __mmask64 negative = _mm512_movepi8_mask(detail::PackBytes<3, false>(bits));
      const __m512i zero = _mm512_set1_epi8(127);
      // Saturation: there is no -1, so rank 128 on the negative side is code 0, as rank 127 is.
      code = _mm512_mask_subs_epu8(_mm512_add_epi8(zero, code), negative, zero, code);
    }
    _mm512_storeu_si512(codes, code);
  }

 private:
  // Added to a number in [0, 256), leaves it as fixed point in the low bits of the float: the
  // integer part in byte 1, 1/256ths in byte 0. The guess has room for an error of that size.
  static constexpr float kFixedPoint = 49152.0f;  // 1.5 * 2^15

  static HWY_INLINE __m512 Magnitude(__m512 t) {
    const __m512 floor = _mm512_set1_ps(kMinMagnitude);
    if constexpr (!kSigned) return _mm512_max_ps(t, floor);
    return _mm512_range_ps(t, floor, 0x0B);  // the larger magnitude, sign cleared
  }

  // Byte 1: the rank or one less.
  HWY_INLINE __m512i Guess(__m512 magnitude) const {
    const __m512i factor = _mm512_set1_epi32(kSlotFactor << 16);
    const __m512i slot =
        _mm512_srli_epi32(_mm512_madd_epi16(_mm512_castps_si512(magnitude), factor), kSlotShift);
    const __m512 scale = _mm512_permutexvar_ps(slot, scale_);
    const __m512 offset = _mm512_permutexvar_ps(slot, offset_);
    return _mm512_castps_si512(_mm512_fmadd_ps(magnitude, scale, offset));
  }

  HWY_INLINE __mmask64 Above(const __m512 (&magnitude)[4], __m512i rank_lane_order) const {
    const auto& planes = tables_->threshold_planes;
    __m512i p[4];
    if constexpr (kSigned) {
      for (int b = 0; b < 4; ++b) p[b] = detail::Lookup128(planes[b], rank_lane_order);
    } else {
      const __mmask64 upper = _mm512_movepi8_mask(rank_lane_order);
      for (int b = 0; b < 4; ++b) p[b] = detail::Lookup256(planes[b], rank_lane_order, upper);
    }
    __m512 threshold[4];
    detail::JoinPlanes(p, threshold);
    __mmask16 m[4];
    for (int i = 0; i < 4; ++i) m[i] = _mm512_cmp_ps_mask(magnitude[i], threshold[i], _CMP_GT_OQ);
    return _mm512_kunpackd(_mm512_kunpackw(m[3], m[2]), _mm512_kunpackw(m[1], m[0]));
  }

  const VectorTables* tables_;
  __m512 scale_;
  __m512 offset_;
};

}  // namespace bitshard::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET == HWY_AVX3_DL

#endif  // BITSHARD_QUANT_DYNAMIC_CODER_AVX512_INL_H_
