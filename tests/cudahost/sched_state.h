// What sched.cc and warp.cc share: the block that runs.
#ifndef BITSHARD_TESTS_CUDAHOST_SCHED_STATE_H_
#define BITSHARD_TESTS_CUDAHOST_SCHED_STATE_H_

#include <vector_types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/cudahost/clock.h"
#include "tests/cudahost/fiber.h"
#include "tests/cudahost/sched.h"

namespace cudahost::internal {

enum class State : uint8_t { kNew, kReady, kAtBarrier, kInWarpOp, kDone };

struct Thread {
  State state = State::kNew;
  Fiber* fiber = nullptr;
  uint3 index{};
  Site site;            // Where it waits.
  WarpCall call;        // What it waits in.
  uint64_t result = 0;  // What the collective gave.
};

// A collective that some lanes have not reached.
struct Pending {
  WarpOp op = WarpOp::kSync;
  uint32_t mask = 0;
  uint32_t arrived = 0;
  Site site;
};

struct Warp {
  uint32_t lanes = 0;  // Those that the block has.
  uint32_t exited = 0;
  std::vector<Pending> pending;
};

struct BarrierState {
  uint32_t arrived = 0;
  uint32_t first = 0;  // The thread that came first.
  Vote vote = Vote::kNone;
  int count = 0;
  int result = 0;  // Of the barrier that was completed last.
};

struct Scheduler {
  const Grid* grid = nullptr;
  uint64_t random = 1;
  uint64_t grids = 0;  // Since the seed was set.
  uint64_t block_serial = 0;
  uint64_t block = 0;
  uint32_t num_threads = 0;
  uint32_t num_done = 0;
  uint32_t first_done = 0;
  uint32_t current = 0;
  std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);
  std::vector<uint32_t> ready;
  std::vector<Warp> warps = std::vector<Warp>(kMaxThreads / kLanes);
  BarrierState barrier;
};
extern Scheduler g_sched;

// Round a thread's kernel code.
class KernelScope {
 public:
  KernelScope() { g_kernel_code = true; }
  ~KernelScope() { g_kernel_code = false; }
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;
};

// Waits until another thread has made this one ready.
void Wait(State state, const Site& site);
inline void MakeReady(uint32_t thread) {
  g_sched.threads[thread].state = State::kReady;
  g_sched.ready.push_back(thread);
}
bool SameSite(const Site& a, const Site& b);
// An error when a collective names a thread that has exited.
void CheckExitedLane(uint32_t thread);

const char* Name(WarpOp op);
std::string At(const Site& site);
std::string ThreadText(uint32_t thread);   // "thread (3,0,0)"
std::string Whereabouts(uint32_t thread);  // What a thread that is not running is doing.

}  // namespace cudahost::internal

#endif  // BITSHARD_TESTS_CUDAHOST_SCHED_STATE_H_
