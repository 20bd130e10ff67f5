#include "comm/internal/nccl_status.h"

#include "absl/strings/str_cat.h"
#include "core/error.h"

namespace bitshard::comm::internal {

absl::Status NcclStatus(ncclResult_t result, const std::string& what, ncclComm_t comm) {
  if (result == ncclSuccess) return absl::OkStatus();
  std::string message = absl::StrCat(what, ": NCCL: ", ncclGetErrorString(result));
  const char* last = ncclGetLastError(comm);
  if (last != nullptr && *last != '\0') {
    absl::StrAppend(&message, " (", core::Escaped(last, 1000), ")");
  }
  switch (result) {
    case ncclSystemError:
    case ncclRemoteError:
    case ncclInProgress:
      return core::PeerError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace bitshard::comm::internal
