// Device memory for tests, through the runtime's own calls: the same source runs on a GPU.
#ifndef BITSHARD_TESTS_CUDAHOST_SELFTEST_DEVICE_ARRAY_H_
#define BITSHARD_TESTS_CUDAHOST_SELFTEST_DEVICE_ARRAY_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

namespace cudahost {

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t n) : n_(n) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), n * sizeof(T)), cudaSuccess);
  }
  explicit DeviceArray(std::span<const T> host) : DeviceArray(host.size()) {
    EXPECT_EQ(cudaMemcpy(data_, host.data(), host.size_bytes(), cudaMemcpyHostToDevice),
              cudaSuccess);
    // cudaMemcpy from pageable memory returns before the data has arrived.
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  ~DeviceArray() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  // Waits for the whole device: what was enqueued on any stream is there.
  std::vector<T> ToHost() const {
    std::vector<T> host(n_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }

 private:
  size_t n_;
  T* data_ = nullptr;
};

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_SELFTEST_DEVICE_ARRAY_H_
