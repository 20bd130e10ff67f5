// The tensor encodings of GGUF that can be read, and their widening to float32.
//
// A block is `block_elems` consecutive elements of a row (d, m: IEEE binary16; q: unsigned; all
// little-endian):
//   Q4_0  d, 16 bytes      x = d * (q - 8)     byte i holds elements i (low four bits) and i + 16
//   (high) Q4_1  d, m, 16 bytes   x = d * q + m       the same order Q8_0  d, 32 int8       x = d *
//   q F16, BF16, F32         one element
// Source: ggml-quants.c of llama.cpp, dequantize_row_*. The product and the sum are rounded one
// after the other.
#ifndef BITSHARD_TRAINER_IO_GGUF_DEQUANTIZE_H_
#define BITSHARD_TRAINER_IO_GGUF_DEQUANTIZE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace bitshard::trainer::io {

/// Elements of a thread's share: about 1 ms of work, below which another thread costs more than it
/// brings.
inline constexpr int64_t kGgufGrainElems = 1 << 20;

struct GgufFormat {
  uint32_t type;  ///< enum ggml_type.
  const char* name;
  int64_t block_elems;
  int64_t block_bytes;
};

/// nullptr for an encoding that can't be read.
const GgufFormat* FindGgufFormat(uint32_t type);

/// "Q4_K" for a number that llama.cpp has a name for, else "type 99".
std::string GgufTypeName(uint32_t type);

/// "F32, F16, ...": what can be read, for messages.
std::string GgufFormatNames();

/// Widens whole blocks. from.size() is out.size() / block_elems * block_bytes; no alignment is
/// needed. Runs on core::ParallelFor. Numerics: bit-equal to PyPI gguf's `dequantize`; NaN payloads
/// of F16 are kept.
void DequantizeGguf(const GgufFormat& format, std::span<const std::byte> from,
                    std::span<float> out);

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_GGUF_DEQUANTIZE_H_
