// Constants of the vector codec (quant/block_codec-inl.h), derived from the code tables.
//
// A code's place in a dynamic table is found without a search. The table is a row of decades
// [10^-k, 10^(1-k)], each cut into equal cells, so inside a decade the code is affine in the
// magnitude a. From the top 16 bits of a the decade follows by one multiplication, off by so little
// around a power of ten that the affine guess, taken half a cell low, is the code or the one below
// it. One compare with the exact decision point settles it.
#ifndef BITSHARD_QUANT_VECTOR_TABLES_H_
#define BITSHARD_QUANT_VECTOR_TABLES_H_

#include <cstdint>

namespace bitshard::quant {

/// Magnitudes are raised to at least this before a decade is looked for: below the first decision
/// point of both tables, so no code changes, and high enough that the decade's index can't wrap.
inline constexpr float kMinMagnitude = 0x1p-23f;

/// The decade slot of magnitude a in [kMinMagnitude, 1 + 2^-20] is (top16(a) * kSlotFactor >>
/// kSlotShift) & 15, where top16 are the upper 16 bits of the float: about two slots a decade, 15
/// in all, so that one table look-up of 16 entries gives a decade's constants.
inline constexpr int32_t kSlotFactor = 19886;
inline constexpr int kSlotShift = 22;

/// The same with eight slots for eight-lane look-ups: trunc(float(bits(a)) * kSlot8Factor +
/// kSlot8Offset).
inline constexpr float kSlot8Factor = 19738.0f / (8388608.0f * 65536.0f);
inline constexpr float kSlot8Offset = -261923492.0f / 8388608.0f;

/// The form with fixed-point positions (AVX2) also has eight slots, one a decade: ((top16(a) *
/// factor + offset) >> kFixedSlotShift) & 7; for the signed table, whose cells are twice as wide,
/// it needs no offset. A slot begins at most 0.2 cells, which is one cell of the decade below,
/// before its decade. The decade's first decision point is 0.2 cells after its lower end: before
/// that point the position moves down by kFixedStepDown, so that it is in the last cell of the
/// decade below. Slot 6 is the top decade's end and has its last decision point, a quarter of a
/// cell before the end, instead.
inline constexpr int32_t kSignedSlotFactor = 19622;
inline constexpr int32_t kUnsignedSlotFactor = 19717;
inline constexpr int32_t kUnsignedSlotOffset = -1534000;
inline constexpr int kFixedSlotShift = 23;
inline constexpr float kFixedStepDown = 0.3f * 65536.0f;

/// A fraction below this many 65536ths may belong to the rank below: positions are biased by half
/// of it.
inline constexpr uint32_t kFixedUnsure = 8;

/// "Rank" is the distance from the code of zero: rank 0 is zero, signed code 127 + rank or 127 -
/// rank.
struct alignas(64) VectorTables {
  uint8_t
      value_planes[4][256];  ///< Byte b of the value of a rank (signed: 0..127) or code (unsigned).
  uint8_t threshold_planes[4][256];  ///< Byte b of threshold[rank].
  float value[256];                  ///< By code.
  float threshold[256];  ///< a > threshold[r] means a rank above r. Where the decision point itself
                         ///< goes up, this is the float below it. The last one is +infinity.
  float scale[16];       ///< By slot: guess = floor(a * scale + offset) >= 0.
  float offset[16];
  float scale8[16];  ///< By slot of eight; the upper half is only there for full vectors.
  float offset8[16];
  /// By slot: position = trunc(a * fixed_scale + fixed_offset - (a < fixed_lower ? kFixedStepDown :
  /// 0)), in 65536ths.
  float fixed_scale[8];
  float fixed_offset[8];
  float fixed_lower[8];
};

const VectorTables& SignedVectorTables();
const VectorTables& UnsignedVectorTables();

}  // namespace bitshard::quant

#endif  // BITSHARD_QUANT_VECTOR_TABLES_H_
