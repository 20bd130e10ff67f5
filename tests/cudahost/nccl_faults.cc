#include "tests/cudahost/nccl_faults.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>

namespace cudahost {
namespace {

NcclFaults FromEnvironment() {
  const char* text = std::getenv("BITSHARD_CUDAHOST_NCCL");
  std::string error;
  const std::optional<NcclFaults> faults = ParseNcclFaults(text == nullptr ? "" : text, &error);
  if (!faults) {
    std::fprintf(stderr, "BITSHARD_CUDAHOST_NCCL: %s\n", error.c_str());
    std::abort();
  }
  return *faults;
}

std::mutex mutex;

NcclFaults& Guarded() {
  static NcclFaults faults = FromEnvironment();
  return faults;
}

}  // namespace

std::optional<NcclFaults> ParseNcclFaults(const std::string& text, std::string* error) {
  NcclFaults faults;
  const std::map<std::string, int64_t*> fields = {{"rank", &faults.rank},
                                                  {"delay_at", &faults.delay_at},
                                                  {"delay_ms", &faults.delay_ms},
                                                  {"die_at", &faults.die_at},
                                                  {"vanish_at", &faults.vanish_at},
                                                  {"async_error_at", &faults.async_error_at},
                                                  {"silent", &faults.silent},
                                                  {"init_hangs", &faults.init_hangs},
                                                  {"abort_hangs", &faults.abort_hangs},
                                                  {"finalize_hangs", &faults.finalize_hangs},
                                                  {"average_drops", &faults.average_drops},
                                                  {"permute_gather", &faults.permute_gather},
                                                  {"permute_scatter", &faults.permute_scatter},
                                                  {"flip_at", &faults.flip_at},
                                                  {"timeout_ms", &faults.timeout_ms}};
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    const auto field = fields.find(word.substr(0, equals));
    if (equals == std::string::npos || field == fields.end()) {
      *error = "unknown fault '" + word + "'";
      return std::nullopt;
    }
    const char* end = word.data() + word.size();
    const auto parsed = std::from_chars(word.data() + equals + 1, end, *field->second);
    if (parsed.ec != std::errc() || parsed.ptr != end) {
      *error = "'" + word + "': want a whole number";
      return std::nullopt;
    }
  }
  return faults;
}

NcclFaults CurrentNcclFaults() {
  const std::lock_guard lock(mutex);
  return Guarded();
}

void SetNcclFaults(const NcclFaults& faults) {
  const std::lock_guard lock(mutex);
  Guarded() = faults;
}

}  // namespace cudahost
