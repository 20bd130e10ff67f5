#include "tests/fuzz/heap_meter.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

// The counters of operator new have to outlive and precede everything else.
constinit std::atomic<int64_t> held_bytes{0};
constinit std::atomic<int64_t> peak_bytes{0};

void* Counted(void* block) {
  if (block == nullptr) throw std::bad_alloc();
  const int64_t now = held_bytes += static_cast<int64_t>(malloc_usable_size(block));
  int64_t peak = peak_bytes;
  while (now > peak && !peak_bytes.compare_exchange_weak(peak, now)) {
  }
  return block;
}

void Free(void* block) {
  if (block == nullptr) return;
  held_bytes -= static_cast<int64_t>(malloc_usable_size(block));
  std::free(block);
}

size_t RoundUp(size_t bytes, std::align_val_t alignment) {
  const size_t mask = static_cast<size_t>(alignment) - 1;
  return (bytes + mask) & ~mask;
}

}  // namespace

void* operator new(size_t bytes) { return Counted(std::malloc(bytes == 0 ? 1 : bytes)); }
void* operator new[](size_t bytes) { return ::operator new(bytes); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return Counted(std::aligned_alloc(static_cast<size_t>(alignment),
                                    RoundUp(bytes == 0 ? 1 : bytes, alignment)));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return ::operator new(bytes, alignment);
}
void operator delete(void* block) noexcept { Free(block); }
void operator delete[](void* block) noexcept { Free(block); }
void operator delete(void* block, size_t) noexcept { Free(block); }
void operator delete[](void* block, size_t) noexcept { Free(block); }
void operator delete(void* block, std::align_val_t) noexcept { Free(block); }
void operator delete[](void* block, std::align_val_t) noexcept { Free(block); }
void operator delete(void* block, size_t, std::align_val_t) noexcept { Free(block); }
void operator delete[](void* block, size_t, std::align_val_t) noexcept { Free(block); }

namespace bitshard::fuzz {

int64_t HeapBytes() { return held_bytes; }
int64_t HeapPeakBytes() { return peak_bytes; }
void ResetHeapPeak() { peak_bytes = held_bytes.load(); }

}  // namespace bitshard::fuzz
