// The accesses that nearly all are, without a call: aligned ones of whole words, initialised and
// ordered, by a kernel or in its own stack. Everything else is left to OnAccess (check.h), which
// decides anew; so what stands here may only be too careful.
#ifndef BITSHARD_TESTS_CUDAHOST_CHECK_FAST_H_
#define BITSHARD_TESTS_CUDAHOST_CHECK_FAST_H_

#include <cstdint>
#include <cstring>

#include "tests/cudahost/check_record.h"
#include "tests/cudahost/fiber.h"
#include "tests/cudahost/sched.h"
#include "tests/cudahost/shadow.h"

namespace cudahost {

#define CUDAHOST_FAST [[gnu::always_inline]] inline

// Whether a writer is ordered before the running thread, whatever the state of warps. `floor`: as
// in check_record.h.
CUDAHOST_FAST bool FastWriterOrdered(uint64_t writer, uint64_t floor) {
  if (writer < floor) return true;
  if (writer >= g_clock.barrier_word) return SameThread(writer, g_clock.access);
  return writer >= g_clock.block_word;
}

// The same of readers, when the running thread writes.
CUDAHOST_FAST bool FastReadersOrdered(uint64_t reader, uint64_t floor) {
  if (reader < floor) return true;
  if (reader >= g_clock.barrier_word) {
    return SameThread(reader, g_clock.access) && FlagsOf(reader) == kOneReader;
  }
  return reader >= g_clock.block_word && FlagsOf(reader) != kSeveralBlocks;
}

// MergeReader (check_record.h); false for a word whose bytes have records of their own.
CUDAHOST_FAST bool FastMergeReader(Record* record, uint64_t access, uint64_t floor) {
  const uint64_t before = record->reader;
  uint64_t flags = 0;
  if (before >= floor) {
    flags = FlagsOf(before);
    if (flags == kSeveralBlocks) return before != kSplit;
    if (before < g_clock.block_word) {
      flags = kSeveralBlocks;
    } else if (before < g_clock.barrier_word) {
      flags = kOneReader;
    } else if (flags == kSeveralWarps) {
      return true;
    } else if (!SameWarp(before, access)) {
      flags = kSeveralWarps;
    } else if (!SameThread(before, access)) {
      flags = TickOf(before) < g_clock.warp->full_sync ? kOneReader : kSeveralLanes;
    }
  }
  record->reader = WithFlags(access, flags);
  return true;
}

// Whether all kBytes bytes are live, initialised and only kernels' to see; a write makes them
// initialised.
template <size_t kBytes, bool kWrite>
CUDAHOST_FAST bool FastStates(uintptr_t p) {
  constexpr uint64_t kOnes = ~uint64_t{0} / 255 >> (64 - 8 * kBytes);
  uint64_t states = 0;
  std::memcpy(&states, StatesAt(p), kBytes);
  if (states == kOnes * (kLive | kInitialised)) return true;
  if (!kWrite || states != kOnes * kLive) return false;
  states = kOnes * (kLive | kInitialised);
  std::memcpy(StatesAt(p), &states, kBytes);
  return true;
}

// A word of shared memory: what this block wrote is live and initialised.
template <bool kWrite>
CUDAHOST_FAST bool FastShared(uintptr_t p, Record* record, uint64_t access) {
  const uint64_t floor = g_clock.block_word;
  if (record->writer < floor) {
    if (!kWrite || record->reader == kSplit || !FastStates<4, true>(p)) return false;
  } else if (!FastWriterOrdered(record->writer, floor)) {
    return false;
  }
  if (!kWrite) return FastMergeReader(record, access, floor);
  if (!FastReadersOrdered(record->reader, floor)) return false;
  record->writer = access;
  return true;
}

// A word or a quad of device memory.
template <size_t kBytes, bool kWrite>
CUDAHOST_FAST bool FastDevice(uintptr_t p, Record* record, uint64_t access) {
  const uint64_t floor = g_clock.launch_word;
  const uint64_t writer = record->writer;
  if ((FlagsOf(writer) & kPlain) == 0) {
    if (record->reader == kSplit) return false;
    for (size_t i = 0; i < kBytes; i += 4) {
      if (!FastStates<4, kWrite>(p + i)) return false;
    }
    record->writer = WithFlags(writer, kPlain);
  }
  if (!FastWriterOrdered(writer, floor)) return false;
  if (!kWrite) return FastMergeReader(record, access, floor);
  if (!FastReadersOrdered(record->reader, floor)) return false;
  record->writer = WithFlags(access, kPlain);
  return true;
}

// Whether the words of a quad have records of their own; makes a quad so that was never touched.
CUDAHOST_FAST bool FastSplit(Record* quad) {
  if (quad->reader == kSplit) return true;
  if ((quad->reader | quad->writer) != 0) return false;
  quad->reader = kSplit;
  return true;
}

// kBytes < 4: bytes whose word has been touched in parts before.
template <size_t kBytes, bool kWrite>
CUDAHOST_FAST bool FastBytes(uintptr_t p, const Record* word, uint64_t access) {
  if (word->reader != kSplit || !FastStates<kBytes, kWrite>(p)) return false;
  const uint64_t floor = p - kRegion < kSharedBytes ? g_clock.block_word : g_clock.launch_word;
  Record* bytes = ByteRecord(p);
  for (size_t i = 0; i < kBytes; ++i) {
    if (!FastWriterOrdered(bytes[i].writer, floor)) return false;
    if (!kWrite) {
      if (!FastMergeReader(bytes + i, access, floor)) return false;
    } else {
      if (!FastReadersOrdered(bytes[i].reader, floor)) return false;
      bytes[i].writer = access;
    }
  }
  return true;
}

// False when OnAccess must look.
template <size_t kBytes, bool kWrite>
CUDAHOST_FAST bool FastAccess(const void* pointer, uintptr_t pc) {
  const uintptr_t p = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t frame = reinterpret_cast<uintptr_t>(__builtin_dwarf_cfa());  // Needs no %rbp.
  if (!InRegion(p)) return OnSameStack(p, frame) || !InStackPool(frame);
  if (!g_kernel_code || p % kBytes != 0 || !InStackPool(frame)) return false;
  const uint64_t access = ThisAccess(pc);
  if constexpr (kBytes < 4) return FastBytes<kBytes, kWrite>(p, WordRecord(p), access);
  if (p - kRegion < kSharedBytes) {
    for (size_t i = 0; i < kBytes; i += 4) {
      if (!FastShared<kWrite>(p + i, WordRecord(p + i), access)) return false;
    }
    return true;
  }
  Record* quad = QuadRecord(p);
  if (kBytes == 16 && quad->reader != kSplit) return FastDevice<16, kWrite>(p, quad, access);
  if (kBytes < 16 && !FastSplit(quad)) return false;
  for (size_t i = 0; i < kBytes; i += 4) {
    if (!FastDevice<4, kWrite>(p + i, WordRecord(p + i), access)) return false;
  }
  return true;
}

#undef CUDAHOST_FAST

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_CHECK_FAST_H_
