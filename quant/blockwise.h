// Blockwise quantisation on the CPU: 8-bit with any code table, 4-bit NF4 and FP4, double-quantised
// scales. The arithmetic is docs/numerics.md, the byte layouts quant/formats.h; CUDA:
// quant/blockwise_cuda.h.
//
//   std::vector<uint8_t> packed(quant::PackedBytes(n));
//   std::vector<float> absmax(quant::NumBlocks(n, 64));
//   BITSHARD_RETURN_IF_ERROR(quant::Quantize4Bit(x, quant::Type4Bit::kNf4, 64, packed, absmax));
#ifndef BITSHARD_QUANT_BLOCKWISE_H_
#define BITSHARD_QUANT_BLOCKWISE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "quant/formats.h"

namespace bitshard::quant {

enum class Type4Bit { kNf4, kFp4 };

/// Quantises to 8 bits with any ascending table. Shapes: x and out [n], code [256], absmax [ceil(n
/// / block_size)]; block_size from 1. Errors: kInvalidArgument for sizes that don't fit together or
/// a table that MakeCodeTable refuses. Numerics: the nearest entry by the float32 midpoints, ties
/// to the even code; a block with a non-finite element gets absmax NaN, one below 2^-126 throughout
/// gets 0.
absl::Status QuantizeBlockwise(std::span<const float> x, std::span<const float> code,
                               int64_t block_size, std::span<uint8_t> out, std::span<float> absmax);

/// out[i] = code[q[i]] * absmax[i / block_size]. The table may be in any order.
absl::Status DequantizeBlockwise(std::span<const uint8_t> q, std::span<const float> code,
                                 std::span<const float> absmax, int64_t block_size,
                                 std::span<float> out);

/// Quantises to 4 bits. Shapes: x [n], packed [ceil(n / 2)] (element 2j in the high nibble of byte
/// j), absmax [ceil(n / block_size)]; block_size even. Errors: kInvalidArgument for sizes that
/// don't fit together. Numerics: Nf4Codec and Fp4Codec (quant/block_codec.h); special blocks as in
/// QuantizeBlockwise.
absl::Status Quantize4Bit(std::span<const float> x, Type4Bit type, int64_t block_size,
                          std::span<uint8_t> packed, std::span<float> absmax);

/// out[i] = value * absmax[i / block_size].
absl::Status Dequantize4Bit(std::span<const uint8_t> packed, std::span<const float> absmax,
                            Type4Bit type, int64_t block_size, std::span<float> out);

/// The same, rounded once to bfloat16 (bit patterns).
absl::Status Dequantize4BitToBf16(std::span<const uint8_t> packed, std::span<const float> absmax,
                                  Type4Bit type, int64_t block_size, std::span<uint16_t> out);

/// Scales of a 4-bit tensor, themselves in 8 bits: blocks of 256 of (absmax - offset) with the
/// signed dynamic table. offset = float32(float64 sum of absmax in index order / n).
struct DoubleQuantizedAbsmax {
  std::vector<uint8_t> codes;  ///< [n]
  std::vector<float> absmax;   ///< [ceil(n / 256)]
  float offset = 0;
};

/// A NaN among the scales makes the offset, and so every scale, NaN.
absl::Status QuantizeAbsmax(std::span<const float> absmax, DoubleQuantizedAbsmax* out);

/// out[i] = (code[codes[i]] * absmax[i / 256]) + offset.
absl::Status DequantizeAbsmax(const DoubleQuantizedAbsmax& in, std::span<float> out);

/// A 4-bit weight: what Quantize4Bit makes, with its scales double-quantised or not.
struct Tensor4Bit {
  Type4Bit type = Type4Bit::kNf4;
  int64_t block_size = 64;
  int64_t numel = 0;
  bool double_quant = true;
  std::vector<uint8_t> packed;
  std::vector<float> absmax;     ///< Empty when double_quant.
  DoubleQuantizedAbsmax nested;  ///< Empty when not.
  /// Memory of the codes and scales.
  int64_t bytes() const { return Tensor4BitBytes(numel, block_size, double_quant); }
};

/// Quantises a whole tensor, in flat order. Errors: kInvalidArgument for a block_size that is odd
/// or below 2.
absl::Status QuantizeTensor4Bit(std::span<const float> x, Type4Bit type, int64_t block_size,
                                bool double_quant, Tensor4Bit* out);

/// Elements [begin, begin + out.size()) of the tensor; begin and out.size() multiples of
/// block_size, but for the end.
absl::Status DequantizeTensor4Bit(const Tensor4Bit& in, int64_t begin, std::span<float> out);
absl::Status DequantizeTensor4BitToBf16(const Tensor4Bit& in, int64_t begin,
                                        std::span<uint16_t> out);

}  // namespace bitshard::quant

#endif  // BITSHARD_QUANT_BLOCKWISE_H_
