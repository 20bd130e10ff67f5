// The entry points of collectives, sends, receives and groups.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/cudahost/heap.h"
#include "tests/cudahost/nccl_comm.h"

namespace cudahost::nccl {
namespace {

struct ThreadGroup {
  int depth = 0;
  std::vector<std::pair<ncclComm_t, std::vector<Call>>> calls;  // In the order of the first calls.
  std::vector<std::shared_ptr<Comm>> initialising;
  ncclResult_t error = ncclSuccess;
};

thread_local ThreadGroup this_group;
thread_local std::string thread_error;

struct Range {
  const char* what;
  const void* data;
  size_t bytes;
};

ncclResult_t Refuse(Comm* comm, const std::string& text) {
  comm->SetLastError(text);
  return ncclInvalidArgument;
}

ncclResult_t CheckRange(Comm* comm, const Range& range) {
  if (range.bytes == 0) return ncclSuccess;
  const std::string what = range.what;
  if (range.data == nullptr) return Refuse(comm, what + " is null");
  const Buffer* buffer = HeapFind(range.data);
  if (buffer == nullptr) return Refuse(comm, what + " is host memory");
  if (!buffer->live) return Refuse(comm, what + " lies in freed buffer " + buffer->name);
  if (buffer->space == Space::kManaged)
    return Refuse(comm, what + " is managed memory, which NCCL can't use");
  if (buffer->space == Space::kShared) return Refuse(comm, what + " is shared memory of a block");
  const size_t offset =
      static_cast<size_t>(static_cast<const std::byte*>(range.data) - buffer->data);
  if (offset + range.bytes > buffer->bytes) {
    return Refuse(comm, what + " ends " + std::to_string(offset + range.bytes - buffer->bytes) +
                            " bytes behind buffer " + buffer->name);
  }
  return ncclSuccess;
}

// Buffers may be one as the operation defines it for "in place", else they must not touch.
ncclResult_t CheckOverlap(Comm* comm, const Call& call, const Range& send, const Range& recv) {
  const std::byte* from = static_cast<const std::byte*>(send.data);
  const std::byte* to = static_cast<const std::byte*>(recv.data);
  if (from == nullptr || to == nullptr || !IsCollective(call.op)) return ncclSuccess;
  const size_t rank = static_cast<size_t>(comm->rank());
  const size_t chunk = call.count * BytesOf(call.type);
  const std::byte* in_place = from;
  if (call.op == Op::kReduceScatter) in_place = from + rank * chunk;
  const bool is_in_place = call.op == Op::kAllGather ? from == to + rank * chunk : to == in_place;
  const bool touch = from < to + recv.bytes && to < from + send.bytes;
  return touch && !is_in_place ? Refuse(comm, "sendbuff and recvbuff overlap") : ncclSuccess;
}

ncclResult_t Check(Comm* comm, const Call& call) {
  const size_t size = BytesOf(call.type);
  const size_t chunk = call.count * size;
  const size_t all = chunk * static_cast<size_t>(comm->num_ranks());
  const bool reduces =
      call.op == Op::kAllReduce || call.op == Op::kReduceScatter || call.op == Op::kReduce;
  if (size == 0) return Refuse(comm, "invalid data type");
  if (call.root < 0 || call.root >= comm->num_ranks())
    return Refuse(comm, "rank " + std::to_string(call.root) + " is not in the communicator");
  if (reduces && !comm->KnowsReduction(call.reduction, call.type))
    return Refuse(comm, "invalid reduction, or one created for another type");
  if (reduces && (call.type == ncclFloat8e4m3 || call.type == ncclFloat8e5m2))
    return Refuse(comm, "the stand-in does not reduce 8-bit floats");
  const bool is_root = comm->rank() == call.root;
  Range send{"sendbuff", call.send, call.op == Op::kReduceScatter ? all : chunk};
  Range recv{"recvbuff", call.recv, call.op == Op::kAllGather ? all : chunk};
  if (call.op == Op::kRecv || (call.op == Op::kBroadcast && !is_root)) send = {"", nullptr, 0};
  if (call.op == Op::kSend || (call.op == Op::kReduce && !is_root)) recv = {"", nullptr, 0};
  if (const ncclResult_t result = CheckRange(comm, send); result != ncclSuccess) return result;
  if (const ncclResult_t result = CheckRange(comm, recv); result != ncclSuccess) return result;
  return CheckOverlap(comm, call, send, recv);
}

ncclResult_t Add(ncclComm_t handle, const Call& call) {
  if (handle == nullptr) {
    SetThreadError("the communicator is null");
    return ncclInvalidArgument;
  }
  const Caller caller(handle);
  Comm* comm = handle->comm.get();
  ncclResult_t result = comm->EnsureReady();
  if (result == ncclSuccess) result = Check(comm, call);
  if (this_group.depth == 0) return result == ncclSuccess ? comm->Launch({call}) : result;
  if (result != ncclSuccess) {
    if (this_group.error == ncclSuccess) this_group.error = result;
    return result;
  }
  auto entry = std::find_if(this_group.calls.begin(), this_group.calls.end(),
                            [&](const auto& known) { return known.first == handle; });
  if (entry == this_group.calls.end()) {
    this_group.calls.push_back({handle, {}});
    entry = this_group.calls.end() - 1;
  }
  entry->second.push_back(call);
  return ncclSuccess;
}

ncclResult_t EndGroup() {
  ThreadGroup group = std::exchange(this_group, {});
  if (group.error != ncclSuccess) return group.error;
  bool in_progress = false;
  for (const auto& comm : group.initialising) {
    in_progress = in_progress || !comm->blocking();
    const ncclResult_t result = comm->blocking() ? comm->WaitUntilDone() : ncclSuccess;
    if (result != ncclSuccess) return result;
  }
  for (auto& [handle, calls] : group.calls) {
    const Caller caller(handle);
    const ncclResult_t result = handle->comm->Launch(std::move(calls));
    in_progress = in_progress || result == ncclInProgress;
    if (result != ncclSuccess && result != ncclInProgress) return result;
  }
  return in_progress ? ncclInProgress : ncclSuccess;
}

}  // namespace

bool InGroup() { return this_group.depth > 0; }

void AddToGroup(std::shared_ptr<Comm> initialising) {
  this_group.initialising.push_back(std::move(initialising));
}

void SetThreadError(const std::string& text) { thread_error = text; }

std::string ThreadError() { return thread_error; }

}  // namespace cudahost::nccl

