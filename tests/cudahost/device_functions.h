// Device functions that nvcc knows by itself: atomics, loads and stores with cache hints, copies,
// and the arithmetic that IEEE 754 or integer rules define to the bit.
#ifndef BITSHARD_TESTS_CUDAHOST_DEVICE_FUNCTIONS_H_
#define BITSHARD_TESTS_CUDAHOST_DEVICE_FUNCTIONS_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tests/cudahost/check.h"

#define CUDAHOST_INLINE inline __attribute__((always_inline))

namespace cudahost {

// One thread runs at a time: what makes it atomic is that nothing switches.
template <class T, class F>
CUDAHOST_UNCHECKED T AtomicUpdate(T* p, F update) {
  if constexpr (kChecked) {
    OnAccess(Access::kAtomic, p, sizeof(T),
             reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
  }
  const T old = *p;
  *p = update(old);
  return old;
}

}  // namespace cudahost

template <class T>
CUDAHOST_INLINE T atomicAdd(T* p, T value) {
  return cudahost::AtomicUpdate(p, [value](T old) { return static_cast<T>(old + value); });
}
template <class T>
CUDAHOST_INLINE T atomicSub(T* p, T value) {
  return cudahost::AtomicUpdate(p, [value](T old) { return static_cast<T>(old - value); });
}
template <class T>
CUDAHOST_INLINE T atomicMin(T* p, T value) {
  return cudahost::AtomicUpdate(p, [value](T old) { return value < old ? value : old; });
}
template <class T>
CUDAHOST_INLINE T atomicMax(T* p, T value) {
  return cudahost::AtomicUpdate(p, [value](T old) { return old < value ? value : old; });
}
template <class T>
CUDAHOST_INLINE T atomicAnd(T* p, T value) {
  return cudahost::AtomicUpdate(p, [value](T old) { return old & value; });
}
template <class T>
CUDAHOST_INLINE T atomicOr(T* p, T value) {
  return cudahost::AtomicUpdate(p, [value](T old) { return old | value; });
}
template <class T>
CUDAHOST_INLINE T atomicXor(T* p, T value) {
  return cudahost::AtomicUpdate(p, [value](T old) { return old ^ value; });
}
template <class T>
CUDAHOST_INLINE T atomicExch(T* p, T value) {
  return cudahost::AtomicUpdate(p, [value](T) { return value; });
}
template <class T>
CUDAHOST_INLINE T atomicCAS(T* p, T compare, T value) {
  return cudahost::AtomicUpdate(p, [=](T old) { return old == compare ? value : old; });
}

// Blocks run one after the other, so a fence orders nothing that was not ordered.
CUDAHOST_INLINE void __threadfence() {}
CUDAHOST_INLINE void __threadfence_block() {}
CUDAHOST_INLINE void __threadfence_system() {}

template <class T>
CUDAHOST_INLINE T __ldg(const T* p) {
  return *p;
}
template <class T>
CUDAHOST_INLINE T __ldcg(const T* p) {
  return *p;
}
template <class T>
CUDAHOST_INLINE T __ldcs(const T* p) {
  return *p;
}
template <class T>
CUDAHOST_INLINE void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
CUDAHOST_INLINE void __stcs(T* p, T value) {
  *p = value;
}

CUDAHOST_INLINE unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
CUDAHOST_INLINE int __float_as_int(float x) { return std::bit_cast<int>(x); }
CUDAHOST_INLINE float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
CUDAHOST_INLINE float __int_as_float(int x) { return std::bit_cast<float>(x); }
CUDAHOST_INLINE long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
CUDAHOST_INLINE double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

CUDAHOST_INLINE int __popc(unsigned x) { return std::popcount(x); }
CUDAHOST_INLINE int __popcll(unsigned long long x) { return std::popcount(x); }
CUDAHOST_INLINE int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
CUDAHOST_INLINE int __clzll(long long x) {
  return std::countl_zero(static_cast<unsigned long long>(x));
}
CUDAHOST_INLINE int __ffs(int x) { return __builtin_ffs(x); }
CUDAHOST_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
CUDAHOST_INLINE unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1u) << (31 - bit);
  return reversed;
}
CUDAHOST_INLINE unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
CUDAHOST_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

CUDAHOST_INLINE float __fadd_rn(float a, float b) { return a + b; }
CUDAHOST_INLINE float __fsub_rn(float a, float b) { return a - b; }
CUDAHOST_INLINE float __fmul_rn(float a, float b) { return a * b; }
CUDAHOST_INLINE float __fdiv_rn(float a, float b) { return a / b; }
CUDAHOST_INLINE float __frcp_rn(float x) { return 1.0f / x; }
CUDAHOST_INLINE float __fsqrt_rn(float x) { return std::sqrt(x); }
CUDAHOST_INLINE float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
CUDAHOST_INLINE double __dadd_rn(double a, double b) { return a + b; }
CUDAHOST_INLINE double __dsub_rn(double a, double b) { return a - b; }
CUDAHOST_INLINE double __dmul_rn(double a, double b) { return a * b; }
CUDAHOST_INLINE double __ddiv_rn(double a, double b) { return a / b; }
CUDAHOST_INLINE double __dsqrt_rn(double x) { return std::sqrt(x); }
CUDAHOST_INLINE double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

#undef CUDAHOST_INLINE

#if defined(__SANITIZE_THREAD__)
// As C libraries replace functions by checking ones. What stays the compiler's is made plain loads
// and stores, which are instrumented.
extern "C" {
void* cudahost_memcpy(void* to, const void* from, size_t bytes) noexcept;
void* cudahost_memset(void* to, int value, size_t bytes) noexcept;

#define CUDAHOST_REPLACED inline __attribute__((always_inline, gnu_inline, artificial))
CUDAHOST_REPLACED void* memcpy(void* to, const void* from, size_t bytes) noexcept {
  if (__builtin_constant_p(bytes) && bytes <= 8 && (bytes & (bytes - 1)) == 0) {
    return __builtin_memcpy(to, from, bytes);
  }
  return cudahost_memcpy(to, from, bytes);
}
CUDAHOST_REPLACED void* memmove(void* to, const void* from, size_t bytes) noexcept {
  return cudahost_memcpy(to, from, bytes);
}
CUDAHOST_REPLACED void* memset(void* to, int value, size_t bytes) noexcept {
  return cudahost_memset(to, value, bytes);
}
#undef CUDAHOST_REPLACED
}  // extern "C"
#endif

#endif  // BITSHARD_TESTS_CUDAHOST_DEVICE_FUNCTIONS_H_
