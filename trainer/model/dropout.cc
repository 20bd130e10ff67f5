#include "trainer/model/dropout.h"

#include <algorithm>
#include <cstring>

#include "core/numeric.h"
#include "core/parallel.h"
#include "core/rng.h"

namespace bitshard::trainer {
namespace {

float Widen(float x) { return x; }
float Widen(hwy::bfloat16_t x) { return core::FloatFromBf16(x.bits); }
void Round(float x, float* y) { *y = x; }
void Round(float x, hwy::bfloat16_t* y) { y->bits = core::Bf16FromFloat(x); }

// Calls body(element index in the batch, kept) for every element of every sample. An element is
// kept when its 16 random bits are at least p * 65536.
template <class Body>
void ForEachMasked(const DropoutKey& key, const MicroBatch& batch, int64_t n, Body&& body) {
  const uint32_t threshold = static_cast<uint32_t>(key.probability * 65536.0f);
  const uint64_t place = static_cast<uint64_t>(key.layer) * 16 + static_cast<uint64_t>(key.module);
  core::ParallelFor(batch.num_samples(), 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const size_t i = static_cast<size_t>(s);
      const uint64_t sample =
          core::RngKey(key.seed, core::RngPurpose::kDropout, static_cast<uint64_t>(key.step),
                       static_cast<uint64_t>(batch.sample_ids[i]));
      const uint64_t stream = core::RngKey(sample, core::RngPurpose::kDropout, place);
      const int64_t begin = batch.starts[i] * n,
                    count = (batch.starts[i + 1] - batch.starts[i]) * n;
      for (int64_t e = 0; e < count; e += 8) {
        const core::Philox4 random = core::Philox(stream, static_cast<uint64_t>(e / 8), 0);
        uint16_t bits[8];
        std::memcpy(bits, random.word, sizeof bits);
        const int64_t left = std::min<int64_t>(8, count - e);
        for (int64_t k = 0; k < left; ++k) body(begin + e + k, bits[k] >= threshold);
      }
    }
  });
}

}  // namespace

template <class T>
void Dropout(const DropoutKey& key, const MicroBatch& batch, const T* x, int64_t n, T* y) {
  const float scale = 1.0f / (1.0f - key.probability);
  ForEachMasked(key, batch, n,
                [=](int64_t i, bool kept) { Round(kept ? Widen(x[i]) * scale : 0.0f, &y[i]); });
}

template <class T>
void AddDropout(const DropoutKey& key, const MicroBatch& batch, const T* x, int64_t n, T* y) {
  const float scale = 1.0f / (1.0f - key.probability);
  ForEachMasked(key, batch, n, [=](int64_t i, bool kept) {
    if (kept) Round(Widen(y[i]) + Widen(x[i]) * scale, &y[i]);
  });
}

template void Dropout<float>(const DropoutKey&, const MicroBatch&, const float*, int64_t, float*);
template void Dropout<hwy::bfloat16_t>(const DropoutKey&, const MicroBatch&, const hwy::bfloat16_t*,
                                       int64_t, hwy::bfloat16_t*);
template void AddDropout<float>(const DropoutKey&, const MicroBatch&, const float*, int64_t,
                                float*);
template void AddDropout<hwy::bfloat16_t>(const DropoutKey&, const MicroBatch&,
                                          const hwy::bfloat16_t*, int64_t, hwy::bfloat16_t*);

}  // namespace bitshard::trainer
