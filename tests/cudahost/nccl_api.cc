// The entry points that make, end and describe communicators.
#include <cuda_runtime.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/cudahost/heap.h"
#include "tests/cudahost/nccl_comm.h"
#include "tests/cudahost/stream.h"

namespace cudahost::nccl {
namespace {

constexpr unsigned int kConfigMagic = 0xcafebeef;

ncclResult_t Invalid(const std::string& text) {
  SetThreadError(text);
  return ncclInvalidArgument;
}

bool IsBlocking(const ncclConfig_t* config) { return config == nullptr || config->blocking != 0; }

ncclResult_t CheckConfig(const ncclConfig_t* config) {
  if (config == nullptr || (config->magic == kConfigMagic && config->size == sizeof(ncclConfig_t)))
    return ncclSuccess;
  return Invalid("the configuration was not made with NCCL_CONFIG_INITIALIZER");
}

// Hands out `made`, and waits for it where NCCL would.
ncclResult_t Begin(std::shared_ptr<Comm> made, ncclComm_t* out) {
  *out = new ncclComm{.comm = made, .registered = {}};
  if (InGroup()) {
    AddToGroup(std::move(made));
    return ncclSuccess;
  }
  return made->blocking() ? made->WaitUntilDone() : ncclInProgress;
}

ncclResult_t Init(const JoinArgs& args, ncclComm_t* out) {
  if (out == nullptr || args.num_ranks < 1 || args.num_ranks > kMaxRanks || args.rank < 0 ||
      args.rank >= args.num_ranks) {
    return Invalid("rank " + std::to_string(args.rank) + " of " + std::to_string(args.num_ranks) +
                   ", want up to " + std::to_string(kMaxRanks));
  }
  std::string error;
  std::shared_ptr<Comm> comm = Comm::Join(args, &error);
  if (comm == nullptr) {
    SetThreadError(error);
    return ncclSystemError;
  }
  return Begin(std::move(comm), out);
}

// For split and shrink, which a revoked communicator allows.
ncclResult_t CheckParent(ncclComm_t comm, ncclComm_t* out, const ncclConfig_t* config) {
  if (comm == nullptr || out == nullptr) return Invalid("the communicator is null");
  if (const ncclResult_t result = CheckConfig(config); result != ncclSuccess) return result;
  return comm->comm->revoked() ? ncclSuccess : comm->comm->EnsureReady();
}

// Runs what is on the streams until the communicator has no part in it.
ncclResult_t Destroy(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  ncclResult_t result = ncclSuccess;
  if (!comm->registered.empty()) {
    std::fprintf(stderr, "cudahost: ncclCommDestroy with %zu registered buffers\n",
                 comm->registered.size());
    result = ncclInvalidUsage;
  }
  if (comm->comm->EnsureReady() == ncclSuccess) {
    (void)comm->comm->Finalize();
    result = std::max(result, comm->comm->WaitUntilDone());
  } else if (comm->comm->Progress() == ncclInProgress) {
    result = std::max(result, comm->comm->WaitUntilDone());
  }
  comm->comm->Release(false);
  delete comm;
  return result;
}

}  // namespace
}  // namespace cudahost::nccl

using cudahost::nccl::Caller;
using cudahost::nccl::Comm;
using cudahost::nccl::Invalid;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  if (version == nullptr) return Invalid("version is null");
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<int> counter{0};
  if (id == nullptr) return Invalid("the id is null");
  std::memset(id, 0, sizeof *id);
  std::snprintf(id->internal, sizeof id->internal, "/cudahost-nccl-%d-%d-%08x", getpid(),
                counter.fetch_add(1), std::random_device{}());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return ncclUnhandledCudaError;
  if (const ncclResult_t result = cudahost::nccl::CheckConfig(config); result != ncclSuccess)
    return result;
  const std::string name(id.internal, strnlen(id.internal, sizeof id.internal));
  if (name.rfind("/cudahost-nccl-", 0) != 0) return Invalid("not an id of ncclGetUniqueId");
  return cudahost::nccl::Init({.name = name,
                               .rank = rank,
                               .num_ranks = nranks,
                               .device = device,
                               .blocking = cudahost::nccl::IsBlocking(config)},
                              comm);
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int nranks, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(comm, nranks, id, rank, nullptr);
}

ncclResult_t ncclCommInitAll(ncclComm_t* comms, int ndev, const int* devlist) {
  int before = 0;
  ncclUniqueId id;
  if (cudaGetDevice(&before) != cudaSuccess) return ncclUnhandledCudaError;
  ncclResult_t result = ncclGetUniqueId(&id);
  (void)ncclGroupStart();
  for (int i = 0; i < ndev && result == ncclSuccess; ++i) {
    if (cudaSetDevice(devlist == nullptr ? i : devlist[i]) != cudaSuccess) {
      result = ncclUnhandledCudaError;
    } else {
      result = ncclCommInitRank(&comms[i], ndev, id, i);
    }
  }
  const ncclResult_t end = ncclGroupEnd();
  (void)cudaSetDevice(before);
  return result == ncclSuccess ? end : result;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* newcomm,
                           ncclConfig_t* config) {
  const ncclResult_t check = cudahost::nccl::CheckParent(comm, newcomm, config);
  if (check != ncclSuccess) return check;
  const Caller caller(comm);
  *newcomm = nullptr;
  if (color < 0 && color != NCCL_SPLIT_NOCOLOR) return Invalid("negative color");
  const bool blocking =
      config == nullptr ? comm->comm->blocking() : cudahost::nccl::IsBlocking(config);
  std::shared_ptr<Comm> made = Comm::Split(comm->comm, color, key, blocking);
  return made == nullptr ? ncclSuccess : cudahost::nccl::Begin(std::move(made), newcomm);
}

