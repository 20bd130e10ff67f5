// One rank's side of a communicator of the stand-in for NCCL.
//
// Calls become groups; a group becomes an operation on each stream that its calls name. Groups of
// one communicator run in the order of their calls, whatever the streams, as NCCL orders them. On a
// non-blocking communicator a group is put on its streams only by ncclCommGetAsyncError, and NCCL
// promises no more: a program that does not wait for ncclSuccess there works on old data.
#ifndef BITSHARD_TESTS_CUDAHOST_NCCL_COMM_H_
#define BITSHARD_TESTS_CUDAHOST_NCCL_COMM_H_

#include <nccl.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "tests/cudahost/nccl_faults.h"
#include "tests/cudahost/nccl_shared.h"

namespace cudahost::nccl {

// A call as the program makes it.
struct Call {
  Op op;
  const void* send = nullptr;
  void* recv = nullptr;
  size_t count = 0;
  ncclDataType_t type = ncclInt8;
  ncclRedOp_t reduction = ncclSum;
  int root = 0;  // The other rank of a send or receive.
  cudaStream_t stream = nullptr;
};

// What ncclRedOpCreatePreMulSum made.
struct PreMultiplier {
  bool exists = false;
  ncclDataType_t type = ncclFloat32;
  const void* device_scalar = nullptr;  // Read when the group is posted; nullptr: `scalar` is it.
  std::vector<std::byte> scalar;
};

struct Group {
  int64_t number = 0;
  std::vector<Call> calls;
  std::vector<PreMultiplier> multipliers;  // Of each call.
  std::vector<cudaStream_t> streams;
  std::vector<bool> arrived;  // Which streams have it at their head.
  std::vector<PostedCall> posted_calls;
  bool posted = false;
  bool done = false;
  int64_t misses = 0;
  std::chrono::steady_clock::time_point since;  // Of the first poll.
};

struct JoinArgs {
  std::string name;  // Of the shared file.
  int rank = 0;
  int num_ranks = 1;
  int device = 0;
  bool blocking = true;
};

class Comm : public std::enable_shared_from_this<Comm> {
 public:
  // Announces the rank to the others, without waiting for them. nullptr and *error where it can't.
  static std::shared_ptr<Comm> Join(const JoinArgs& args, std::string* error);
  // A communicator of the ranks of `parent` that give the same color.
  static std::shared_ptr<Comm> Split(const std::shared_ptr<Comm>& parent, int color, int key,
                                     bool blocking);
  // Of the ranks that are not excluded, which alone call it.
  static std::shared_ptr<Comm> Shrink(const std::shared_ptr<Comm>& parent,
                                      const std::vector<int>& excluded, bool blocking,
                                      std::string* error);

  // Does what can be done now for initialisation, launch and finalisation; ncclInProgress if there
  // is more.
  ncclResult_t Progress();
  // Calls Progress until it is done.
  ncclResult_t WaitUntilDone();
  // OK unless an operation is in progress, or an error was seen: no call is allowed then.
  ncclResult_t EnsureReady();
  // The calls of a group, or a single one.
  ncclResult_t Launch(std::vector<Call> calls);
  ncclResult_t Finalize();
  // Makes the operations that are on streams end without data.
  void Release(bool abort);
  ncclResult_t Revoke();
  bool revoked();

  ncclResult_t CreatePreMultiplier(PreMultiplier multiplier, ncclRedOp_t* op);
  ncclResult_t DestroyPreMultiplier(ncclRedOp_t op);
  bool KnowsReduction(ncclRedOp_t op, ncclDataType_t type);

  void SetLastError(const std::string& text);
  std::string last_error();
  int rank() const { return rank_; }
  int num_ranks() const { return num_ranks_; }
  int device() const { return device_; }
  bool blocking() const { return blocking_; }

 private:
  enum class Phase { kSplitting, kJoining, kReady, kFinalizing, kFinalized, kRevoked };

  Comm() = default;
  bool Attach(const std::string& name, std::string* error);
  bool Faulty(const NcclFaults& faults) const;
  ncclResult_t ErrorLocked();
  ncclResult_t ProgressSplit();
  ncclResult_t ProgressJoin();
  ncclResult_t ProgressFinalize();
  ncclResult_t EnqueueGroup(const std::shared_ptr<Group>& group);

  // nccl_group.cc: what a group does at the head of its streams. All with the lock.
  bool Ready(Group* group, size_t stream);
  bool ReadyLocked(Group* group, size_t stream);
  cudaError_t Run(Group* group);
  bool Post(Group* group, const NcclFaults& faults);
  void Recycle();
  bool Prepare(const Group& group, size_t index, PostedCall* posted);
  bool PeersArePresent(Group* group, const NcclFaults& faults);
  bool CheckPeer(const PostedCall& call, int peer, bool look_closely, bool silent);
  void CheckDeadlock(const PostedCall& call, int peer);
  std::vector<int> PeersOf(const PostedCall& call) const;
  void Fail(const std::string& text);
  void Deliver(Group* group, const NcclFaults& faults);
  void DeliverCall(const Call& call, const PostedCall& posted, const NcclFaults& faults);
  void DeliverSum(const Call& call, const std::vector<const std::byte*>& inputs,
                  const NcclFaults& faults);
  std::vector<const std::byte*> InputsOf(const Call& call, const PostedCall& posted);  // By rank.

  int rank_ = 0;
  int num_ranks_ = 1;
  int device_ = 0;
  bool blocking_ = true;
  std::string name_;

  std::recursive_mutex mutex_;  // Guards what follows. Never held while the runtime is called.
  std::unique_ptr<Segment> segment_;
  Phase phase_ = Phase::kJoining;
  ncclResult_t async_error_ = ncclSuccess;
  std::string last_error_;
  bool released_ = false;
  std::shared_ptr<Comm> parent_;  // While splitting, as are the next two.
  uint64_t split_serial_ = 0;
  int color_ = 0;
  uint64_t num_splits_ = 0;
  uint64_t num_shrinks_ = 0;
  int64_t num_groups_ = 0;
  uint64_t num_collectives_ = 0;
  std::vector<uint64_t> num_sends_;  // By peer, as is the next.
  std::vector<uint64_t> num_receives_;
  std::deque<std::shared_ptr<Group>> unlaunched_;  // Of a non-blocking communicator.
  std::deque<std::shared_ptr<Group>> pending_;     // Not done, in order.
  std::map<uint64_t, std::vector<uint64_t>>
      offsets_;                             // By serial: what a posted group has in the arena.
  std::vector<PreMultiplier> multipliers_;  // Operator ncclNumOps + i.
};

}  // namespace cudahost::nccl

// The handle that programs have.
struct ncclComm {
  std::shared_ptr<cudahost::nccl::Comm> comm;
  std::set<void*> registered;
  std::atomic<int> callers{0};  // Threads inside of a call with it.
};

namespace cudahost::nccl {

// Marks a thread as inside of a call.
class Caller {
 public:
  explicit Caller(ncclComm_t comm) : comm_(comm) { ++comm_->callers; }
  ~Caller() { --comm_->callers; }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

 private:
  const ncclComm_t comm_;
};

// nccl_calls.cc: groups of this thread.
bool InGroup();
// At the end of the group, waits until the communicator is initialised, if it is a blocking one.
void AddToGroup(std::shared_ptr<Comm> initialising);
// For calls without a communicator, or with one that has nothing to say.
void SetThreadError(const std::string& text);
std::string ThreadError();

}  // namespace cudahost::nccl

#endif  // BITSHARD_TESTS_CUDAHOST_NCCL_COMM_H_
