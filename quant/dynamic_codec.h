// The two dynamic 8-bit tables for CUDA kernels: an encoder without a search, a third of the
// shared-memory loads of NearestCode, and the same codes (tests/quant/dynamic_codec_test.cc).
//
//   const quant::DynamicTable table = quant::SignedDynamicCodecTable();   // on the host
//   uint8_t code = quant::DynamicCodec<true>{&table}.Encode(t);                          // on
//   either side
#ifndef BITSHARD_QUANT_DYNAMIC_CODEC_H_
#define BITSHARD_QUANT_DYNAMIC_CODEC_H_

#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "core/numeric.h"
#include "quant/vector_tables.h"

namespace bitshard::quant {

/// How it works: quant/vector_tables.h. Kernels keep one in shared memory.
struct alignas(16) DynamicTable {
  float value[256];
  float threshold[256];
  float scale[16];
  float offset[16];
};

/// Copies what kernels need of the vector codec's tables.
DynamicTable SignedDynamicCodecTable();
DynamicTable UnsignedDynamicCodecTable();

/// kSigned: of the first moment. `table` must outlive it.
template <bool kSigned>
struct DynamicCodec {
  static constexpr uint8_t kZeroCode = kSigned ? 127 : 0;
  const DynamicTable* table;

  /// t in [-1, 1], not NaN: what Normalize gives.
  BITSHARD_HD uint8_t Encode(float t) const {
    const float raised = core::MaxFloat(kSigned ? fabsf(t) : t, kMinMagnitude);
    const uint32_t top = core::FloatBits(raised) >> 16;
    const uint32_t slot = (top * static_cast<uint32_t>(kSlotFactor) >> kSlotShift) & 15u;
    const int guess = static_cast<int>(fmaf(raised, table->scale[slot], table->offset[slot]));
    const int rank = guess + (raised > table->threshold[guess] ? 1 : 0);
    if (!kSigned) return static_cast<uint8_t>(rank);
    // There is no code of -1: rank 128 below zero is rank 127.
    if (t < 0.0f) return static_cast<uint8_t>(rank > 127 ? 0 : 127 - rank);
    return static_cast<uint8_t>(127 + rank);
  }
  BITSHARD_HD float Decode(uint8_t code) const { return table->value[code]; }
};

}  // namespace bitshard::quant

#endif  // BITSHARD_QUANT_DYNAMIC_CODEC_H_
