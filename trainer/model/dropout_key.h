// What a dropout mask depends on, and the random bits of it: the same on the CPU and on a device.
//
// Element e of a sample's [tokens, n] takes the 16 bits e % 8 of Philox at counter e / 8 of the
// sample's stream, low halves of words first; it is kept when they are at least the threshold.
#ifndef BITSHARD_TRAINER_MODEL_DROPOUT_KEY_H_
#define BITSHARD_TRAINER_MODEL_DROPOUT_KEY_H_

#include <cstdint>

#include "core/host_device.h"
#include "core/rng.h"

namespace bitshard::trainer {

struct DropoutKey {
  uint64_t seed = 0;
  int64_t step = 0;
  int64_t layer = 0;
  int module = 0;
  float probability =
      0;  ///< Of zeroing an element; the others are scaled by 1 / (1 - probability).
};

/// Elements that one number of the generator decides on.
inline constexpr int kDropoutElems = 8;

BITSHARD_HD uint32_t DropoutThreshold(const DropoutKey& key) {
  return static_cast<uint32_t>(key.probability * 65536.0f);
}

BITSHARD_HD float DropoutScale(const DropoutKey& key) { return 1.0f / (1.0f - key.probability); }

/// The stream of a sample, by its global number.
BITSHARD_HD uint64_t DropoutStream(const DropoutKey& key, int64_t sample_id) {
  const uint64_t place = static_cast<uint64_t>(key.layer) * 16 + static_cast<uint64_t>(key.module);
  const uint64_t sample =
      core::RngKey(key.seed, core::RngPurpose::kDropout, static_cast<uint64_t>(key.step),
                   static_cast<uint64_t>(sample_id));
  return core::RngKey(sample, core::RngPurpose::kDropout, place);
}

/// Bit k: whether element 8 * group + k of the sample is kept.
BITSHARD_HD uint32_t DropoutKept(uint64_t stream, int64_t group, uint32_t threshold) {
  const core::Philox4 random = core::Philox(stream, static_cast<uint64_t>(group), 0);
  uint32_t kept = 0;
  BITSHARD_UNROLL
  for (int k = 0; k < kDropoutElems; ++k) {
    const uint32_t bits = random.word[k / 2] >> (16 * (k % 2)) & 0xFFFFu;
    kept |= (bits >= threshold ? 1u : 0u) << k;
  }
  return kept;
}

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DROPOUT_KEY_H_
