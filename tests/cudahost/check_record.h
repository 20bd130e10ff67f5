// One access in 64 bits, and the rules of clock.h on it.
//
//   63..38 tick   37..28 thread   27..24 flags   23..0 pc, its low bits
//
// A word, or a byte, has its last writer and its last reader. A quad has the last access alone, and
// so has a half of a word that is touched by halves: a write stands for all that was ordered before
// it, and reads that follow reads need no writer. What needs both, a read of what was written
// before, gives the words of the quad, or the bytes of the word, records of their own.
#ifndef BITSHARD_TESTS_CUDAHOST_CHECK_RECORD_H_
#define BITSHARD_TESTS_CUDAHOST_CHECK_RECORD_H_

#include <cstdint>

#include "tests/cudahost/clock.h"
#include "tests/cudahost/shadow.h"

extern "C" const char __executable_start;
extern "C" const char etext;  // Where the program's code ends.
extern "C" const char _end;   // Where its data ends.

namespace cudahost {

// The program's own constants and variables, which a kernel may use.
inline bool InProgram(uintptr_t p) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(&__executable_start);
  return p - begin < reinterpret_cast<uintptr_t>(&_end) - begin;
}

struct Record {
  uint64_t writer;  // Or the first half.
  uint64_t reader;  // Or the second half.
};

inline constexpr int kTickShift = 38;
inline constexpr int kThreadShift = 28;
inline constexpr int kFlagShift = 24;

// Of a reader: since the last write that they are ordered with, how many have read.
inline constexpr uint64_t kOneReader = 0;
inline constexpr uint64_t kSeveralLanes = 1;
inline constexpr uint64_t kSeveralWarps = 2;
inline constexpr uint64_t kSeveralBlocks = 3;
// Of a word's writer.
inline constexpr uint64_t kAtomicWriter = 1;
// Of a word's writer, and of a quad: all its bytes were found to be initialised device memory that
// only kernels can see. What ends that clears the record (heap.cc), so that an access needs no look
// at the states.
inline constexpr uint64_t kPlain = 4;
// Of a quad or half: the access is a write. It has no readers then.
inline constexpr uint64_t kWritten = 8;
// Of a word's second half: the record is that of the two halves, a last access each.
inline constexpr uint64_t kHalves = 4;
// A quad whose words have records of their own; the reader of a word whose bytes have.
inline constexpr uint64_t kSplit = ~uint64_t{0};

inline uint64_t* QuadRecord(uintptr_t p) {
  return reinterpret_cast<uint64_t*>(kQuadRecords + (p - kRegion) / 16 * sizeof(uint64_t));
}
inline Record* WordRecord(uintptr_t p) {
  return reinterpret_cast<Record*>(kRecords + (p - kRegion) / 4 * sizeof(Record));
}
inline Record* ByteRecord(uintptr_t p) {
  return reinterpret_cast<Record*>(kByteRecords + (p - kRegion) * sizeof(Record));
}

inline uint32_t TickOf(uint64_t word) { return static_cast<uint32_t>(word >> kTickShift); }
inline uint32_t ThreadOf(uint64_t word) {
  return static_cast<uint32_t>(word >> kThreadShift) % kMaxThreads;
}
inline uint64_t ReadersOf(uint64_t word) { return word >> kFlagShift & kSeveralBlocks; }
inline bool HasFlag(uint64_t word, uint64_t flag) { return (word & flag << kFlagShift) != 0; }
inline uint64_t WithFlags(uint64_t word, uint64_t flags) { return word | flags << kFlagShift; }
inline uint64_t WithoutFlags(uint64_t word, uint64_t flags) {
  return word & ~(flags << kFlagShift);
}
inline bool SameThread(uint64_t a, uint64_t b) {
  return ((a ^ b) & uint64_t{kMaxThreads - 1} << kThreadShift) == 0;
}
inline bool SameWarp(uint64_t a, uint64_t b) {
  return ((a ^ b) & uint64_t{kMaxThreads - kLanes} << kThreadShift) == 0;
}
inline bool SameThreadAndTick(uint64_t a, uint64_t b) { return (a ^ b) >> kThreadShift == 0; }
// 0 in a program of more than 16 MiB: it could be one of several.
inline uintptr_t PcOf(uint64_t word) {
  constexpr uintptr_t kMask = 0xFFFFFF;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(&__executable_start);
  if (reinterpret_cast<uintptr_t>(&etext) - begin > kMask) return 0;
  return begin + ((word - begin) & kMask);
}

// Whether a word's record is not of the word: its halves or bytes are.
inline bool IsInParts(const Record& word) { return HasFlag(word.reader, kHalves); }

// The running thread's access, with no flags.
inline uint64_t ThisAccess(uintptr_t pc) { return g_clock.access | (pc & 0xFFFFFF); }

// `floor`: accesses before this tick do not count; the begin of the launch, for shared memory that
// of the block.
inline bool ConflictsWithWriter(uint64_t writer, uint32_t floor) {
  const uint32_t tick = TickOf(writer);
  if (tick < floor) return false;
  if (tick < g_clock.block) return true;
  if (tick < g_clock.barrier) return false;
  const uint32_t thread = ThreadOf(writer);
  if (thread == g_clock.thread) return false;
  if (thread / kLanes != g_clock.thread / kLanes) return true;
  return !OrderedInWarp(tick, thread);
}

inline bool ConflictsWithReader(uint64_t reader, uint32_t floor) {
  if (TickOf(reader) < floor) return false;
  const uint64_t flags = ReadersOf(reader);
  if (flags == kOneReader) return ConflictsWithWriter(reader, floor);
  if (flags == kSeveralBlocks || TickOf(reader) < g_clock.block) return true;
  if (TickOf(reader) < g_clock.barrier) return false;
  if (flags == kSeveralWarps || ThreadOf(reader) / kLanes != g_clock.thread / kLanes) return true;
  // Which lanes is not known: after a partial __syncwarp this may miss a race.
  return TickOf(reader) >= g_clock.warp->full_sync && !g_clock.warp->partial;
}

// The reader to remember when the running thread reads what `before` has read.
inline uint64_t MergeReader(uint64_t before, uint64_t access, uint32_t floor) {
  const uint32_t tick = TickOf(before);
  if (tick < floor) return access;
  const uint64_t flags = ReadersOf(before);
  if (tick < g_clock.block || flags == kSeveralBlocks) return WithFlags(access, kSeveralBlocks);
  if (tick < g_clock.barrier) return access;
  const uint32_t thread = ThreadOf(before);
  if (thread == g_clock.thread) return WithFlags(access, flags);
  if (flags == kSeveralWarps || thread / kLanes != g_clock.thread / kLanes) {
    return WithFlags(access, kSeveralWarps);
  }
  if (tick < g_clock.warp->full_sync) return access;
  return WithFlags(access, kSeveralLanes);
}

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_CHECK_RECORD_H_
