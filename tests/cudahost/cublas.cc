// The stand-in for cuBLAS: matrix products by a loop, in column-major order as cuBLAS defines them,
// which take their place on the simulated stream as a kernel does. Only what the product calls; any
// other function fails to link.
//
// Stricter than the library: matrices must lie within one live buffer of device memory, may not
// overlap the result, and what is read must have been written. Sums are made in the order of k, in
// the type of the computation.
#include <cublas_v2.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/cudahost/heap.h"
#include "tests/cudahost/runtime_state.h"

struct cublasContext {
  cudaStream_t stream = nullptr;
  int device = 0;
};

namespace cudahost::internal {
namespace {

struct GemmMatrix {
  const char* name = "";
  const void* data = nullptr;
  cudaDataType type = CUDA_R_32F;
  int64_t rows = 0;  // As it is stored, column by column.
  int64_t columns = 0;
  int64_t stride = 0;  // Elements from one column to the next.
  bool transposed = false;
  Range range;

  size_t element_bytes() const { return type == CUDA_R_32F ? 4 : 2; }
  size_t bytes() const {
    return static_cast<size_t>((columns - 1) * stride + rows) * element_bytes();
  }
  const std::byte* column(int64_t j) const {
    return static_cast<const std::byte*>(data) + static_cast<size_t>(j * stride) * element_bytes();
  }
  float at(int64_t i, int64_t j) const {
    const std::byte* from = column(j) + static_cast<size_t>(i) * element_bytes();
    if (type == CUDA_R_32F) return *reinterpret_cast<const float*>(from);
    return __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(from));
  }
};

struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  float alpha = 1, beta = 0;
  GemmMatrix a, b, c;
};

cublasStatus_t StatusOf(cudaError_t error) {
  if (error == cudaSuccess) return CUBLAS_STATUS_SUCCESS;
  if (error == cudaErrorInvalidValue) return CUBLAS_STATUS_INVALID_VALUE;
  if (error == cudaErrorNotSupported) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (error == cudaErrorMemoryAllocation) return CUBLAS_STATUS_ALLOC_FAILED;
  return CUBLAS_STATUS_EXECUTION_FAILED;
}

cudaError_t Refuse(const std::string& why) {
  Explain("cublasGemmEx_64: " + why);
  return cudaErrorInvalidValue;
}

cudaError_t CheckMatrix(State& state, GemmMatrix* matrix) {
  const std::string name = matrix->name;
  if (matrix->rows == 0 || matrix->columns == 0) return cudaSuccess;
  if (matrix->stride < matrix->rows) {
    return Refuse("ld" + name + " is " + std::to_string(matrix->stride) + ", and a column of " +
                  name + " has " + std::to_string(matrix->rows) + " elements");
  }
  const cudaError_t error =
      FindRange(state, "cublasGemmEx_64", matrix->data, matrix->bytes(), &matrix->range);
  if (error != cudaSuccess) return error;
  if (matrix->range.place != Place::kDevice)
    return Refuse(name + " is not in device memory: " + Describe(matrix->data));
  return cudaSuccess;
}

bool Overlap(const GemmMatrix& x, const GemmMatrix& y) {
  const auto* a = static_cast<const std::byte*>(x.data);
  const auto* b = static_cast<const std::byte*>(y.data);
  return a < b + y.bytes() && b < a + x.bytes();
}

cudaError_t CheckRead(State& state, const GemmMatrix& matrix) {
  if (matrix.rows == 0) return cudaSuccess;
  const size_t column_bytes = static_cast<size_t>(matrix.rows) * matrix.element_bytes();
  for (int64_t j = 0; j < matrix.columns; ++j) {
    if (const std::optional<size_t> at = HeapFirstUninitialised(matrix.column(j), column_bytes)) {
      return DeviceFault(state, std::string("cublasGemmEx_64 reads of ") + matrix.name +
                                    " what was never written: " + Describe(matrix.column(j) + *at));
    }
  }
  return cudaSuccess;
}

// op(matrix) as float32, its rows and columns as `rows` and `columns` say: element (i, j) at
// j * rows + i.
std::vector<float> Widened(const GemmMatrix& matrix, int64_t rows, int64_t columns) {
  std::vector<float> out(static_cast<size_t>(rows * columns));
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) {
      out[static_cast<size_t>(j * rows + i)] =
          matrix.transposed ? matrix.at(j, i) : matrix.at(i, j);
    }
  }
  return out;
}

void Multiply(const Gemm& gemm) {
  const std::vector<float> a = Widened(gemm.a, gemm.m, gemm.k);
  const std::vector<float> b = Widened(gemm.b, gemm.k, gemm.n);
  std::vector<float> sums(static_cast<size_t>(gemm.m));
  for (int64_t j = 0; j < gemm.n; ++j) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t p = 0; p < gemm.k; ++p) {
      const float factor = b[static_cast<size_t>(j * gemm.k + p)];
      const float* column = a.data() + p * gemm.m;
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += column[i] * factor;
    }
    auto* out = const_cast<std::byte*>(gemm.c.column(j));
    for (int64_t i = 0; i < gemm.m; ++i) {
      float value = gemm.alpha * sums[static_cast<size_t>(i)];
      if (gemm.beta != 0) value += gemm.beta * gemm.c.at(i, j);
      if (gemm.c.type == CUDA_R_32F) {
        reinterpret_cast<float*>(out)[i] = value;
      } else {
        reinterpret_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16(value);
      }
    }
  }
}

