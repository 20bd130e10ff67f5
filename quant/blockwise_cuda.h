// Blockwise quantisation on the device: the same bits as quant/blockwise.h. Built only with
// BITSHARD_CUDA.
//
//   BITSHARD_RETURN_IF_ERROR(quant::Dequantize4BitCuda(
//       {.packed = packed, .n = n, .absmax = absmax, .out = weight,
//        .out_type = core::DType::kBFloat16, .stream = stream}));
//
// What is quantised is float32, bfloat16 or float16, widened exactly first; what is dequantised is
// rounded once, to nearest even, to the type that is asked for. Any alignment is right; arrays that
// start at multiples of 16 bytes are faster.
//
// Pointers are device pointers. Every function enqueues on `stream` and returns before it has run;
// nothing is allocated and nothing synchronises. n = 0 enqueues nothing. Errors: kInvalidArgument
// for a block size that is not a power of two from 32, a table that MakeCodeTable refuses or a type
// that is none of the three; kInternal when a launch is refused.
#ifndef BITSHARD_QUANT_BLOCKWISE_CUDA_H_
#define BITSHARD_QUANT_BLOCKWISE_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "core/dtype.h"
#include "quant/blockwise.h"

namespace bitshard::quant {

/// Shapes: x and out [n], absmax [ceil(n / block_size)]; code: host memory [256], read before the
/// call returns.
struct QuantizeBlockwiseCudaArgs {
  const void* x = nullptr;
  core::DType x_type = core::DType::kFloat32;
  int64_t n = 0;
  std::span<const float> code;
  int64_t block_size = 256;
  uint8_t* out = nullptr;
  float* absmax = nullptr;
  cudaStream_t stream = nullptr;
};
absl::Status QuantizeBlockwiseCuda(const QuantizeBlockwiseCudaArgs& args);

/// Shapes: q and out [n], absmax [ceil(n / block_size)]; code: host memory [256], any order.
struct DequantizeBlockwiseCudaArgs {
  const uint8_t* q = nullptr;
  int64_t n = 0;
  std::span<const float> code;
  const float* absmax = nullptr;
  int64_t block_size = 256;
  void* out = nullptr;
  core::DType out_type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status DequantizeBlockwiseCuda(const DequantizeBlockwiseCudaArgs& args);

/// Scales of a 4-bit tensor from their double-quantised form. Shapes: codes and out [n], absmax
/// [ceil(n / 256)].
struct DequantizeAbsmaxCudaArgs {
  const uint8_t* codes = nullptr;
  int64_t n = 0;
  const float* absmax = nullptr;
  float offset = 0;
  float* out = nullptr;
  cudaStream_t stream = nullptr;
};
absl::Status DequantizeAbsmaxCuda(const DequantizeAbsmaxCudaArgs& args);

/// Shapes: x [n], packed [ceil(n / 2)], absmax [ceil(n / block_size)].
struct Quantize4BitCudaArgs {
  const void* x = nullptr;
  core::DType x_type = core::DType::kFloat32;
  int64_t n = 0;
  Type4Bit type = Type4Bit::kNf4;
  int64_t block_size = 64;
  uint8_t* packed = nullptr;
  float* absmax = nullptr;
  cudaStream_t stream = nullptr;
};
absl::Status Quantize4BitCuda(const Quantize4BitCudaArgs& args);

/// Shapes: packed [ceil(n / 2)], absmax [ceil(n / block_size)], out [n].
struct Dequantize4BitCudaArgs {
  const uint8_t* packed = nullptr;
  int64_t n = 0;
  const float* absmax = nullptr;
  Type4Bit type = Type4Bit::kNf4;
  int64_t block_size = 64;
  void* out = nullptr;
  core::DType out_type = core::DType::kFloat32;
  cudaStream_t stream = nullptr;
};
absl::Status Dequantize4BitCuda(const Dequantize4BitCudaArgs& args);

}  // namespace bitshard::quant

#endif  // BITSHARD_QUANT_BLOCKWISE_CUDA_H_
