// exp and log for kernels, in IEEE operations alone: the same bits on every device and on the host.
// What a device or a C library brings along differs in the last bits.
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_MATH_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_MATH_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/host_device.h"
#include "core/numeric.h"

namespace bitshard::trainer {

/// 2^n for n in [-126, 127].
BITSHARD_HD float PowerOfTwo(int32_t n) {
  return core::FloatFromBits(static_cast<uint32_t>(n + 127) << 23);
}

/// e^x within 1.25 ulp, subnormal results included; infinity from 88.73 on, 0 from -104 down, NaN
/// for NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 p(r), where p is our own least-maximum
/// fit of degree 4, off by 4e-9 of e^r; then 2^n in two factors, since it need not be a float.
BITSHARD_HD float Exp(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.69140625f;  // 177 / 256: its product with n is exact.
  constexpr float kLn2Low = 0.0017409306f;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: what is added to it becomes an integer.
  x = x > 89.0f ? 89.0f : (x < -104.0f ? -104.0f : x);
  const float shifted = fmaf(x, kLog2E, kRounder);
  const float whole = shifted - kRounder;
  const int32_t n = static_cast<int32_t>(core::FloatBits(shifted) - core::FloatBits(kRounder));
  const float r = fmaf(whole, -kLn2Low, fmaf(whole, -kLn2High, x));
  float p = 0.001381454f;
  p = fmaf(p, r, 0.0083687454f);
  p = fmaf(p, r, 0.04166839f);
  p = fmaf(p, r, 0.16666521f);
  p = fmaf(p, r, 0.49999994f);
  const float y = fmaf(r * r, p, r) + 1.0f;
  const int32_t half = n / 2;
  return y * PowerOfTwo(half) * PowerOfTwo(n - half);
}

/// The logarithm of x >= 1 within 2 ulp; x for infinity and NaN.
///
/// x = 2^e m with m from sqrt(1/2) to sqrt(2); log m = 2 artanh(s), s = (m - 1) / (m + 1), by its
/// power series: |s| <= 0.172, so its twelfth term is below 2^-56.
BITSHARD_HD double Log(double x) {
  constexpr double kLn2 = 0.69314718055994530942;
  constexpr double kSqrt2 = 1.41421356237309504880;
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  const int32_t stored = static_cast<int32_t>(bits >> 52);
  if (stored >= 0x7FF) return x;
  bits = (bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u;
  double m;
  memcpy(&m, &bits, sizeof m);
  int32_t exponent = stored - 1023;
  if (m > kSqrt2) {
    m = m * 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double square = s * s;
  double series = 1.0 / 23.0;
  BITSHARD_UNROLL
  for (int k = 21; k >= 3; k -= 2) series = fma(series, square, 1.0 / static_cast<double>(k));
  return fma(static_cast<double>(exponent), kLn2, 2.0 * fma(s * square, series, s));
}

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_MATH_H_
