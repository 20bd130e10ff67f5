// What the NCCL communicator must do, whether its ranks are threads or processes: each check runs
// on every rank.
#ifndef BITSHARD_TESTS_COMM_NCCL_CHECKS_H_
#define BITSHARD_TESTS_COMM_NCCL_CHECKS_H_

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/nccl_communicator.h"
#include "core/error.h"

namespace bitshard::comm {

inline NcclCommunicatorOptions QuickOptions(Communicator& host) {
  int devices = 1;
  (void)cudaGetDeviceCount(&devices);
  return {.host = &host,
          .device = host.local_rank() % devices,
          .init_timeout = absl::Seconds(30),
          .timeout = absl::Seconds(30),
          .abort_limit = absl::Seconds(10),
          .self_test_elems = {2, 1000}};
}

// Device memory of one rank, freed by the destructor: before the ranks meet, because cudaFree waits
// for the collectives of all threads, and those that come next need this one.
class DeviceMemory {
 public:
  explicit DeviceMemory(Communicator& host) : host_(host) {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~DeviceMemory() {
    for (void* p : all_) (void)cudaFree(p);
    (void)cudaStreamDestroy(stream_);
    (void)host_.Barrier();
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  cudaStream_t stream() const { return stream_; }
  // Enqueues the copy; another one must follow the work to read.
  std::span<float> Put(const std::vector<float>& values) {
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, values.size() * sizeof(float) + 4), cudaSuccess);
    all_.push_back(p);
    sources_.push_back(values);
    EXPECT_EQ(cudaMemcpyAsync(p, sources_.back().data(), values.size() * sizeof(float),
                              cudaMemcpyHostToDevice, stream_),
              cudaSuccess);
    return {static_cast<float*>(p), values.size()};
  }
  std::vector<float> Get(std::span<const float> values) const {
    std::vector<float> copy(values.size());
    EXPECT_EQ(cudaMemcpyAsync(copy.data(), values.data(), values.size_bytes(),
                              cudaMemcpyDeviceToHost, stream_),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return copy;
  }

 private:
  Communicator& host_;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> all_;
  // A device that reads pageable memory by itself may do so after the call.
  std::deque<std::vector<float>> sources_;
};

inline std::vector<float> Numbers(int64_t count, float start) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(start + static_cast<float>(i));
  return values;
}

// Piece sizes and values are a function of (from, to); some are empty.
inline std::vector<float> PieceOf(int from, int to, int round) {
  return Numbers((from * 7 + to * 3 + round) % 4 * 301, static_cast<float>(from * 10 + to));
}

inline void CheckAllToAll(Communicator& host, DeviceCommunicator& comm) {
  DeviceMemory memory(host);
  for (int round = 0; round < 5; ++round) {
    std::vector<std::span<float>> in;
    std::vector<std::span<const std::byte>> send;
    std::vector<std::span<std::byte>> receive;
    int64_t bytes = 0;
    for (int r = 0; r < comm.world_size(); ++r) {
      send.push_back(std::as_bytes(memory.Put(PieceOf(comm.rank(), r, round))));
      if (r != comm.rank()) bytes += static_cast<int64_t>(send.back().size());
      const size_t size = PieceOf(r, comm.rank(), round).size();
      in.push_back(memory.Put(std::vector<float>(size, -1)));
      receive.push_back(std::as_writable_bytes(in.back()));
    }
    const int64_t before = comm.bytes_sent();
    const auto work = comm.StartAllToAll(send, receive, "bucket", memory.stream());
    ASSERT_TRUE(work.ok()) << work.status();
    EXPECT_EQ(comm.bytes_sent() - before, bytes);
    // Stream order is enough, without Wait.
    for (int r = 0; r < comm.world_size(); ++r) {
      EXPECT_EQ(memory.Get(in[static_cast<size_t>(r)]), PieceOf(r, comm.rank(), round))
          << "from rank " << r;
    }
    const absl::Status waited = (*work)->Wait();
    EXPECT_TRUE(waited.ok()) << waited;
  }
}

inline void CheckGatherAndScatter(Communicator& host, DeviceCommunicator& comm) {
  DeviceMemory memory(host);
  const size_t world = static_cast<size_t>(comm.world_size());
  const size_t self = static_cast<size_t>(comm.rank());
  constexpr size_t kEach = 515;
  // In place, then the sum of what all have gathered: world times what each has sent.
  std::vector<float> arena(world * kEach, -1);
  for (size_t i = 0; i < kEach; ++i) arena[self * kEach + i] = static_cast<float>(self * 1000 + i);
  const std::span<float> all = memory.Put(arena);
  const std::span<float> mine = all.subspan(self * kEach, kEach);
  const auto gather = comm.StartAllGather(std::as_bytes(mine), std::as_writable_bytes(all),
                                          "parameters", memory.stream());
  ASSERT_TRUE(gather.ok()) << gather.status();
  const std::span<float> sum = memory.Put(std::vector<float>(kEach));
  const auto scatter = comm.StartReduceScatter(all, sum, "gradients", memory.stream());
  ASSERT_TRUE(scatter.ok()) << scatter.status();
  ASSERT_TRUE((*scatter)->Wait().ok());
  ASSERT_TRUE((*gather)->Wait().ok());
  const std::vector<float> gathered = memory.Get(all);
  const std::vector<float> summed = memory.Get(sum);
  for (size_t i = 0; i < gathered.size(); ++i)
    ASSERT_EQ(gathered[i], static_cast<float>(i / kEach * 1000 + i % kEach)) << i;
  for (size_t i = 0; i < kEach; ++i)
    ASSERT_EQ(summed[i], static_cast<float>(world * (self * 1000 + i))) << i;
}

inline void CheckAll(Communicator& host) {
  auto comm = NcclCommunicator::Create(QuickOptions(host));
  ASSERT_TRUE(comm.ok()) << comm.status();
  EXPECT_EQ((*comm)->rank(), host.rank());
  EXPECT_EQ((*comm)->world_size(), host.world_size());
  CheckAllToAll(host, **comm);
  CheckGatherAndScatter(host, **comm);
  EXPECT_TRUE((*comm)->status().ok());
  const absl::Status end = (*comm)->Finalize();
  EXPECT_TRUE(end.ok()) << end;
}

}  // namespace bitshard::comm

#endif  // BITSHARD_TESTS_COMM_NCCL_CHECKS_H_
