#include "tests/cudahost/nccl_comm.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "tests/cudahost/stream.h"

namespace cudahost::nccl {

bool Comm::Attach(const std::string& name, std::string* error) {
  name_ = name;
  segment_ = Segment::Open(name, rank_, num_ranks_, error);
  if (segment_ == nullptr) return false;
  num_sends_.resize(static_cast<size_t>(num_ranks_));
  num_receives_.resize(static_cast<size_t>(num_ranks_));
  RankBlock& block = segment_->block(rank_);
  block.pid.store(getpid());
  if (block.joined.exchange(1) != 0) {
    segment_->SetError(ncclInvalidUsage, "rank " + std::to_string(rank_) + " has joined twice");
  }
  phase_ = Phase::kJoining;
  return true;
}

std::shared_ptr<Comm> Comm::Join(const JoinArgs& args, std::string* error) {
  std::shared_ptr<Comm> comm(new Comm);
  comm->rank_ = args.rank;
  comm->num_ranks_ = args.num_ranks;
  comm->device_ = args.device;
  comm->blocking_ = args.blocking;
  return comm->Attach(args.name, error) ? comm : nullptr;
}

std::shared_ptr<Comm> Comm::Split(const std::shared_ptr<Comm>& parent, int color, int key,
                                  bool blocking) {
  std::shared_ptr<Comm> comm(new Comm);
  const std::lock_guard lock(parent->mutex_);
  comm->blocking_ = blocking;
  comm->device_ = parent->device_;
  comm->phase_ = Phase::kSplitting;
  comm->parent_ = parent;
  comm->color_ = color;
  comm->split_serial_ = ++parent->num_splits_;
  SplitEntry& entry =
      parent->segment_->block(parent->rank_).splits[comm->split_serial_ % kMaxSplits];
  entry.color.store(color);
  entry.key.store(key);
  entry.serial.store(comm->split_serial_);
  return color == NCCL_SPLIT_NOCOLOR ? nullptr : comm;
}

std::shared_ptr<Comm> Comm::Shrink(const std::shared_ptr<Comm>& parent,
                                   const std::vector<int>& excluded, bool blocking,
                                   std::string* error) {
  JoinArgs args{.name = parent->name_, .rank = 0, .num_ranks = 0, .blocking = blocking};
  args.device = parent->device_;
  {
    const std::lock_guard lock(parent->mutex_);
    args.name.append("-k").append(std::to_string(++parent->num_shrinks_));
  }
  for (int r = 0; r < parent->num_ranks_; ++r) {
    if (std::find(excluded.begin(), excluded.end(), r) != excluded.end()) {
      args.name.append("-").append(std::to_string(r));
      continue;
    }
    if (r == parent->rank_) args.rank = args.num_ranks;
    ++args.num_ranks;
  }
  return Join(args, error);
}

ncclResult_t Comm::ProgressSplit() {
  struct Member {
    int key;
    int rank;
  };
  std::vector<Member> members;
  for (int r = 0; r < parent_->num_ranks_; ++r) {
    const SplitEntry& entry = parent_->segment_->block(r).splits[split_serial_ % kMaxSplits];
    if (entry.serial.load() < split_serial_) return ncclInProgress;
    if (entry.color.load() == color_) members.push_back({entry.key.load(), r});
  }
  std::stable_sort(members.begin(), members.end(),
                   [](const Member& a, const Member& b) { return a.key < b.key; });
  num_ranks_ = static_cast<int>(members.size());
  for (size_t i = 0; i < members.size(); ++i) {
    if (members[i].rank == parent_->rank_) rank_ = static_cast<int>(i);
  }
  const std::string name =
      parent_->name_ + "-s" + std::to_string(split_serial_) + "-" + std::to_string(color_);
  parent_.reset();
  if (!Attach(name, &last_error_)) {
    async_error_ = ncclSystemError;
    return async_error_;
  }
  return ncclInProgress;
}

ncclResult_t Comm::ProgressJoin() {
  const NcclFaults faults = CurrentNcclFaults();
  if (Faulty(faults) && faults.init_hangs != 0) return ncclInProgress;
  for (int r = 0; r < num_ranks_; ++r) {
    if (segment_->block(r).joined.load() == 0) return ncclInProgress;
  }
  if (rank_ == 0) segment_->Unlink();
  phase_ = Phase::kReady;
  return ncclSuccess;
}

ncclResult_t Comm::ProgressFinalize() {
  const NcclFaults faults = CurrentNcclFaults();
  if (!pending_.empty() || (Faulty(faults) && faults.finalize_hangs != 0)) return ncclInProgress;
  segment_->block(rank_).finalized.store(1);
  for (int r = 0; r < num_ranks_; ++r) {
    if (segment_->block(r).finalized.load() == 0 && segment_->block(r).lost.load() == 0)
      return ncclInProgress;
  }
  // A rank that is lost may have told of an error first.
  if (ErrorLocked() != ncclSuccess) return async_error_;
  phase_ = Phase::kFinalized;
  return ncclSuccess;
}

ncclResult_t Comm::Progress() {
  std::deque<std::shared_ptr<Group>> launch;
  bool flush = false;
  {
    const std::lock_guard lock(mutex_);
    if (phase_ == Phase::kRevoked) return ncclSuccess;
    if (ErrorLocked() != ncclSuccess) return async_error_;
    if (phase_ == Phase::kSplitting) return ProgressSplit();
    if (phase_ == Phase::kJoining) return ProgressJoin();
    launch.swap(unlaunched_);
    flush = phase_ == Phase::kFinalizing;
  }
  for (const auto& group : launch) {
    if (const ncclResult_t result = EnqueueGroup(group); result != ncclSuccess) {
      const std::lock_guard lock(mutex_);
      async_error_ = result;
      return result;
    }
  }
  if (!launch.empty()) return ncclInProgress;
  if (!flush) return ncclSuccess;
  RunOneOperation();
  const std::lock_guard lock(mutex_);
  return ProgressFinalize();
}

ncclResult_t Comm::WaitUntilDone() {
  const auto since = std::chrono::steady_clock::now();
  ncclResult_t result = Progress();
  while (result == ncclInProgress) {
    const auto limit = std::chrono::milliseconds(CurrentNcclFaults().timeout_ms);
    if (std::chrono::steady_clock::now() - since > limit) {
      SetLastError("timeout: not all ranks have come");
      return ncclSystemError;
    }
    usleep(100);
    result = Progress();
  }
  return result;
}

ncclResult_t Comm::EnsureReady() {
  const std::lock_guard lock(mutex_);
  if (ErrorLocked() != ncclSuccess) return async_error_;
  const bool busy = phase_ == Phase::kSplitting || phase_ == Phase::kJoining ||
                    phase_ == Phase::kFinalizing || !unlaunched_.empty();
  if (busy) {
    last_error_ = "communicator used before its last operation returned ncclSuccess";
    return ncclInvalidArgument;
  }
  if (phase_ != Phase::kReady) {
    last_error_ = "communicator used after it was finalized or revoked";
    return ncclInvalidUsage;
  }
  return ncclSuccess;
}

ncclResult_t Comm::Finalize() {
  {
    const std::lock_guard lock(mutex_);
    if (phase_ != Phase::kReady) {
      last_error_ = "ncclCommFinalize of a communicator that is not in use";
      return ncclInvalidUsage;
    }
    phase_ = Phase::kFinalizing;
  }
  return blocking_ ? WaitUntilDone() : ncclInProgress;
}

void Comm::Release(bool abort) {
  const std::lock_guard lock(mutex_);
  released_ = true;
  unlaunched_.clear();
  if (segment_ == nullptr) return;
  if (abort) segment_->block(rank_).lost.store(1);
  segment_->block(rank_).waiting.store(0);
  if (phase_ == Phase::kJoining) segment_->Unlink();
}

ncclResult_t Comm::Revoke() {
  const std::lock_guard lock(mutex_);
  Release(false);
  phase_ = Phase::kRevoked;
  return blocking_ ? ncclSuccess : ncclInProgress;
}

bool Comm::revoked() {
  const std::lock_guard lock(mutex_);
  return phase_ == Phase::kRevoked;
}

ncclResult_t Comm::CreatePreMultiplier(PreMultiplier multiplier, ncclRedOp_t* op) {
  const std::lock_guard lock(mutex_);
  multiplier.exists = true;
  *op = static_cast<ncclRedOp_t>(ncclNumOps + static_cast<int>(multipliers_.size()));
  multipliers_.push_back(std::move(multiplier));
  return ncclSuccess;
}

ncclResult_t Comm::DestroyPreMultiplier(ncclRedOp_t op) {
  const std::lock_guard lock(mutex_);
  const size_t index = static_cast<size_t>(op) - ncclNumOps;
  if (op < ncclNumOps || index >= multipliers_.size() || !multipliers_[index].exists)
    return ncclInvalidArgument;
  multipliers_[index].exists = false;
  return ncclSuccess;
}

bool Comm::KnowsReduction(ncclRedOp_t op, ncclDataType_t type) {
  const std::lock_guard lock(mutex_);
  if (op >= 0 && op < ncclNumOps) return true;
  const size_t index = static_cast<size_t>(op) - ncclNumOps;
  return op >= ncclNumOps && index < multipliers_.size() && multipliers_[index].exists &&
         multipliers_[index].type == type;
}

void Comm::SetLastError(const std::string& text) {
  const std::lock_guard lock(mutex_);
  last_error_ = text;
}

std::string Comm::last_error() {
  const std::lock_guard lock(mutex_);
  return last_error_;
}

}  // namespace cudahost::nccl
