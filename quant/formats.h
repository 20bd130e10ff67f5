// The quantised formats, bit by bit, and their sizes. The byte layouts are bitsandbytes'; the
// arithmetic between values and codes is quant/block_codec.h, the tables themselves
// quant/codebook.h.
//
// All formats: a tensor is taken flat, in row-major order, and cut into blocks of `block_size`
// elements (blocks cross rows; the last may be short). Block b has one float32 scale, absmax[b] =
// max |x| in it. A code stands for an entry of a table in [-1, 1], and element i is table[code(i)]
// * absmax[i / block_size]. absmax 0: a block of zeros. absmax NaN: a block that held NaN or an
// infinity. In both every code is the code of zero.
//
// Dynamic8, signed: one byte an element. Code 127 is 0 and code 255 is +1; there is no -1. For the
// others let
//     n = |code - 127| in 1..127,  i = floor(log2 n) in 0..6,  k = n - 2^i:
//     table[code] = sign(code - 127) * 10^(i - 6) * (0.1 + 0.9 * (k + 0.5) / 2^i)
//   up to rounding (the exact float32 values are in quant/codebook.cc). The leading one of n
//   chooses the decade, the bits after it the place in the decade: small values have few bits,
//   values near 1 six.
//
// Dynamic8, unsigned: one byte an element, values >= 0. Code 0 is 0 and code 255 is 1. For the
// others
//     n = code + 1 in 2..255,  i = floor(log2 n) in 1..7,  k = n - 2^i:
//     table[code] = 10^(i - 7) * (0.1 + 0.9 * (k + 0.5) / 2^i)
//
// NF4: 4 bits, codes ascending by value, 7 is 0, 0 is -1, 15 is +1.
// FP4: 4 bits; bit 3 is the sign, bits 2..0 choose 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4. Code 8 is
// 0 as well.
//   Both: byte j holds element 2j in bits 7..4 and element 2j + 1 in bits 3..0. With an odd number
//   of elements the last low nibble is the code of zero.
//
// Double-quantised absmax (for the scales of a 4-bit tensor): offset = the mean of absmax, one
// float32; absmax[b] - offset in signed Dynamic8 with blocks of 256 scales. absmax[b] =
// table[code(b)] * absmax2[b / 256] + offset.
#ifndef BITSHARD_QUANT_FORMATS_H_
#define BITSHARD_QUANT_FORMATS_H_

#include <cstdint>

namespace bitshard::quant {

/// Entries of an 8-bit and of a 4-bit table.
inline constexpr int64_t kTableSize8 = 256;
inline constexpr int64_t kTableSize4 = 16;

/// Scales in a block of a double-quantised absmax.
inline constexpr int64_t kNestedBlockSize = 256;

constexpr int64_t NumBlocks(int64_t n, int64_t block_size) {
  return (n + block_size - 1) / block_size;
}

/// Bytes of n packed 4-bit codes.
constexpr int64_t PackedBytes(int64_t n) { return (n + 1) / 2; }

/// Bytes of n elements in Dynamic8, scales included (the table, the same for all, is not).
constexpr int64_t Dynamic8Bytes(int64_t n, int64_t block_size) {
  return n + 4 * NumBlocks(n, block_size);
}

/// Bytes of n elements in NF4 or FP4, scales included; double-quantised scales take one more float,
/// the offset.
constexpr int64_t Tensor4BitBytes(int64_t n, int64_t block_size, bool double_quant) {
  const int64_t blocks = NumBlocks(n, block_size);
  return PackedBytes(n) + (double_quant ? Dynamic8Bytes(blocks, kNestedBlockSize) + 4 : 4 * blocks);
}

}  // namespace bitshard::quant

#endif  // BITSHARD_QUANT_FORMATS_H_
