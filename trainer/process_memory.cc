#include "trainer/process_memory.h"

#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/file.h"
#include "core/status_macros.h"

namespace bitshard::trainer {
namespace {

constexpr int kMmapThresholdBytes = 64 << 10;

// "VmHWM:     12345 kB" -> bytes.
absl::StatusOr<int64_t> Field(const std::string& text, const std::string& name) {
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
    if (line.rfind(name + ":", 0) != 0) continue;
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t kibibytes = 0;
    if (words.size() == 3 && words[2] == "kB" && absl::SimpleAtoi(words[1], &kibibytes))
      return kibibytes << 10;
  }
  return absl::InternalError(absl::StrCat("/proc/self/status: no readable line ", name));
}

}  // namespace

absl::StatusOr<ProcessMemory> ParseProcessStatus(const std::string& text) {
  ProcessMemory memory;
  BITSHARD_ASSIGN_OR_RETURN(memory.rss_bytes, Field(text, "VmRSS"));
  BITSHARD_ASSIGN_OR_RETURN(memory.peak_rss_bytes, Field(text, "VmHWM"));
  return memory;
}

absl::StatusOr<ProcessMemory> ReadProcessMemory() {
  // Files in /proc say that they have no bytes, so they are read until their end.
  const core::ScopedFd fd(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; fd.get() >= 0;) {
    got = read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(buffer, static_cast<size_t>(got));
  }
  return ParseProcessStatus(text);
}

void ReturnFreedMemory() { malloc_trim(0); }

bool ApplyMallocPolicy() {
  const bool threshold = mallopt(M_MMAP_THRESHOLD, kMmapThresholdBytes) == 1;
  const bool trim = mallopt(M_TRIM_THRESHOLD, kMmapThresholdBytes) == 1;
  return mallopt(M_ARENA_MAX, 1) == 1 && threshold && trim;
}

}  // namespace bitshard::trainer
