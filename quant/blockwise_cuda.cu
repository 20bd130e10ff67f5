// Which thread takes which element; the rounding is quant/block_codec.h. Quantising: one warp per
// block, which finds the block's maximum with shuffles and then encodes. Dequantising: one thread
// per byte of codes.
#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/launch.h"
#include "core/numeric.h"
#include "core/status_macros.h"
#include "quant/block_codec.h"
#include "quant/blockwise_cuda.h"
#include "quant/codebook.h"

namespace bitshard::quant {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Enough to fill a large device; every kernel strides over what is left.
constexpr int64_t kMaxCtas = 4096;

// Tables travel as kernel arguments, so that no device memory is needed for them.
template <int kCount>
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

// The scale of x[begin, end), the same in every lane.
__device__ BlockScale WarpScale(const float* x, int64_t begin, int64_t end, int lane) {
  uint32_t max_bits = 0;
  for (int64_t i = begin + lane; i < end; i += kWarp) max_bits = MaxAbsBits(max_bits, x[i]);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, max_bits, offset);
    max_bits = other > max_bits ? other : max_bits;
  }
  return ScaleOfBlock(max_bits);
}

struct QuantizeShape {
  int64_t n;
  int64_t block_size;
};

__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(const float* x, QuantizeShape shape, Values256 values, uint8_t zero_code,
                   uint8_t* out, float* absmax) {
  BITSHARD_SHARED(CodeTable, table);
  LoadTable(values, zero_code, &table);
  const TableCodec codec{&table};
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t stride = int64_t{gridDim.x} * kWarps;
  for (int64_t block = first; block * shape.block_size < shape.n; block += stride) {
    const int64_t begin = block * shape.block_size;
    const int64_t limit = begin + shape.block_size;
    const int64_t end = limit < shape.n ? limit : shape.n;
    const BlockScale scale = WarpScale(x, begin, end, lane);
    if (lane == 0) absmax[block] = scale.absmax;
    for (int64_t i = begin + lane; i < end; i += kWarp) {
      out[i] = scale.coded() ? codec.Encode(Normalize(x[i], scale.reciprocal)) : codec.zero_code();
    }
  }
}

template <class Codec>
__global__ void __launch_bounds__(kThreads)
    Quantize4Kernel(const float* x, QuantizeShape shape, uint8_t* packed, float* absmax) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t stride = int64_t{gridDim.x} * kWarps;
  for (int64_t block = first; block * shape.block_size < shape.n; block += stride) {
    const int64_t begin = block * shape.block_size;
    const int64_t limit = begin + shape.block_size;
    const int64_t end = limit < shape.n ? limit : shape.n;
    const BlockScale scale = WarpScale(x, begin, end, lane);
    if (lane == 0) absmax[block] = scale.absmax;
    for (int64_t i = begin + 2 * lane; i < end; i += 2 * kWarp) {
      uint8_t even = Codec::kZeroCode;
      uint8_t odd = Codec::kZeroCode;
      if (scale.coded()) {
        even = Codec::Encode(Normalize(x[i], scale.reciprocal));
        if (i + 1 < end) odd = Codec::Encode(Normalize(x[i + 1], scale.reciprocal));
      }
      packed[i / 2] = PackNibbles(even, odd);
    }
  }
}

// kAddOffset: the second rounding of double-quantised scales. (Adding 0 would turn -0 into +0.)
template <bool kAddOffset>
__global__ void __launch_bounds__(kThreads)
    DequantizeKernel(const uint8_t* q, int64_t n, Values256 values, const float* absmax,
                     int block_shift, float offset, float* out) {
  BITSHARD_SHARED(Values256, table);
  for (int k = static_cast<int>(threadIdx.x); k < 256; k += kThreads) table.at[k] = values.at[k];
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) {
    const float product = table.at[q[i]] * absmax[i >> block_shift];
    out[i] = kAddOffset ? product + offset : product;
  }
}

__device__ void Store(float value, float* out) { *out = value; }
__device__ void Store(float value, uint16_t* out) { *out = core::Bf16FromFloat(value); }

template <class T>
__global__ void __launch_bounds__(kThreads)
    Dequantize4Kernel(const uint8_t* packed, int64_t n, Values16 values, const float* absmax,
                      int block_shift, T* out) {
  BITSHARD_SHARED(Values16, table);
  if (threadIdx.x < 16) table.at[threadIdx.x] = values.at[threadIdx.x];
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x; 2 * j < n; j += stride) {
    const uint8_t codes = packed[j];
    const float scale = absmax[2 * j >> block_shift];
    Store(table.at[codes >> 4] * scale, out + 2 * j);
    if (2 * j + 1 < n) Store(table.at[codes & 15] * scale, out + 2 * j + 1);
  }
}

