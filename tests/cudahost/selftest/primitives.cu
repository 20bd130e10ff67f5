// One kernel for each primitive; tests/cudahost/selftest/primitives_test.cc knows what each gives.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <string>
#include <utility>

#include "core/launch.h"
#include "tests/cudahost/selftest/kernels.h"

namespace cudahost::selftest {
namespace {

using Tile = bitshard::core::SharedArray<float, 1024>;

__device__ uint32_t FlatThread() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ uint32_t FlatBlock() {
  return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
}
__device__ uint32_t FlatIndex() {
  return FlatBlock() * (blockDim.x * blockDim.y * blockDim.z) + FlatThread();
}

__global__ void Copy(Buffers b) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = FlatIndex(); i < b.n; i += stride) b.out[i] = b.in[i];
}

// Indices of up to three dimensions.
__global__ void Indices(Buffers b) { b.words[FlatIndex()] = FlatBlock() << 16 | FlatThread(); }

// out[i] = in[i] reversed within its block, through static shared memory.
__global__ void Reverse(Buffers b) {
  BITSHARD_SHARED(Tile, tile);
  tile.at[FlatThread()] = b.in[FlatIndex()];
  __syncthreads();
  b.out[FlatIndex()] = tile.at[blockDim.x - 1 - threadIdx.x];
}

// The same through dynamic shared memory, with 8 barriers where memory is reused.
__global__ void ReverseDynamic(Buffers b) {
  BITSHARD_DYN_SHARED(float, tile);
  float x = b.in[FlatIndex()];
  for (int round = 0; round < 9; ++round) {
    tile[threadIdx.x] = x;
    __syncthreads();
    x = tile[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
  }
  b.out[FlatIndex()] = x;
}

// Sum of each warp, by every kind of shuffle.
__global__ void Shuffles(Buffers b) {
  const uint32_t lane = threadIdx.x % 32;
  const float x = b.in[FlatIndex()];
  float by_xor = x;
  for (int offset = 16; offset > 0; offset /= 2) by_xor += __shfl_xor_sync(~0u, by_xor, offset);
  float by_down = x;
  for (unsigned offset = 16; offset > 0; offset /= 2) {
    by_down += __shfl_down_sync(~0u, by_down, offset);
  }
  by_down = __shfl_sync(~0u, by_down, 0);
  float prefix = x;
  for (unsigned offset = 1; offset < 32; offset *= 2) {
    const float below = __shfl_up_sync(~0u, prefix, offset);
    if (lane >= offset) prefix += below;
  }
  const double wide = __shfl_xor_sync(~0u, double{x}, 1, 2);
  b.out[FlatIndex()] = by_xor + by_down + prefix + static_cast<float>(wide);
}

// Each half of a warp by itself: other masks at the same time, and widths.
__global__ void HalfWarps(Buffers b) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t i = FlatIndex();
  float x = b.in[i];
  if (lane < 16) {
    x = __shfl_sync(0x0000FFFFu, x, 3, 16);
  } else {
    x = __shfl_sync(0xFFFF0000u, x, 4, 16);
  }
  __syncwarp();
  b.out[i] = x + __shfl_down_sync(~0u, b.in[i], 2, 8);
}

__global__ void Votes(Buffers b) {
  const uint32_t i = FlatIndex();
  const bool odd = b.words[i] % 2 != 0;
  const unsigned ballot = __ballot_sync(~0u, odd);
  const int any = __any_sync(~0u, odd);
  const int all = __all_sync(~0u, odd);
  const int count = __syncthreads_count(odd);
  const int either = __syncthreads_or(odd);
  const int both = __syncthreads_and(odd);
  b.out[i] = static_cast<float>(__popc(ballot) + 100 * any + 200 * all + 1000 * count +
                                4000000 * either + 8000000 * both);
}

