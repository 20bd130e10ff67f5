// What a group of calls does at the head of its streams: posts what it sends, waits for its peers'
// part, moves data.
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "tests/cudahost/heap.h"
#include "tests/cudahost/nccl_comm.h"
#include "tests/cudahost/nccl_data.h"
#include "tests/cudahost/stream.h"

namespace cudahost::nccl {
namespace {

// Polls between two looks at whether a peer's process lives, which cost system calls.
constexpr int64_t kLookEvery = 64;

bool Reduces(Op op) {
  return op == Op::kAllReduce || op == Op::kReduceScatter || op == Op::kReduce;
}

bool IsGone(pid_t pid) {
  if (kill(pid, 0) != 0 && errno == ESRCH) return true;
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(stat, text);
  const size_t name_end = text.rfind(')');
  return name_end != std::string::npos && text.compare(name_end, 3, ") Z") == 0;
}

// What a peer must have posted for `call` to go on.
PostedCall CounterpartOf(const PostedCall& call, int rank) {
  PostedCall wanted = call;
  if (call.op == Op::kSend) wanted.op = Op::kRecv;
  if (call.op == Op::kRecv) wanted.op = Op::kSend;
  if (!IsCollective(call.op)) wanted.root = rank;
  return wanted;
}

bool SameCall(const PostedCall& a, const PostedCall& b) {
  if (a.count != b.count || a.type != b.type) return false;
  return !IsCollective(a.op) || (a.op == b.op && a.reduction == b.reduction && a.root == b.root);
}

std::string RankCalls(int rank, const PostedCall& call) {
  return "rank " + std::to_string(rank) + " calls " + Describe(call);
}

}  // namespace

bool Comm::Faulty(const NcclFaults& faults) const {
  return faults.rank < 0 || faults.rank == rank_;
}

void Comm::Fail(const std::string& text) {
  if (segment_->SetError(ncclInvalidUsage, text)) {
    std::fprintf(stderr, "cudahost: %s\n", text.c_str());
  }
}

ncclResult_t Comm::ErrorLocked() {
  std::string text;
  const ncclResult_t shared = segment_ == nullptr ? ncclSuccess : segment_->Error(&text);
  if (async_error_ == ncclSuccess && shared != ncclSuccess) {
    async_error_ = shared;
    last_error_ = text;
  }
  return async_error_;
}

ncclResult_t Comm::EnqueueGroup(const std::shared_ptr<Group>& group) {
  for (size_t i = 0; i < group->streams.size(); ++i) {
    StreamOp op;
    op.what = Describe({.op = group->calls.front().op,
                        .type = group->calls.front().type,
                        .reduction = std::min<int32_t>(group->calls.front().reduction, ncclNumOps),
                        .root = group->calls.front().root,
                        .count = group->calls.front().count,
                        .sequence = 0,
                        .offset = 0,
                        .bytes = 0});
    op.ready = [comm = shared_from_this(), group, i] { return comm->Ready(group.get(), i); };
    op.run = [comm = shared_from_this(), group] { return comm->Run(group.get()); };
    if (Enqueue(group->streams[i], std::move(op)) != cudaSuccess) {
      SetLastError("a stream of the call is not valid");
      return ncclUnhandledCudaError;
    }
  }
  return ncclSuccess;
}

ncclResult_t Comm::Launch(std::vector<Call> calls) {
  auto group = std::make_shared<Group>();
  group->calls = std::move(calls);
  {
    const std::lock_guard lock(mutex_);
    group->number = num_groups_++;
    for (const Call& call : group->calls) {
      if (std::find(group->streams.begin(), group->streams.end(), call.stream) ==
          group->streams.end()) {
        group->streams.push_back(call.stream);
      }
      // An operator may be destroyed once the call has returned.
      const bool created = Reduces(call.op) && call.reduction >= ncclNumOps;
      group->multipliers.push_back(
          created ? multipliers_[static_cast<size_t>(call.reduction - ncclNumOps)]
                  : PreMultiplier{});
    }
    group->arrived.resize(group->streams.size());
    pending_.push_back(group);
    if (!blocking_) {
      unlaunched_.push_back(group);
      return ncclInProgress;
    }
  }
  return EnqueueGroup(group);
}

// The runtime holds its lock meanwhile, which other ranks of the process may need: nothing here may
// sleep.
bool Comm::Ready(Group* group, size_t stream) {
  const std::lock_guard lock(mutex_);
  if (ReadyLocked(group, stream)) return true;
  ++group->misses;
  return false;
}

bool Comm::ReadyLocked(Group* group, size_t stream) {
  if (released_ || group->done) return true;
  if (async_error_ == ncclSuccess && ErrorLocked() != ncclSuccess) return true;
  const NcclFaults faults = CurrentNcclFaults();
  const auto now = std::chrono::steady_clock::now();
  if (group->misses == 0) group->since = now;
  if (now - group->since > std::chrono::milliseconds(faults.timeout_ms)) {
    Fail("timeout: rank " + std::to_string(rank_) + " waits in group " +
         std::to_string(group->number) + " (" +
         (group->posted ? Describe(group->posted_calls.front()) : "not posted") + ")");
  }
  std::string text;
  if (segment_->Error(&text) != ncclSuccess) return true;
  if (async_error_ != ncclSuccess) return false;  // The kernel spins until it is aborted.

  group->arrived[stream] = true;
  const bool all =
      std::find(group->arrived.begin(), group->arrived.end(), false) == group->arrived.end();
  if (!all || pending_.front().get() != group) return false;
  if (!group->posted && !Post(group, faults)) return false;
  return PeersArePresent(group, faults);
}

bool Comm::Post(Group* group, const NcclFaults& faults) {
  if (Faulty(faults)) {
    if (faults.vanish_at == group->number) return false;
    if (faults.die_at == group->number) raise(SIGKILL);
    const auto late = std::chrono::milliseconds(faults.delay_ms);
    if (faults.delay_at == group->number && std::chrono::steady_clock::now() - group->since < late)
      return false;
    if (faults.async_error_at >= 0 && faults.async_error_at <= group->number) {
      async_error_ = ncclSystemError;
      last_error_ = "injected error at group " + std::to_string(group->number);
      return false;
    }
  }
  Recycle();
  const uint64_t serial = static_cast<uint64_t>(group->number) + 1;
  PostedGroup& slot = segment_->block(rank_).groups[serial % kMaxGroups];
  if (slot.serial.load() != 0) return false;  // Peers are kMaxGroups behind.

  std::vector<uint64_t>& offsets = offsets_[serial];
  int64_t unread = 0;
  for (size_t i = 0; i < group->calls.size(); ++i) {
    PostedCall posted{};
    if (!Prepare(*group, i, &posted)) return false;
    if (posted.bytes > 0) offsets.push_back(posted.offset);
    unread += static_cast<int64_t>(PeersOf(posted).size());
    group->posted_calls.push_back(posted);
  }
  const size_t bytes = group->posted_calls.size() * sizeof(PostedCall);
  const auto table = segment_->Allocate(bytes);
  if (!table) {
    Fail("rank " + std::to_string(rank_) + ": /dev/shm or the arena of the rank is full");
    return false;
  }
  offsets.push_back(*table);
  std::memcpy(segment_->own(*table), group->posted_calls.data(), bytes);
  slot.unread.store(unread);
  slot.num_calls.store(group->posted_calls.size());
  slot.offset.store(*table);
  slot.serial.store(serial);
  segment_->block(rank_).waiting.store(serial);
  group->posted = true;
  return true;
}

void Comm::Recycle() {
  for (auto at = offsets_.begin(); at != offsets_.end();) {
    PostedGroup& slot = segment_->block(rank_).groups[at->first % kMaxGroups];
    if (slot.serial.load() != at->first || slot.unread.load() > 0) {
      ++at;
      continue;
    }
    slot.serial.store(0);
    for (const uint64_t offset : at->second) segment_->Free(offset);
    at = offsets_.erase(at);
  }
}

bool Comm::Prepare(const Group& group, size_t index, PostedCall* posted) {
  const Call& call = group.calls[index];
  const bool rooted = call.op == Op::kBroadcast || call.op == Op::kReduce || !IsCollective(call.op);
  const size_t peer = static_cast<size_t>(call.root);
  posted->op = call.op;
  posted->type = call.type;
  posted->reduction = Reduces(call.op) ? std::min<int32_t>(call.reduction, ncclNumOps) : 0;
  posted->root = rooted ? call.root : 0;
  posted->count = call.count;
  posted->sequence = call.op == Op::kSend   ? num_sends_[peer]++
                     : call.op == Op::kRecv ? num_receives_[peer]++
                                            : num_collectives_++;
  const bool sends = call.op != Op::kRecv && (call.op != Op::kBroadcast || call.root == rank_);
  const uint64_t chunks = call.op == Op::kReduceScatter ? static_cast<uint64_t>(num_ranks_) : 1;
  posted->bytes = sends ? call.count * chunks * BytesOf(call.type) : 0;
  if (posted->bytes == 0) return true;
  if (const auto hole = HeapFirstUninitialised(call.send, posted->bytes)) {
    const Buffer* buffer = HeapFind(call.send);
    Fail(RankCalls(rank_, *posted) + " and sends byte " + std::to_string(*hole) +
         " that was never written" + (buffer == nullptr ? "" : ", of buffer " + buffer->name));
    return false;
  }
  const auto offset = segment_->Allocate(posted->bytes);
  if (!offset) {
    Fail(RankCalls(rank_, *posted) + ": /dev/shm or the arena of the rank is full");
    return false;
  }
  posted->offset = *offset;
  std::memcpy(segment_->own(*offset), call.send, posted->bytes);
  const PreMultiplier& multiplier = group.multipliers[index];
  if (multiplier.exists) {
    Multiply(
        segment_->own(*offset), posted->bytes / BytesOf(call.type), call.type,
        multiplier.device_scalar != nullptr ? multiplier.device_scalar : multiplier.scalar.data());
  }
  return true;
}

std::vector<int> Comm::PeersOf(const PostedCall& call) const {
  if (!IsCollective(call.op)) return {call.root};
  std::vector<int> peers;
  for (int r = 0; r < num_ranks_; ++r) {
    if (r != rank_) peers.push_back(r);
  }
  return peers;
}

bool Comm::PeersArePresent(Group* group, const NcclFaults& faults) {
  const bool look_closely = group->misses % kLookEvery == kLookEvery - 1;
  bool all = true;
  for (const PostedCall& call : group->posted_calls) {
    for (const int peer : PeersOf(call)) {
      all = CheckPeer(call, peer, look_closely, faults.silent != 0) && all;
    }
  }
  std::string text;
  return all || segment_->Error(&text) != ncclSuccess;
}

bool Comm::CheckPeer(const PostedCall& call, int peer, bool look_closely, bool silent) {
  const PostedCall wanted = CounterpartOf(call, rank_);
  if (const auto found = FindPosted(segment_.get(), peer, wanted)) {
    if (SameCall(wanted, found->call)) return true;
    const bool first = rank_ < peer;
    Fail("ranks make different calls: " +
         RankCalls(first ? rank_ : peer, first ? call : found->call) + ", " +
         RankCalls(first ? peer : rank_, first ? found->call : call));
    return false;
  }
  RankBlock& block = segment_->block(peer);
  if (look_closely && IsGone(block.pid.load())) block.lost.store(1);
  if (block.lost.load() != 0 && !silent) {
    async_error_ = ncclRemoteError;
    last_error_ = "rank " + std::to_string(peer) + " is gone";
  } else if (block.finalized.load() != 0) {
    Fail(RankCalls(rank_, call) + ", rank " + std::to_string(peer) + " has ended its communicator");
  } else {
    CheckDeadlock(call, peer);
  }
  return false;
}

// Groups of a communicator run one after another. So when the peer waits in a group that lacks the
// counterpart of `call` for something that this rank has not posted either, both wait for ever.
void Comm::CheckDeadlock(const PostedCall& call, int peer) {
  const uint64_t serial = segment_->block(peer).waiting.load();
  const std::vector<PostedCall> theirs = CallsOf(segment_.get(), peer, serial);
  if (FindPosted(segment_.get(), peer, CounterpartOf(call, rank_))) return;  // It has come since.
  for (const PostedCall& other : theirs) {
    const bool involves_me = IsCollective(other.op) || other.root == rank_;
    if (!involves_me || FindPosted(segment_.get(), rank_, CounterpartOf(other, peer))) continue;
    if (segment_->block(peer).waiting.load() != serial) return;
    const bool first = rank_ < peer;
    Fail("ranks wait for each other: " + RankCalls(first ? rank_ : peer, first ? call : other) +
         ", " + RankCalls(first ? peer : rank_, first ? other : call));
    return;
  }
}

cudaError_t Comm::Run(Group* group) {
  const std::lock_guard lock(mutex_);
  std::string text;
  if (group->done) return cudaSuccess;
  const bool failed = !released_ && segment_->Error(&text) != ncclSuccess;
  if (!released_ && !failed) {
    // First: a peer that has seen its calls read must not think that they are still waited for.
    segment_->block(rank_).waiting.store(0);
    Deliver(group, CurrentNcclFaults());
  }
  group->done = true;
  const auto same = [group](const auto& entry) { return entry.get() == group; };
  pending_.erase(std::remove_if(pending_.begin(), pending_.end(), same), pending_.end());
  // A real program would hang here for ever; a test should end.
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

void Comm::Deliver(Group* group, const NcclFaults& faults) {
  for (size_t i = 0; i < group->calls.size(); ++i) {
    DeliverCall(group->calls[i], group->posted_calls[i], faults);
  }
  if (Faulty(faults) && faults.flip_at == group->number) {
    for (const Call& call : group->calls) {
      if (call.recv == nullptr || call.count == 0) continue;
      *static_cast<std::byte*>(call.recv) ^= std::byte{0x40};
      break;
    }
  }
  // Only now: a rank that reads from itself must not lose its group on the way.
  for (const PostedCall& posted : group->posted_calls) {
    for (const int peer : PeersOf(posted)) {
      const auto found = FindPosted(segment_.get(), peer, CounterpartOf(posted, rank_));
      found->group->unread.fetch_sub(1);
    }
  }
}

std::vector<const std::byte*> Comm::InputsOf(const Call& call, const PostedCall& posted) {
  std::vector<const std::byte*> inputs;
  for (int r = 0; r < num_ranks_; ++r) {
    if (IsCollective(call.op) ? r == rank_ : r != call.root) {
      inputs.push_back(segment_->arena(rank_) + posted.offset);
      continue;
    }
    const auto found = FindPosted(segment_.get(), r, CounterpartOf(posted, rank_));
    inputs.push_back(segment_->arena(r) + found->call.offset);
  }
  return inputs;
}

void Comm::DeliverCall(const Call& call, const PostedCall& posted, const NcclFaults& faults) {
  const std::vector<const std::byte*> inputs = InputsOf(call, posted);
  const size_t bytes = call.count * BytesOf(call.type);
  const size_t world = inputs.size();
  std::byte* to = static_cast<std::byte*>(call.recv);
  size_t written = bytes;
  switch (call.op) {
    case Op::kAllReduce:
    case Op::kReduceScatter:
      DeliverSum(call, inputs, faults);
      break;
    case Op::kReduce:
      if (rank_ == call.root) DeliverSum(call, inputs, faults);
      written = rank_ == call.root ? bytes : 0;
      break;
    case Op::kAllGather:
      for (size_t r = 0; r < world; ++r) {
        const size_t place = Faulty(faults) && faults.permute_gather != 0 ? world - 1 - r : r;
        if (bytes > 0) std::memcpy(to + place * bytes, inputs[r], bytes);
      }
      written = bytes * world;
      break;
    case Op::kBroadcast:
    case Op::kRecv:
      if (bytes > 0) std::memcpy(to, inputs[static_cast<size_t>(call.root)], bytes);
      break;
    case Op::kSend:
      written = 0;
      break;
  }
  if (written > 0) HeapMarkInitialised(to, written);
}

void Comm::DeliverSum(const Call& call, const std::vector<const std::byte*>& inputs,
                      const NcclFaults& faults) {
  const size_t world = inputs.size();
  const size_t self = static_cast<size_t>(rank_);
  size_t count = call.count;
  if (faults.average_drops != 0 && world == 1 && call.reduction == ncclAvg) {
    count -= std::min<size_t>(count, 1 + count % 4);
  }
  ReduceArgs reduce{.inputs = inputs,
                    .output = static_cast<std::byte*>(call.recv),
                    .begin = 0,
                    .end = count,
                    .last_rank = self,
                    .type = call.type,
                    .reduction = call.reduction >= ncclNumOps ? ncclSum : call.reduction};
  if (call.op == Op::kReduceScatter) {
    const size_t mine = Faulty(faults) && faults.permute_scatter != 0 ? world - 1 - self : self;
    reduce.begin = mine * call.count;
    reduce.end = reduce.begin + count;
  }
  if (call.op != Op::kAllReduce) {
    Reduce(reduce);
    return;
  }
  const size_t chunk = (call.count + world - 1) / world;
  for (size_t c = 0; c * chunk < count; ++c) {
    reduce.begin = c * chunk;
    reduce.end = std::min(count, reduce.begin + chunk);
    reduce.output = static_cast<std::byte*>(call.recv) + reduce.begin * BytesOf(call.type);
    reduce.last_rank = c;
    Reduce(reduce);
  }
}

}  // namespace cudahost::nccl
