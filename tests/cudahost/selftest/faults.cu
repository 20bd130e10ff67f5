// Kernels with one error each; tests/cudahost/selftest/faults_test.cc knows the reports. A line
// that a report must name ends with the comment `// HERE` or `// THERE`.
#include <array>
#include <string>
#include <utility>

#include "core/launch.h"
#include "tests/cudahost/selftest/kernels.h"

namespace cudahost::selftest {
namespace {

using Tile = bitshard::core::SharedArray<float, 256>;
using Halves = bitshard::core::SharedArray<uint16_t, 256>;

__device__ uint32_t Index() { return blockIdx.x * blockDim.x + threadIdx.x; }

// --- divergence ---

__global__ void BarrierInBranch(Buffers b) {
  if (threadIdx.x % 64 < 63) __syncthreads();  // HERE
  b.out[Index()] = 1;
}

__global__ void DifferentBarriers(Buffers b) {
  if (threadIdx.x < 32) {
    __syncthreads();  // HERE
  } else {
    __syncthreads();  // THERE
  }
  b.out[Index()] = 1;
}

__global__ void EarlyReturn(Buffers b) {
  if (Index() >= 100) return;
  const float x = __shfl_xor_sync(~0u, b.in[Index()], 1);  // HERE
  b.out[Index()] = x;
}

__global__ void OutsideItsMask(Buffers b) {
  b.out[Index()] = __shfl_sync(0x0000FFFFu, b.in[Index()], 0);  // HERE
}

__global__ void BeyondTheBlock(Buffers b) {
  b.out[Index()] = __shfl_sync(~0u, b.in[Index()], 0);  // HERE
}

__global__ void DifferentCalls(Buffers b) {
  float x = b.in[Index()];
  if (threadIdx.x % 32 < 16) {
    x = __shfl_sync(~0u, x, 0);  // HERE
  } else {
    x = __shfl_sync(~0u, x, 1);  // THERE
  }
  b.out[Index()] = x;
}

__global__ void HalfMask(Buffers b) {
  float x = b.in[Index()];
  if (threadIdx.x % 32 < 16) x = __shfl_xor_sync(0x0000FFFFu, x, 16);  // HERE
  b.out[Index()] = x;
}

__global__ void Deadlock(Buffers b) {
  if (threadIdx.x % 32 == 5) __syncthreads();           // HERE
  b.out[Index()] = __shfl_sync(~0u, b.in[Index()], 5);  // THERE
  if (threadIdx.x % 32 != 5) __syncthreads();
}

__global__ void BadWidth(Buffers b) {
  b.out[Index()] = __shfl_sync(~0u, b.in[Index()], 0, 12);  // HERE
}

// --- memory ---

// n is one less than there are threads.
__global__ void ReadPastEnd(Buffers b) {
  if (int64_t{Index()} <= b.n) b.out[Index()] = b.in[Index()];  // HERE
}

__global__ void WritePastEnd(Buffers b) {
  if (int64_t{Index()} <= b.n) b.out[Index()] = 1;  // HERE
}

__global__ void WriteBeforeBegin(Buffers b) { b.bytes[int64_t{Index()} - 1] = 1; }  // HERE

__global__ void TableLoopTooLong(Buffers b) {
  BITSHARD_SHARED(Tile, table);
  for (uint32_t k = threadIdx.x; k <= 256; k += blockDim.x) table.at[k] = 0;  // HERE
  __syncthreads();
  b.out[Index()] = table.at[0];
}

__global__ void UninitialisedDevice(Buffers b) { b.out[Index()] = b.in[Index()]; }  // HERE

__global__ void NoBarrierAfterLoad(Buffers b) {
  BITSHARD_SHARED(Tile, table);
  table.at[threadIdx.x] = b.in[Index()];
  b.out[Index()] = table.at[255 - threadIdx.x];  // HERE
}

__global__ void OnlyOneLaneStores(Buffers b) {
  BITSHARD_SHARED(Tile, sums);
  if (threadIdx.x == 0) sums.at[0] = b.in[Index()];
  __syncthreads();
  b.out[Index()] = sums.at[threadIdx.x / 32];  // HERE
}

__global__ void ScratchReused(Buffers b) {
  BITSHARD_SHARED(Tile, scratch);
  scratch.at[threadIdx.x] = b.in[Index()];
  __syncthreads();
  const float other = scratch.at[(threadIdx.x + 64) % 256];  // THERE
  scratch.at[threadIdx.x] = other;                           // HERE
  __syncthreads();
  b.out[Index()] = scratch.at[threadIdx.x];
}

__global__ void TwoBlocksOneWord(Buffers b) {
  if (threadIdx.x == 0) b.words[0] = blockIdx.x;  // HERE
}

__global__ void TwoThreadsOneWord(Buffers b) { b.words[Index() / 2] = 1; }  // HERE

__global__ void BlocksReadAndWrite(Buffers b) {
  const float x = b.out[0];            // THERE
  if (Index() == 0) b.out[0] = x + 1;  // HERE
  b.words[Index()] = static_cast<uint32_t>(x);
}

__global__ void BytesOfOneWord(Buffers b) {
  b.bytes[Index()] = 1;                                           // THERE
  if (Index() == 9) reinterpret_cast<uint32_t*>(b.bytes)[1] = 5;  // HERE
}

__global__ void NoSyncwarp(Buffers b) {
  BITSHARD_SHARED(Tile, tile);
  tile.at[threadIdx.x] = 0;
  __syncthreads();
  tile.at[threadIdx.x] = b.in[Index()];                       // THERE
  const float x = __shfl_sync(~0u, tile.at[threadIdx.x], 0);  // orders no memory
  b.out[Index()] = x + tile.at[threadIdx.x ^ 1];              // HERE
}

__global__ void PartialSyncwarp(Buffers b) {
  BITSHARD_SHARED(Tile, tile);
  const uint32_t lane = threadIdx.x % 32;
  tile.at[threadIdx.x] = 0;
  __syncwarp();
  tile.at[threadIdx.x] = b.in[Index()];  // THERE
  __syncwarp(lane < 16 ? 0x0000FFFFu : 0xFFFF0000u);
  b.out[Index()] = tile.at[threadIdx.x ^ 16];  // HERE
}

__global__ void AtomicAndPlain(Buffers b) {
  if (Index() % 64 == 0) {
    b.words[0] = 1;  // HERE
  } else {
    atomicAdd(&b.words[0], 1u);  // THERE
  }
}

__global__ void CopyPastEnd(Buffers b) {
  if (Index() == 0) memcpy(b.out, b.in, static_cast<size_t>(b.n + 1) * sizeof(float));  // HERE
}

__global__ void UninitialisedCopy(Buffers b) {
  if (Index() < 8) memcpy(b.out + 8 * Index(), b.in + 8 * Index(), 32);  // HERE
}

__global__ void FillAndWrite(Buffers b) {
  if (Index() == 0) memset(b.words, 0, 64);  // HERE
  if (Index() == 33) b.words[9] = 1;         // THERE
}

// Copied as a whole: no access of 4, 8 or 16 bytes.
struct Six {
  float at[6];
};

__global__ void StructPastEnd(Buffers b) {
  const int64_t last = b.n / 6;
  if (Index() == 0) {
    reinterpret_cast<Six*>(b.out)[0] = reinterpret_cast<const Six*>(b.in)[last];  // HERE
  }
}

__global__ void UninitialisedStruct(Buffers b) {
  if (Index() == 7) {
    reinterpret_cast<Six*>(b.out)[7] = reinterpret_cast<const Six*>(b.in)[7];  // HERE
  }
}

__global__ void StructAndWord(Buffers b) {
  if (Index() == 0) {
    reinterpret_cast<Six*>(b.out)[1] = reinterpret_cast<const Six*>(b.in)[1];  // HERE
  }
  if (Index() == 33) b.out[9] = 1;  // THERE
}

__global__ void MisalignedRead(Buffers b) {
  const float4 quad = *reinterpret_cast<const float4*>(b.in + Index() / 2);  // HERE
  b.out[Index()] = quad.x + quad.w;
}

__global__ void MisalignedWrite(Buffers b) {
  const size_t at = Index() / 2 * 2;
  if (Index() % 2 == 0) *reinterpret_cast<uint32_t*>(b.bytes + at) = 1;  // HERE
}

// --- of four words at a time, two, and half a one, of which the checker has records of their own
// ---

__global__ void QuadPastEnd(Buffers b) {
  if (Index() == 9) {
    const float4 x = reinterpret_cast<const float4*>(b.in)[b.n / 4];  // HERE
    b.out[0] = x.x;
  }
}

__global__ void HalfPastEnd(Buffers b) {
  if (Index() == 9) b.words[0] = reinterpret_cast<const uint16_t*>(b.in)[2 * b.n];  // HERE
}

__global__ void UninitialisedQuad(Buffers b) {
  float sum = 0;
  for (int64_t i = Index(); i < b.n / 4; i += gridDim.x * blockDim.x) {
    const float4 x = reinterpret_cast<const float4*>(b.in)[i];  // HERE
    sum += x.w;
  }
  b.out[Index()] = sum;
}

__global__ void UninitialisedHalf(Buffers b) {
  b.words[Index()] = reinterpret_cast<const uint16_t*>(b.in)[Index()];  // HERE
}

__global__ void TwoBlocksOneQuad(Buffers b) {
  if (threadIdx.x == 0) reinterpret_cast<float4*>(b.out)[1] = make_float4(1, 2, 3, 4);  // HERE
}

__global__ void TwoThreadsOneHalf(Buffers b) {
  reinterpret_cast<uint16_t*>(b.bytes)[Index() / 4] = 1;  // HERE
}

__global__ void QuadReadAndWritten(Buffers b) {
  float4* quads = reinterpret_cast<float4*>(b.out);
  const float4 x = quads[2];        // THERE
  if (Index() == 40) quads[2] = x;  // HERE
  b.words[Index()] = x.x != 0.0f;
}

__global__ void QuadAndWord(Buffers b) {
  if (Index() == 1) reinterpret_cast<float4*>(b.out)[2] = make_float4(1, 2, 3, 4);  // HERE
  if (Index() == 200) b.words[0] = b.out[9] != 0.0f;                                // THERE
}

__global__ void HalfAndWord(Buffers b) {
  if (Index() == 1) reinterpret_cast<uint16_t*>(b.bytes)[3] = 1;            // HERE
  if (Index() == 33) b.words[0] = reinterpret_cast<uint32_t*>(b.bytes)[1];  // THERE
}

__global__ void HalfAndByte(Buffers b) {
  if (Index() == 1) b.words[0] = reinterpret_cast<uint16_t*>(b.bytes)[3];  // HERE
  if (Index() == 200) b.bytes[7] = 1;                                      // THERE
}

// The read after the barrier must not hide the write from the other block.
__global__ void QuadReadAfterWrite(Buffers b) {
  float4* quads = reinterpret_cast<float4*>(b.out);
  float4 x = make_float4(0, 0, 0, 0);
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) quads[3] = x;  // THERE
    __syncthreads();
    if (threadIdx.x == 64) x = quads[3];
  } else {
    x = quads[3];  // HERE
  }
  b.words[Index()] = x.x != 0.0f;
}