cudaError_t Run(State& state, const Gemm& gemm) {
  for (const GemmMatrix* matrix : {&gemm.a, &gemm.b, &gemm.c}) {
    if (!StillLive(matrix->range, matrix->data)) {
      return DeviceFault(state, std::string("cublasGemmEx_64 ran after ") + matrix->name +
                                    " was freed: " + Describe(matrix->data));
    }
  }
  cudaError_t error = CheckRead(state, gemm.a);
  if (error == cudaSuccess) error = CheckRead(state, gemm.b);
  if (error == cudaSuccess && gemm.beta != 0) error = CheckRead(state, gemm.c);
  if (error != cudaSuccess) return error;
  Multiply(gemm);
  for (int64_t j = 0; j < gemm.n; ++j) {
    HeapMarkInitialised(gemm.c.column(j), static_cast<size_t>(gemm.m) * gemm.c.element_bytes());
  }
  return cudaSuccess;
}

// The combinations of types that the product uses: float32 throughout, and bfloat16 factors with
// either result.
bool TypesAreKnown(const Gemm& gemm) {
  const auto known = [](cudaDataType type) { return type == CUDA_R_32F || type == CUDA_R_16BF; };
  if (!known(gemm.a.type) || !known(gemm.c.type) || gemm.a.type != gemm.b.type) return false;
  return gemm.a.type == CUDA_R_16BF || gemm.c.type == CUDA_R_32F;
}

cudaError_t Start(Locked& locked, cublasHandle_t handle, Gemm gemm) {
  State& state = locked.state;
  if (gemm.m < 0 || gemm.n < 0 || gemm.k < 0) return Refuse("a size is negative");
  if (!TypesAreKnown(gemm)) return cudaErrorNotSupported;
  if (gemm.m == 0 || gemm.n == 0) return cudaSuccess;
  for (GemmMatrix* matrix : {&gemm.a, &gemm.b, &gemm.c}) {
    const cudaError_t error = CheckMatrix(state, matrix);
    if (error != cudaSuccess) return error;
  }
  if (gemm.k > 0 && (Overlap(gemm.a, gemm.c) || Overlap(gemm.b, gemm.c)))
    return Refuse("a factor overlaps the result");
  const std::shared_ptr<Stream> stream = FindStream(state, handle->stream);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->device != handle->device)
    return Refuse("the stream is not on the device that was current at cublasCreate");
  Append(state, stream, {.op = {.what = "cublasGemmEx_64", .ready = {}, .run = [&state, gemm] {
                                  return internal::Run(state, gemm);
                                }}});
  RunAhead(locked);
  return cudaSuccess;
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  return StatusOf(Call("cublasCreate", [&](Locked&) {
    *handle = new cublasContext{.device = CurrentDevice()};
    return cudaSuccess;
  }));
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

// As the library does: a workspace that was given before is forgotten.
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t bytes) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  return StatusOf(Call("cublasSetWorkspace", [&](Locked& locked) -> cudaError_t {
    Range range;
    const cudaError_t error =
        FindRange(locked.state, "cublasSetWorkspace", workspace, bytes, &range);
    if (error != cudaSuccess) return error;
    const bool aligned = reinterpret_cast<uintptr_t>(workspace) % 256 == 0;
    return range.place == Place::kDevice && aligned ? cudaSuccess : cudaErrorInvalidValue;
  }));
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  // Products of float32 are to be of float32: no tensor cores of 19 bits, no emulation.
  return mode == CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION ? CUBLAS_STATUS_SUCCESS
                                                                  : CUBLAS_STATUS_NOT_SUPPORTED;
}

const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
  }
}

// alpha and beta: host memory, read before the call returns, as in the library's default pointer
// mode.
cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t transa,
                               cublasOperation_t transb, int64_t m, int64_t n, int64_t k,
                               const void* alpha, const void* a, cudaDataType a_type, int64_t lda,
                               const void* b, cudaDataType b_type, int64_t ldb, const void* beta,
                               void* c, cudaDataType c_type, int64_t ldc,
                               cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (compute != CUBLAS_COMPUTE_32F || algorithm != CUBLAS_GEMM_DEFAULT)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (alpha == nullptr || beta == nullptr || HeapHolds(alpha) || HeapHolds(beta))
    return CUBLAS_STATUS_INVALID_VALUE;
  const bool ta = transa != CUBLAS_OP_N, tb = transb != CUBLAS_OP_N;
  const Gemm gemm{.m = m,
                  .n = n,
                  .k = k,
                  .alpha = *static_cast<const float*>(alpha),
                  .beta = *static_cast<const float*>(beta),
                  .a = {.name = "A",
                        .data = a,
                        .type = a_type,
                        .rows = ta ? k : m,
                        .columns = ta ? m : k,
                        .stride = lda,
                        .transposed = ta,
                        .range = {}},
                  .b = {.name = "B",
                        .data = b,
                        .type = b_type,
                        .rows = tb ? n : k,
                        .columns = tb ? k : n,
                        .stride = ldb,
                        .transposed = tb,
                        .range = {}},
                  .c = {.name = "C",
                        .data = c,
                        .type = c_type,
                        .rows = m,
                        .columns = n,
                        .stride = ldc,
                        .range = {}}};
  return StatusOf(
      Call("cublasGemmEx_64", [&](Locked& locked) { return Start(locked, handle, gemm); }));
}

}  // extern "C"

}  // namespace cudahost::internal
