// ncclResult_t -> absl::Status.
#ifndef BITSHARD_COMM_INTERNAL_NCCL_STATUS_H_
#define BITSHARD_COMM_INTERNAL_NCCL_STATUS_H_

#include <nccl.h>

#include <string>

#include "absl/status/status.h"

namespace bitshard::comm::internal {

/// OK for ncclSuccess; kPeer for errors of the system, of other ranks and of waiting
/// (ncclInProgress); kInternal for the rest. The message holds `what`, NCCL's text for the result
/// and its last error. `comm` may be null.
absl::Status NcclStatus(ncclResult_t result, const std::string& what, ncclComm_t comm);

}  // namespace bitshard::comm::internal

#endif  // BITSHARD_COMM_INTERNAL_NCCL_STATUS_H_
