#include "tests/cudahost/sched.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "tests/cudahost/heap.h"
#include "tests/cudahost/sched_state.h"
#include "tests/cudahost/shadow.h"
#include "tests/cudahost/symbols.h"

namespace cudahost {

// The definitions of what the real headers declare as `extern const`: a thread only ever sees its
// own values, so compilers may keep them in registers.
uint3 g_thread_index asm("threadIdx");
uint3 g_block_index asm("blockIdx");
dim3 g_block_dim asm("blockDim");
dim3 g_grid_dim asm("gridDim");
int g_warp_size asm("warpSize") = kLanes;

bool g_kernel_code = false;

namespace internal {
Scheduler g_sched;
}

namespace {

using internal::At;
using internal::g_sched;
using internal::State;
using internal::Thread;
using internal::ThreadText;
using internal::Whereabouts;

uint64_t SeedFromEnvironment() {
  const char* text = std::getenv("BITSHARD_CUDAHOST_SEED");
  return text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
}
uint64_t g_seed = SeedFromEnvironment();

// SplitMix64 (Steele et al. 2014): neighbouring seeds give unrelated orders.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

uint32_t RandomBelow(size_t n) {
  uint64_t& x = g_sched.random;  // xorshift64 (Marsaglia 2003)
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return static_cast<uint32_t>((x >> 32) * static_cast<uint64_t>(n) >> 32);
}

uint3 Unflatten(uint64_t flat, const dim3& shape) {
  const uint64_t row = flat / shape.x;
  return {static_cast<unsigned>(flat % shape.x), static_cast<unsigned>(row % shape.y),
          static_cast<unsigned>(row / shape.y)};
}

std::string Text(const uint3& at) {
  return "(" + std::to_string(at.x) + "," + std::to_string(at.y) + "," + std::to_string(at.z) + ")";
}

std::string BlockText(uint64_t block) {
  const Grid& grid = *g_sched.grid;
  const std::string kernel = grid.name.empty() ? FunctionName(grid.kernel) : grid.name;
  return "kernel " + kernel + ", block " + Text(Unflatten(block, grid.grid));
}

void SwitchTo(uint32_t next) {
  g_sched.current = next;
  g_thread_index = g_sched.threads[next].index;
  ClockSwitchTo(next);
}

uint32_t TakeReady() {
  std::vector<uint32_t>& ready = g_sched.ready;
  const uint32_t at = RandomBelow(ready.size());
  const uint32_t thread = ready[at];
  ready[at] = ready.back();
  ready.pop_back();
  return thread;
}

[[noreturn]] void DieOfDeadlock() {
  Die([] {
    std::string text = "deadlock: no thread can go on: " + BlockText(g_sched.block);
    // One line for each place where threads wait.
    std::vector<std::string> seen;
    for (uint32_t t = 0; t < g_sched.num_threads; ++t) {
      const std::string what = Whereabouts(t);
      const std::string place = what.substr(what.find(')'));
      if (std::find(seen.begin(), seen.end(), place) != seen.end()) continue;
      seen.push_back(place);
      text += "\n  " + what;
    }
    return text;
  });
}

void Exited() {
  const uint32_t me = g_sched.current;
  g_sched.threads[me].state = State::kDone;
  if (g_sched.num_done++ == 0) g_sched.first_done = me;
  if (g_sched.barrier.arrived != 0) {
    Die([me] {
      return "barrier not reached by all threads: " + DescribeThread(g_sched.block, me) +
             " has exited\n  " + Whereabouts(g_sched.barrier.first);
    });
  }
  internal::CheckExitedLane(me);
}

// Runs one thread after the other; a thread that has not started needs no switch.
void FiberMain() {
  while (true) {
    Fiber* self = g_sched.threads[g_sched.current].fiber;
    {
      const internal::KernelScope kernel;
      g_sched.grid->thread(g_sched.grid->args.get());
    }
    Exited();
    if (g_sched.ready.empty()) {
      if (g_sched.num_done != g_sched.num_threads) DieOfDeadlock();
      Jump(nullptr);
    }
    const uint32_t next = TakeReady();
    Thread& thread = g_sched.threads[next];
    SwitchTo(next);
    if (thread.fiber == nullptr) {
      thread.fiber = self;
      continue;
    }
    ReleaseFiber(self);
    Jump(thread.fiber);
  }
}

void CheckBarrier(Vote vote, const Site& site) {
  if (g_sched.num_done != 0) {
    Die([site] {
      return "barrier not reached by all threads: " + DescribeThisThread() +
             " waits in __syncthreads at " + At(site) + "\n  " + Whereabouts(g_sched.first_done);
    });
  }
  const internal::BarrierState& barrier = g_sched.barrier;
  if (barrier.arrived == 0) return;
  if (barrier.vote == vote && internal::SameSite(g_sched.threads[barrier.first].site, site)) return;
  Die([site] {
    return "threads at different barriers: " + DescribeThisThread() + " at " + At(site) + "\n  " +
           Whereabouts(g_sched.barrier.first);
  });
}

void StartBlock(uint64_t block) {
  g_sched.block = block;
  ++g_sched.block_serial;
  g_block_index = Unflatten(block, g_sched.grid->grid);
  g_sched.num_done = 0;
  g_sched.barrier = {};
  g_sched.ready.resize(g_sched.num_threads);
  std::iota(g_sched.ready.begin(), g_sched.ready.end(), 0u);
  for (uint32_t t = 0; t < g_sched.num_threads; ++t) {
    g_sched.threads[t].state = State::kNew;
    g_sched.threads[t].fiber = nullptr;
  }
  for (uint32_t w = 0; w * kLanes < g_sched.num_threads; ++w) {
    const uint32_t count = std::min(kLanes, g_sched.num_threads - w * kLanes);
    internal::Warp& warp = g_sched.warps[w];
    warp.lanes = count == kLanes ? ~0u : (1u << count) - 1;
    warp.exited = 0;
    warp.pending.clear();
  }
  ReleaseAllFibers();
  SharedReset();
  ClockBlock(block, g_sched.num_threads);
}

// Blocks in an order in which neighbours follow each other by chance only. Grids of more blocks
// than can be listed do not occur: each costs at least a microsecond.
std::vector<uint64_t> BlockOrder(uint64_t count) {
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), uint64_t{0});
  for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[RandomBelow(i)]);
  return order;
}

}  // namespace

