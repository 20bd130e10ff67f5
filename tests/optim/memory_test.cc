// How much memory the optimizers hold and take, counted where the process gets it: every malloc,
// aligned allocation and anonymous mapping goes through the functions below, torch's too.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <torch/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "comm/shard_map.h"
#include "comm/thread_communicator.h"
#include "core/parallel.h"
#include "optim/optimizer.h"
#include "optim/sharded_optimizer.h"

// glibc's own, under names that nobody replaces.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
void __libc_free(void* memory);
}

namespace {

// What is smaller is bookkeeping: nodes, strings, shared pointers.
constexpr size_t kSmallest = 1024;

// The allocations of at least kSmallest bytes that are held, by the sizes that were asked for.
class Ledger {
 public:
  void Add(void* memory, size_t bytes) {
    if (memory == nullptr || bytes < kSmallest || !is_counting_) return;
    const std::lock_guard lock(mutex_);
    if (count_ == kCapacity) std::abort();
    entries_[count_++] = {memory, bytes};
    held_ += static_cast<int64_t>(bytes);
    peak_ = std::max(peak_, held_);
  }
  void Remove(void* memory) {
    if (memory == nullptr || count_ == 0) return;
    const std::lock_guard lock(mutex_);
    Entry* const end = entries_ + count_;
    Entry* const at =
        std::find_if(entries_, end, [&](const Entry& entry) { return entry.memory == memory; });
    if (at == end) return;
    held_ -= static_cast<int64_t>(at->bytes);
    *at = *(end - 1);
    --count_;
  }
  void Start() {
    const std::lock_guard lock(mutex_);
    count_ = 0;
    held_ = peak_ = 0;
    is_counting_ = true;
  }
  void Stop() { is_counting_ = false; }
  /// Bytes that were allocated since Start and are held.
  int64_t held() const { return held_; }
  /// The most of them at a time.
  int64_t peak() const { return peak_; }

 private:
  struct Entry {
    void* memory = nullptr;
    size_t bytes = 0;
  };
  static constexpr size_t kCapacity = 4096;
  std::mutex mutex_;
  Entry entries_[kCapacity] = {};
  std::atomic<size_t> count_ = 0;
  int64_t held_ = 0;
  int64_t peak_ = 0;
  std::atomic<bool> is_counting_ = false;
};

constinit Ledger ledger;

void* Counted(void* memory, size_t bytes) {
  ledger.Add(memory, bytes);
  return memory;
}

}  // namespace

