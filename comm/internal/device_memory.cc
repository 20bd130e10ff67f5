#include "comm/internal/device_memory.h"

#include "absl/strings/str_cat.h"
#include "core/cuda_status.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::comm::internal {

absl::StatusOr<DeviceFloats> AllocateFloats(int64_t elems, const std::string& purpose,
                                            cudaStream_t stream) {
  if (elems == 0) return DeviceFloats();
  const size_t bytes = static_cast<size_t>(elems) * sizeof(float);
  void* memory = nullptr;
  const absl::Status status = BITSHARD_CUDA_STATUS(cudaMalloc(&memory, bytes));
  if (!status.ok())
    return core::AddContext(status, absl::StrCat(purpose, ", ", bytes, " bytes of device memory"));
  DeviceFloats floats(static_cast<float*>(memory));
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemsetAsync(memory, 0, bytes, stream)));
  return floats;
}

}  // namespace bitshard::comm::internal
