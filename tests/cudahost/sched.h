// Runs a grid on the calling thread: its blocks one after the other in a random order, the threads
// of a block as fibers that switch only at barriers and warp collectives, in a random order too.
//
//   cudahost::SetSeed(7);
//   cudahost::RunGrid({.name = "Scale", .grid = 4, .block = 256, .thread = RunScale, .args =
//   args});
//
// A barrier or collective that CUDA leaves undefined ends the process: abort(), after a report with
// kernel, block, thread and source line on stderr.
//
// Threads: one grid at a time in the process (the stand-in runtime holds its lock). Kernels neither
// throw nor hold what has a destructor over a collective: fibers of a report are abandoned.
#ifndef BITSHARD_TESTS_CUDAHOST_SCHED_H_
#define BITSHARD_TESTS_CUDAHOST_SCHED_H_

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace cudahost {

// The order of blocks and threads. Without a call: BITSHARD_CUDAHOST_SEED, else 1. Each grid takes
// another order, the same ones after the same seed.
void SetSeed(uint64_t seed);
uint64_t Seed();

struct Grid {
  std::string name;
  const void* kernel = nullptr;  // For its name in reports, when `name` is empty.
  dim3 grid;
  dim3 block;
  size_t dynamic_shared_bytes = 0;
  // What each thread does, with `args`. No std::function: the linker may take its call operator
  // from an instrumented file, and then the checker would see it.
  void (*thread)(const void* args) = nullptr;
  std::shared_ptr<const void> args;
};
void RunGrid(const Grid& grid);

struct Site {
  const char* file = nullptr;
  int line = 0;
};

// --- what kernels call through tests/cudahost/cudahost.h ---

enum class Vote { kNone, kOr, kAnd, kCount };
// Returns the vote of all threads; 0 for kNone.
int Barrier(Vote vote, bool predicate, Site site);

enum class WarpOp : uint8_t { kSync, kShuffle, kUp, kDown, kXor, kBallot, kAny, kAll };
struct WarpCall {
  WarpOp op = WarpOp::kSync;
  uint32_t mask = 0;
  uint64_t value = 0;    // What this lane gives; a predicate for votes.
  uint32_t operand = 0;  // Source lane, delta or xor mask.
  int width = 32;
  Site site;
};
// Waits for the lanes of the mask; returns what this lane gets.
uint64_t WarpCollective(const WarpCall& call);

// Block-shared memory: the same address for all threads of a block, another declaration for each
// `key`. `serial` and `data` are the declaration's own cache.
struct SharedSlot {
  const char* name = nullptr;
  uint64_t block_serial = 0;
  std::byte* data = nullptr;
};
std::byte* SharedData(SharedSlot* slot, size_t bytes);
std::byte* DynamicSharedData();

// --- for the checker and reports ---

// Whether a kernel's own code runs, and not what it has called of the stand-in: that may contain
// inline functions which the linker takes from instrumented files.
extern bool g_kernel_code;
class ShimScope {
 public:
  ShimScope() : before_(g_kernel_code) { g_kernel_code = false; }
  ~ShimScope() { g_kernel_code = before_; }
  ShimScope(const ShimScope&) = delete;
  ShimScope& operator=(const ShimScope&) = delete;

 private:
  bool before_;
};

// "kernel Scale, block (1,0,0), thread (33,0,0)"
std::string DescribeThread(uint64_t block, uint32_t thread);
std::string DescribeThisThread();
// Runs `report` on a stack that has room for it, then aborts.
[[noreturn]] void Die(const std::function<std::string()>& report);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_SCHED_H_
