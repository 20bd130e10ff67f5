#include "tests/cudahost/nccl_shared.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace cudahost::nccl {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kBackStep = uint64_t{1} << 20;

uint64_t RoundUp(uint64_t bytes, uint64_t step) { return (bytes + step - 1) / step * step; }

uint64_t ControlBytes() { return RoundUp(sizeof(Control), 4096); }

const char* OpName(Op op) {
  switch (op) {
    case Op::kAllReduce:
      return "ncclAllReduce";
    case Op::kReduceScatter:
      return "ncclReduceScatter";
    case Op::kAllGather:
      return "ncclAllGather";
    case Op::kBroadcast:
      return "ncclBroadcast";
    case Op::kReduce:
      return "ncclReduce";
    case Op::kSend:
      return "ncclSend";
    case Op::kRecv:
      return "ncclRecv";
  }
  return "?";
}

std::string TypeName(int32_t type) {
  static const char* const names[] = {"ncclInt8",     "ncclUint8",      "ncclInt32",
                                      "ncclUint32",   "ncclInt64",      "ncclUint64",
                                      "ncclFloat16",  "ncclFloat32",    "ncclFloat64",
                                      "ncclBfloat16", "ncclFloat8e4m3", "ncclFloat8e5m2"};
  return type >= 0 && type < ncclNumTypes ? names[type] : "type " + std::to_string(type);
}

std::string ReductionName(int32_t reduction) {
  static const char* const names[] = {"ncclSum", "ncclProd", "ncclMax",
                                      "ncclMin", "ncclAvg",  "pre-multiplied sum"};
  return reduction >= 0 && reduction <= ncclNumOps ? names[reduction]
                                                   : "reduction " + std::to_string(reduction);
}

}  // namespace

std::unique_ptr<Segment> Segment::Open(const std::string& name, int rank, int num_ranks,
                                       std::string* error) {
  const int fd = shm_open(name.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  const size_t bytes = ControlBytes() + kArenaBytes * static_cast<size_t>(num_ranks);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    *error = "/dev/shm" + name + ": " + std::strerror(errno);
    if (fd >= 0) close(fd);
    return nullptr;
  }
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base == MAP_FAILED) {
    *error = "mmap of /dev/shm" + name + ": " + std::strerror(errno);
    close(fd);
    return nullptr;
  }
  return std::unique_ptr<Segment>(new Segment(name, fd, rank, num_ranks, base, bytes));
}

Segment::Segment(std::string name, int fd, int rank, int num_ranks, void* base, size_t bytes)
    : name_(std::move(name)),
      fd_(fd),
      rank_(rank),
      base_(base),
      bytes_(bytes),
      control_(static_cast<Control*>(base)) {
  int32_t none = 0;
  if (!control_->num_ranks.compare_exchange_strong(none, num_ranks) && none != num_ranks) {
    SetError(ncclInvalidArgument, "ranks give " + std::to_string(none) + " and " +
                                      std::to_string(num_ranks) + " as the number of ranks");
  }
}

Segment::~Segment() {
  munmap(base_, bytes_);
  close(fd_);
}

const std::byte* Segment::arena(int rank) const {
  return static_cast<const std::byte*>(base_) + ControlBytes() +
         kArenaBytes * static_cast<uint64_t>(rank);
}

std::byte* Segment::own(uint64_t offset) { return const_cast<std::byte*>(arena(rank_)) + offset; }

void Segment::Unlink() {
  if (!unlinked_) shm_unlink(name_.c_str());
  unlinked_ = true;
}

std::optional<uint64_t> Segment::Allocate(uint64_t bytes) {
  bytes = RoundUp(bytes + 1, kAlignment);  // Never empty, so that each has an offset of its own.
  uint64_t offset = 0;
  for (const auto& [begin, size] : used_) {
    if (begin - offset >= bytes) break;
    offset = begin + size;
  }
  const uint64_t end = offset + bytes;
  if (end > kArenaBytes) return std::nullopt;
  if (end > backed_) {
    // A write to a page that the file system has no room for would be a SIGBUS.
    const uint64_t up_to = std::min(RoundUp(end, kBackStep), kArenaBytes);
    const off_t arena_begin = static_cast<off_t>(arena(rank_) - static_cast<std::byte*>(base_));
    if (posix_fallocate(fd_, arena_begin + static_cast<off_t>(backed_),
                        static_cast<off_t>(up_to - backed_)) != 0) {
      return std::nullopt;
    }
    backed_ = up_to;
  }
  used_[offset] = bytes;
  return offset;
}

void Segment::Free(uint64_t offset) { used_.erase(offset); }

bool Segment::SetError(ncclResult_t error, const std::string& text) {
  int32_t free = 0;
  if (!control_->error_writer.compare_exchange_strong(free, 1)) return false;
  std::strncpy(control_->error_text, text.c_str(), sizeof(control_->error_text) - 1);
  control_->error.store(error);
  return true;
}

ncclResult_t Segment::Error(std::string* text) {
  const ncclResult_t error = static_cast<ncclResult_t>(control_->error.load());
  if (error != ncclSuccess) *text = control_->error_text;
  return error;
}

std::vector<PostedCall> CallsOf(Segment* segment, int peer, uint64_t serial) {
  PostedGroup& group = segment->block(peer).groups[serial % kMaxGroups];
  if (serial == 0 || group.serial.load() != serial) return {};
  const uint64_t num_calls = group.num_calls.load();
  const uint64_t offset = group.offset.load();
  // The owner clears the serial before it writes to a group that has been read by all.
  if (group.serial.load() != serial) return {};
  std::vector<PostedCall> calls(num_calls);
  std::memcpy(calls.data(), segment->arena(peer) + offset, num_calls * sizeof(PostedCall));
  if (group.serial.load() != serial) return {};
  return calls;
}

std::optional<Found> FindPosted(Segment* segment, int peer, const PostedCall& wanted) {
  for (PostedGroup& group : segment->block(peer).groups) {
    for (const PostedCall& call : CallsOf(segment, peer, group.serial.load())) {
      const bool same_kind = IsCollective(wanted.op)
                                 ? IsCollective(call.op)
                                 : call.op == wanted.op && call.root == wanted.root;
      if (same_kind && call.sequence == wanted.sequence) return Found{call, &group};
    }
  }
  return std::nullopt;
}

bool IsCollective(Op op) { return op != Op::kSend && op != Op::kRecv; }

std::string Describe(const PostedCall& call) {
  std::string text = OpName(call.op);
  text += " number " + std::to_string(call.sequence);
  if (call.op == Op::kSend) text += " to rank " + std::to_string(call.root);
  if (call.op == Op::kRecv) text += " from rank " + std::to_string(call.root);
  text += " (count " + std::to_string(call.count) + ", " + TypeName(call.type);
  const bool reduces =
      call.op == Op::kAllReduce || call.op == Op::kReduceScatter || call.op == Op::kReduce;
  if (reduces) text += ", " + ReductionName(call.reduction);
  if (call.op == Op::kBroadcast || call.op == Op::kReduce)
    text += ", root " + std::to_string(call.root);
  return text + ")";
}

size_t BytesOf(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}

}  // namespace cudahost::nccl
