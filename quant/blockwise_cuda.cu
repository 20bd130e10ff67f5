// Which thread takes which element; the rounding is quant/block_codec.h. A thread loads and stores
// four neighbours at a time. Quantising: a team of lanes for each block, a whole warp from 128
// elements on, which finds the block's maximum with shuffles and then encodes. Dequantising: one
// thread for four elements, which are of one block.
#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/launch.h"
#include "core/numeric.h"
#include "core/quad.h"
#include "core/status_macros.h"
#include "quant/block_codec.h"
#include "quant/blockwise_cuda.h"
#include "quant/codebook.h"

namespace bitshard::quant {
namespace {

using core::DType;
using core::kQuadElems;
using core::Quad;

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Enough to fill a large device; every kernel strides over what is left.
constexpr int64_t kMaxCtas = 4096;

// Tables travel as kernel arguments, so that no device memory is needed for them.
template <size_t kCount>
struct Values {
  float at[kCount];
};
using Values256 = Values<256>;
using Values16 = Values<16>;

__device__ void LoadTable(const Values256& values, uint8_t zero_code, CodeTable* table) {
  for (int k = static_cast<int>(threadIdx.x); k < 256; k += static_cast<int>(blockDim.x)) {
    table->values[k] = values.at[k];
    table->midpoints[k] =
        k < 255 ? Midpoint(values.at[k], values.at[k + 1]) : core::FloatFromBits(0x7F800000u);
  }
  if (threadIdx.x == 0) table->zero_code = zero_code;
  __syncthreads();
}

// What is quantised, and how blocks are dealt out.
struct Source {
  const void* x;
  DType type;
  int64_t n;
  int64_t block_size;
  int team_lanes;  // 8, 16 or 32: a power of two.
  bool aligned;    // Quads of x, and of the codes, can be loaded and stored whole.

  __device__ bool IsWhole(int64_t i) const { return aligned && i + kQuadElems <= n; }
  __device__ Quad Load(int64_t i) const {
    if (IsWhole(i)) return core::LoadQuad(type, x, i);
    return core::LoadPart(type, x, i, core::QuadCount(n - i));
  }
};

// A block and the lanes that quantise it.
struct Team {
  int64_t block;
  int64_t begin;  // The lane's first element.
  int64_t end;    // Of the block.
  int64_t stride;
  bool leads;
};

// All lanes of a warp call it: those whose block is beyond the end with no elements.
__device__ BlockScale TeamScale(const Source& source, const Team& team) {
  uint32_t max_bits = 0;
  for (int64_t i = team.begin; i < team.end; i += team.stride) {
    const Quad q = source.Load(i);  // Zeros beyond the end, which change no maximum.
    BITSHARD_UNROLL
    for (int j = 0; j < kQuadElems; ++j) max_bits = MaxAbsBits(max_bits, q.at[j]);
  }
  for (int offset = source.team_lanes / 2; offset > 0; offset /= 2) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, max_bits, offset);
    max_bits = other > max_bits ? other : max_bits;
  }
  return ScaleOfBlock(max_bits);
}

