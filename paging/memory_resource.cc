#include "paging/memory_resource.h"

#include <sys/mman.h>

#include "core/check.h"

namespace bitshard::paging {

absl::StatusOr<std::span<std::byte>> HostResource::Allocate(int64_t bytes,
                                                            const std::string& purpose) {
  BITSHARD_CHECK(bytes > 0) << purpose << ": " << bytes;
  void* const memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return core::MemoryError(
        absl::StrCat(purpose, ": the system has no ", bytes, " bytes (", bytes >> 20,
                     " MiB) of memory left; `bitshard plan` says what a run needs"));
  }
  return std::span(static_cast<std::byte*>(memory), static_cast<size_t>(bytes));
}

void HostResource::Deallocate(std::span<std::byte> memory) {
  BITSHARD_CHECK(munmap(memory.data(), memory.size()) == 0) << memory.size() << " bytes";
}

}  // namespace bitshard::paging
