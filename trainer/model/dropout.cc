#include "trainer/model/dropout.h"

#include <algorithm>

#include "core/numeric.h"
#include "core/parallel.h"

namespace bitshard::trainer {
namespace {

float Widen(float x) { return x; }
float Widen(hwy::bfloat16_t x) { return core::FloatFromBf16(x.bits); }
void Round(float x, float* y) { *y = x; }
void Round(float x, hwy::bfloat16_t* y) { y->bits = core::Bf16FromFloat(x); }

// Calls body(element index in the batch, kept) for every element of every sample.
template <class Body>
void ForEachMasked(const DropoutKey& key, const MicroBatch& batch, int64_t n, Body&& body) {
  const uint32_t threshold = DropoutThreshold(key);
  core::ParallelFor(batch.num_samples(), 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const size_t i = static_cast<size_t>(s);
      const uint64_t stream = DropoutStream(key, batch.sample_ids[i]);
      const int64_t begin = batch.starts[i] * n,
                    count = (batch.starts[i + 1] - batch.starts[i]) * n;
      for (int64_t e = 0; e < count; e += kDropoutElems) {
        const uint32_t kept = DropoutKept(stream, e / kDropoutElems, threshold);
        const int64_t left = std::min<int64_t>(kDropoutElems, count - e);
        for (int64_t k = 0; k < left; ++k) body(begin + e + k, (kept >> k & 1u) != 0);
      }
    }
  });
}

}  // namespace

template <class T>
void Dropout(const DropoutKey& key, const MicroBatch& batch, const T* x, int64_t n, T* y) {
  const float scale = DropoutScale(key);
  ForEachMasked(key, batch, n,
                [=](int64_t i, bool kept) { Round(kept ? Widen(x[i]) * scale : 0.0f, &y[i]); });
}

template <class T>
void AddDropout(const DropoutKey& key, const MicroBatch& batch, const T* x, int64_t n, T* y) {
  const float scale = DropoutScale(key);
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
