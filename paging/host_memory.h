// How much more memory this process may take from the host.
#ifndef BITSHARD_PAGING_HOST_MEMORY_H_
#define BITSHARD_PAGING_HOST_MEMORY_H_

#include <cstdint>
#include <string>

namespace bitshard::paging {

struct HostMemory {
  int64_t available_bytes = INT64_MAX;  ///< INT64_MAX: unknown.
  std::string limited_by;               ///< "MemAvailable of /proc/meminfo", a cgroup's file.
};

/// The least of what the system has available and of what the limit of this process's control group
/// (v2) leaves. `root` stands before /proc and /sys: "" for this machine.
HostMemory AvailableHostMemory(const std::string& root = "");

/// The limit of `ulimit -l`, for error messages: "unlimited" or bytes.
std::string MemlockLimit();

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_HOST_MEMORY_H_
