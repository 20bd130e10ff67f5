// An executable with LibTorch and the stand-in: each side keeps its own runtime.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

namespace cudahost {
namespace {

TEST(Exports, LibTorchDoesNotSeeTheStandIn) {
  const void* own = reinterpret_cast<const void*>(&cudaMalloc);
  const void* shared = dlsym(RTLD_DEFAULT, "cudaMalloc");
  EXPECT_NE(shared, nullptr) << "LibTorch no longer brings the runtime: this test shows nothing";
  EXPECT_NE(shared, own);
  int devices = 0;
  EXPECT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
  EXPECT_GT(devices, 0);
}

}  // namespace
}  // namespace cudahost