extern "C" {
void* malloc(size_t bytes) { return Counted(__libc_malloc(bytes), bytes); }
void* calloc(size_t count, size_t bytes) {
  return Counted(__libc_calloc(count, bytes), count * bytes);
}
void* realloc(void* memory, size_t bytes) {
  ledger.Remove(memory);
  return Counted(__libc_realloc(memory, bytes), bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  return Counted(__libc_memalign(alignment, bytes), bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  *memory = memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}
void free(void* memory) {
  ledger.Remove(memory);
  __libc_free(memory);
}
void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
  void* const memory =
      reinterpret_cast<void*>(syscall(SYS_mmap, at, bytes, protection, flags, file, offset));
  return memory == MAP_FAILED ? memory : Counted(memory, bytes);
}
int munmap(void* memory, size_t bytes) {
  ledger.Remove(memory);
  return static_cast<int>(syscall(SYS_munmap, memory, bytes));
}
}

namespace bitshard::optim {
namespace {

using torch::Tensor;

constexpr int64_t kElems = 1 << 20;
// Of the block buffers: three states, gradient and parameter.
constexpr int64_t kFewBlocks = 5 * core::kBlockElems * static_cast<int64_t>(sizeof(float));

Tensor Parameter(int64_t n, torch::ScalarType type) {
  Tensor p = torch::ones({n}, type).requires_grad_(true);
  p.mutable_grad() = torch::ones({n}, type);
  return p;
}

// Bytes that the first step of an optimizer leaves behind: its state. What a process sets up once,
// with its first step, is none of it.
template <class Optimizer>
int64_t StateBytes(int64_t n) {
  Optimizer(std::vector<Tensor>{Parameter(n, torch::kFloat)}).step();
  Optimizer optimizer(std::vector<Tensor>{Parameter(n, torch::kFloat)});
  ledger.Start();
  optimizer.step();
  ledger.Stop();
  return ledger.held();
}

TEST(Memory, LibTorchAdamWHoldsTwoBytesAParameterAndTwoScalesABlock) {
  EXPECT_EQ(StateBytes<AdamW>(kElems), kElems * 2 + kElems / 256 * 8);
  EXPECT_EQ(StateBytes<AdamW>(kElems + 1), (kElems + 1) * 2 + (kElems / 256 + 1) * 8);
}

TEST(Memory, LibTorchLionHoldsOneByteAParameterAndOneScaleABlock) {
  EXPECT_EQ(StateBytes<Lion>(kElems), kElems + kElems / 256 * 4);
}

// 8-bit state of one large tensor in the engine.
int64_t EngineBytes(const char* name, int64_t n) {
  const core::FlatLayout layout = *core::FlatLayout::Create({{"w", {n}}});
  const comm::ShardMap shards(layout, 1, int64_t{1} << 30);
  auto ranks = comm::ThreadCommunicator::Create(1);
  ShardedOptimizerOptions options;
  options.settings.name = *ParseOptimizerName(name);
  ledger.Start();
  auto optimizer = ShardedOptimizer::Create(layout, shards, ranks[0].get(), options);
  ledger.Stop();
  EXPECT_TRUE(optimizer.ok()) << optimizer.status();
  EXPECT_EQ(ledger.held(), *ShardedOptimizer::StateBytes(layout, shards, 0, options)) << name;
  return ledger.held();
}

TEST(Memory, EngineHoldsTwoBytesAParameterAndTwoScalesABlock) {
  constexpr int64_t kOnePage = 1 << 20;  // 4096 blocks of 8-bit AdamW fill a page.
  EXPECT_EQ(EngineBytes("adamw_8bit", kOnePage), kOnePage * 2 + kOnePage / 256 * 8);
  EXPECT_EQ(EngineBytes("lion_8bit", kOnePage), kOnePage + kOnePage / 256 * 4);
}

// The most that a step of a large tensor takes, and what it leaves; the state is there already.
template <class Optimizer>
void ExpectAFewBlocksAThread(Optimizer&& optimizer, const char* what) {
  optimizer.step();
  ledger.Start();
  optimizer.step();
  ledger.Stop();
  EXPECT_LE(ledger.peak(), kFewBlocks * core::NumThreads()) << what;
  EXPECT_EQ(ledger.held(), 0) << what;
}

TEST(Memory, AStepTakesNoMoreThanAFewBlocksAThread) {
  for (const torch::ScalarType type : {torch::kFloat, torch::kBFloat16}) {
    const std::vector<Tensor> p = {Parameter(kElems, type)};
    ExpectAFewBlocksAThread(AdamW(p), "AdamW");
    ExpectAFewBlocksAThread(AdamW(p, AdamWOptions().bits(32)), "AdamW, 32-bit");
    ExpectAFewBlocksAThread(AdEMAMix(p), "AdEMAMix");
    // Those that need the norms of the whole tensor.
    ExpectAFewBlocksAThread(LAMB(p), "LAMB");
    ExpectAFewBlocksAThread(LARS(p, LARSOptions(1e-2).momentum(0.9)), "LARS");
  }
}

TEST(Memory, AStepOfManyTensorsTakesOneEntryOfATableATensor) {
  constexpr int64_t kTensors = 420;
  std::vector<Tensor> parameters;
  for (int64_t i = 0; i < kTensors; ++i) parameters.push_back(Parameter(9000, torch::kFloat));
  AdamW optimizer(parameters);
  optimizer.step();
  ledger.Start();
  optimizer.step();
  ledger.Stop();
  EXPECT_LE(ledger.peak(), kTensors * 1024);
  EXPECT_EQ(ledger.held(), 0);
}

TEST(Memory, TheLedgerSeesEachWayToGetMemory) {
  ledger.Start();
  void* const block = ::operator new(5000);  // The compiler may drop a new-expression.
  EXPECT_EQ(ledger.held(), 5000);
  const Tensor tensor = torch::empty({5000});
  EXPECT_EQ(ledger.held(), 25000);
  void* const mapped = mmap(nullptr, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_EQ(ledger.held(), 33192);
  munmap(mapped, 8192);
  ::operator delete(block);
  ledger.Stop();
  EXPECT_EQ(ledger.held(), 20000);
  EXPECT_EQ(ledger.peak(), 33192);
}

}  // namespace
}  // namespace bitshard::optim