// Calls store(i, codes) for each quad of codes: code j in bits 8 j and up, that of 0 beyond the
// end.
template <class Codec, class StoreCodes>
__device__ void QuantizeBlocks(const Source& source, const Codec& codec, uint8_t zero_code,
                               float* absmax, StoreCodes&& store) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int team_lane = lane % source.team_lanes;
  const int teams = kWarp / source.team_lanes;
  const int64_t stride = int64_t{gridDim.x} * kWarps * teams;
  int64_t first = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp) * teams;
  for (; first * source.block_size < source.n; first += stride) {
    Team team;
    team.block = first + lane / source.team_lanes;
    team.end = (team.block + 1) * source.block_size;
    if (team.end > source.n) team.end = source.n;
    team.begin = team.block * source.block_size + kQuadElems * team_lane;
    team.stride = kQuadElems * source.team_lanes;
    team.leads = team_lane == 0 && team.begin < source.n;
    const BlockScale scale = TeamScale(source, team);
    if (team.leads) absmax[team.block] = scale.absmax;
    for (int64_t i = team.begin; i < team.end; i += team.stride) {
      const Quad q = source.Load(i);
      uint32_t codes = 0;
      BITSHARD_UNROLL
      for (int j = 0; j < kQuadElems; ++j) {
        const bool coded = scale.coded() && i + j < source.n;
        const uint32_t code =
            coded ? codec.Encode(Normalize(q.at[j], scale.reciprocal)) : zero_code;
        codes |= code << (8 * j);
      }
      store(i, codes);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(Source source, Values256 values, uint8_t zero_code, uint8_t* out,
                   float* absmax) {
  BITSHARD_SHARED(CodeTable, table);
  LoadTable(values, zero_code, &table);
  const TableCodec codec{&table};
  QuantizeBlocks(source, codec, zero_code, absmax, [&](int64_t i, uint32_t codes) {
    if (source.IsWhole(i)) {
      *reinterpret_cast<uint32_t*>(out + i) = codes;
    } else {
      for (int j = 0; j < core::QuadCount(source.n - i); ++j)
        out[i + j] = static_cast<uint8_t>(codes >> (8 * j));
    }
  });
}

template <class Codec>
__global__ void __launch_bounds__(kThreads)
    Quantize4Kernel(Source source, uint8_t* packed, float* absmax) {
  QuantizeBlocks(source, Codec(), Codec::kZeroCode, absmax, [&](int64_t i, uint32_t codes) {
    const uint8_t low = PackNibbles(codes & 0xFFu, codes >> 8 & 0xFFu);
    const uint8_t high = PackNibbles(codes >> 16 & 0xFFu, codes >> 24);
    if (source.IsWhole(i)) {
      *reinterpret_cast<uint16_t*>(packed + i / 2) = static_cast<uint16_t>(low | high << 8);
    } else {
      packed[i / 2] = low;
      if (i + 2 < source.n) packed[i / 2 + 1] = high;
    }
  });
}

// Where dequantised values go.
struct Target {
  void* out;
  DType type;
  int64_t n;
  const float* absmax;
  int block_shift;  // log2 of the block size.
  bool aligned;     // Quads of codes and of `out` can be loaded and stored whole.

  __device__ bool IsWhole(int64_t i) const { return aligned && i + kQuadElems <= n; }
  __device__ float Scale(int64_t i) const { return absmax[i >> block_shift]; }
  __device__ void Store(int64_t i, const Quad& q) const {
    if (IsWhole(i)) {
      core::StoreQuad(type, out, i, q);
    } else {
      core::StorePart(type, out, i, q, core::QuadCount(n - i));
    }
  }
};

// Calls body(i) for the first element of each of this thread's quads.
template <class Body>
__device__ void ForEachQuad(int64_t n, Body&& body) {
  const int64_t stride = int64_t{gridDim.x} * kThreads * kQuadElems;
  int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kQuadElems;
  for (; i < n; i += stride) body(i);
}

// kAddOffset: the second rounding of double-quantised scales. (Adding 0 would turn -0 into +0.)
template <bool kAddOffset>
__global__ void __launch_bounds__(kThreads)
    DequantizeKernel(const uint8_t* q, Values256 values, float offset, Target target) {
  BITSHARD_SHARED(Values256, table);
  for (int k = static_cast<int>(threadIdx.x); k < 256; k += kThreads) table.at[k] = values.at[k];
  __syncthreads();
  ForEachQuad(target.n, [&](int64_t i) {
    uint32_t codes = 0;
    if (target.IsWhole(i)) {
      codes = *reinterpret_cast<const uint32_t*>(q + i);
    } else {
      for (int j = 0; j < core::QuadCount(target.n - i); ++j)
        codes |= static_cast<uint32_t>(q[i + j]) << (8 * j);
    }
    const float scale = target.Scale(i);
    Quad out;
    BITSHARD_UNROLL
    for (int j = 0; j < kQuadElems; ++j) {
      const float product = table.at[codes >> (8 * j) & 0xFFu] * scale;
      out.at[j] = kAddOffset ? product + offset : product;
    }
    target.Store(i, out);
  });
}

__global__ void __launch_bounds__(kThreads)
    Dequantize4Kernel(const uint8_t* packed, Values16 values, Target target) {
  BITSHARD_SHARED(Values16, table);
  if (threadIdx.x < 16) table.at[threadIdx.x] = values.at[threadIdx.x];
  __syncthreads();
  ForEachQuad(target.n, [&](int64_t i) {
    uint32_t low = 0, high = 0;
    if (target.IsWhole(i)) {
      const uint32_t both = *reinterpret_cast<const uint16_t*>(packed + i / 2);
      low = both & 0xFFu;
      high = both >> 8;
    } else {
      low = packed[i / 2];
      if (i + 2 < target.n) high = packed[i / 2 + 1];
    }
    const float scale = target.Scale(i);
    target.Store(i, {{table.at[low >> 4] * scale, table.at[low & 15u] * scale,
                      table.at[high >> 4] * scale, table.at[high & 15u] * scale}});
  });
}

absl::Status CheckShape(const char* function, int64_t block_size, DType type) {
  if (block_size < 32 || !std::has_single_bit(static_cast<uint64_t>(block_size))) {
    return core::ConfigError(
        absl::StrCat(function, ": block_size is ", block_size, ", want a power of two from 32"));
  }
  if (type != DType::kFloat32 && type != DType::kBFloat16 && type != DType::kFloat16) {
    return core::ConfigError(absl::StrCat(function, ": type is ", core::Name(type),
                                          ", want float32, bfloat16 or float16"));
  }
  return absl::OkStatus();
}

int Log2(int64_t power_of_two) { return std::countr_zero(static_cast<uint64_t>(power_of_two)); }

dim3 Grid(int64_t items, int64_t items_per_cta) {
  return dim3(
      static_cast<unsigned>(std::min(kMaxCtas, (items + items_per_cta - 1) / items_per_cta)));
}

dim3 GridOfQuads(int64_t n) { return Grid(n, int64_t{kThreads} * kQuadElems); }

bool IsAligned(const uint8_t* codes, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(codes) % bytes == 0;
}

Source SourceOf(const void* x, DType type, int64_t n, int64_t block_size) {
  return {.x = x,
          .type = type,
          .n = n,
          .block_size = block_size,
          .team_lanes = static_cast<int>(std::min<int64_t>(kWarp, block_size / kQuadElems)),
          .aligned = core::IsQuadAligned(type, x)};
}

// A warp for 32 lanes of teams.
dim3 GridOfBlocks(const Source& source) {
  return Grid(NumBlocks(source.n, source.block_size), int64_t{kThreads} / source.team_lanes);
}

template <class V>
V CopyValues(const float* from) {
  V values;
  std::copy(from, from + sizeof(values.at) / sizeof(float), values.at);
  return values;
}

Values16 Values4Bit(Type4Bit type) {
  return CopyValues<Values16>(type == Type4Bit::kNf4 ? Nf4Values().data() : Fp4Values().data());
}

}  // namespace

absl::Status QuantizeBlockwiseCuda(const QuantizeBlockwiseCudaArgs& args) {
  BITSHARD_RETURN_IF_ERROR(CheckShape("QuantizeBlockwiseCuda", args.block_size, args.x_type));
  BITSHARD_ASSIGN_OR_RETURN(const CodeTable table, MakeCodeTable(args.code));
  if (args.n == 0) return absl::OkStatus();
  Source source = SourceOf(args.x, args.x_type, args.n, args.block_size);
  source.aligned = source.aligned && IsAligned(args.out, 4);
  return core::Launch("QuantizeBlockwiseCuda", QuantizeKernel, GridOfBlocks(source), dim3(kThreads),
                      0, args.stream, source, CopyValues<Values256>(table.values), table.zero_code,
                      args.out, args.absmax);
}

absl::Status DequantizeBlockwiseCuda(const DequantizeBlockwiseCudaArgs& args) {
  BITSHARD_RETURN_IF_ERROR(CheckShape("DequantizeBlockwiseCuda", args.block_size, args.out_type));
  if (args.code.size() != kTableSize8) {
    return core::ConfigError(
        absl::StrCat("code table: got ", args.code.size(), " entries, want 256"));
  }
  if (args.n == 0) return absl::OkStatus();
  const Target target = {
      .out = args.out,
      .type = args.out_type,
      .n = args.n,
      .absmax = args.absmax,
      .block_shift = Log2(args.block_size),
      .aligned = core::IsQuadAligned(args.out_type, args.out) && IsAligned(args.q, 4)};
  return core::Launch("DequantizeBlockwiseCuda", DequantizeKernel<false>, GridOfQuads(args.n),
                      dim3(kThreads), 0, args.stream, args.q,
                      CopyValues<Values256>(args.code.data()), 0.0f, target);
}

absl::Status DequantizeAbsmaxCuda(const DequantizeAbsmaxCudaArgs& args) {
  if (args.n == 0) return absl::OkStatus();
  const Target target = {
      .out = args.out,
      .type = DType::kFloat32,
      .n = args.n,
      .absmax = args.absmax,
      .block_shift = Log2(kNestedBlockSize),
      .aligned = core::IsQuadAligned(DType::kFloat32, args.out) && IsAligned(args.codes, 4)};
  return core::Launch("DequantizeAbsmaxCuda", DequantizeKernel<true>, GridOfQuads(args.n),
                      dim3(kThreads), 0, args.stream, args.codes,
                      CopyValues<Values256>(SignedDynamicTable().values), args.offset, target);
}

absl::Status Quantize4BitCuda(const Quantize4BitCudaArgs& args) {
  BITSHARD_RETURN_IF_ERROR(CheckShape("Quantize4BitCuda", args.block_size, args.x_type));
  if (args.n == 0) return absl::OkStatus();
  const auto kernel =
      args.type == Type4Bit::kNf4 ? Quantize4Kernel<Nf4Codec> : Quantize4Kernel<Fp4Codec>;
  Source source = SourceOf(args.x, args.x_type, args.n, args.block_size);
  source.aligned = source.aligned && IsAligned(args.packed, 2);
  return core::Launch("Quantize4BitCuda", kernel, GridOfBlocks(source), dim3(kThreads), 0,
                      args.stream, source, args.packed, args.absmax);
}

absl::Status Dequantize4BitCuda(const Dequantize4BitCudaArgs& args) {
  BITSHARD_RETURN_IF_ERROR(CheckShape("Dequantize4BitCuda", args.block_size, args.out_type));
  if (args.n == 0) return absl::OkStatus();
  const Target target = {
      .out = args.out,
      .type = args.out_type,
      .n = args.n,
      .absmax = args.absmax,
      .block_shift = Log2(args.block_size),
      .aligned = core::IsQuadAligned(args.out_type, args.out) && IsAligned(args.packed, 2)};
  return core::Launch("Dequantize4BitCuda", Dequantize4Kernel, GridOfQuads(args.n), dim3(kThreads),
                      0, args.stream, args.packed, Values4Bit(args.type), target);
}

}  // namespace bitshard::quant
