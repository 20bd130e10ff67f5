#include "core/aligned_buffer.h"

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"

namespace bitshard::core {

absl::StatusOr<AlignedBuffer> AlignedBuffer::Create(int64_t bytes, const std::string& purpose) {
  BITSHARD_CHECK(bytes >= 0) << purpose << ": " << bytes;
  AlignedBuffer buffer;
  buffer.size_ = static_cast<size_t>(bytes);
  if (bytes == 0) return buffer;
  const size_t whole = (buffer.size_ + kAlignment - 1) / kAlignment * kAlignment;
  buffer.data_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, whole)));
  if (buffer.data_ == nullptr) {
    return MemoryError(absl::StrCat(purpose, ": the system has no ", bytes, " bytes (", bytes >> 20,
                                    " MiB) of memory left; `bitshard plan` says what a run needs"));
  }
  return buffer;
}

}  // namespace bitshard::core
