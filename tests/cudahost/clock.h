// Which accesses of a kernel are ordered. One counter ticks at every start of a block, barrier and
// __syncwarp; an access is marked with the tick at which its thread was last ordered with others.
//
//   tick < launch                     an earlier launch: ordered
//   tick < block                      another block of this launch: a conflict
//   tick < barrier                    before this block's last barrier: ordered
//   otherwise, another warp           a conflict
//   otherwise, another lane           ordered only by a __syncwarp that both lanes took part in
//
// Shuffles and votes order nothing: CUDA says that they imply no memory barrier.
#ifndef BITSHARD_TESTS_CUDAHOST_CLOCK_H_
#define BITSHARD_TESTS_CUDAHOST_CLOCK_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace cudahost {

inline constexpr uint32_t kLanes = 32;
inline constexpr uint32_t kMaxThreads = 1024;
inline constexpr size_t kCommonReads = 64;

struct WarpClock {
  uint32_t full_sync = 0;  // The tick that the last __syncwarp of all lanes began.
  // Whether some did not name all lanes; then known[me][lane]: accesses of `lane` up to that tick
  // are ordered before mine.
  bool partial = false;
  uint32_t known[kLanes][kLanes];
};

struct Clock {
  uint32_t now = 0;
  uint32_t launch = 0;
  uint32_t block = 0;
  uint32_t barrier = 0;
  uint32_t thread = 0;  // The one that runs, in its block.
  uint64_t access = 0;  // What the running thread's accesses have in common (check_record.h).
  // `launch`, `block` and `barrier` as the smallest access of that tick.
  uint64_t launch_word = 0;
  uint64_t block_word = 0;
  uint64_t barrier_word = 0;
  const WarpClock* warp = nullptr;
  uint32_t ticks[kMaxThreads] = {};
  uintptr_t common_reads[kCommonReads] = {};          // Of this launch (check_fast.h).
  std::vector<std::pair<uint32_t, uint64_t>> blocks;  // Of this launch: first tick, block.
};

extern Clock g_clock;

void ClockLaunch();
void ClockBlock(uint64_t block, uint32_t threads);
void ClockBarrier();
void ClockSyncWarp(uint32_t warp, uint32_t mask, uint32_t all_lanes);
void ClockSwitchTo(uint32_t thread);
// The block that ran at a tick of this launch.
uint64_t BlockAt(uint32_t tick);
// Whether the access of a thread of this block and barrier epoch is ordered before the running
// thread's next one.
inline bool OrderedInWarp(uint32_t tick, uint32_t thread) {
  const WarpClock& warp = *g_clock.warp;
  if (tick < warp.full_sync) return true;
  return warp.partial && tick <= warp.known[g_clock.thread % kLanes][thread % kLanes];
}

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_CLOCK_H_
