// Devices for the ranks of a test.
#ifndef BITSHARD_TESTS_COMM_DEVICE_RANKS_H_
#define BITSHARD_TESTS_COMM_DEVICE_RANKS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>

#include "absl/status/statusor.h"
#include "comm/communicator.h"

namespace bitshard::comm {

/// Whether every rank has a device of its own, which NCCL wants: local rank i takes device i. The
/// same on all ranks; one says what is missing.
inline bool EveryRankHasADevice(Communicator* job) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) devices = 0;
  const absl::StatusOr<int64_t> missing = job->MaxInt64(job->local_size() - devices);
  if (!missing.ok() || *missing <= 0) return true;  // An error comes again with the next call.
  if (job->rank() == 0)
    std::printf("skipped: %d more CUDA devices are needed\n", static_cast<int>(*missing));
  return false;
}

}  // namespace bitshard::comm

#endif  // BITSHARD_TESTS_COMM_DEVICE_RANKS_H_