absl::Status CheckBlockSize(const char* function, int64_t block_size) {
  if (block_size >= 32 && std::has_single_bit(static_cast<uint64_t>(block_size)))
    return absl::OkStatus();
  return core::ConfigError(
      absl::StrCat(function, ": block_size is ", block_size, ", want a power of two from 32"));
}

int Log2(int64_t power_of_two) { return std::countr_zero(static_cast<uint64_t>(power_of_two)); }

dim3 Grid(int64_t items, int64_t items_per_cta) {
  return dim3(
      static_cast<unsigned>(std::min(kMaxCtas, (items + items_per_cta - 1) / items_per_cta)));
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

template <class T>
absl::Status LaunchDequantize4(const char* name, const Dequantize4BitCudaArgs<T>& args) {
  BITSHARD_RETURN_IF_ERROR(CheckBlockSize(name, args.block_size));
  if (args.n == 0) return absl::OkStatus();
  return core::Launch(name, Dequantize4Kernel<T>, Grid(PackedBytes(args.n), kThreads),
                      dim3(kThreads), 0, args.stream, args.packed, args.n, Values4Bit(args.type),
                      args.absmax, Log2(args.block_size), args.out);
}

}  // namespace

absl::Status QuantizeBlockwiseCuda(const QuantizeBlockwiseCudaArgs& args) {
  BITSHARD_RETURN_IF_ERROR(CheckBlockSize("QuantizeBlockwiseCuda", args.block_size));
  BITSHARD_ASSIGN_OR_RETURN(const CodeTable table, MakeCodeTable(args.code));
  if (args.n == 0) return absl::OkStatus();
  return core::Launch("QuantizeBlockwiseCuda", QuantizeKernel,
                      Grid(NumBlocks(args.n, args.block_size), kWarps), dim3(kThreads), 0,
                      args.stream, args.x, QuantizeShape{args.n, args.block_size},
                      CopyValues<Values256>(table.values), table.zero_code, args.out, args.absmax);
}

absl::Status DequantizeBlockwiseCuda(const DequantizeBlockwiseCudaArgs& args) {
  BITSHARD_RETURN_IF_ERROR(CheckBlockSize("DequantizeBlockwiseCuda", args.block_size));
  if (args.code.size() != kTableSize8) {
    return core::ConfigError(
        absl::StrCat("code table: got ", args.code.size(), " entries, want 256"));
  }
  if (args.n == 0) return absl::OkStatus();
  return core::Launch("DequantizeBlockwiseCuda", DequantizeKernel<false>, Grid(args.n, kThreads),
                      dim3(kThreads), 0, args.stream, args.q, args.n,
                      CopyValues<Values256>(args.code.data()), args.absmax, Log2(args.block_size),
                      0.0f, args.out);
}

absl::Status DequantizeAbsmaxCuda(const DequantizeAbsmaxCudaArgs& args) {
  if (args.n == 0) return absl::OkStatus();
  return core::Launch("DequantizeAbsmaxCuda", DequantizeKernel<true>, Grid(args.n, kThreads),
                      dim3(kThreads), 0, args.stream, args.codes, args.n,
                      CopyValues<Values256>(SignedDynamicTable().values), args.absmax,
                      Log2(kNestedBlockSize), args.offset, args.out);
}

absl::Status Quantize4BitCuda(const Quantize4BitCudaArgs& args) {
  BITSHARD_RETURN_IF_ERROR(CheckBlockSize("Quantize4BitCuda", args.block_size));
  if (args.n == 0) return absl::OkStatus();
  const auto kernel =
      args.type == Type4Bit::kNf4 ? Quantize4Kernel<Nf4Codec> : Quantize4Kernel<Fp4Codec>;
  return core::Launch("Quantize4BitCuda", kernel, Grid(NumBlocks(args.n, args.block_size), kWarps),
                      dim3(kThreads), 0, args.stream, args.x,
                      QuantizeShape{args.n, args.block_size}, args.packed, args.absmax);
}

absl::Status Dequantize4BitCuda(const Dequantize4BitCudaArgs<float>& args) {
  return LaunchDequantize4("Dequantize4BitCuda", args);
}

absl::Status Dequantize4BitToBf16Cuda(const Dequantize4BitCudaArgs<uint16_t>& args) {
  return LaunchDequantize4("Dequantize4BitToBf16Cuda", args);
}

}  // namespace bitshard::quant
