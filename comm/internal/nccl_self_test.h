// Whether every collective delivers what it should, tried before anything depends on it.
#ifndef BITSHARD_COMM_INTERNAL_NCCL_SELF_TEST_H_
#define BITSHARD_COMM_INTERNAL_NCCL_SELF_TEST_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/device_communicator.h"

namespace bitshard::comm::internal {

/// Its buffers are freed by cudaFree, which waits for the whole device: a rank must not destroy it
/// while another one may have begun a collective that this rank is to take part in.
class SelfTest {
 public:
  SelfTest() = default;
  ~SelfTest();
  SelfTest(const SelfTest&) = delete;
  SelfTest& operator=(const SelfTest&) = delete;

  absl::Status Allocate(int world_size, int64_t max_elems);

  /// Runs each collective once with `elems` elements a rank, 2 to max_elems, of patterns that name
  /// their rank. Errors: kPeer with the collective and what came in whose place: NVLS gives ranks
  /// each other's chunks where CUDA_VISIBLE_DEVICES reorders devices (nccl issue 1906). A
  /// collective by all ranks; an error that only some have is not agreed on here.
  absl::Status Run(DeviceCommunicator* comm, int64_t elems);

 private:
  absl::Status TestAllToAll(DeviceCommunicator* comm, int64_t elems);
  absl::Status TestAllGather(DeviceCommunicator* comm, int64_t elems);
  absl::Status TestReduceScatter(DeviceCommunicator* comm, int64_t elems);
  absl::Status Fill(const std::vector<float>& values, size_t receives);
  absl::StatusOr<std::vector<float>> Read(size_t elems);

  float* send_ = nullptr;
  float* receive_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_NCCL_SELF_TEST_H_
