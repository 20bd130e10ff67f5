// Device memory of ranks with a GPU each, over NCCL.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto device_comm,
//                             comm::NcclCommunicator::Create({.host = host_comm.get(), .device =
//                             0}));
//
// NCCL by itself waits for ever for a rank that is missing, and reports errors only to those who
// ask. So a thread of the communicator asks, and watches the age of the oldest collective; on
// either it aborts, which ends what hangs on the device. Where the abort hangs too (nccl issues
// 829, 1777), the process ends with exit code 5.
#ifndef BITSHARD_COMM_NCCL_COMMUNICATOR_H_
#define BITSHARD_COMM_NCCL_COMMUNICATOR_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/communicator.h"
#include "comm/device_communicator.h"

namespace bitshard::comm {

struct NcclCommunicatorOptions {
  Communicator* host = nullptr;  ///< Connects the same ranks; used in Create only.
  int device = 0;                ///< CUDA's number of this rank's device.
  absl::Duration init_timeout = absl::Seconds(120);
  absl::Duration timeout = absl::Seconds(600);  ///< Of each collective.
  absl::Duration abort_limit = absl::Seconds(20);
  /// Element counts, at least 2, that Create tries every collective with: NCCL chooses its
  /// algorithm by size, so these should include those that will be used. Empty: no test.
  std::vector<int64_t> self_test_elems = {256, int64_t{1} << 18};
};

class NcclCommunicator {
 public:
  /// All ranks call it with the same options but `device`. Every rank gets the same result. Errors:
  /// kConfig when ranks have different versions of NCCL, or two the same GPU, which NCCL may only
  /// notice as a hang; kPeer naming the ranks whose
  /// initialisation did not end within init_timeout, or the collective that delivered wrong data,
  /// with the order that it delivered instead of the right one.
  static absl::StatusOr<std::unique_ptr<DeviceCommunicator>> Create(
      const NcclCommunicatorOptions& options);
};

/// The variables NCCL_* of this process, "NCCL_DEBUG=INFO", in alphabetical order: they decide over
/// NCCL's network, algorithms and speed, so whoever has a console says them once, on one rank.
/// After Create, when NCCL has added what its configuration files set (~/.nccl.conf,
/// /etc/nccl.conf).
std::vector<std::string> NcclEnvironment();

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_NCCL_COMMUNICATOR_H_