// A histogram, minimum and maximum over all blocks; n bins.
__global__ void Atomics(Buffers b) {
  const uint32_t i = FlatIndex();
  atomicAdd(&b.words[i % static_cast<uint32_t>(b.n - 4)], 1u);
  atomicMax(&b.words[b.n - 4], i);
  atomicMin(&b.words[b.n - 3], i);
  atomicCAS(&b.words[b.n - 2], 0u, 7u);
  atomicAdd(b.out, 1.0f);
}

// A lane gives its neighbours of the warp what it computed: ordered by __syncwarp alone.
__global__ void ExchangeInWarp(Buffers b) {
  BITSHARD_SHARED(Tile, tile);
  const uint32_t t = threadIdx.x;
  tile.at[t] = b.in[FlatIndex()];
  __syncwarp();
  const float left = tile.at[t / 32 * 32 + (t + 31) % 32];
  __syncwarp();
  tile.at[t] = left * 2;
  // In parts of a warp that do not touch each other's memory.
  __syncwarp(t % 32 < 8 ? 0x000000FFu : 0xFFFFFF00u);
  b.out[FlatIndex()] = t % 32 < 8 ? tile.at[t / 32 * 32 + (t + 1) % 8] : tile.at[t];
}

// Vector loads and the conversions of the 16-bit types.
__global__ void Vectors(Buffers b) {
  const uint32_t i = FlatIndex();
  if (int64_t{i} * 4 >= b.n) return;
  const float4 x = reinterpret_cast<const float4*>(b.in)[i];
  const __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y);
  const __half2 high = __floats2half2_rn(x.z, x.w);
  reinterpret_cast<__nv_bfloat162*>(b.bytes)[2 * i] = low;
  reinterpret_cast<__half2*>(b.bytes)[2 * i + 1] = high;
  const float2 back_low = __bfloat1622float2(low);
  const float2 back_high = __half22float2(high);
  reinterpret_cast<float4*>(b.out)[i] =
      make_float4(back_low.x, back_low.y, back_high.x, back_high.y);
}

// Each thread turns what others wrote, by quads, words, halves and bytes, with barriers between.
__global__ void Parts(Buffers b) {
  const uint32_t t = threadIdx.x;
  float4* quads = reinterpret_cast<float4*>(b.out) + FlatBlock() * 64;
  quads[t] = reinterpret_cast<const float4*>(b.in)[FlatBlock() * 64 + t];
  __syncthreads();
  const float4 mirrored = quads[63 - t];
  __syncthreads();
  quads[t] = mirrored;
  __syncthreads();
  uint16_t* halves = reinterpret_cast<uint16_t*>(quads);
  for (uint32_t i = t; i < 512; i += 64) halves[i] = static_cast<uint16_t>(~halves[i]);
  __syncthreads();
  uint8_t* bytes = reinterpret_cast<uint8_t*>(quads);
  for (uint32_t i = t; i < 1024; i += 64) bytes[i] = static_cast<uint8_t>(~bytes[i]);
  __syncthreads();
  float* words = reinterpret_cast<float*>(quads);
  for (uint32_t i = t; i < 256; i += 64) words[i] += 1;
}

using Kernel = void (*)(Buffers);
constexpr std::array<std::pair<std::string_view, Kernel>, 11> kKernels = {{
    {"Copy", Copy},
    {"Indices", Indices},
    {"Reverse", Reverse},
    {"ReverseDynamic", ReverseDynamic},
    {"Shuffles", Shuffles},
    {"HalfWarps", HalfWarps},
    {"Votes", Votes},
    {"Atomics", Atomics},
    {"ExchangeInWarp", ExchangeInWarp},
    {"Vectors", Vectors},
    {"Parts", Parts},
}};

}  // namespace

absl::Status LaunchPrimitive(std::string_view name, const Shape& shape, const Buffers& buffers,
                             cudaStream_t stream) {
  for (const auto& [kernel_name, kernel] : kKernels) {
    if (kernel_name != name) continue;
    return bitshard::core::Launch(kernel_name.data(), kernel, shape.grid, shape.block,
                                  shape.dynamic_shared_bytes, stream, buffers);
  }
  return absl::NotFoundError("no kernel " + std::string(name));
}

}  // namespace cudahost::selftest
