#include "tests/cudahost/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <boost/context/detail/fcontext.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tests/cudahost/clock.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cudahost {

namespace context = boost::context::detail;

struct Fiber {
  context::fcontext_t context = nullptr;
  std::byte* stack = nullptr;  // The low end; nullptr for the main stack.
  size_t stack_bytes = 0;
  void (*entry)() = nullptr;
  void* asan_stack = nullptr;
};

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 192 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
static_assert(kStackPool == kStackSlot * kMaxThreads);

struct Pool {
  std::vector<Fiber> fibers;  // Never grows past its reserve: they are pointed to.
  std::vector<Fiber*> free;
  Fiber main;
  Fiber* running = nullptr;
};
Pool g_pool;

[[noreturn]] void DieOfMemory(const char* what) {
  std::fprintf(stderr, "cudahost: %s for the stacks of a block: %s\n", what, std::strerror(errno));
  std::abort();
}

std::byte* MapStack(uintptr_t address, size_t bytes) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  void* want = reinterpret_cast<void*>(address);
  void* stack = mmap(want, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (stack != want) DieOfMemory("no memory");
  return static_cast<std::byte*>(stack);
}

// Only the upper part of a slot is mapped: the rest is the guard.
Fiber* AddFiber() {
  const size_t index = g_pool.fibers.size();
  if (index == 0) g_pool.fibers.reserve(kMaxThreads);
  if (index == kMaxThreads) DieOfMemory("more than 1024 threads");
  Fiber fiber;
  fiber.stack = MapStack(kStacks + (index + 1) * kStackSlot - kStackBytes, kStackBytes);
  fiber.stack_bytes = kStackBytes;
  g_pool.fibers.push_back(fiber);
  return &g_pool.fibers.back();
}

// Told to AddressSanitizer before and after each jump.
void BeforeJump([[maybe_unused]] Fiber* from, [[maybe_unused]] const Fiber* to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from->asan_stack, to->stack, to->stack_bytes);
#endif
}
void AfterJump([[maybe_unused]] Fiber* self) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->asan_stack, nullptr, nullptr);
#endif
}

// `transfer.data` is the fiber that jumped here.
void Arrived(context::transfer_t transfer) {
  static_cast<Fiber*>(transfer.data)->context = transfer.fctx;
}

void EnterFiber(context::transfer_t transfer) {
  AfterJump(g_pool.running);
  Arrived(transfer);
  g_pool.running->entry();
  std::abort();
}

void SetMainBounds() {
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) DieOfMemory("pthread_getattr_np");
  void* stack = nullptr;
  pthread_attr_getstack(&attributes, &stack, &g_pool.main.stack_bytes);
  pthread_attr_destroy(&attributes);
  g_pool.main.stack = static_cast<std::byte*>(stack);
#endif
}

}  // namespace

Fiber* NewFiber(void (*entry)()) {
  Fiber* fiber = nullptr;
  if (g_pool.free.empty()) {
    fiber = AddFiber();
  } else {
    fiber = g_pool.free.back();
    g_pool.free.pop_back();
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber->stack, fiber->stack_bytes);
  fiber->asan_stack = nullptr;
#endif
  fiber->entry = entry;
  fiber->context =
      context::make_fcontext(fiber->stack + fiber->stack_bytes, fiber->stack_bytes, EnterFiber);
  return fiber;
}

void ReleaseFiber(Fiber* fiber) { g_pool.free.push_back(fiber); }

void ReleaseAllFibers() {
  g_pool.free.clear();
  for (Fiber& fiber : g_pool.fibers) g_pool.free.push_back(&fiber);
}

void Jump(Fiber* to) {
  if (g_pool.running == nullptr) SetMainBounds();  // Another thread of the host each time.
  Fiber* from = g_pool.running == nullptr ? &g_pool.main : g_pool.running;
  g_pool.running = to;
  if (to == nullptr) to = &g_pool.main;
  BeforeJump(from, to);
  const context::transfer_t transfer = context::jump_fcontext(to->context, from);
  AfterJump(from);
  Arrived(transfer);
}

void RunOnLargeStack(const std::function<void()>& body) {
  constexpr size_t kLarge = 1 << 20;
  static const std::function<void()>* run = nullptr;
  run = &body;
  Fiber fiber;
  fiber.stack = MapStack(kStacks + kStackPool, kLarge);
  fiber.stack_bytes = kLarge;
  fiber.entry = [] { (*run)(); };
  fiber.context = context::make_fcontext(fiber.stack + kLarge, kLarge, EnterFiber);
  Jump(&fiber);
  std::abort();
}

}  // namespace cudahost