using cudahost::nccl::Add;
using cudahost::nccl::Op;
using cudahost::nccl::this_group;

extern "C" {

ncclResult_t ncclAllReduce(const void* sendbuff, void* recvbuff, size_t count,
                           ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t stream) {
  return Add(comm, {.op = Op::kAllReduce,
                    .send = sendbuff,
                    .recv = recvbuff,
                    .count = count,
                    .type = datatype,
                    .reduction = op,
                    .stream = stream});
}

ncclResult_t ncclReduceScatter(const void* sendbuff, void* recvbuff, size_t recvcount,
                               ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                               cudaStream_t stream) {
  return Add(comm, {.op = Op::kReduceScatter,
                    .send = sendbuff,
                    .recv = recvbuff,
                    .count = recvcount,
                    .type = datatype,
                    .reduction = op,
                    .stream = stream});
}

ncclResult_t ncclAllGather(const void* sendbuff, void* recvbuff, size_t sendcount,
                           ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream) {
  return Add(comm, {.op = Op::kAllGather,
                    .send = sendbuff,
                    .recv = recvbuff,
                    .count = sendcount,
                    .type = datatype,
                    .stream = stream});
}

ncclResult_t ncclReduce(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return Add(comm, {.op = Op::kReduce,
                    .send = sendbuff,
                    .recv = recvbuff,
                    .count = count,
                    .type = datatype,
                    .reduction = op,
                    .root = root,
                    .stream = stream});
}

ncclResult_t ncclBroadcast(const void* sendbuff, void* recvbuff, size_t count,
                           ncclDataType_t datatype, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return Add(comm, {.op = Op::kBroadcast,
                    .send = sendbuff,
                    .recv = recvbuff,
                    .count = count,
                    .type = datatype,
                    .root = root,
                    .stream = stream});
}

ncclResult_t ncclBcast(void* buff, size_t count, ncclDataType_t datatype, int root, ncclComm_t comm,
                       cudaStream_t stream) {
  return ncclBroadcast(buff, buff, count, datatype, root, comm, stream);
}

ncclResult_t ncclSend(const void* sendbuff, size_t count, ncclDataType_t datatype, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return Add(comm, {.op = Op::kSend,
                    .send = sendbuff,
                    .count = count,
                    .type = datatype,
                    .root = peer,
                    .stream = stream});
}

ncclResult_t ncclRecv(void* recvbuff, size_t count, ncclDataType_t datatype, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return Add(comm, {.op = Op::kRecv,
                    .recv = recvbuff,
                    .count = count,
                    .type = datatype,
                    .root = peer,
                    .stream = stream});
}

ncclResult_t ncclGroupStart() {
  ++this_group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (this_group.depth == 0) {
    cudahost::nccl::SetThreadError("ncclGroupEnd without ncclGroupStart");
    return ncclInvalidUsage;
  }
  return --this_group.depth > 0 ? ncclSuccess : cudahost::nccl::EndGroup();
}

}  // extern "C"
