// Settings, from the environment and from tests; what is left at the end of the process.
#include "tests/cudahost/runtime_state.h"

#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

namespace cudahost {
namespace internal {
namespace {

[[noreturn]] void RefuseVariable(const std::string& name, const std::string& value,
                                 const std::string& wanted) {
  std::fprintf(stderr, "cudahost: %s: got '%s', want %s\n", name.c_str(), value.c_str(),
               wanted.c_str());
  std::abort();
}

template <class Integer>
void ReadVariable(const char* suffix, Integer* value) {
  const std::string name = std::string("BITSHARD_CUDAHOST_") + suffix;
  const char* text = std::getenv(name.c_str());
  if (text == nullptr) return;
  char* end = nullptr;
  errno = 0;
  const unsigned long long number = std::strtoull(text, &end, 10);
  if (end == text || *end != '\0' || errno != 0) RefuseVariable(name, text, "a whole number");
  *value = static_cast<Integer>(number);
}

[[noreturn]] void RefuseSettings(const char* why) {
  std::fprintf(stderr, "cudahost: %s\n", why);
  std::abort();
}

void CheckSettings(const Settings& settings) {
  if (settings.managed_page_bytes < 4096 || !std::has_single_bit(settings.managed_page_bytes)) {
    RefuseSettings("the page size of managed memory is no power of two of at least 4096");
  }
}

Settings SettingsOfEnvironment() {
  Settings settings;
  ReadVariable("DEVICES", &settings.devices);
  ReadVariable("DEVICE_BYTES", &settings.device_bytes);
  ReadVariable("PINNED_BYTES", &settings.pinned_bytes);
  ReadVariable("PAGE_BYTES", &settings.managed_page_bytes);
  ReadVariable("COMPUTE_CAPABILITY", &settings.compute_capability);
  ReadVariable("MANAGED", &settings.managed_memory);
  ReadVariable("CONCURRENT_MANAGED", &settings.concurrent_managed_access);
  ReadVariable("PAGEABLE", &settings.pageable_memory_access);
  ReadVariable("SEED", &settings.seed);
  ReadVariable("RUN_AHEAD", &settings.run_ahead_percent);
  CheckSettings(settings);
  return settings;
}

std::optional<cudaError_t> ErrorNamed(const std::string& name) {
  for (int code = 0; code <= cudaErrorUnknown; ++code) {
    const auto error = static_cast<cudaError_t>(code);
    if (name == cudaGetErrorName(error) || name == std::to_string(code)) return error;
  }
  return std::nullopt;
}

std::vector<Injection> InjectionsOfEnvironment() {
  const std::string name = "BITSHARD_CUDAHOST_FAIL";
  const char* text = std::getenv(name.c_str());
  std::vector<Injection> injections;
  if (text == nullptr) return injections;
  std::istringstream list(text);
  for (std::string entry; std::getline(list, entry, ',');) {
    const size_t first = entry.find(':');
    const size_t second = entry.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) {
      RefuseVariable(name, text, "function:nth:error,...");
    }
    const long nth = std::atol(entry.substr(first + 1, second - first - 1).c_str());
    const std::optional<cudaError_t> error = ErrorNamed(entry.substr(second + 1));
    if (nth < 1 || !error) RefuseVariable(name, text, "function:nth:error,...");
    injections.push_back({.name = entry.substr(0, first), .calls_left = nth, .error = *error});
  }
  return injections;
}

void StartAnew(State& state) {
  state.settings = SettingsOfEnvironment();
  state.random.seed(state.settings.seed);
  state.injections = InjectionsOfEnvironment();
  state.sticky = cudaSuccess;
  state.calls.clear();
  ResetStreams(state);
}

State& MakeState() {
  State& state = *new State;
  StartAnew(state);
  return state;
}

std::vector<std::string> LiveObjectsOf(const State& state) {
  std::vector<std::string> names;
  for (const auto& [begin, allocation] : state.allocations) {
    names.push_back(HeapFind(begin)->name + ", " + std::to_string(allocation.buffer.bytes) +
                    " bytes, by " + allocation.made_by);
  }
  for (const auto& [begin, bytes] : state.registered) {
    names.push_back(std::to_string(bytes) + " bytes, by cudaHostRegister");
  }
  for (const auto& [handle, stream] : state.streams) names.push_back(stream->name);
  for (const auto& [handle, event] : state.events) names.push_back(event.name);
  return names;
}

// After the static destructors of the program, which may still release what they hold.
__attribute__((destructor)) void CheckWhatIsLeft() {
  State& state = TheState();
  bool failed = !state.reports.empty();
  const char* leaks = std::getenv("BITSHARD_CUDAHOST_LEAKS");
  const std::string mode = leaks == nullptr ? "" : leaks;
  if (mode != "off" && state.sticky == cudaSuccess) {
    for (const std::string& name : LiveObjectsOf(state)) {
      std::fprintf(stderr, "cudahost: not released: %s\n", name.c_str());
      failed = failed || mode == "fail";
    }
  }
  if (failed) {
    std::fflush(nullptr);
    _exit(EXIT_FAILURE);
  }
}

}  // namespace

State& TheState() {
  static State& state = MakeState();
  return state;
}

Locked Lock() {
  State& state = TheState();
  return {.state = state, .lock = std::unique_lock(state.mutex)};
}

}  // namespace internal

Settings CurrentSettings() { return internal::Lock().state.settings; }

void Configure(const Settings& settings) {
  internal::CheckSettings(settings);
  const internal::Locked locked = internal::Lock();
  if (!locked.state.managed.empty() &&
      settings.managed_page_bytes != locked.state.settings.managed_page_bytes) {
    internal::RefuseSettings("the page size of managed memory changes while some lives");
  }
  locked.state.settings = settings;
  locked.state.random.seed(settings.seed);
}

void SetDeviceBytes(size_t bytes) { internal::Lock().state.settings.device_bytes = bytes; }
void SetPinnedBytes(size_t bytes) { internal::Lock().state.settings.pinned_bytes = bytes; }

void SetStreamSeed(uint64_t seed) {
  const internal::Locked locked = internal::Lock();
  locked.state.settings.seed = seed;
  locked.state.random.seed(seed);
}

std::vector<std::string> LiveObjects() {
  const internal::Locked locked = internal::Lock();
  return internal::LiveObjectsOf(locked.state);
}

void Reset() {
  const internal::Locked locked = internal::Lock();
  internal::ResetMemory(locked.state);
  internal::StartAnew(locked.state);
  internal::CurrentDevice() = 0;
  internal::ClearLastError();
}

}  // namespace cudahost
