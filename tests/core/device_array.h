// Device memory for tests, through the runtime's own calls: the same source runs on a GPU and on
// the stand-in.
#ifndef BITSHARD_TESTS_CORE_DEVICE_ARRAY_H_
#define BITSHARD_TESTS_CORE_DEVICE_ARRAY_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <vector>

namespace bitshard::core {

/// A stream that does not wait for the NULL stream.
class TestStream {
 public:
  TestStream() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~TestStream() { EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A copy of `host` on the device that starts `shift` elements after where cudaMalloc's memory
/// does: no more aligned than that.
template <class T>
class DeviceArray {
 public:
  DeviceArray(const std::vector<T>& host, cudaStream_t stream, size_t shift = 0)
      : size_(host.size()), stream_(stream) {
    EXPECT_EQ(cudaMalloc(&memory_, (size_ + shift) * sizeof(T) + 1), cudaSuccess);
    data_ = static_cast<T*>(memory_) + shift;
    Set(host);
  }
  ~DeviceArray() { EXPECT_EQ(cudaFree(memory_), cudaSuccess); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  void Set(const std::vector<T>& host) {
    if (host.empty()) return;
    sources_.push_back(host);
    EXPECT_EQ(cudaMemcpyAsync(data_, sources_.back().data(), size_ * sizeof(T),
                              cudaMemcpyHostToDevice, stream_),
              cudaSuccess);
  }
  /// What it holds when the stream has got here.
  std::vector<T> Get() const {
    std::vector<T> host(size_);
    if (host.empty()) return host;
    EXPECT_EQ(
        cudaMemcpyAsync(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost, stream_),
        cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return host;
  }

 private:
  size_t size_;
  cudaStream_t stream_;
  // A device that reads pageable memory by itself may do so after the call.
  std::deque<std::vector<T>> sources_;
  void* memory_ = nullptr;
  T* data_ = nullptr;
};

}  // namespace bitshard::core

#endif  // BITSHARD_TESTS_CORE_DEVICE_ARRAY_H_
