#include "core/error.h"

#include <algorithm>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace bitshard::core {
namespace {

constexpr char kPayloadUrl[] = "bitshard/error_kind";

absl::StatusCode CodeOf(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kConfig:
      return absl::StatusCode::kInvalidArgument;
    case ErrorKind::kData:
      return absl::StatusCode::kDataLoss;
    case ErrorKind::kMemory:
      return absl::StatusCode::kResourceExhausted;
    case ErrorKind::kPeer:
      return absl::StatusCode::kUnavailable;
    case ErrorKind::kStorage:
      return absl::StatusCode::kAborted;
    case ErrorKind::kNumerics:
      return absl::StatusCode::kOutOfRange;
    case ErrorKind::kInterrupted:
      return absl::StatusCode::kCancelled;
    case ErrorKind::kInternal:
      break;
  }
  return absl::StatusCode::kInternal;
}

// The length of the well-formed UTF-8 sequence that starts at `text[i]`, or 0.
size_t Utf8Length(const std::string& text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char lead = byte(i);
  const size_t length = lead < 0x80       ? 1
                        : lead >> 5 == 6  ? 2
                        : lead >> 4 == 14 ? 3
                        : lead >> 3 == 30 ? 4
                                          : 0;
  if (length == 0 || i + length > text.size()) return 0;
  uint32_t value = length == 1 ? lead : static_cast<uint32_t>(lead & (0x7F >> length));
  for (size_t k = 1; k < length; ++k) {
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
    value = value << 6 | (byte(i + k) & 0x3F);
  }
  static constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < kLeast[length] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return 0;
  return length;
}

}  // namespace

absl::Status MakeError(ErrorKind kind, const std::string& message) {
  absl::Status status(CodeOf(kind), message);
  status.SetPayload(kPayloadUrl, absl::Cord(absl::StrCat(static_cast<int>(kind))));
  return status;
}

absl::Status ConfigError(const std::string& message) {
  return MakeError(ErrorKind::kConfig, message);
}
absl::Status DataError(const std::string& message) { return MakeError(ErrorKind::kData, message); }
absl::Status MemoryError(const std::string& message) {
  return MakeError(ErrorKind::kMemory, message);
}
absl::Status PeerError(const std::string& message) { return MakeError(ErrorKind::kPeer, message); }
absl::Status StorageError(const std::string& message) {
  return MakeError(ErrorKind::kStorage, message);
}
absl::Status NumericsError(const std::string& message) {
  return MakeError(ErrorKind::kNumerics, message);
}
absl::Status InterruptedError(const std::string& message) {
  return MakeError(ErrorKind::kInterrupted, message);
}

ErrorKind KindOf(const absl::Status& status) {
  if (const auto payload = status.GetPayload(kPayloadUrl)) {
    int value = 0;
    if (absl::SimpleAtoi(std::string(*payload), &value)) return static_cast<ErrorKind>(value);
  }
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
      return ErrorKind::kConfig;
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kNotFound:
      return ErrorKind::kData;
    case absl::StatusCode::kResourceExhausted:
      return ErrorKind::kMemory;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return ErrorKind::kPeer;
    default:
      return ErrorKind::kInternal;
  }
}

int ExitCode(const absl::Status& status) {
  return status.ok() ? 0 : static_cast<int>(KindOf(status));
}

absl::Status AddContext(const absl::Status& status, const std::string& prefix) {
  if (status.ok()) return status;
  absl::Status result(status.code(), absl::StrCat(prefix, ": ", std::string(status.message())));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

std::string Escaped(const std::string& text, size_t max_bytes) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= max_bytes) return out + "...";
    const size_t length = Utf8Length(text, i);
    const unsigned char byte = static_cast<unsigned char>(text[i]);
    if (length == 0 || byte < 0x20 || byte == 0x7F ||
        (byte == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0)) {
      absl::StrAppendFormat(&out, "\\x%02x", byte);
      ++i;
    } else {
      out.append(text, i, length);
      i += length;
    }
  }
  return out;
}

size_t FirstInvalidUtf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8Length(text, i);
    if (length == 0) return i;
    i += length;
  }
  return std::string::npos;
}

int EditDistance(const std::string& a, const std::string& b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

}  // namespace bitshard::core
