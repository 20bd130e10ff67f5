// Last and sticky errors, injected ones, and reports of what a device would leave undefined.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "tests/cudahost/runtime_state.h"

namespace cudahost {
namespace internal {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local bool inside_operation = false;

// "kernel" names "kernel AdamStep" too.
bool Names(const std::string& name, const std::string& what) {
  return what == name || what.starts_with(name + " ");
}

}  // namespace

bool IsSticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorContained:
      return true;
    default:
      return false;
  }
}

cudaError_t SetLastError(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void ClearLastError() { last_error = cudaSuccess; }

std::optional<cudaError_t> TakeInjection(State& state, const std::string& name, bool when_run) {
  std::optional<cudaError_t> error;
  for (Injection& injection : state.injections) {
    if (injection.when_run == when_run && Names(injection.name, name) &&
        --injection.calls_left == 0) {
      error = injection.error;
    }
  }
  std::erase_if(state.injections, [](const Injection& one) { return one.calls_left == 0; });
  return error;
}

cudaError_t EnterCall(Locked& locked, const std::string& name) {
  State& state = locked.state;
  ++state.calls[name];
  if (state.settings.devices == 0) return cudaErrorNoDevice;
  if (state.sticky != cudaSuccess) return state.sticky;
  if (const std::optional<cudaError_t> injected = TakeInjection(state, name, false)) {
    if (IsSticky(*injected)) state.sticky = *injected;
    return *injected;
  }
  return cudaSuccess;
}

void Explain(const std::string& message) {
  std::fprintf(stderr, "cudahost: %s\n", message.c_str());
}

void Report(State& state, const std::string& message) {
  Explain(message);
  state.reports.push_back(message);
}

cudaError_t DeviceFault(State& state, const std::string& message) {
  Report(state, message);
  return state.sticky = cudaErrorIllegalAddress;
}

bool InsideOperation() { return inside_operation; }
OperationScope::OperationScope() { inside_operation = true; }
OperationScope::~OperationScope() { inside_operation = false; }

}  // namespace internal

void FailCall(const std::string& name, int64_t nth, cudaError_t error) {
  const internal::Locked locked = internal::Lock();
  locked.state.injections.push_back({.name = name, .calls_left = nth, .error = error});
}

void FailRun(const std::string& what, int64_t nth, cudaError_t error) {
  const internal::Locked locked = internal::Lock();
  locked.state.injections.push_back(
      {.name = what, .calls_left = nth, .error = error, .when_run = true});
}

int64_t CallCount(const std::string& name) {
  const internal::Locked locked = internal::Lock();
  const auto found = locked.state.calls.find(name);
  return found == locked.state.calls.end() ? 0 : found->second;
}

std::vector<std::string> TakeReports() {
  const internal::Locked locked = internal::Lock();
  return std::exchange(locked.state.reports, {});
}

}  // namespace cudahost

namespace cudahost::internal {

extern "C" {

// Neither clears a sticky error: it is every call's.
cudaError_t cudaGetLastError() {
  const Locked locked = Lock();
  if (locked.state.sticky != cudaSuccess) return locked.state.sticky;
  return std::exchange(last_error, cudaSuccess);
}

cudaError_t cudaPeekAtLastError() {
  const Locked locked = Lock();
  if (locked.state.sticky != cudaSuccess) return locked.state.sticky;
  return last_error;
}

}  // extern "C"

}  // namespace cudahost::internal
