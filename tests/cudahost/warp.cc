// Warp collectives: shuffles, votes and __syncwarp.
#include "tests/cudahost/sched_state.h"
#include "tests/cudahost/symbols.h"

namespace cudahost {
namespace internal {

const char* Name(WarpOp op) {
  constexpr const char* kNames[] = {"__syncwarp",       "__shfl_sync",     "__shfl_up_sync",
                                    "__shfl_down_sync", "__shfl_xor_sync", "__ballot_sync",
                                    "__any_sync",       "__all_sync"};
  return kNames[static_cast<size_t>(op)];
}

void CheckExitedLane(uint32_t thread) {
  Warp& warp = g_sched.warps[thread / kLanes];
  const uint32_t bit = 1u << thread % kLanes;
  warp.exited |= bit;
  for (const Pending& pending : warp.pending) {
    if ((pending.mask & bit) == 0) continue;
    Die([thread, pending] {
      return "exited lane named by the mask " + Hex(pending.mask) + " of " + Name(pending.op) +
             " at " + At(pending.site) + ": " + DescribeThread(g_sched.block, thread);
    });
  }
}

}  // namespace internal

namespace {

using internal::At;
using internal::g_sched;
using internal::Name;
using internal::Pending;
using internal::Thread;
using internal::Warp;

bool Names(uint32_t mask, uint32_t lane) { return (mask >> lane & 1) != 0; }

// "__shfl_sync at x.cu:3, mask 0xff"
std::string CallText(WarpOp op, uint32_t mask, const Site& site) {
  return std::string(Name(op)) + " at " + At(site) + ", mask " + Hex(mask);
}

void CheckCall(const WarpCall& call, const Warp& warp) {
  const uint32_t me = g_sched.current;
  const char* error = nullptr;
  uint32_t culprit = me;
  if (!Names(call.mask, me % kLanes)) {
    error = "lane outside of its mask";
  } else if ((call.mask & ~warp.lanes) != 0) {
    error = "mask names a lane beyond the block";
  } else if ((call.mask & warp.exited) != 0) {
    error = "exited lane named by the mask";
    culprit = me / kLanes * kLanes + static_cast<uint32_t>(__builtin_ctz(call.mask & warp.exited));
  } else if (call.width < 1 || call.width > 32 || (call.width & (call.width - 1)) != 0) {
    error = "width is not a power of two up to 32";
  }
  if (error == nullptr) return;
  Die([&call, error, me, culprit] {
    std::string text = std::string(error) + ": " + CallText(call.op, call.mask, call.site) + ": " +
                       DescribeThisThread();
    return culprit == me ? text : text + "\n  " + internal::Whereabouts(culprit);
  });
}

[[noreturn]] void DieOfDifferentCalls(const WarpCall& call, const Pending& other) {
  Die([&call, other] {
    const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(other.arrived));
    return "lanes at different calls: " + DescribeThisThread() + " in " +
           CallText(call.op, call.mask, call.site) + "\n  " +
           internal::ThreadText(g_sched.current / kLanes * kLanes + lane) + " waits in " +
           CallText(other.op, other.mask, other.site);
  });
}

// The collective that this lane joins; a new one when it is the first. A lane that waits elsewhere
// is an error only when it waits for this one, which waits for it: parts of a warp may be apart.
size_t Join(const WarpCall& call, Warp* warp) {
  size_t joined = warp->pending.size();
  for (size_t i = 0; i < warp->pending.size(); ++i) {
    const Pending& other = warp->pending[i];
    if (other.mask == call.mask && other.op == call.op &&
        internal::SameSite(other.site, call.site)) {
      joined = i;
    } else if (Names(other.mask, g_sched.current % kLanes) && (other.arrived & call.mask) != 0) {
      DieOfDifferentCalls(call, other);
    }
  }
  if (joined == warp->pending.size()) warp->pending.push_back({call.op, call.mask, 0, call.site});
  return joined;
}

// The lane that a shuffle reads, as PTX's shfl.sync defines it: its own where the source would lie
// outside of its segment of `width` lanes.
uint32_t Source(const WarpCall& call, uint32_t lane) {
  const uint32_t width = static_cast<uint32_t>(call.width);
  const uint32_t begin = lane / width * width;
  switch (call.op) {
    case WarpOp::kShuffle:
      return begin + call.operand % width;
    case WarpOp::kUp:
      return call.operand <= lane - begin ? lane - call.operand : lane;
    case WarpOp::kDown:
      return call.operand < begin + width - lane ? lane + call.operand : lane;
    default: {
      const uint32_t source = lane ^ call.operand;
      return source < begin + width ? source : lane;
    }
  }
}

void CheckSource(const WarpCall& call, uint32_t thread, uint32_t source) {
  if (Names(call.mask, source)) return;
  Die([&call, thread, source] {
    return "source lane " + std::to_string(source) +
           " outside of the mask: " + CallText(call.op, call.mask, call.site) + ": " +
           DescribeThread(g_sched.block, thread);
  });
}

uint64_t VoteOf(const WarpCall& call, uint32_t first) {
  uint32_t ballot = 0;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    if (Names(call.mask, lane) && g_sched.threads[first + lane].call.value != 0) {
      ballot |= 1u << lane;
    }
  }
  if (call.op == WarpOp::kBallot) return ballot;
  return call.op == WarpOp::kAny ? ballot != 0 : ballot == call.mask;
}

// All lanes of the mask have come: what each gets.
void Complete(const WarpCall& call, uint32_t warp) {
  const uint32_t first = warp * kLanes;
  const bool shuffle = call.op != WarpOp::kSync && call.op < WarpOp::kBallot;
  const uint64_t vote = call.op >= WarpOp::kBallot ? VoteOf(call, first) : 0;
  if (call.op == WarpOp::kSync) ClockSyncWarp(warp, call.mask, g_sched.warps[warp].lanes);
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    if (!Names(call.mask, lane)) continue;
    Thread& thread = g_sched.threads[first + lane];
    thread.result = vote;
    if (shuffle) {
      const uint32_t source = Source(thread.call, lane);
      CheckSource(thread.call, first + lane, source);
      thread.result = g_sched.threads[first + source].call.value;
    }
    internal::MakeReady(first + lane);
  }
}

}  // namespace

uint64_t WarpCollective(const WarpCall& call) {
  const ShimScope shim;
  const uint32_t me = g_sched.current;
  Warp& warp = g_sched.warps[me / kLanes];
  CheckCall(call, warp);
  const size_t at = Join(call, &warp);
  Thread& thread = g_sched.threads[me];
  thread.call = call;
  thread.state = internal::State::kInWarpOp;
  warp.pending[at].arrived |= 1u << me % kLanes;
  if (warp.pending[at].arrived == call.mask) {
    warp.pending[at] = warp.pending.back();
    warp.pending.pop_back();
    Complete(call, me / kLanes);
  }
  internal::Wait(internal::State::kInWarpOp, call.site);
  return thread.result;
}

}  // namespace cudahost
