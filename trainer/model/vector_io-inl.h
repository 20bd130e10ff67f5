// Loads and stores that widen bfloat16 to float32 and round back to nearest even, and loops with a
// tail. Included by the .cc files of this folder inside their foreach_target pass.
#if defined(BITSHARD_TRAINER_MODEL_VECTOR_IO_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BITSHARD_TRAINER_MODEL_VECTOR_IO_INL_H_
#undef BITSHARD_TRAINER_MODEL_VECTOR_IO_INL_H_
#else
#define BITSHARD_TRAINER_MODEL_VECTOR_IO_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace bitshard::trainer {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D>
HWY_INLINE hn::Vec<D> LoadWide(D d, const float* at) {
  return hn::LoadU(d, at);
}

template <class D>
HWY_INLINE hn::Vec<D> LoadWide(D d, const hwy::bfloat16_t* at) {
  const hn::RebindToUnsigned<D> du32;
  const hn::Rebind<uint16_t, D> du16;
  const auto bits = hn::PromoteTo(du32, hn::LoadU(du16, reinterpret_cast<const uint16_t*>(at)));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}

template <class D>
HWY_INLINE void StoreRounded(hn::Vec<D> v, D d, float* at) {
  hn::StoreU(v, d, at);
}

template <class D>
HWY_INLINE void StoreRounded(hn::Vec<D> v, D /*d*/, hwy::bfloat16_t* at) {
  const hn::RebindToUnsigned<D> du32;
  const hn::RebindToSigned<D> di32;
  const hn::Rebind<uint16_t, D> du16;
  const auto bits = hn::BitCast(du32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du32, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du32, 0x7FFFu)));
  const auto quiet = hn::Or(bits, hn::Set(du32, 0x00400000u));
  const auto kept = hn::IfThenElse(hn::RebindMask(du32, hn::IsNaN(v)), quiet, rounded);
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di32, hn::ShiftRight<16>(kept))), du16,
             reinterpret_cast<uint16_t*>(at));
}

// body(d, i) for vectors from i on, then one element at a time for what is left of n.
template <class Body>
HWY_INLINE void ForEachVector(int64_t n, Body&& body) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) body(d, i);
  const hn::CappedTag<float, 1> d1;
  for (; i < n; ++i) body(d1, i);
}

// The sum over body(d, i), which returns a vector of terms: lane sums, then the tail, in a fixed
// order.
template <class Body>
HWY_INLINE float SumOverVectors(int64_t n, Body&& body) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) sum = hn::Add(sum, body(d, i));
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  const hn::CappedTag<float, 1> d1;
  for (; i < n; ++i) total += hn::GetLane(body(d1, i));
  return total;
}

}  // namespace HWY_NAMESPACE
}  // namespace bitshard::trainer
HWY_AFTER_NAMESPACE();

#endif  // BITSHARD_TRAINER_MODEL_VECTOR_IO_INL_H_
