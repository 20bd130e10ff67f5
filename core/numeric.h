// The only home of floating-point bit tricks. Everything here gives the same bits on the host and
// on the device.
#ifndef BITSHARD_CORE_NUMERIC_H_
#define BITSHARD_CORE_NUMERIC_H_

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace bitshard::core {

BITSHARD_HD uint32_t FloatBits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

BITSHARD_HD float FloatFromBits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/// False for NaN and both infinities.
BITSHARD_HD bool IsFinite(float x) { return (FloatBits(x) & 0x7F800000u) != 0x7F800000u; }

/// -1, 0 or 1; both zeros and NaN give 0. Without a branch, so that loops over it vectorise.
BITSHARD_HD float Sign0(float x) { return (x > 0.0f ? 1.0f : 0.0f) - (x < 0.0f ? 1.0f : 0.0f); }

BITSHARD_HD float MaxFloat(float a, float b) { return a > b ? a : b; }

/// bfloat16 with rounding to nearest even; NaN becomes the quiet NaN 0x7FC0 with the sign kept.
BITSHARD_HD uint16_t Bf16FromFloat(float x) {
  const uint32_t bits = FloatBits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
    return static_cast<uint16_t>((bits >> 16 & 0x8000u) | 0x7FC0u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

/// bfloat16 with stochastic rounding: up with the probability that the discarded part is of the
/// gap, drawn from the upper 16 of `random`'s bits. What bfloat16 holds exactly, infinities among
/// it, stays; NaN as in Bf16FromFloat.
BITSHARD_HD uint16_t Bf16FromFloatStochastic(float x, uint32_t random) {
  const uint32_t bits = FloatBits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return Bf16FromFloat(x);
  return static_cast<uint16_t>((bits + (random >> 16)) >> 16);
}

BITSHARD_HD float FloatFromBf16(uint16_t x) {
  return FloatFromBits(static_cast<uint32_t>(x) << 16);
}

/// IEEE binary16 with rounding to nearest even, subnormals included; from 65520 on infinity; NaN
/// becomes the quiet NaN 0x7E00 with the sign kept.
BITSHARD_HD uint16_t Fp16FromFloat(float x) {
  const uint32_t sign = FloatBits(x) >> 16 & 0x8000u;
  const uint32_t magnitude = FloatBits(x) & 0x7FFFFFFFu;
  uint32_t rounded;
  if (magnitude > 0x7F800000u) {
    rounded = 0x7E00u;
  } else if (magnitude >= 0x477FF000u) {
    rounded = 0x7C00u;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14. The last place of 0.5f is 2^-24, binary16's smallest number: the sum rounds to
    // it.
    rounded = FloatBits(FloatFromBits(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    rounded = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | rounded);
}

/// IEEE binary16 to float: exact, subnormals included.
BITSHARD_HD float FloatFromFp16(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t exponent = x >> 10 & 0x1Fu;
  const uint32_t mantissa = x & 0x3FFu;
  if (exponent == 31u) return FloatFromBits(sign | 0x7F800000u | mantissa << 13);
  if (exponent == 0u) {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-08f;  // 2^-24
    return FloatFromBits(sign | FloatBits(magnitude));
  }
  return FloatFromBits(sign | (exponent + 112u) << 23 | mantissa << 13);
}

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_NUMERIC_H_