__global__ void HalfReadAfterWrite(Buffers b) {
  uint16_t* halves = reinterpret_cast<uint16_t*>(b.bytes);
  uint16_t x = 0;
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) halves[3] = x;  // THERE
    __syncthreads();
    if (threadIdx.x == 64) x = halves[3];
  } else {
    x = halves[3];  // HERE
  }
  b.words[Index()] = x;
}

__global__ void SharedHalvesReused(Buffers b) {
  BITSHARD_SHARED(Halves, scratch);
  scratch.at[threadIdx.x] = 1;
  __syncthreads();
  const uint16_t other = scratch.at[(threadIdx.x + 64) % 256];  // THERE
  scratch.at[threadIdx.x] = other;                              // HERE
  b.words[Index()] = other;
}

// That all warps have read before the barrier must not hide that they do so after it.
__global__ void ReadBeforeAndAfter(Buffers b) {
  BITSHARD_SHARED(Tile, tile);
  tile.at[threadIdx.x] = b.in[Index()];
  __syncthreads();
  const float before = tile.at[0];
  __syncthreads();
  const float after = tile.at[0];              // THERE
  if (threadIdx.x == 37) tile.at[0] = before;  // HERE
  b.out[Index()] = before + after;
}

// The writer's own read must not hide the other block's, or the other warp's.
__global__ void ReadInBothBlocks(Buffers b) {
  if (threadIdx.x != 0) return;
  uint64_t* table = reinterpret_cast<uint64_t*>(b.words);
  const uint64_t x = table[0];            // THERE
  if (blockIdx.x == 1) table[0] = x + 1;  // HERE
  b.out[Index()] = static_cast<float>(x);
}

