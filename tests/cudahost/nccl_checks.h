// What the stand-in for NCCL must do, whether its ranks are threads or processes: each check runs
// on every rank.
#ifndef BITSHARD_TESTS_CUDAHOST_NCCL_CHECKS_H_
#define BITSHARD_TESTS_CUDAHOST_NCCL_CHECKS_H_

#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <nccl.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace cudahost {

struct NcclRank {
  int rank = 0;
  int size = 1;
  std::function<ncclUniqueId()> next_id;  // The same one on all ranks; all call it.
};

struct NcclCheck {
  const char* name;
  void (*run)(const NcclRank& rank);
};
std::vector<NcclCheck> NcclChecks();

inline void Ok(ncclResult_t result, ncclComm_t comm = nullptr) {
  EXPECT_EQ(result, ncclSuccess) << ncclGetLastError(comm);
}

// A non-blocking stream, waited for by polling, as a product must.
class TestStream {
 public:
  TestStream() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~TestStream() { (void)cudaStreamDestroy(stream_); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT: stands for it
  cudaError_t Wait() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// Frees what DeviceArrays have allocated: when no rank of this process has a collective under way,
// for cudaFree waits for the whole device.
void FreeDeviceArrays();
void* AllocateForArray(size_t bytes);

// Device memory with what was copied there.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
    data_ = static_cast<T*>(AllocateForArray(size_ * sizeof(T) + 1));
    const TestStream stream;
    EXPECT_EQ(
        cudaMemcpyAsync(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice, stream),
        cudaSuccess);
    EXPECT_EQ(stream.Wait(), cudaSuccess);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    const TestStream stream;
    EXPECT_EQ(
        cudaMemcpyAsync(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost, stream),
        cudaSuccess);
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

// A blocking communicator, destroyed at the end.
class TestComm {
 public:
  explicit TestComm(const NcclRank& rank) {
    Ok(ncclCommInitRank(&comm_, rank.size, rank.next_id(), rank.rank));
  }
  explicit TestComm(ncclComm_t comm) : comm_(comm) {}
  ~TestComm() {
    if (comm_ != nullptr) Ok(ncclCommDestroy(comm_));
  }
  TestComm(const TestComm&) = delete;
  TestComm& operator=(const TestComm&) = delete;
  operator ncclComm_t() const { return comm_; }  // NOLINT: stands for it
  void Abort() {
    EXPECT_EQ(ncclCommAbort(comm_), ncclSuccess);
    comm_ = nullptr;
  }

 private:
  ncclComm_t comm_ = nullptr;
};

// Values of one rank: small whole numbers, which every type sums exactly.
template <class T>
std::vector<T> Ramp(size_t count, int start) {
  std::vector<T> values;
  for (size_t i = 0; i < count; ++i)
    values.push_back(static_cast<T>(static_cast<float>((static_cast<int>(i) % 5) + start)));
  return values;
}

// Polls until it is something else than ncclInProgress.
ncclResult_t WaitForComm(ncclComm_t comm);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_NCCL_CHECKS_H_
