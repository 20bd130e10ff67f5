// What the tests of the decoder's device operations share: both types of activations, twenty orders
// of threads, and comparisons that name the element.
#ifndef BITSHARD_TESTS_TRAINER_MODEL_DEVICE_TEST_H_
#define BITSHARD_TESTS_TRAINER_MODEL_DEVICE_TEST_H_

#include <gtest/gtest.h>
#include <hwy/base.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

#include "core/dtype.h"
#include "core/numeric.h"
#include "tests/core/device_array.h"

#if defined(BITSHARD_ON_CUDAHOST)
#include "tests/cudahost/sched.h"
#endif

namespace bitshard::trainer {

using Bf16Elem = hwy::bfloat16_t;
using Activations = testing::Types<float, Bf16Elem>;

// Calls body with the stand-in set to twenty orders of blocks and threads, one after another; once
// on a device, which has an order of its own.
template <class Body>
void InEachOrder(Body&& body) {
#if defined(BITSHARD_ON_CUDAHOST)
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    cudahost::SetSeed(seed);
    body();
    if (testing::Test::HasFatalFailure()) return;
  }
#else
  body();
#endif
}

template <class T>
inline constexpr core::DType kTypeOf =
    std::is_same_v<T, float> ? core::DType::kFloat32 : core::DType::kBFloat16;

inline float Wide(float x) { return x; }
inline float Wide(Bf16Elem x) { return core::FloatFromBf16(x.bits); }
inline void SetRounded(float x, float* to) { *to = x; }
inline void SetRounded(float x, Bf16Elem* to) { to->bits = core::Bf16FromFloat(x); }

template <class T>
std::vector<T> Rounded(const std::vector<float>& x) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) SetRounded(x[i], &y[i]);
  return y;
}

template <class T>
std::vector<float> Widened(const std::vector<T>& x) {
  std::vector<float> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = Wide(x[i]);
  return y;
}

// Normal numbers, as T holds them.
template <class T>
std::vector<T> Normals(int64_t n, uint32_t seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& value : x) value = normal(random);
  return Rounded<T>(x);
}

// NaNs are equal whatever their payload.
template <class T>
void ExpectSameBits(const std::vector<T>& got, const std::vector<T>& want, const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    const float a = Wide(got[i]), b = Wide(want[i]);
    if (std::isnan(a) && std::isnan(b)) continue;
    ASSERT_EQ(core::FloatBits(a), core::FloatBits(b)) << what << "[" << i << "] " << a << " " << b;
  }
}

// got[i] is what a float32 within bound(i) of want[i] rounds to.
template <class T, class Bound>
void ExpectNear(const std::vector<T>& got, const std::vector<float>& want, Bound&& bound,
                const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    const double allowed = bound(i);
    T low, high;
    // Bounds are rounded outwards to float32.
    SetRounded(std::nextafter(static_cast<float>(want[i] - allowed), -HUGE_VALF), &low);
    SetRounded(std::nextafter(static_cast<float>(want[i] + allowed), HUGE_VALF), &high);
    ASSERT_TRUE(Wide(got[i]) >= Wide(low) && Wide(got[i]) <= Wide(high))
        << what << "[" << i << "]: got " << Wide(got[i]) << ", want " << want[i] << " within "
        << allowed;
  }
}

// The gap between 1 and the next float32: two rounding errors.
inline constexpr double kEps = 1.1920928955078125e-07;

}  // namespace bitshard::trainer

#endif  // BITSHARD_TESTS_TRAINER_MODEL_DEVICE_TEST_H_
