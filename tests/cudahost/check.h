// The memory checker: what g++ -fsanitize=thread calls at each access of the instrumented files
// (tests/cudahost/check_callbacks.cc), without that sanitizer's runtime. It reports, with both
// accesses where there are two, and aborts:
//
//   out of bounds        in a gap between buffers, or freed
//   uninitialised read   of device, managed, pinned or block-shared memory
//   race                 two threads, one of them writes, nothing orders them (clock.h)
//   kernel in host memory, host code in device memory
//   misaligned           a value at an address that its type may not have, a float4 above all
//
// A memcpy, memmove or memset of a kernel counts as a read and a write. What is read and written by
// files that are not instrumented is not seen.
#ifndef BITSHARD_TESTS_CUDAHOST_CHECK_H_
#define BITSHARD_TESTS_CUDAHOST_CHECK_H_

#include <cstddef>
#include <cstdint>

namespace cudahost {

enum class Access { kRead, kWrite, kAtomic };

// An access of instrumented code of any size and alignment; `pc` is the address that the callback
// returns to.
void OnAccess(Access access, const void* p, size_t bytes, uintptr_t pc);

// An access of a value of `type` at an address that is no multiple of `alignment`; what stands in
// the source, since the compiler may have split a vector into its parts.
struct Misaligned {
  Access access = Access::kRead;
  const char* type = nullptr;  // 'const float4'
  size_t alignment = 0;
  const char* file = nullptr;
  int line = 0;
};
void OnMisaligned(const void* p, const Misaligned& access);

// Called for each access to managed memory: by kernels, and by instrumented code of the host.
using ManagedHook = void (*)(const void* p, size_t bytes, bool write);
void SetManagedHooks(ManagedHook kernel, ManagedHook host);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_CHECK_H_
