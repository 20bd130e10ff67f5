// The functions that g++ -fsanitize=thread calls, in place of that sanitizer's runtime. Atomics of
// host code are carried out as they are; kernels use those of tests/cudahost/cudahost.h.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tests/cudahost/check.h"
#include "tests/cudahost/check_fast.h"

#define CUDAHOST_RETURN reinterpret_cast<uintptr_t>(__builtin_return_address(0))

#define CUDAHOST_ACCESS(name, access, bytes)                                      \
  void __tsan_##name(void* p) {                                                   \
    constexpr bool kWrite = cudahost::Access::access == cudahost::Access::kWrite; \
    if (cudahost::FastOwnStack(p, __builtin_dwarf_cfa())) return;                 \
    cudahost::CheckAccess<bytes, kWrite>(p, CUDAHOST_RETURN);                     \
  }
#define CUDAHOST_ACCESSES(bytes)                       \
  CUDAHOST_ACCESS(read##bytes, kRead, bytes)           \
  CUDAHOST_ACCESS(write##bytes, kWrite, bytes)         \
  CUDAHOST_ACCESS(unaligned_read##bytes, kRead, bytes) \
  CUDAHOST_ACCESS(unaligned_write##bytes, kWrite, bytes)

#define CUDAHOST_ATOMIC_UPDATE(bits, type, name, builtin)            \
  type __tsan_atomic##bits##_##name(volatile type* p, type v, int) { \
    return builtin(p, v, __ATOMIC_SEQ_CST);                          \
  }
#define CUDAHOST_ATOMICS(bits, type)                                                               \
  type __tsan_atomic##bits##_load(const volatile type* p, int) {                                   \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile type* p, type v, int) {                                \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  CUDAHOST_ATOMIC_UPDATE(bits, type, exchange, __atomic_exchange_n)                                \
  CUDAHOST_ATOMIC_UPDATE(bits, type, fetch_add, __atomic_fetch_add)                                \
  CUDAHOST_ATOMIC_UPDATE(bits, type, fetch_sub, __atomic_fetch_sub)                                \
  CUDAHOST_ATOMIC_UPDATE(bits, type, fetch_and, __atomic_fetch_and)                                \
  CUDAHOST_ATOMIC_UPDATE(bits, type, fetch_or, __atomic_fetch_or)                                  \
  CUDAHOST_ATOMIC_UPDATE(bits, type, fetch_xor, __atomic_fetch_xor)                                \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* expected, type v, int, \
                                                    int) {                                         \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* p, type* expected, type v, int,   \
                                                  int) {                                           \
    return __atomic_compare_exchange_n(p, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);  \
  }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
CUDAHOST_ACCESS(read1, kRead, 1)
CUDAHOST_ACCESS(write1, kWrite, 1)
CUDAHOST_ACCESSES(2)
CUDAHOST_ACCESSES(4)
CUDAHOST_ACCESSES(8)
CUDAHOST_ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) {
  if (cudahost::FastOwnStack(p, __builtin_dwarf_cfa())) return;
  cudahost::CheckRange<false>(p, bytes, CUDAHOST_RETURN);
}
void __tsan_write_range(void* p, size_t bytes) {
  if (cudahost::FastOwnStack(p, __builtin_dwarf_cfa())) return;
  cudahost::CheckRange<true>(p, bytes, CUDAHOST_RETURN);
}
// What device_functions.h makes of memcpy, memmove and memset, which are not instrumented.
void* cudahost_memcpy(void* to, const void* from, size_t bytes) noexcept {
  cudahost::OnAccess(cudahost::Access::kRead, from, bytes, CUDAHOST_RETURN);
  cudahost::OnAccess(cudahost::Access::kWrite, to, bytes, CUDAHOST_RETURN);
  return std::memmove(to, from, bytes);
}
void* cudahost_memset(void* to, int value, size_t bytes) noexcept {
  cudahost::OnAccess(cudahost::Access::kWrite, to, bytes, CUDAHOST_RETURN);
  return std::memset(to, value, bytes);
}
CUDAHOST_ATOMICS(8, uint8_t)
CUDAHOST_ATOMICS(16, uint16_t)
CUDAHOST_ATOMICS(32, uint32_t)
CUDAHOST_ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

}  // extern "C"
