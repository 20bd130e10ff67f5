#include "tests/cudahost/clock.h"

#include <algorithm>
#include <cstring>

#include "tests/cudahost/check_record.h"
#include "tests/cudahost/shadow.h"

namespace cudahost {

Clock g_clock;

namespace {

// Records keep 26 bits of a tick.
constexpr uint32_t kLastTick = (1u << 26) - (1u << 23);

WarpClock g_warps[kMaxThreads / kLanes];

uint32_t Tick() { return ++g_clock.now; }

void BeginLaunch() {
  g_clock.launch = Tick();
  g_clock.blocks.clear();
  std::fill_n(g_clock.common_reads, kCommonReads, 0);
}

void SetWords() {
  g_clock.launch_word = uint64_t{g_clock.launch} << kTickShift;
  g_clock.block_word = uint64_t{g_clock.block} << kTickShift;
  g_clock.barrier_word = uint64_t{g_clock.barrier} << kTickShift;
}

}  // namespace

void ClockLaunch() {
  if (g_clock.now > kLastTick / 2) {
    ClearRecords();
    g_clock.now = 0;
  }
  BeginLaunch();
}

void ClockBlock(uint64_t block, uint32_t threads) {
  if (g_clock.now > kLastTick) {  // A launch of 60 million ticks: what its first half did is lost.
    ClearRecords();
    g_clock.now = 0;
    BeginLaunch();
  }
  g_clock.block = g_clock.barrier = Tick();
  SetWords();
  g_clock.blocks.emplace_back(g_clock.block, block);
  std::fill_n(g_clock.ticks, threads, g_clock.block);
  for (uint32_t warp = 0; warp * kLanes < threads; ++warp) {
    g_warps[warp].full_sync = g_clock.block;
    g_warps[warp].partial = false;
  }
}

void ClockBarrier() {
  g_clock.barrier = Tick();
  SetWords();
  std::fill_n(g_clock.ticks, kMaxThreads, g_clock.barrier);
  for (WarpClock& warp : g_warps) {
    warp.full_sync = g_clock.barrier;
    warp.partial = false;
  }
}

void ClockSyncWarp(uint32_t warp, uint32_t mask, uint32_t all_lanes) {
  WarpClock& clock = g_warps[warp];
  uint32_t* ticks = g_clock.ticks + warp * kLanes;
  const uint32_t tick = Tick();
  if (mask == all_lanes) {
    clock.full_sync = tick;
    clock.partial = false;
    std::fill_n(ticks, kLanes, tick);
    return;
  }
  if (!clock.partial) {
    clock.partial = true;
    std::memset(clock.known, 0, sizeof(clock.known));
  }
  uint32_t joined[kLanes] = {};
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    for (uint32_t of = 0; of < kLanes; ++of) {
      joined[of] = std::max(joined[of], clock.known[lane][of]);
    }
    joined[lane] = std::max(joined[lane], ticks[lane]);
  }
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    std::copy_n(joined, kLanes, clock.known[lane]);
    ticks[lane] = tick;
  }
}

void ClockSwitchTo(uint32_t thread) {
  g_clock.thread = thread;
  g_clock.access = uint64_t{g_clock.ticks[thread]} << kTickShift | uint64_t{thread} << kThreadShift;
  g_clock.warp = &g_warps[thread / kLanes];
}

uint64_t BlockAt(uint32_t tick) {
  const auto after =
      std::upper_bound(g_clock.blocks.begin(), g_clock.blocks.end(), tick,
                       [](uint32_t value, const std::pair<uint32_t, uint64_t>& block) {
                         return value < block.first;
                       });
  return after == g_clock.blocks.begin() ? 0 : std::prev(after)->second;
}

}  // namespace cudahost
