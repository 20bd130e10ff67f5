// Device memory in pieces of 16 bytes: four float32 or eight bfloat16, float32 in registers. Only
// `.cu` files include this.
//
//   const RowAccess<Bf16> x{row, n, aligned};
//   for (int64_t i = kPack<Bf16> * threadIdx.x; i < n; i += kPack<Bf16> * kThreads) {
//     const Pack<Bf16> p = x.Load(i);                    // elements i .. i + 7, zeros past the end
//   }
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_PACK_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_PACK_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/host_device.h"
#include "core/numeric.h"

namespace bitshard::trainer {

struct Bf16 {
  uint16_t bits;
};

BITSHARD_HD float Widen(float x) { return x; }
BITSHARD_HD float Widen(Bf16 x) { return core::FloatFromBf16(x.bits); }
BITSHARD_HD void Round(float x, float* to) { *to = x; }
BITSHARD_HD void Round(float x, Bf16* to) { to->bits = core::Bf16FromFloat(x); }

inline constexpr int kPackBytes = 16;
template <class T>
inline constexpr int kPack = kPackBytes / static_cast<int>(sizeof(T));

template <class T>
struct Pack {
  float at[kPack<T>];
};

/// Elements at[0 ..]; `at` is a multiple of 16 bytes.
__device__ inline Pack<float> LoadPack(const float* at) {
  const float4 v = *reinterpret_cast<const float4*>(at);
  return {{v.x, v.y, v.z, v.w}};
}

__device__ inline Pack<Bf16> LoadPack(const Bf16* at) {
  const uint4 v = *reinterpret_cast<const uint4*>(at);
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  Pack<Bf16> p;
  BITSHARD_UNROLL
  for (int j = 0; j < 4; ++j) {
    p.at[2 * j] = core::FloatFromBits(words[j] << 16);
    p.at[2 * j + 1] = core::FloatFromBits(words[j] & 0xFFFF0000u);
  }
  return p;
}

__device__ inline void StorePack(float* at, const Pack<float>& p) {
  *reinterpret_cast<float4*>(at) = make_float4(p.at[0], p.at[1], p.at[2], p.at[3]);
}

__device__ inline void StorePack(Bf16* at, const Pack<Bf16>& p) {
  uint32_t words[4];
  BITSHARD_UNROLL
  for (int j = 0; j < 4; ++j) {
    words[j] = static_cast<uint32_t>(core::Bf16FromFloat(p.at[2 * j])) |
               static_cast<uint32_t>(core::Bf16FromFloat(p.at[2 * j + 1])) << 16;
  }
  *reinterpret_cast<uint4*>(at) = make_uint4(words[0], words[1], words[2], words[3]);
}

/// The n elements at `data`; aligned: `data` is a multiple of 16 bytes. What is past the end is
/// read as 0 and not written.
template <class T>
struct RowAccess {
  T* data;
  int64_t n;
  bool aligned;

  __device__ bool IsWhole(int64_t i) const { return aligned && i + kPack<T> <= n; }
  /// Elements i .. of one pack; i is a multiple of kPack<T>.
  __device__ Pack<std::remove_const_t<T>> Load(int64_t i) const {
    if (IsWhole(i)) return LoadPack(data + i);
    Pack<std::remove_const_t<T>> p = {};
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) {
      if (i + j < n) p.at[j] = Widen(data[i + j]);
    }
    return p;
  }
  __device__ void Store(int64_t i, const Pack<T>& p) const {
    if (IsWhole(i)) {
      StorePack(data + i, p);
      return;
    }
    BITSHARD_UNROLL
    for (int j = 0; j < kPack<T>; ++j) {
      if (i + j < n) Round(p.at[j], data + i + j);
    }
  }
};

/// The floats that belong to a pack of T, from a float32 array: weights and biases beside
/// activations.
template <class T>
__device__ Pack<T> LoadFloats(const RowAccess<const float>& from, int64_t i) {
  Pack<T> p;
  BITSHARD_UNROLL
  for (int j = 0; j < kPack<T>; j += kPack<float>) {
    const Pack<float> quad = from.Load(i + j);
    BITSHARD_UNROLL
    for (int k = 0; k < kPack<float>; ++k) p.at[j + k] = quad.at[k];
  }
  return p;
}

/// Whether all of these start at multiples of 16 bytes; nullptr does.
inline bool ArePackAligned(std::initializer_list<const void*> arrays) {
  return std::all_of(arrays.begin(), arrays.end(), [](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % kPackBytes == 0;
  });
}

/// The same of every row of n elements of T.
template <class T>
bool AreRowsAligned(int64_t n, std::initializer_list<const void*> arrays) {
  return n % kPack<T> == 0 && ArePackAligned(arrays);
}

/// Calls run(T()) with T for `type`. Errors: kConfig where there is none.
template <class Run>
absl::Status ForDeviceType(const char* function, core::DType type, Run&& run) {
  switch (type) {
    case core::DType::kFloat32:
      return run(float());
    case core::DType::kBFloat16:
      return run(Bf16());
    default:
      return core::ConfigError(
          absl::StrCat(function, ": type is ", core::Name(type), ", want float32 or bfloat16"));
  }
}

/// Blocks of threads for `items`, of which each block takes `items_per_cta`.
inline dim3 GridFor(int64_t items, int64_t items_per_cta) {
  return dim3(static_cast<unsigned>((items + items_per_cta - 1) / items_per_cta));
}

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_PACK_H_
