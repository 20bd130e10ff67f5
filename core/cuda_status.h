// cudaError_t -> absl::Status. Built only with BITSHARD_CUDA.
#ifndef BITSHARD_CORE_CUDA_STATUS_H_
#define BITSHARD_CORE_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"

namespace bitshard::core {

/// OK for cudaSuccess. Otherwise: kResourceExhausted for out-of-memory, kFailedPrecondition where
/// there is no usable device or driver, kInternal for the rest; the message holds `what`,
/// file:line, and CUDA's name and text. Clears the runtime's non-sticky last error, which the next
/// launch check would otherwise report again.
absl::Status CudaStatus(cudaError_t error, const char* what, const char* file, int line);

}  // namespace bitshard::core

#define BITSHARD_CUDA_STATUS(call) ::bitshard::core::CudaStatus((call), #call, __FILE__, __LINE__)

#endif  // BITSHARD_CORE_CUDA_STATUS_H_
