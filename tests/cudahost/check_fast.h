// The accesses that nearly all are, without a call: aligned ones of up to four words, initialised
// and ordered, by a kernel or in its own stack. Everything else is left to OnAccess (check.h),
// which decides anew; so what stands here may only be too careful.
#ifndef BITSHARD_TESTS_CUDAHOST_CHECK_FAST_H_
#define BITSHARD_TESTS_CUDAHOST_CHECK_FAST_H_

#include <cstdint>
#include <cstring>

#include "tests/cudahost/check.h"
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

// The same of readers, when the running thread writes. Of a quad it is right for a write, too,
// which has no readers.
CUDAHOST_FAST bool FastReadersOrdered(uint64_t reader, uint64_t floor) {
  if (reader < floor) return true;
  if (reader >= g_clock.barrier_word) {
    return SameThread(reader, g_clock.access) && ReadersOf(reader) == kOneReader;
  }
  return reader >= g_clock.block_word && ReadersOf(reader) != kSeveralBlocks;
}

// Whether nothing changes when one more thread reads: all blocks, or since the last barrier all
// warps, have to be thought readers as it is. Then no write has been let through since, and the one
// before them was found to be ordered with any reader.
CUDAHOST_FAST bool ReadByAll(uint64_t reader, uint64_t floor) {
  if (reader < floor) return false;
  const uint64_t readers = ReadersOf(reader);
  return readers == kSeveralBlocks || (readers == kSeveralWarps && reader >= g_clock.barrier_word);
}