namespace internal {

void Wait(State state, const Site& site) {
  const uint32_t me = g_sched.current;
  g_sched.threads[me].site = site;
  if (g_sched.threads[me].state != State::kReady) g_sched.threads[me].state = state;
  if (g_sched.ready.empty()) DieOfDeadlock();
  const uint32_t next = TakeReady();
  Thread& thread = g_sched.threads[next];
  SwitchTo(next);
  if (next == me) return;
  if (thread.fiber == nullptr) thread.fiber = NewFiber(FiberMain);
  Jump(thread.fiber);
}

bool SameSite(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string At(const Site& site) { return SourceLine(site.file, site.line); }

std::string ThreadText(uint32_t thread) {
  return "thread " + Text(Unflatten(thread, g_sched.grid->block));
}

std::string Whereabouts(uint32_t thread) {
  const Thread& of = g_sched.threads[thread];
  switch (of.state) {
    case State::kNew:
      return ThreadText(thread) + " has not started";
    case State::kReady:
      return ThreadText(thread) + " runs";
    case State::kAtBarrier:
      return ThreadText(thread) + " waits in __syncthreads at " + At(of.site);
    case State::kInWarpOp:
      return ThreadText(thread) + " waits in " + Name(of.call.op) + " at " + At(of.site);
    case State::kDone:
      return ThreadText(thread) + " has exited";
  }
  return "";
}

}  // namespace internal

void SetSeed(uint64_t seed) {
  g_seed = seed;
  g_sched.grids = 0;
}

uint64_t Seed() { return g_seed; }

void RunGrid(const Grid& grid) {
  ReserveRegion();
  g_sched.grid = &grid;
  g_sched.random = Mix(Mix(g_seed) + g_sched.grids++) | 1;
  g_sched.num_threads = grid.block.x * grid.block.y * grid.block.z;
  g_block_dim = grid.block;
  g_grid_dim = grid.grid;
  for (uint32_t t = 0; t < g_sched.num_threads; ++t) {
    g_sched.threads[t].index = Unflatten(t, grid.block);
  }
  ClockLaunch();
  const uint64_t blocks = uint64_t{grid.grid.x} * grid.grid.y * grid.grid.z;
  for (const uint64_t block : BlockOrder(blocks)) {
    StartBlock(block);
    const uint32_t first = TakeReady();
    g_sched.threads[first].fiber = NewFiber(FiberMain);
    SwitchTo(first);
    Jump(g_sched.threads[first].fiber);
  }
  g_sched.grid = nullptr;
}

int Barrier(Vote vote, bool predicate, Site site) {
  const ShimScope shim;
  CheckBarrier(vote, site);
  internal::BarrierState& barrier = g_sched.barrier;
  const uint32_t me = g_sched.current;
  if (barrier.arrived++ == 0) {
    barrier.first = me;
    barrier.vote = vote;
    barrier.count = 0;
  }
  barrier.count += predicate;
  g_sched.threads[me].state = State::kAtBarrier;
  if (barrier.arrived == g_sched.num_threads) {
    const int all = static_cast<int>(g_sched.num_threads);
    barrier.result = vote == Vote::kCount ? barrier.count
                     : vote == Vote::kAnd ? barrier.count == all
                                          : barrier.count != 0;
    barrier.arrived = 0;
    ClockBarrier();
    for (uint32_t t = 0; t < g_sched.num_threads; ++t) internal::MakeReady(t);
  }
  internal::Wait(State::kAtBarrier, site);
  // No thread can complete the next barrier before this one has read the result.
  return vote == Vote::kNone ? 0 : g_sched.barrier.result;
}

std::byte* SharedData(SharedSlot* slot, size_t bytes) {
  const ShimScope shim;
  if (slot->block_serial != g_sched.block_serial) {
    slot->block_serial = g_sched.block_serial;
    slot->data = SharedAllocate(bytes, slot->name);
  }
  if (slot->data != nullptr) return slot->data;
  Die([slot, bytes] {
    return "too much shared memory: '" + std::string(slot->name) + "' of " + std::to_string(bytes) +
           " bytes: " + DescribeThisThread();
  });
}

std::byte* DynamicSharedData() {
  const ShimScope shim;
  static SharedSlot slot{.name = "dynamic shared memory"};
  return SharedData(&slot, g_sched.grid->dynamic_shared_bytes);
}

std::string DescribeThread(uint64_t block, uint32_t thread) {
  return BlockText(block) + ", " + ThreadText(thread);
}

std::string DescribeThisThread() { return DescribeThread(g_sched.block, g_sched.current); }

void Die(const std::function<std::string()>& report) {
  const std::function<void()> body = [&report] {
    const std::string text = "cudahost: " + report() + "\n  order of seed " +
                             std::to_string(g_seed) + " (BITSHARD_CUDAHOST_SEED)\n";
    std::fflush(stdout);
    std::fputs(text.c_str(), stderr);
    std::abort();
  };
  if (!InStackPool(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)))) body();
  RunOnLargeStack(body);
}

}  // namespace cudahost
