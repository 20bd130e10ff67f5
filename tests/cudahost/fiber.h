// Stacks and switches between them. All stacks lie in one range of addresses, so that a pointer
// tells whether it points into one.
#ifndef BITSHARD_TESTS_CUDAHOST_FIBER_H_
#define BITSHARD_TESTS_CUDAHOST_FIBER_H_

#include <cstddef>
#include <cstdint>
#include <functional>

namespace cudahost {

struct Fiber;  // nullptr: the stack that the grid was started from.

// Runs entry(), which must not return, at the first jump. A stack is reused once released; the
// running fiber may release itself just before it jumps away for good.
Fiber* NewFiber(void (*entry)());
void ReleaseFiber(Fiber* fiber);
void ReleaseAllFibers();
// Leaves the running stack for another one; returns when something jumps back.
void Jump(Fiber* to);

// Each stack ends at a multiple of the slot; below it lies what no stack may grow into.
inline constexpr uintptr_t kStacks = 0x2600'0000'0000;
inline constexpr uintptr_t kStackSlot = 256 << 10;
inline constexpr uintptr_t kStackPool = kStackSlot * 1024;
inline bool InStackPool(uintptr_t p) { return p - kStacks < kStackPool; }
inline bool OnSameStack(uintptr_t p, uintptr_t q) { return (p ^ q) < kStackSlot; }

// Runs body(), which must not return, on a stack of 1 MiB.
[[noreturn]] void RunOnLargeStack(const std::function<void()>& body);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_FIBER_H_