// MergeReader (check_record.h), for readers that are not ReadByAll.
CUDAHOST_FAST uint64_t FastMergeReader(uint64_t before, uint64_t access, uint64_t floor) {
  if (before < floor) return access;
  if (before < g_clock.block_word) return WithFlags(access, kSeveralBlocks);
  if (before < g_clock.barrier_word) return access;
  if (!SameWarp(before, access)) return WithFlags(access, kSeveralWarps);
  if (SameThread(before, access)) return WithFlags(access, ReadersOf(before));
  return TickOf(before) < g_clock.warp->full_sync ? access : WithFlags(access, kSeveralLanes);
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

// The record of a word of which the states are known to be right.
template <bool kWrite>
CUDAHOST_FAST bool FastRecord(Record* record, uint64_t access, uint64_t floor) {
  if (!FastWriterOrdered(record->writer, floor)) return false;
  if (!kWrite) {
    record->reader = FastMergeReader(record->reader, access, floor);
    return true;
  }
  if (!FastReadersOrdered(record->reader, floor)) return false;
  record->writer = access;
  return true;
}

// Whether the record of a word is that of the word. Halves that are older than `floor` may be
// forgotten.
CUDAHOST_FAST bool FastWhole(Record* word, uint64_t floor) {
  if (!IsInParts(*word)) return true;
  if (word->reader >= floor || word->writer >= floor) return false;
  *word = {};
  return true;
}

// A word of shared memory: what this block wrote is live and initialised.
template <bool kWrite>
CUDAHOST_FAST bool FastShared(uintptr_t p, uint64_t access) {
  const uint64_t floor = g_clock.block_word;
  Record* record = WordRecord(p);
  if (!FastWhole(record, floor)) return false;
  if (!kWrite && ReadByAll(record->reader, floor)) return true;
  if (record->writer < floor && (!kWrite || !FastStates<4, true>(p))) return false;
  return FastRecord<kWrite>(record, access, floor);
}

// A word of device memory.
template <bool kWrite>
CUDAHOST_FAST bool FastWord(uintptr_t p, uint64_t access) {
  const uint64_t floor = g_clock.launch_word;
  Record* record = WordRecord(p);
  if (!FastWhole(record, floor)) return false;
  if (HasFlag(record->writer, kPlain)) {
    if (!kWrite && ReadByAll(record->reader, floor)) return true;
  } else {
    if (*PlainLine(p) == 0 && !FastStates<4, kWrite>(p)) return false;
    record->writer = WithFlags(record->writer, kPlain);
  }
  return FastRecord<kWrite>(record, kWrite ? WithFlags(access, kPlain) : access, floor);
}

// What is touched for the first time in a launch lies in memory, and the block's other threads
// will want what lies beside it.
CUDAHOST_FAST void FetchNeighbours(uintptr_t p, const uint64_t* record, bool plain) {
  const char* data = reinterpret_cast<const char*>(p);
  __builtin_prefetch(reinterpret_cast<const char*>(record) + kLineBytes, 1);
  for (uintptr_t line = 1; line <= 2; ++line) {
    __builtin_prefetch(data + line * kLineBytes);
    if (!plain) __builtin_prefetch(StatesAt(p) + line * kLineBytes, 1);
  }
}

// The last access of a quad or half of which the states are known to be right. `flags`: what its
// record keeps. False where it would have to hold a writer and a reader.
template <bool kWrite>
CUDAHOST_FAST bool FastLast(uint64_t* last, uint64_t access, uint64_t floor, uint64_t flags) {
  const uint64_t before = *last;
  if (kWrite) {
    if (!FastReadersOrdered(before, floor)) return false;
    *last = WithFlags(access, flags | kWritten);
  } else if (before >= floor && HasFlag(before, kWritten)) {
    return SameThreadAndTick(before, access);
  } else if (!ReadByAll(before, floor)) {
    *last = WithFlags(FastMergeReader(before, access, floor), flags);
  }
  return true;
}

// A quad of device memory that is not split.
template <bool kWrite>
CUDAHOST_FAST bool FastQuad(uintptr_t p, uint64_t* record, uint64_t access) {
  const uint64_t floor = g_clock.launch_word;
  const bool plain = HasFlag(*record, kPlain) || *PlainLine(p) != 0;
  if (*record < floor) FetchNeighbours(p, record, plain);
  if (!plain && !(FastStates<8, kWrite>(p) && FastStates<8, kWrite>(p + 8))) return false;
  return FastLast<kWrite>(record, access, floor, kPlain);
}

// Whether the words of a quad have records of their own. Where this launch has not touched it they
// are as old as the quad's, and may as well be used.
CUDAHOST_FAST bool FastSplit(uint64_t* quad) {
  if (*quad < g_clock.launch_word) *quad = kSplit;
  return *quad == kSplit;
}

// Whether the halves of a word, or its bytes, have records of their own. As in FastSplit.
template <size_t kBytes>
CUDAHOST_FAST bool FastSplitWord(Record* word, uint64_t floor) {
  if (kBytes == 1 ? word->reader == kSplit : IsInParts(*word)) return true;
  if (word->reader >= floor || word->writer >= floor) return false;
  *word = {0, kBytes == 1 ? kSplit : WithFlags(0, kHalves)};
  return true;
}

// A byte or a half.
template <size_t kBytes, bool kWrite>
CUDAHOST_FAST bool FastPart(uintptr_t p, uint64_t access) {
  const bool shared = p - kRegion < kSharedBytes;
  const uint64_t floor = shared ? g_clock.block_word : g_clock.launch_word;
  Record* word = WordRecord(p);
  if (!shared && !FastSplit(QuadRecord(p))) return false;
  if (!FastSplitWord<kBytes>(word, floor)) return false;
  if (*PlainLine(p) == 0 && !FastStates<kBytes, kWrite>(p)) return false;
  if (word->reader != kSplit) {
    return p % 4 == 0 ? FastLast<kWrite>(&word->writer, access, floor, 0)
                      : FastLast<kWrite>(&word->reader, access, floor, kHalves);
  }
  for (Record* byte = ByteRecord(p); byte != ByteRecord(p + kBytes); ++byte) {
    if (!kWrite && ReadByAll(byte->reader, floor)) continue;
    if (!FastRecord<kWrite>(byte, access, floor)) return false;
  }
  return true;
}

// What the callbacks go through one after the other: each is small enough to need no register
// saved, and ends in the next one.
template <size_t kBytes, bool kWrite>
[[gnu::noinline]] void CheckSlowly(uintptr_t p, uintptr_t pc) {
  OnAccess(kWrite ? Access::kWrite : Access::kRead, reinterpret_cast<const void*>(p), kBytes, pc);
}

template <size_t kBytes, bool kWrite>
void CheckAccess(const void* pointer, uintptr_t pc);

// Some of what all blocks read, the pointers and sizes of a table above all: 8 bytes of which one
// more read changes nothing before the launch ends (ReadByAll).
CUDAHOST_FAST uintptr_t* CommonRead(uintptr_t p) {
  return g_clock.common_reads + p / 8 % kCommonReads;
}

// The first access of a chunk of records.
template <size_t kBytes, bool kWrite>
[[gnu::noinline, gnu::cold]] void CheckFirst(uintptr_t p, uintptr_t pc) {
  const uintptr_t quad = reinterpret_cast<uintptr_t>(QuadRecord(p));
  if (*QuadsBrought(quad) == 0) BringRecords(quad, QuadsBrought(quad));
  const uintptr_t word = reinterpret_cast<uintptr_t>(WordRecord(p));
  if (kBytes < 16 && *WordsBrought(word) == 0) BringRecords(word, WordsBrought(word));
  CheckAccess<kBytes, kWrite>(reinterpret_cast<const void*>(p), pc);
}

template <size_t kBytes, bool kWrite>
[[gnu::noinline]] void CheckShared(uintptr_t p, uintptr_t pc) {
  const uint64_t access = ThisAccess(pc);
  for (size_t i = 0; i < kBytes; i += 4) {
    if (!FastShared<kWrite>(p + i, access)) {
      return CheckSlowly<kBytes, kWrite>(p, pc);
    }
  }
}

// Device memory whose quad is split.
template <size_t kBytes, bool kWrite>
[[gnu::noinline]] void CheckWords(uintptr_t p, uintptr_t pc) {
  const uint64_t access = ThisAccess(pc);
  const Record* word = WordRecord(p);
  if (kBytes < 16 && word->reader == 0 && *WordsBrought(reinterpret_cast<uintptr_t>(word)) == 0)
      [[unlikely]] {
    return CheckFirst<kBytes, kWrite>(p, pc);
  }
  for (size_t i = 0; i < kBytes; i += 4) {
    if (!FastWord<kWrite>(p + i, access)) {
      return CheckSlowly<kBytes, kWrite>(p, pc);
    }
  }
  if (kBytes == 8 && !kWrite && ReadersOf(word[0].reader & word[1].reader) == kSeveralBlocks) {
    *CommonRead(p) = p;
  }
}

template <size_t kBytes, bool kWrite>
[[gnu::noinline]] void CheckParts(uintptr_t p, uintptr_t pc) {
  const Record* word = WordRecord(p);
  if (word->reader == 0 && *WordsBrought(reinterpret_cast<uintptr_t>(word)) == 0) [[unlikely]]
    return CheckFirst<kBytes, kWrite>(p, pc);
  if (!FastPart<kBytes, kWrite>(p, ThisAccess(pc))) {
    CheckSlowly<kBytes, kWrite>(p, pc);
  }
}

// An access of the region, in kernel code.
template <size_t kBytes, bool kWrite>
CUDAHOST_FAST void CheckRegion(uintptr_t p, uintptr_t pc) {
  if (p % kBytes != 0) [[unlikely]]
    return CheckSlowly<kBytes, kWrite>(p, pc);
  if constexpr (kBytes < 4) {
    CheckParts<kBytes, kWrite>(p, pc);
  } else {
    if (p - kRegion < kSharedBytes) return CheckShared<kBytes, kWrite>(p, pc);
    uint64_t* quad = QuadRecord(p);
    if (kBytes == 16 && *quad != kSplit) {
      if (*quad == 0 && *QuadsBrought(reinterpret_cast<uintptr_t>(quad)) == 0) [[unlikely]] {
        return CheckFirst<kBytes, kWrite>(p, pc);
      }
      if (FastQuad<kWrite>(p, quad, ThisAccess(pc))) [[likely]]
        return;
    } else if (kBytes == 16 || FastSplit(quad)) {
      return CheckWords<kBytes, kWrite>(p, pc);
    }
    CheckSlowly<kBytes, kWrite>(p, pc);
  }
}

// Any number of whole words.
template <bool kWrite>
CUDAHOST_FAST bool FastRange(uintptr_t p, size_t bytes, uintptr_t pc) {
  if (p % 4 != 0 || bytes % 4 != 0) return false;
  const uint64_t access = ThisAccess(pc);
  const bool shared = p - kRegion < kSharedBytes;
  for (const uintptr_t end = p + bytes; p < end; p += 4) {
    if (shared) {
      if (!FastShared<kWrite>(p, access)) return false;
      continue;
    }
    uint64_t* quad = QuadRecord(p);
    if (p % 16 == 0 && end - p >= 16 && *quad != kSplit) {
      if (!FastQuad<kWrite>(p, quad, access)) return false;
      p += 12;
    } else if (!FastSplit(quad) || !FastWord<kWrite>(p, access)) {
      return false;
    }
  }
  return true;
}

// Of the stack that runs. `frame`: any address in it.
CUDAHOST_FAST bool FastOwnStack(const void* pointer, const void* frame) {
  return OnSameStack(reinterpret_cast<uintptr_t>(pointer), reinterpret_cast<uintptr_t>(frame));
}

// An access that is not of the own stack.
template <size_t kBytes, bool kWrite>
[[gnu::noinline]] void CheckAccess(const void* pointer, uintptr_t pc) {
  const uintptr_t p = reinterpret_cast<uintptr_t>(pointer);
  if (!InStackPool(reinterpret_cast<uintptr_t>(__builtin_dwarf_cfa()))) [[unlikely]] {
    if (InRegion(p)) CheckSlowly<kBytes, kWrite>(p, pc);
  } else if (kBytes == 8 && !kWrite && *CommonRead(p) == p) {
    return;
  } else if (InRegion(p) && g_kernel_code) [[likely]] {
    CheckRegion<kBytes, kWrite>(p, pc);
  } else if (!InProgram(p)) {
    CheckSlowly<kBytes, kWrite>(p, pc);
  }
}

template <bool kWrite>
[[gnu::noinline]] void CheckRange(const void* pointer, size_t bytes, uintptr_t pc) {
  const uintptr_t p = reinterpret_cast<uintptr_t>(pointer);
  if (g_kernel_code && InRegion(p) &&
      InStackPool(reinterpret_cast<uintptr_t>(__builtin_dwarf_cfa())) &&
      FastRange<kWrite>(p, bytes, pc)) {
    return;
  }
  OnAccess(kWrite ? Access::kWrite : Access::kRead, pointer, bytes, pc);
}

#undef CUDAHOST_FAST

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_CHECK_FAST_H_