ncclResult_t ncclCommShrink(ncclComm_t comm, int* exclude, int count, ncclComm_t* newcomm,
                            ncclConfig_t* config, int flags) {
  if (comm != nullptr && flags == NCCL_SHRINK_ABORT && !comm->comm->revoked())
    (void)comm->comm->Revoke();
  const ncclResult_t check = cudahost::nccl::CheckParent(comm, newcomm, config);
  if (check != ncclSuccess) return check;
  const Caller caller(comm);
  std::vector<int> excluded(exclude, exclude + std::max(count, 0));
  std::sort(excluded.begin(), excluded.end());
  const bool valid = count > 0 && excluded.front() >= 0 &&
                     excluded.back() < comm->comm->num_ranks() &&
                     std::adjacent_find(excluded.begin(), excluded.end()) == excluded.end() &&
                     !std::binary_search(excluded.begin(), excluded.end(), comm->comm->rank());
  if (!valid) return Invalid("the list of excluded ranks is not one of other ranks");
  std::string error;
  const bool blocking =
      config == nullptr ? comm->comm->blocking() : cudahost::nccl::IsBlocking(config);
  std::shared_ptr<Comm> made = Comm::Shrink(comm->comm, excluded, blocking, &error);
  if (made == nullptr) {
    comm->comm->SetLastError(error);
    return ncclSystemError;
  }
  return cudahost::nccl::Begin(std::move(made), newcomm);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (comm == nullptr) return Invalid("the communicator is null");
  const Caller caller(comm);
  return comm->comm->Finalize();
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) { return cudahost::nccl::Destroy(comm); }

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  if (comm->callers.load() != 0) {
    std::fprintf(stderr, "cudahost: ncclCommAbort while another thread is in a call with it\n");
    return ncclInvalidUsage;
  }
  const cudahost::NcclFaults faults = cudahost::CurrentNcclFaults();
  const bool hangs =
      faults.abort_hangs != 0 && (faults.rank < 0 || faults.rank == comm->comm->rank());
  while (hangs) pause();
  comm->comm->Release(true);
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommRevoke(ncclComm_t comm, int flags) {
  if (comm == nullptr || flags != NCCL_REVOKE_DEFAULT) return Invalid("ncclCommRevoke");
  const Caller caller(comm);
  return comm->comm->Revoke();
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* async_error) {
  if (comm == nullptr || async_error == nullptr) return Invalid("ncclCommGetAsyncError");
  const Caller caller(comm);
  *async_error = comm->comm->Progress();
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
  if (comm == nullptr || count == nullptr) return Invalid("ncclCommCount");
  *count = comm->comm->num_ranks();
  return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int* device) {
  if (comm == nullptr || device == nullptr) return Invalid("ncclCommCuDevice");
  *device = comm->comm->device();
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
  if (comm == nullptr || rank == nullptr) return Invalid("ncclCommUserRank");
  *rank = comm->comm->rank();
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  static const char* const texts[] = {
      "no error",
      "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
      "unhandled system error (run with NCCL_DEBUG=INFO for details)",
      "internal error - please report this issue to the NCCL developers",
      "invalid argument (run with NCCL_DEBUG=WARN for details)",
      "invalid usage (run with NCCL_DEBUG=WARN for details)",
      "remote process exited or there was a network error",
      "NCCL operation in progress"};
  return result >= 0 && result < ncclNumResults ? texts[result] : "unknown result code";
}

const char* ncclGetLastError(ncclComm_t comm) {
  thread_local std::string text;
  text = comm == nullptr ? "" : comm->comm->last_error();
  if (text.empty()) text = cudahost::nccl::ThreadError();
  return text.c_str();
}

ncclResult_t ncclMemAlloc(void** ptr, size_t size) {
  return ptr != nullptr && cudaMalloc(ptr, size) == cudaSuccess ? ncclSuccess
                                                                : ncclUnhandledCudaError;
}

ncclResult_t ncclMemFree(void* ptr) {
  return cudaFree(ptr) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclCommRegister(const ncclComm_t comm, void* buff, size_t size, void** handle) {
  if (comm == nullptr || handle == nullptr || !cudahost::HeapHolds(buff) || size == 0)
    return Invalid("ncclCommRegister: want device memory");
  if (!comm->registered.insert(buff).second) return Invalid("ncclCommRegister: registered twice");
  *handle = buff;
  return ncclSuccess;
}

ncclResult_t ncclCommDeregister(const ncclComm_t comm, void* handle) {
  if (comm == nullptr || comm->registered.erase(handle) == 0)
    return Invalid("ncclCommDeregister: not registered");
  return ncclSuccess;
}

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t* op, void* scalar, ncclDataType_t datatype,
                                      ncclScalarResidence_t residence, ncclComm_t comm) {
  const size_t bytes = cudahost::nccl::BytesOf(datatype);
  if (op == nullptr || scalar == nullptr || comm == nullptr || bytes == 0)
    return Invalid("ncclRedOpCreatePreMulSum");
  cudahost::nccl::PreMultiplier multiplier{.type = datatype};
  if (residence == ncclScalarDevice) {
    if (!cudahost::HeapHolds(scalar)) return Invalid("the scalar is not in device memory");
    multiplier.device_scalar = scalar;
  } else {
    const std::byte* value = static_cast<const std::byte*>(scalar);
    multiplier.scalar.assign(value, value + bytes);
  }
  return comm->comm->CreatePreMultiplier(std::move(multiplier), op);
}

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm) {
  return comm == nullptr ? ncclInvalidArgument : comm->comm->DestroyPreMultiplier(op);
}

}  // extern "C"
