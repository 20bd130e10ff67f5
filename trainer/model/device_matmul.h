// Matrix products on the device, by cuBLAS. Built only with BITSHARD_CUDA.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto matmul, DeviceMatMul::Create(stream));
//   BITSHARD_RETURN_IF_ERROR(matmul->Run({.a = x, .b = w.Transposed(), .out = y}));  // y = x w^T
#ifndef BITSHARD_TRAINER_MODEL_DEVICE_MATMUL_H_
#define BITSHARD_TRAINER_MODEL_DEVICE_MATMUL_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/dtype.h"

namespace bitshard::trainer {

/// A row-major matrix in device memory without gaps between its rows, or the transposed view of
/// one. Does not own its elements.
struct DeviceMatrix {
  void* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  bool transposed = false;  ///< Element (i, j) stands at j * rows + i.

  DeviceMatrix Transposed() const { return {data, columns, rows, !transposed}; }
};

struct DeviceMatMulArgs {
  DeviceMatrix a;    ///< [m, k]
  DeviceMatrix b;    ///< [k, n]
  DeviceMatrix out;  ///< [m, n], not transposed; overlaps neither.
  float alpha = 1;
  float beta = 0;  ///< 0: out is overwritten, whatever it holds.
  /// Of a and b: kFloat32 or kBFloat16; of out: the same, or kFloat32.
  core::DType type = core::DType::kFloat32;
  core::DType out_type = core::DType::kFloat32;
};

/// Threads: one thread calls it, with the device current that it was created on.
/// Numerics: products of float32 are rounded to float32 and those of bfloat16 are exact; sums are
/// of float32 (CUBLAS_COMPUTE_32F: no TF32), in an order that the library chooses by shape and
/// device. The same shapes, values and device give the same bits: everything runs on one stream, in
/// a workspace of its own ("Results reproducibility" in the manual of cuBLAS).
class DeviceMatMul {
 public:
  /// What the manual recommends for the largest devices.
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  /// `stream` outlives it. Errors: kMemory for the workspace; kInternal.
  static absl::StatusOr<std::unique_ptr<DeviceMatMul>> Create(cudaStream_t stream);
  virtual ~DeviceMatMul() = default;

  /// Enqueues out = alpha * a b + beta * out; nothing for an empty `out`. Errors: kInternal when
  /// the library refuses.
  virtual absl::Status Run(const DeviceMatMulArgs& args) = 0;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DEVICE_MATMUL_H_
