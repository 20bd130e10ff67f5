// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC11). A number is a pure function of what it is for, never of
// thread, block, rank or call order, so any world size and any resumed run draw the same ones.
#ifndef BITSHARD_CORE_RNG_H_
#define BITSHARD_CORE_RNG_H_

#include <cstdint>

#include "core/host_device.h"

namespace bitshard::core {

/// Four 32-bit words of the stream `key` at position `counter`.
struct Philox4 {
  uint32_t word[4];
};

BITSHARD_HD Philox4 Philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// What a random number is drawn for. The values are part of the reproducibility contract: append,
/// never reorder.
enum class RngPurpose : uint32_t {
  kInit = 1,
  kDataOrder = 2,
  kDropout = 3,
  kStochasticRounding = 4
};

/// The stream key for (seed, purpose, a, b): `a` and `b` name the user, for example step and layer.
BITSHARD_HD uint64_t RngKey(uint64_t seed, RngPurpose purpose, uint64_t a = 0, uint64_t b = 0) {
  const Philox4 x =
      Philox(seed, static_cast<uint64_t>(purpose) << 32 | (a & 0xFFFFFFFFu), b ^ (a >> 32) << 48);
  return static_cast<uint64_t>(x.word[0]) << 32 | x.word[1];
}

/// 24 random bits as a float in [0, 1).
BITSHARD_HD float UniformFloat(uint32_t word) {
  return static_cast<float>(word >> 8) * 5.9604644775390625e-08f;
}

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_RNG_H_
