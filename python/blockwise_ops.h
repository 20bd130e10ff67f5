// A 4-bit weight as bitsandbytes' operators pass it, for the kernels that read one.
#ifndef BITSHARD_PYTHON_BLOCKWISE_OPS_H_
#define BITSHARD_PYTHON_BLOCKWISE_OPS_H_

#include <ATen/ATen.h>

#include <cstdint>

#include "quant/blockwise.h"

namespace bitshard::python {

struct Packed4Bit {
  at::Tensor codes;   ///< Contiguous, of any type: its bytes are the packed codes.
  at::Tensor absmax;  ///< float32, contiguous
  int64_t block_size = 64;
  quant::Type4Bit type = quant::Type4Bit::kNf4;
  int64_t elems = 0;
};

/// "nf4" or "fp4"; throws for another name.
quant::Type4Bit TypeOf4Bit(c10::string_view name);

/// Throws unless the tensors hold at least `elems` codes and their scales.
Packed4Bit MakePacked4Bit(const at::Tensor& codes, const at::Tensor& absmax, int64_t block_size,
                          quant::Type4Bit type, int64_t elems);

/// Elements [begin, begin + count), begin a multiple of the block size, on the calling thread.
void DequantizePart(const Packed4Bit& in, int64_t begin, int64_t count, float* out);

/// The scales of double quantisation: table[codes] * absmax in blocks of 256, plus offset; float32.
at::Tensor NestedAbsmax(const at::Tensor& codes, const at::Tensor& absmax, const at::Tensor& table,
                        const at::Tensor& offset);

}  // namespace bitshard::python

#endif  // BITSHARD_PYTHON_BLOCKWISE_OPS_H_
