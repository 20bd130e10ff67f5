#include "trainer/model/device_matmul.h"

#include <cublas_v2.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "core/check.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "paging/cuda_resource.h"

namespace bitshard::trainer {
namespace {

absl::Status CublasStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string text = absl::StrFormat("%s: %s", what, cublasGetStatusString(status));
  if (status == CUBLAS_STATUS_ALLOC_FAILED) return core::MemoryError(text + " on the device");
  return absl::InternalError(text);
}

cudaDataType CublasType(core::DType type) {
  BITSHARD_DCHECK(type == core::DType::kFloat32 || type == core::DType::kBFloat16);
  return type == core::DType::kFloat32 ? CUDA_R_32F : CUDA_R_16BF;
}

struct DestroyHandle {
  void operator()(cublasHandle_t handle) const { (void)cublasDestroy(handle); }
};

class Engine : public DeviceMatMul {
 public:
  absl::Status Init(cudaStream_t stream) {
    cublasHandle_t handle = nullptr;
    BITSHARD_RETURN_IF_ERROR(CublasStatus(cublasCreate(&handle), "cublasCreate"));
    handle_.reset(handle);
    BITSHARD_RETURN_IF_ERROR(CublasStatus(cublasSetStream(handle, stream), "cublasSetStream"));
    BITSHARD_ASSIGN_OR_RETURN(workspace_, paging::Allocation<paging::DeviceResource>::Create(
                                              &device_, kWorkspaceBytes, "cuBLAS's workspace"));
    // After the stream: setting that resets the workspace.
    BITSHARD_RETURN_IF_ERROR(CublasStatus(
        cublasSetWorkspace(handle, workspace_.memory().data(), workspace_.memory().size()),
        "cublasSetWorkspace"));
    return CublasStatus(cublasSetMathMode(handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION),
                        "cublasSetMathMode");
  }

  absl::Status Run(const DeviceMatMulArgs& args) override;

 private:
  paging::DeviceResource device_;
  paging::Allocation<paging::DeviceResource> workspace_;
  std::unique_ptr<cublasContext, DestroyHandle> handle_;  // Goes before its workspace.
};

// cuBLAS counts in columns: to it a row-major matrix is the transposed one, and out^T = b^T a^T.
absl::Status Engine::Run(const DeviceMatMulArgs& args) {
  const DeviceMatrix &a = args.a, &b = args.b, &out = args.out;
  BITSHARD_DCHECK(a.columns == b.rows && a.rows == out.rows && b.columns == out.columns &&
                  !out.transposed);
  if (out.rows == 0 || out.columns == 0) return absl::OkStatus();
  const auto stride = [](const DeviceMatrix& m) {
    return std::max<int64_t>(1, m.transposed ? m.rows : m.columns);
  };
  const auto operation = [](const DeviceMatrix& m) {
    return m.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  const cudaDataType type = CublasType(args.type);
  const cublasStatus_t status = cublasGemmEx_64(
      handle_.get(), operation(b), operation(a), out.columns, out.rows, a.columns, &args.alpha,
      b.data, type, stride(b), a.data, type, stride(a), &args.beta, out.data,
      CublasType(args.out_type), stride(out), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return core::AddContext(
      CublasStatus(status, "cublasGemmEx_64"),
      absl::StrFormat("a product of [%d, %d] and [%d, %d]", a.rows, a.columns, b.rows, b.columns));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMatMul>> DeviceMatMul::Create(cudaStream_t stream) {
  auto engine = std::make_unique<Engine>();
  BITSHARD_RETURN_IF_ERROR(engine->Init(stream));
  return engine;
}

}  // namespace bitshard::trainer
