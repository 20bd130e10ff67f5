#include "comm/internal/nccl_self_test.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/cuda_status.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::comm::internal {
namespace {

// Element i of what rank `from` sends to rank `to`: names both, and i, so that a shift inside of a
// chunk is seen. Whole numbers whose sums over up to 500 ranks are exact in float32.
float Code(int64_t from, int64_t to, int64_t i) {
  return static_cast<float>((i % 2 == 0 ? from : to) * 64 + i % 61);
}

// What a collective should deliver: chunks of `elems` elements, each that of a rank.
struct Expected {
  std::string call;
  int64_t elems = 0;
  std::vector<int64_t> chunks;      // Whose, in order.
  std::vector<int64_t> all_chunks;  // Whose exist: what came instead may be one of them.
  std::function<float(int64_t, int64_t)> value;  // Of element i of the chunk of rank r: (r, i).
};

absl::Status Check(const Expected& want, const std::vector<float>& got) {
  const auto matches = [&](size_t place, int64_t chunk) {
    for (int64_t i = 0; i < want.elems; ++i) {
      const size_t at = place * static_cast<size_t>(want.elems) + static_cast<size_t>(i);
      if (got[at] != want.value(chunk, i)) return false;
    }
    return true;
  };
  std::vector<std::string> found;
  bool right = true;
  for (size_t place = 0; place < want.chunks.size(); ++place) {
    if (matches(place, want.chunks[place])) {
      found.push_back(absl::StrCat(want.chunks[place]));
      continue;
    }
    right = false;
    const auto other = std::find_if(want.all_chunks.begin(), want.all_chunks.end(),
                                    [&](int64_t chunk) { return matches(place, chunk); });
    found.push_back(other == want.all_chunks.end() ? "damaged" : absl::StrCat(*other));
  }
  if (right) return absl::OkStatus();
  return core::PeerError(absl::StrCat(
      "NCCL's ", want.call, " of ", want.elems,
      " elements delivers wrong data: the chunks of ranks ", absl::StrJoin(want.chunks, ", "),
      " were expected, those of ranks ", absl::StrJoin(found, ", "),
      " came. Known from NVLS where CUDA_VISIBLE_DEVICES reorders devices: set NCCL_NVLS_ENABLE=0, "
      "or use another version of NCCL"));
}

std::vector<int64_t> AllRanks(const DeviceCommunicator& comm) {
  std::vector<int64_t> ranks;
  for (int64_t r = 0; r < comm.world_size(); ++r) ranks.push_back(r);
  return ranks;
}

// The chunks that this rank sends to each rank.
std::vector<float> ChunksToAll(const DeviceCommunicator& comm, int64_t elems) {
  std::vector<float> values;
  for (int64_t to = 0; to < comm.world_size(); ++to) {
    for (int64_t i = 0; i < elems; ++i) values.push_back(Code(comm.rank(), to, i));
  }
  return values;
}

}  // namespace

SelfTest::~SelfTest() {
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  (void)cudaFree(send_);
  (void)cudaFree(receive_);
}

absl::Status SelfTest::Allocate(int world_size, int64_t max_elems) {
  const size_t bytes =
      static_cast<size_t>(world_size) * static_cast<size_t>(max_elems) * sizeof(float);
  void* memory = nullptr;
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMalloc(&memory, bytes)));
  send_ = static_cast<float*>(memory);
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMalloc(&memory, bytes)));
  receive_ = static_cast<float*>(memory);
  return BITSHARD_CUDA_STATUS(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

absl::Status SelfTest::Fill(const std::vector<float>& values, size_t receives) {
  // What no collective writes must not look right: NaN.
  BITSHARD_RETURN_IF_ERROR(
      BITSHARD_CUDA_STATUS(cudaMemsetAsync(receive_, 0xFF, receives * sizeof(float), stream_)));
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemcpyAsync(
      send_, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice, stream_)));
  return BITSHARD_CUDA_STATUS(cudaStreamSynchronize(stream_));
}

