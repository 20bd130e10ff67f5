// Which outputs are written past the caches.
#ifndef BITSHARD_QUANT_STREAMING_H_
#define BITSHARD_QUANT_STREAMING_H_

#include <cstdint>

namespace bitshard::quant {

/// From this many elements on (32 MiB of float32) no cache keeps what was written until somebody
/// reads it. A store through a cache reads its line first, which is half of a dequantisation's
/// traffic; a streaming store does not.
inline constexpr int64_t kStreamElems = int64_t{8} << 20;

/// Whether blocks of `block_size` elements are to be streamed to out [n]: they are many, and each
/// begins at a multiple of 64 bytes, the widest vector of any target.
inline bool ShouldStream(const float* out, int64_t n, int64_t block_size) {
  return n >= kStreamElems && block_size % 16 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

}  // namespace bitshard::quant

#endif  // BITSHARD_QUANT_STREAMING_H_
