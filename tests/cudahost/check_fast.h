// The accesses that nearly all are, without a call: initialised device or shared memory, last
// touched by an earlier launch, before the last barrier or by the thread itself. Everything else is
// left to OnAccess (check.h), which decides anew; so what stands here may only be too careful.
#ifndef BITSHARD_TESTS_CUDAHOST_CHECK_FAST_H_
#define BITSHARD_TESTS_CUDAHOST_CHECK_FAST_H_

#include <cstdint>
#include <cstring>

#include "tests/cudahost/check_record.h"
#include "tests/cudahost/fiber.h"
#include "tests/cudahost/sched.h"
#include "tests/cudahost/shadow.h"

namespace cudahost {

// Whether the running thread made this access since its block began, alone.
inline bool Mine(uint64_t word) {
  return word >= g_clock.block_word && ((word ^ g_clock.access) & uint64_t{1023} << 26) == 0 &&
         FlagsOf(word) == 0;
}

template <bool kWrite, bool kShared>
[[gnu::always_inline]] inline bool FastRecord(Record* record, uint64_t access) {
  const uint64_t writer = record->writer;
  const uint64_t reader = record->reader;
  if (kShared) {
    if (writer >= g_clock.barrier_word && !Mine(writer)) return false;
    if (!kWrite) {
      if (reader < g_clock.barrier_word) {
        record->reader = access;
        return true;
      }
      return FlagsOf(reader) == kSeveralWarps && reader != kSplit;
    }
    if (reader >= g_clock.barrier_word && !Mine(reader)) return false;
  } else {
    if (writer >= g_clock.launch_word && !Mine(writer)) return false;
    if (reader >= g_clock.launch_word && !Mine(reader)) return false;
    if (!kWrite) {
      record->reader = access;
      return true;
    }
  }
  record->writer = access;
  return true;
}

// The states of kBytes bytes: all initialised; for a write, made so when they are plain and live.
template <size_t kBytes, bool kWrite>
[[gnu::always_inline]] inline bool FastStates(uintptr_t p) {
  constexpr size_t kChunk = kBytes < 8 ? kBytes : 8;
  constexpr uint64_t kOnes = ~uint64_t{0} / 255 >> (64 - 8 * kChunk);
  for (size_t i = 0; i < kBytes; i += kChunk) {
    uint64_t states = 0;
    std::memcpy(&states, StatesAt(p + i), kChunk);
    if (states == kOnes * (kLive | kInitialised)) continue;
    if (!kWrite || states != kOnes * kLive) return false;
    states = kOnes * (kLive | kInitialised);
    std::memcpy(StatesAt(p + i), &states, kChunk);
  }
  return true;
}

template <size_t kBytes, bool kWrite, bool kShared>
[[gnu::always_inline]] inline bool FastRecords(uintptr_t p, uint64_t access) {
  auto* word = reinterpret_cast<Record*>(kRecords + (p - kRegion) / 4 * sizeof(Record));
  if constexpr (kBytes < 4) {
    if (word->reader != kSplit) return false;
    auto* bytes = reinterpret_cast<Record*>(kByteRecords + (p - kRegion) * sizeof(Record));
    for (size_t i = 0; i < kBytes; ++i) {
      if (!FastRecord<kWrite, kShared>(bytes + i, access)) return false;
    }
    return true;
  }
  for (size_t i = 0; i < kBytes / 4; ++i) {
    if (!FastRecord<kWrite, kShared>(word + i, access)) return false;
  }
  return true;
}

// False when OnAccess must look.
template <size_t kBytes, bool kWrite>
[[gnu::always_inline]] inline bool FastAccess(const void* pointer, uintptr_t pc) {
  const uintptr_t p = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t frame = reinterpret_cast<uintptr_t>(__builtin_dwarf_cfa());  // Needs no %rbp.
  const bool on_fiber = InStackPool(frame);
  if (!InRegion(p)) return !on_fiber || OnSameStack(p, frame);
  if (!on_fiber || !g_kernel_code || p % kBytes != 0) return false;
  if (!FastStates<kBytes, kWrite>(p)) return false;
  const uint64_t offset = pc - reinterpret_cast<uintptr_t>(&__executable_start);
  const uint64_t access = g_clock.access | (offset < 0x1000000 ? offset : 0);
  return p - kRegion < kSharedBytes ? FastRecords<kBytes, kWrite, true>(p, access)
                                    : FastRecords<kBytes, kWrite, false>(p, access);
}

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_CHECK_FAST_H_