// After the work was waited for, so the copy has nothing to wait for.
absl::StatusOr<std::vector<float>> SelfTest::Read(size_t elems) {
  std::vector<float> values(elems);
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemcpyAsync(
      values.data(), receive_, elems * sizeof(float), cudaMemcpyDeviceToHost, stream_)));
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaStreamSynchronize(stream_)));
  return values;
}

absl::Status SelfTest::TestAllToAll(DeviceCommunicator* comm, int64_t elems) {
  const size_t size = static_cast<size_t>(elems);
  const size_t world = static_cast<size_t>(comm->world_size());
  BITSHARD_RETURN_IF_ERROR(Fill(ChunksToAll(*comm, elems), world * size));
  std::vector<std::span<const std::byte>> send;
  std::vector<std::span<std::byte>> receive;
  for (size_t r = 0; r < world; ++r) {
    send.push_back(std::as_bytes(std::span<const float>(send_ + r * size, size)));
    receive.push_back(std::as_writable_bytes(std::span(receive_ + r * size, size)));
  }
  BITSHARD_ASSIGN_OR_RETURN(const auto work,
                            comm->StartAllToAll(send, receive, "self-test", stream_));
  BITSHARD_RETURN_IF_ERROR(work->Wait());
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<float> got, Read(world * size));
  const int64_t self = comm->rank();
  return Check({.call = "all-to-all",
                .elems = elems,
                .chunks = AllRanks(*comm),
                .all_chunks = AllRanks(*comm),
                .value = [self](int64_t from, int64_t i) { return Code(from, self, i); }},
               got);
}

absl::Status SelfTest::TestAllGather(DeviceCommunicator* comm, int64_t elems) {
  const size_t size = static_cast<size_t>(elems);
  const size_t world = static_cast<size_t>(comm->world_size());
  std::vector<float> mine;
  for (int64_t i = 0; i < elems; ++i) mine.push_back(Code(comm->rank(), 0, i));
  BITSHARD_RETURN_IF_ERROR(Fill(mine, world * size));
  BITSHARD_ASSIGN_OR_RETURN(
      const auto work,
      comm->StartAllGather(std::as_bytes(std::span<const float>(send_, size)),
                           std::as_writable_bytes(std::span(receive_, world * size)), "self-test",
                           stream_));
  BITSHARD_RETURN_IF_ERROR(work->Wait());
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<float> got, Read(world * size));
  return Check({.call = "all-gather",
                .elems = elems,
                .chunks = AllRanks(*comm),
                .all_chunks = AllRanks(*comm),
                .value = [](int64_t from, int64_t i) { return Code(from, 0, i); }},
               got);
}

absl::Status SelfTest::TestReduceScatter(DeviceCommunicator* comm, int64_t elems) {
  const size_t size = static_cast<size_t>(elems);
  const size_t world = static_cast<size_t>(comm->world_size());
  BITSHARD_RETURN_IF_ERROR(Fill(ChunksToAll(*comm, elems), size));
  BITSHARD_ASSIGN_OR_RETURN(
      const auto work, comm->StartReduceScatter(std::span<const float>(send_, world * size),
                                                std::span(receive_, size), "self-test", stream_));
  BITSHARD_RETURN_IF_ERROR(work->Wait());
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<float> got, Read(size));
  const auto sum = [num_ranks = comm->world_size()](int64_t to, int64_t i) {
    float total = 0;
    for (int64_t from = 0; from < num_ranks; ++from) total += Code(from, to, i);
    return total;
  };
  return Check({.call = "reduce-scatter",
                .elems = elems,
                .chunks = {comm->rank()},
                .all_chunks = AllRanks(*comm),
                .value = sum},
               got);
}

absl::Status SelfTest::Run(DeviceCommunicator* comm, int64_t elems) {
  // Every rank runs all three, so that one that has seen wrong data leaves no other waiting.
  absl::Status all_to_all = TestAllToAll(comm, elems);
  absl::Status all_gather = TestAllGather(comm, elems);
  absl::Status reduce_scatter = TestReduceScatter(comm, elems);
  if (!all_to_all.ok()) return all_to_all;
  return all_gather.ok() ? reduce_scatter : all_gather;
}

}  // namespace bitshard::comm::internal