__global__ void ReadInBothWarps(Buffers b) {
  BITSHARD_SHARED(Tile, tile);
  tile.at[threadIdx.x] = b.in[Index()];
  __syncthreads();
  float x = 0;
  if (threadIdx.x == 0 || threadIdx.x == 32) x = tile.at[0];  // THERE
  __syncwarp();
  if (threadIdx.x == 32) tile.at[0] = x + 1;  // HERE
  b.out[Index()] = x;
}

// Thread n writes what all read.
__global__ void TableAndWrite(Buffers b) {
  uint64_t* table = reinterpret_cast<uint64_t*>(b.words);
  const uint64_t x = table[1];                    // THERE
  if (int64_t{Index()} == b.n) table[1] = x + 1;  // HERE
  b.out[Index()] = static_cast<float>(x);
}

__global__ void HostPointer(Buffers b) { b.out[Index()] = b.in[Index()]; }  // HERE

using Kernel = void (*)(Buffers);
constexpr std::array<std::pair<std::string_view, Kernel>, 50> kKernels = {{
    {"BarrierInBranch", BarrierInBranch},
    {"DifferentBarriers", DifferentBarriers},
    {"EarlyReturn", EarlyReturn},
    {"OutsideItsMask", OutsideItsMask},
    {"BeyondTheBlock", BeyondTheBlock},
    {"DifferentCalls", DifferentCalls},
    {"HalfMask", HalfMask},
    {"Deadlock", Deadlock},
    {"BadWidth", BadWidth},
    {"ReadPastEnd", ReadPastEnd},
    {"WritePastEnd", WritePastEnd},
    {"WriteBeforeBegin", WriteBeforeBegin},
    {"TableLoopTooLong", TableLoopTooLong},
    {"UninitialisedDevice", UninitialisedDevice},
    {"NoBarrierAfterLoad", NoBarrierAfterLoad},
    {"OnlyOneLaneStores", OnlyOneLaneStores},
    {"ScratchReused", ScratchReused},
    {"TwoBlocksOneWord", TwoBlocksOneWord},
    {"TwoThreadsOneWord", TwoThreadsOneWord},
    {"BlocksReadAndWrite", BlocksReadAndWrite},
    {"BytesOfOneWord", BytesOfOneWord},
    {"NoSyncwarp", NoSyncwarp},
    {"PartialSyncwarp", PartialSyncwarp},
    {"AtomicAndPlain", AtomicAndPlain},
    {"CopyPastEnd", CopyPastEnd},
    {"UninitialisedCopy", UninitialisedCopy},
    {"FillAndWrite", FillAndWrite},
    {"StructPastEnd", StructPastEnd},
    {"UninitialisedStruct", UninitialisedStruct},
    {"StructAndWord", StructAndWord},
    {"MisalignedRead", MisalignedRead},
    {"MisalignedWrite", MisalignedWrite},
    {"QuadPastEnd", QuadPastEnd},
    {"HalfPastEnd", HalfPastEnd},
    {"UninitialisedQuad", UninitialisedQuad},
    {"UninitialisedHalf", UninitialisedHalf},
    {"TwoBlocksOneQuad", TwoBlocksOneQuad},
    {"TwoThreadsOneHalf", TwoThreadsOneHalf},
    {"QuadReadAndWritten", QuadReadAndWritten},
    {"QuadAndWord", QuadAndWord},
    {"HalfAndWord", HalfAndWord},
    {"HalfAndByte", HalfAndByte},
    {"QuadReadAfterWrite", QuadReadAfterWrite},
    {"HalfReadAfterWrite", HalfReadAfterWrite},
    {"SharedHalvesReused", SharedHalvesReused},
    {"ReadBeforeAndAfter", ReadBeforeAndAfter},
    {"ReadInBothBlocks", ReadInBothBlocks},
    {"ReadInBothWarps", ReadInBothWarps},
    {"TableAndWrite", TableAndWrite},
    {"HostPointer", HostPointer},
}};

}  // namespace

absl::Status LaunchFault(std::string_view name, const Shape& shape, const Buffers& buffers,
                         cudaStream_t stream) {
  for (const auto& [kernel_name, kernel] : kKernels) {
    if (kernel_name != name) continue;
    return bitshard::core::Launch(kernel_name.data(), kernel, shape.grid, shape.block,
                                  shape.dynamic_shared_bytes, stream, buffers);
  }
  return absl::NotFoundError("no kernel " + std::string(name));
}

float ReadOnHost(const float* p) { return *p; }  // HERE

}  // namespace cudahost::selftest
