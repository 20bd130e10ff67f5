#include "paging/host_memory.h"

#include <sys/resource.h>

#include <fstream>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace bitshard::paging {
namespace {

// The first word of a file, as a number; nothing for "max", text, or no file.
std::optional<int64_t> NumberIn(const std::string& path) {
  std::ifstream in(path);
  std::string word;
  int64_t value = 0;
  if (!(in >> word) || !absl::SimpleAtoi(word, &value)) return std::nullopt;
  return value;
}

std::optional<int64_t> MemAvailable(const std::string& path) {
  std::ifstream in(path);
  std::string key, unit;
  int64_t value = 0;
  while (in >> key >> value) {
    if (key == "MemAvailable:") return value * 1024;
    std::getline(in, unit);
  }
  return std::nullopt;
}

// "0::/user.slice/job" -> "/user.slice/job"; only version 2 has the line with an empty controller.
std::string ControlGroup(const std::string& path) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (line.compare(0, 3, "0::") == 0) return line.substr(3);
  }
  return "";
}

}  // namespace

HostMemory AvailableHostMemory(const std::string& root) {
  HostMemory memory;
  if (const auto bytes = MemAvailable(root + "/proc/meminfo"))
    memory = {.available_bytes = *bytes, .limited_by = "MemAvailable of /proc/meminfo"};
  // A limit binds everything below it, so each group up to the root counts.
  std::string group = ControlGroup(root + "/proc/self/cgroup");
  while (!group.empty()) {
    const std::string folder = absl::StrCat(root, "/sys/fs/cgroup", group == "/" ? "" : group);
    const auto limit = NumberIn(folder + "/memory.max");
    const auto used = NumberIn(folder + "/memory.current");
    if (limit && used && *limit - *used < memory.available_bytes)
      memory = {.available_bytes = *limit - *used, .limited_by = folder + "/memory.max"};
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
  return memory;
}

std::string MemlockLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "unlimited";
  return absl::StrCat(limit.rlim_cur, " bytes");
}

}  // namespace bitshard::paging
