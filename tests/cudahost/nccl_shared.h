// What the ranks of one communicator of the stand-in share: a file in /dev/shm with a control block
// and an arena for each rank, from which its peers read what it sends.
//
// A rank posts one group of calls at a time, when the group stands at the head of its stream: what
// it sends is copied into its arena, so the peers never wait for it again, and then the group is
// published. Only the rank itself writes to its arena and its groups; peers count `unread` down.
#ifndef BITSHARD_TESTS_CUDAHOST_NCCL_SHARED_H_
#define BITSHARD_TESTS_CUDAHOST_NCCL_SHARED_H_

#include <nccl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace cudahost::nccl {

constexpr int kMaxRanks = 16;
constexpr int kMaxGroups = 64;  // Of one rank that not all peers have read.
constexpr int kMaxSplits = 4;   // Split number s uses entry s % kMaxSplits.
constexpr uint64_t kArenaBytes = uint64_t{1}
                                 << 30;  // Of each rank; only what is used takes memory.

enum class Op : int32_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kReduce,
  kSend,
  kRecv
};

// A call as its peers see it.
struct PostedCall {
  Op op;
  int32_t type;       // ncclDataType_t
  int32_t reduction;  // ncclRedOp_t; created operators all count as ncclNumOps
  int32_t root;       // The other rank of a send or receive.
  uint64_t count;
  uint64_t
      sequence;  // Among the collectives, or among the sends (receives) to (from) the other rank.
  uint64_t offset;  // Of the data, in the arena of the rank that posts it.
  uint64_t bytes;
};

struct PostedGroup {
  std::atomic<uint64_t> serial;  // 1 + the number of the group; 0: free
  std::atomic<int64_t>
      unread;  // Reads by peers that are still to come, one for each call and peer.
  std::atomic<uint64_t> num_calls;
  std::atomic<uint64_t> offset;  // Of the array of PostedCall, in the arena.
};

struct SplitEntry {
  std::atomic<uint64_t> serial;  // 1 + the number of the split
  std::atomic<int32_t> color;
  std::atomic<int32_t> key;
};

struct RankBlock {
  std::atomic<int32_t> joined;
  std::atomic<int32_t> pid;
  std::atomic<int32_t> lost;       // Aborted or dead.
  std::atomic<int32_t> finalized;  // Has ended in order.
  std::atomic<uint64_t> waiting;   // Serial of the group that it has posted and waits for; 0: none.
  PostedGroup groups[kMaxGroups];
  SplitEntry splits[kMaxSplits];
};

// Zero at first, as a new file is.
struct Control {
  std::atomic<int32_t> num_ranks;
  std::atomic<int32_t> error_writer;  // 1: taken
  std::atomic<int32_t> error;  // ncclResult_t that all ranks get; its text is there before it.
  char error_text[1024];
  RankBlock ranks[kMaxRanks];
};

class Segment {
 public:
  // Opens or makes the file `name`; nullptr and *error when the system refuses.
  static std::unique_ptr<Segment> Open(const std::string& name, int rank, int num_ranks,
                                       std::string* error);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  Control* control() { return control_; }
  RankBlock& block(int rank) { return control_->ranks[rank]; }
  const std::byte* arena(int rank) const;
  // Removes the name: once all ranks have the file open, or when it is given up.
  void Unlink();

  // Of the own arena. nullopt when it, or /dev/shm, is full.
  std::optional<uint64_t> Allocate(uint64_t bytes);
  void Free(uint64_t offset);
  std::byte* own(uint64_t offset);

  // Says `text` to all ranks; the first one counts. True when this was it.
  bool SetError(ncclResult_t error, const std::string& text);
  // ncclSuccess while there is none.
  ncclResult_t Error(std::string* text);

 private:
  Segment(std::string name, int fd, int rank, int num_ranks, void* base, size_t bytes);

  const std::string name_;
  const int fd_;
  const int rank_;
  void* const base_;
  const size_t bytes_;
  Control* const control_;
  bool unlinked_ = false;
  std::map<uint64_t, uint64_t> used_;  // offset -> bytes
  uint64_t backed_ = 0;                // Bytes of the own arena that have memory for sure.
};

// Looks for the call of rank `peer` that `wanted` says is its counterpart: same op and sequence,
// and for sends and receives `wanted.root` as the other rank. Copies it, with the group's slot.
struct Found {
  PostedCall call;
  PostedGroup* group;
};
std::optional<Found> FindPosted(Segment* segment, int peer, const PostedCall& wanted);
// All calls of the group with that serial; empty when it is gone.
std::vector<PostedCall> CallsOf(Segment* segment, int peer, uint64_t serial);

bool IsCollective(Op op);
// "ncclAllReduce number 3 (count 16, ncclFloat32, ncclSum)"
std::string Describe(const PostedCall& call);
size_t BytesOf(ncclDataType_t type);

}  // namespace cudahost::nccl

#endif  // BITSHARD_TESTS_CUDAHOST_NCCL_SHARED_H_
