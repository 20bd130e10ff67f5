// Where memory comes from, as small values that compose by wrapping each other (the idea of RAPIDS
// RMM).
//
//   HostResource host;
//   LimitingAdaptor<HostResource> limited(&host, {.limit_bytes = budget});
//   auto frames = Allocation<LimitingAdaptor<HostResource>>::Create(&limited, bytes, "pages");
#ifndef BITSHARD_PAGING_MEMORY_RESOURCE_H_
#define BITSHARD_PAGING_MEMORY_RESOURCE_H_

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::paging {

/// Allocate returns exactly `bytes` > 0 bytes, 64-byte aligned at least, of any content; `purpose`
/// stands in errors (kMemory). Deallocate takes back exactly what Allocate gave. Not thread-safe.
template <class R>
concept MemoryResource = requires(R& resource, int64_t bytes, const std::string& purpose,
                                  std::span<std::byte> memory) {
  { resource.Allocate(bytes, purpose) } -> std::same_as<absl::StatusOr<std::span<std::byte>>>;
  { resource.Deallocate(memory) } -> std::same_as<void>;
};

/// Pages of the system, all zero. Memory that is never touched is never resident.
class HostResource {
 public:
  absl::StatusOr<std::span<std::byte>> Allocate(int64_t bytes, const std::string& purpose);
  void Deallocate(std::span<std::byte> memory);
};
static_assert(MemoryResource<HostResource>);

struct LimitingOptions {
  int64_t limit_bytes = 0;
};

/// Refuses to hold more than a limit of its upstream's memory at a time; counts what it holds.
template <MemoryResource Upstream>
class LimitingAdaptor {
 public:
  LimitingAdaptor(Upstream* upstream, LimitingOptions options)
      : upstream_(upstream), limit_bytes_(options.limit_bytes) {}

  /// Errors: kMemory when the limit would be passed; those of the upstream, after which nothing is
  /// counted.
  absl::StatusOr<std::span<std::byte>> Allocate(int64_t bytes, const std::string& purpose) {
    if (bytes > limit_bytes_ - allocated_bytes_) {
      return core::MemoryError(absl::StrCat(purpose, ": ", bytes,
                                            " bytes do not fit into the limit of ", limit_bytes_,
                                            " bytes, of which ", allocated_bytes_, " are taken"));
    }
    BITSHARD_ASSIGN_OR_RETURN(const std::span<std::byte> memory,
                              upstream_->Allocate(bytes, purpose));
    allocated_bytes_ += bytes;
    return memory;
  }
  void Deallocate(std::span<std::byte> memory) {
    upstream_->Deallocate(memory);
    allocated_bytes_ -= static_cast<int64_t>(memory.size());
  }

  int64_t limit_bytes() const { return limit_bytes_; }
  int64_t allocated_bytes() const { return allocated_bytes_; }

 private:
  Upstream* upstream_;
  int64_t limit_bytes_;
  int64_t allocated_bytes_ = 0;
};
static_assert(MemoryResource<LimitingAdaptor<HostResource>>);

/// Memory of a resource, given back at the end of its scope. The resource must outlive it.
template <MemoryResource R>
class Allocation {
 public:
  Allocation() = default;
  static absl::StatusOr<Allocation> Create(R* resource, int64_t bytes, const std::string& purpose) {
    Allocation allocation;
    BITSHARD_ASSIGN_OR_RETURN(allocation.memory_, resource->Allocate(bytes, purpose));
    allocation.resource_ = resource;
    return allocation;
  }
  Allocation(Allocation&& other) noexcept
      : resource_(std::exchange(other.resource_, nullptr)),
        memory_(std::exchange(other.memory_, {})) {}
  Allocation& operator=(Allocation&& other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~Allocation() {
    if (resource_ != nullptr) resource_->Deallocate(memory_);
  }

  std::span<std::byte> memory() const { return memory_; }

 private:
  R* resource_ = nullptr;
  std::span<std::byte> memory_;
};

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_MEMORY_RESOURCE_H_
