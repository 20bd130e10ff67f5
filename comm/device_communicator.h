// DeviceCommunicator: collectives on device memory, enqueued on a stream.
//
// Not a Communicator: its collectives take host memory and are complete when Wait returns, while
// these take their place on a CUDA stream, where the kernels that fill and use the buffers stand
// too, and the host need not wait for them at all. What the two share is done by the host one that
// every device communicator is made with: agreement on errors, text, counts.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto work, comm->StartAllToAll(send, receive, "bucket 3", stream));
//   ... kernels enqueued on `stream` from here on see what was received ...
//   BITSHARD_RETURN_IF_ERROR(work->Wait());  // the host knows that it went well
#ifndef BITSHARD_COMM_DEVICE_COMMUNICATOR_H_
#define BITSHARD_COMM_DEVICE_COMMUNICATOR_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/communicator.h"

namespace bitshard::comm {

/// All spans are of device memory. Stream: a collective reads and writes its buffers after what was
/// enqueued on `stream` before it, and before what is enqueued after it; collectives run one after
/// another whatever their streams. Threads: collectives are issued from one thread at a time, and
/// in the same order on every rank. Works may be dropped: a collective that fails makes every later
/// call fail. Errors of every call: kPeer when a rank died, aborted or did not arrive within the
/// timeout; kInternal when the device failed. After an error the communicator is unusable, what is
/// on streams ends without data, and each later call returns the first error again.
class DeviceCommunicator {
 public:
  virtual ~DeviceCommunicator() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  /// As Communicator::StartAllToAll. Moves bytes only, so what is summed from them afterwards has
  /// the order of the one who sums (comm/tree_sum.h).
  virtual absl::StatusOr<std::unique_ptr<Work>> StartAllToAll(
      const std::vector<std::span<const std::byte>>& send,
      const std::vector<std::span<std::byte>>& receive, const std::string& name,
      cudaStream_t stream) = 0;

  /// gathered [world_size() * mine.size()]: rank r's at r * mine.size(), the own one too. `mine`
  /// may be that part of `gathered`, and must not overlap it otherwise.
  virtual absl::StatusOr<std::unique_ptr<Work>> StartAllGather(std::span<const std::byte> mine,
                                                               std::span<std::byte> gathered,
                                                               const std::string& name,
                                                               cudaStream_t stream) = 0;

  /// sum [n] = the sum over ranks of terms[rank() * n, ... + n); terms [world_size() * n]. `sum`
  /// may be that part of `terms`. Numerics: the order of the additions is the transport's, and
  /// differs with world size, topology and n; for bits that do not, use StartAllToAll.
  virtual absl::StatusOr<std::unique_ptr<Work>> StartReduceScatter(std::span<const float> terms,
                                                                   std::span<float> sum,
                                                                   const std::string& name,
                                                                   cudaStream_t stream) = 0;

  /// Bytes that this rank has given to collectives for other ranks.
  virtual int64_t bytes_sent() const = 0;

  /// How long the oldest collective that is not complete may take.
  virtual void set_timeout(absl::Duration timeout) = 0;

  /// OK, or the first error, also of a collective that nobody waits for.
  virtual absl::Status status() = 0;

  /// Ends the communicator in order; every rank calls it after its last collective.
  virtual absl::Status Finalize() = 0;
};

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_DEVICE_COMMUNICATOR_H_
