// Unchecked 4-bit loops under the public functions of quant/blockwise.h: one thread's run of
// blocks.
#ifndef BITSHARD_QUANT_BLOCKWISE_4BIT_H_
#define BITSHARD_QUANT_BLOCKWISE_4BIT_H_

#include <cstdint>

#include "quant/blockwise.h"

namespace bitshard::quant::internal {

/// x and packed start at a block; n elements, absmax [ceil(n / block_size)], block_size even.
void QuantizeRun4Bit(const float* x, int64_t n, Type4Bit type, int64_t block_size, uint8_t* packed,
                     float* absmax);
void DequantizeRun4Bit(const uint8_t* packed, const float* absmax, int64_t n, Type4Bit type,
                       int64_t block_size, float* out);
void DequantizeRun4BitToBf16(const uint8_t* packed, const float* absmax, int64_t n, Type4Bit type,
                             int64_t block_size, uint16_t* out);

/// Blocks that one thread takes at least.
int64_t GrainBlocks4Bit(int64_t block_size);

}  // namespace bitshard::quant::internal

#endif  // BITSHARD_QUANT_BLOCKWISE_4BIT_H_
