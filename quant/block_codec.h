// The rounding rule of blockwise quantisation, for one element and for the scale of one block: the
// only place where it stands. CPU loops, CUDA kernels and the optimizer's block step all call these
// functions, or vector code (quant/block_codec-inl.h) that a bit test holds to them.
//
//   uint32_t max_bits = 0;
//   for (float x : block) max_bits = quant::MaxAbsBits(max_bits, x);
//   const quant::BlockScale scale = quant::ScaleOfBlock(max_bits);
//   const quant::TableCodec codec{&quant::SignedDynamicTable()};
//   code[i] = scale.coded() ? codec.Encode(quant::Normalize(x[i], scale.reciprocal)) :
//   codec.zero_code(); x[i] = codec.Decode(code[i]) * scale.absmax;
//
// Every operation is one IEEE float32 operation, rounded to nearest even, denormals kept
// (docs/numerics.md).
#ifndef BITSHARD_QUANT_BLOCK_CODEC_H_
#define BITSHARD_QUANT_BLOCK_CODEC_H_

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "core/numeric.h"

namespace bitshard::quant {

/// 256 values in ascending order with the decision points between them. Kernels keep one in shared
/// memory.
struct CodeTable {
  float values[256];
  float midpoints[256];  ///< [k] lies between values[k] and values[k + 1]; [255] is +infinity.
  uint8_t zero_code;     ///< The code of 0.
};

/// The decision point between two neighbours of a table.
BITSHARD_HD float Midpoint(float a, float b) { return (a + b) * 0.5f; }

// --- the scale of a block ---

/// Folds |x| into a running maximum, kept as float bits: non-negative floats order as their bits
/// do, and NaN comes above infinity, so one integer maximum finds absmax and non-finite elements,
/// in any order. Start at 0.
BITSHARD_HD uint32_t MaxAbsBits(uint32_t max_bits, float x) {
  const uint32_t bits = core::FloatBits(x) & 0x7FFFFFFFu;
  return bits > max_bits ? bits : max_bits;
}

/// What a block is stored with and what its elements are multiplied with before they are encoded.
struct BlockScale {
  float
      absmax;  ///< Stored: max |x|; 0 when that is below 2^-126; NaN when an element is not finite.
  float reciprocal;  ///< 1 / absmax; 0 in the two special cases, where every element gets the code
                     ///< of 0.
  BITSHARD_HD bool coded() const { return reciprocal != 0.0f; }
};

/// A block with a non-finite element decodes to NaN throughout: loud, where bitsandbytes hides it
/// or poisons it, depending on the backend. Below 2^-126 the reciprocal would overflow.
BITSHARD_HD BlockScale ScaleOfBlock(uint32_t max_bits) {
  if (max_bits >= 0x7F800000u) return {core::FloatFromBits(0x7FC00000u), 0.0f};
  if (max_bits < 0x00800000u) return {0.0f, 0.0f};
  const float absmax = core::FloatFromBits(max_bits);
  return {absmax, 1.0f / absmax};
}

/// An element of a coded block on the table's scale: in [-1, 1]. The clamp matters: absmax * (1 /
/// absmax) can be one ulp above 1, and more than that where the reciprocal is denormal.
BITSHARD_HD float Normalize(float x, float reciprocal) {
  const float t = x * reciprocal;
  return t > 1.0f ? 1.0f : (t < -1.0f ? -1.0f : t);
}

// --- 8-bit ---

/// The entry nearest to t, by the float32 midpoints; a midpoint itself goes to the even of the two
/// codes. Exact for any ascending table; t must not be NaN.
BITSHARD_HD uint8_t NearestCode(const CodeTable& table, float t) {
  uint32_t code = 0;  // the number of midpoints below t
  BITSHARD_UNROLL
  for (uint32_t step = 128; step != 0; step >>= 1) {
    code += table.midpoints[code + step - 1] < t ? step : 0u;
  }
  const bool tie = table.midpoints[code] == t;
  return static_cast<uint8_t>(code + (tie ? code & 1u : 0u));
}

/// Encodes and decodes with a table that must outlive it (on the device: one in shared memory).
struct TableCodec {
  const CodeTable* table;
  BITSHARD_HD uint8_t Encode(float t) const { return NearestCode(*table, t); }
  BITSHARD_HD float Decode(uint8_t code) const { return table->values[code]; }
  BITSHARD_HD uint8_t zero_code() const { return table->zero_code; }
};

// --- 4-bit ---

/// Decision points in ascending order; `t > at[k]` moves up (strict, so a tie goes down).
template <size_t kCount>
struct Boundaries {
  static constexpr size_t kSize = kCount;
  float at[kCount];
};

/// NormalFloat4: the float32 midpoints of the table.
struct Nf4Codec {
  static constexpr uint8_t kZeroCode = 7;
  BITSHARD_HD static constexpr Boundaries<15> Bounds() {
    return {{-0.8480964f, -0.6106329f, -0.45999527f, -0.33967942f, -0.2346074f, -0.13791174f,
             -0.045525018f, 0.03979015f, 0.12025525f, 0.20352125f, 0.29201376f, 0.38931254f,
             0.50166345f, 0.6427869f, 0.86147845f}};
  }
  /// t in [-1, 1].
  BITSHARD_HD static uint8_t Encode(float t) {
    const Boundaries<15> bounds = Bounds();
    uint32_t code = 0;
    BITSHARD_UNROLL
    for (size_t k = 0; k < bounds.kSize; ++k) code += t > bounds.at[k] ? 1u : 0u;
    return static_cast<uint8_t>(code);
  }
};

/// FP4: magnitude by the decimal literals of bitsandbytes' CUDA kernel (up to 14 ulp off the
/// midpoints, kept for byte parity), then the sign of t: a negative t that rounds to zero has code
/// 8, which decodes to 0 too.
struct Fp4Codec {
  static constexpr uint8_t kZeroCode = 0;
  BITSHARD_HD static constexpr Boundaries<7> Bounds() {
    return {{0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f}};
  }
  /// Codes in ascending order of magnitude, a nibble each from the low end: 0 1 6 7 4 5 2 3.
  static constexpr uint32_t kCodeOfRank = 0x32547610u;
  /// t in [-1, 1].
  BITSHARD_HD static uint8_t Encode(float t) {
    const Boundaries<7> bounds = Bounds();
    const float magnitude = t < 0.0f ? -t : t;
    uint32_t rank = 0;
    BITSHARD_UNROLL
    for (size_t k = 0; k < bounds.kSize; ++k) rank += magnitude > bounds.at[k] ? 1u : 0u;
    return static_cast<uint8_t>((kCodeOfRank >> (4 * rank) & 7u) | (t < 0.0f ? 8u : 0u));
  }
};

/// Byte j of a packed 4-bit block holds element 2j in its high nibble and element 2j + 1 in its low
/// one.
BITSHARD_HD uint8_t PackNibbles(uint8_t even, uint8_t odd) {
  return static_cast<uint8_t>(even << 4 | odd);
}

}  // namespace bitshard::quant

#endif  // BITSHARD_QUANT_BLOCK_CODEC_H_
