// Widening of 16-bit floats in files to float32, many at a time.
#ifndef BITSHARD_TRAINER_IO_WIDEN_H_
#define BITSHARD_TRAINER_IO_WIDEN_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/numeric.h"

namespace bitshard::trainer::io {

/// The little-endian T at `from`, aligned or not.
template <class T>
inline T LoadUnaligned(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// out[i] = the float32 with the value of the i-th bfloat16 of `from`.
inline void WidenBf16(const std::byte* from, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = core::FloatFromBf16(LoadUnaligned<uint16_t>(from + 2 * i));
  }
}

/// out[i] = the float32 with the value of the i-th IEEE binary16 of `from`; exact, subnormals
/// included.
inline void WidenFp16(const std::byte* from, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = core::FloatFromFp16(LoadUnaligned<uint16_t>(from + 2 * i));
  }
}

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_WIDEN_H_
