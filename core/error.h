// The kinds of failure that a user can cause, as absl::Status. A kind fixes the exit code of
// `bitshard`, so it travels with the status (as a payload) through every layer and between ranks.
//
//   return core::DataError("data/train.jsonl:17: \"messages\" is not a list; see docs/data.md");
//
// Messages say what was wrong, where (file, key, tensor, rank), what was wanted, and what to do.
#ifndef BITSHARD_CORE_ERROR_H_
#define BITSHARD_CORE_ERROR_H_

#include <string>

#include "absl/status/status.h"

namespace bitshard::core {

/// The value is the process's exit code.
enum class ErrorKind : int {
  kInternal = 1,       ///< Our own bug.
  kConfig = 2,         ///< A key, value, flag or environment that can't be met.
  kData = 3,           ///< A file that is missing, damaged or of the wrong form.
  kMemory = 4,         ///< Host or device memory.
  kPeer = 5,           ///< A rank that died, hangs or left; the transport.
  kStorage = 6,        ///< A write that failed: disk full, file size limit, I/O error.
  kNumerics = 7,       ///< Non-finite values that training can't go on with.
  kInterrupted = 143,  ///< Asked to stop, and stopped after saving.
};

absl::Status ConfigError(const std::string& message);       // kInvalidArgument
absl::Status DataError(const std::string& message);         // kDataLoss
absl::Status MemoryError(const std::string& message);       // kResourceExhausted
absl::Status PeerError(const std::string& message);         // kUnavailable
absl::Status StorageError(const std::string& message);      // kAborted
absl::Status NumericsError(const std::string& message);     // kOutOfRange
absl::Status InterruptedError(const std::string& message);  // kCancelled
absl::Status MakeError(ErrorKind kind, const std::string& message);

/// The kind that a non-OK status was made with; for a status made by other means, the nearest kind
/// by its code.
ErrorKind KindOf(const absl::Status& status);

/// 0 for OK, else the value of the kind.
int ExitCode(const absl::Status& status);

/// The same status with "prefix: " before its message. OK stays OK.
absl::Status AddContext(const absl::Status& status, const std::string& prefix);

/// Text with control characters, ESC and invalid UTF-8 replaced by \xNN, cut at `max_bytes`: for
/// names that come from files and end up in messages and logs.
std::string Escaped(const std::string& text, size_t max_bytes = 200);

/// Index of the first byte that is no part of well-formed UTF-8 (no overlong forms, no surrogates),
/// or npos.
size_t FirstInvalidUtf8(const std::string& text);

/// The candidate with the smallest edit distance to `name`, or "" when none is within a third of
/// its length. For "unknown key 'lora_rank', did you mean 'lora_r'?".
template <class Range>
std::string Nearest(const std::string& name, const Range& candidates);

int EditDistance(const std::string& a, const std::string& b);

template <class Range>
std::string Nearest(const std::string& name, const Range& candidates) {
  std::string best;
  int best_distance = static_cast<int>(name.size()) / 3 + 2;
  for (const auto& candidate : candidates) {
    const int distance = EditDistance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_ERROR_H_
