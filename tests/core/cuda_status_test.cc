// Links every CUDA library whole. Kernels are executed by the quant and optim tests of machines
// with a GPU; of these all but one need none.
#include "core/cuda_status.h"

#include <cuda_runtime_api.h>

#include <string>

#include "core/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

TEST(CudaStatus, IsOkForSuccess) {
  EXPECT_TRUE(CudaStatus(cudaSuccess, "call", "file.cc", 1).ok());
}

TEST(CudaStatus, NamesCallPlaceAndError) {
  const absl::Status status = CudaStatus(cudaErrorInvalidValue, "cudaMalloc(&p, n)", "file.cc", 12);
  EXPECT_EQ(ExitCode(status), 1);
  EXPECT_THAT(
      std::string(status.message()),
      testing::AllOf(testing::HasSubstr("cudaMalloc(&p, n)"), testing::HasSubstr("file.cc:12"),
                     testing::HasSubstr("cudaErrorInvalidValue")));
}

TEST(CudaStatus, TellsMemoryAndMissingDevicesApart) {
  EXPECT_EQ(ExitCode(CudaStatus(cudaErrorMemoryAllocation, "call", "file.cc", 1)), 4);
  EXPECT_EQ(CudaStatus(cudaErrorNoDevice, "call", "file.cc", 1).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(CudaStatus, ClearsTheLastError) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) {
    GTEST_SKIP() << "no CUDA driver or device: every call of the runtime fails with that";
  }
  void* memory = nullptr;
  EXPECT_FALSE(BITSHARD_CUDA_STATUS(cudaMalloc(&memory, ~size_t{0})).ok());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace bitshard::core
