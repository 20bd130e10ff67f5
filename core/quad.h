// Four neighbouring elements of a device array in one vector load or store, whatever their type:
// float32 in registers, float32, bfloat16 or float16 in memory. Only `.cu` files include this.
//
//   const core::Quad g = core::LoadQuad(type, gradient, i);   // elements i .. i + 3
//
// The type is a run-time value that is the same for all threads of a launch or of a warp: one
// kernel then serves every combination of types, and its branches do not diverge.
#ifndef BITSHARD_CORE_QUAD_H_
#define BITSHARD_CORE_QUAD_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "core/dtype.h"
#include "core/host_device.h"
#include "core/numeric.h"

namespace bitshard::core {

struct Quad {
  float at[4];
};

inline constexpr int kQuadElems = 4;

/// Whether quads may be loaded from and stored to `data`: it is a multiple of a quad's size.
inline bool IsQuadAligned(DType type, const void* data) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(ByteSize(type) * kQuadElems) ==
         0;
}

/// How many of a quad's elements there are where `left` are left: 0 to 4.
BITSHARD_HD int QuadCount(int64_t left) {
  return left < 0 ? 0 : (left < kQuadElems ? static_cast<int>(left) : kQuadElems);
}

BITSHARD_HD float FloatFrom16(DType type, uint32_t bits) {
  return type == DType::kBFloat16 ? FloatFromBf16(static_cast<uint16_t>(bits))
                                  : FloatFromFp16(static_cast<uint16_t>(bits));
}

BITSHARD_HD uint32_t FloatTo16(DType type, float x) {
  return type == DType::kBFloat16 ? Bf16FromFloat(x) : Fp16FromFloat(x);
}

/// Elements i .. i + 3; i is a multiple of 4 and `data` quad-aligned.
__device__ inline Quad LoadQuad(DType type, const void* data, int64_t i) {
  if (type == DType::kFloat32) {
    const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + i);
    return {{v.x, v.y, v.z, v.w}};
  }
  const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + i);
  return {{FloatFrom16(type, v.x & 0xFFFFu), FloatFrom16(type, v.x >> 16),
           FloatFrom16(type, v.y & 0xFFFFu), FloatFrom16(type, v.y >> 16)}};
}

/// Two neighbours of a 16-bit type as they lie in memory.
BITSHARD_HD uint32_t Pack16(uint32_t low, uint32_t high) { return low | high << 16; }

__device__ inline void StoreQuad(DType type, void* data, int64_t i, const Quad& q) {
  if (type == DType::kFloat32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + i) =
        make_float4(q.at[0], q.at[1], q.at[2], q.at[3]);
    return;
  }
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + i) =
      make_uint2(Pack16(FloatTo16(type, q.at[0]), FloatTo16(type, q.at[1])),
                 Pack16(FloatTo16(type, q.at[2]), FloatTo16(type, q.at[3])));
}

__device__ inline float LoadElement(DType type, const void* data, int64_t i) {
  if (type == DType::kFloat32) return static_cast<const float*>(data)[i];
  return FloatFrom16(type, static_cast<const uint16_t*>(data)[i]);
}

__device__ inline void StoreElement(DType type, void* data, int64_t i, float x) {
  if (type == DType::kFloat32) {
    static_cast<float*>(data)[i] = x;
  } else {
    static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(FloatTo16(type, x));
  }
}

/// Elements i .. i + count - 1 (count from 0 to 4) at any alignment, zeros after them.
__device__ inline Quad LoadPart(DType type, const void* data, int64_t i, int count) {
  Quad q = {{0.0f, 0.0f, 0.0f, 0.0f}};
  BITSHARD_UNROLL
  for (int j = 0; j < kQuadElems; ++j) {
    if (j < count) q.at[j] = LoadElement(type, data, i + j);
  }
  return q;
}

__device__ inline void StorePart(DType type, void* data, int64_t i, const Quad& q, int count) {
  BITSHARD_UNROLL
  for (int j = 0; j < kQuadElems; ++j) {
    if (j < count) StoreElement(type, data, i + j, q.at[j]);
  }
}

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_QUAD_H_
