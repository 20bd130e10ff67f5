// Early return on error, for functions that return absl::Status or absl::StatusOr (Debian 12's
// Abseil has none).
//
//   BITSHARD_RETURN_IF_ERROR(file.Sync());
//   BITSHARD_ASSIGN_OR_RETURN(const int64_t bytes, file.Size());
#ifndef BITSHARD_CORE_STATUS_MACROS_H_
#define BITSHARD_CORE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define BITSHARD_RETURN_IF_ERROR(expr)                   \
  do {                                                   \
    ::absl::Status bitshard_status_ = (expr);            \
    if (!bitshard_status_.ok()) return bitshard_status_; \
  } while (false)

#define BITSHARD_ASSIGN_OR_RETURN(lhs, expr) \
  BITSHARD_ASSIGN_OR_RETURN_(BITSHARD_CONCAT_(bitshard_or_, __LINE__), lhs, expr)
#define BITSHARD_ASSIGN_OR_RETURN_(temporary, lhs, expr)     \
  auto temporary = (expr);                                   \
  if (!temporary.ok()) return std::move(temporary).status(); \
  lhs = *std::move(temporary)
#define BITSHARD_CONCAT_(a, b) BITSHARD_CONCAT2_(a, b)
#define BITSHARD_CONCAT2_(a, b) a##b

#endif  // BITSHARD_CORE_STATUS_MACROS_H_
