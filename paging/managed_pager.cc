#include "paging/managed_pager.h"

#include <cuda_runtime_api.h>

#include <vector>

#include "core/cuda_status.h"
#include "core/status_macros.h"

namespace bitshard::paging {
namespace {

cudaMemLocation Host() { return {.type = cudaMemLocationTypeHost, .id = 0}; }
cudaMemLocation Device(int device) { return {.type = cudaMemLocationTypeDevice, .id = device}; }

// Ranges for one of the batched calls, which want arrays.
struct Batch {
  std::vector<void*> at;
  std::vector<size_t> bytes;
  void Add(void* p, int64_t n) {
    at.push_back(p);
    bytes.push_back(static_cast<size_t>(n));
  }

  absl::Status Prefetch(cudaMemLocation location, cudaStream_t stream) {
    if (at.empty()) return absl::OkStatus();
    size_t first = 0;
    return BITSHARD_CUDA_STATUS(cudaMemPrefetchBatchAsync(at.data(), bytes.data(), at.size(),
                                                          &location, &first, 1, 0, stream));
  }
  absl::Status Discard(cudaStream_t stream) {
    if (at.empty()) return absl::OkStatus();
    return BITSHARD_CUDA_STATUS(
        cudaMemDiscardBatchAsync(at.data(), bytes.data(), at.size(), 0, stream));
  }
  absl::Status DiscardAndPrefetch(cudaMemLocation location, cudaStream_t stream) {
    if (at.empty()) return absl::OkStatus();
    size_t first = 0;
    return BITSHARD_CUDA_STATUS(cudaMemDiscardAndPrefetchBatchAsync(
        at.data(), bytes.data(), at.size(), &location, &first, 1, 0, stream));
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<DevicePagedBuffer>> ManagedPager::Create(int64_t num_pages,
                                                                        int64_t page_bytes,
                                                                        int64_t num_frames) {
  BITSHARD_RETURN_IF_ERROR(CheckManagedIsConcurrent());
  std::unique_ptr<ManagedPager> pager(new ManagedPager(num_pages, page_bytes, num_frames));
  BITSHARD_RETURN_IF_ERROR(pager->Allocate());
  return pager;
}

absl::Status ManagedPager::Allocate() {
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaGetDevice(&device_)));
  BITSHARD_ASSIGN_OR_RETURN(pages_,
                            Allocation<ManagedResource>::Create(&managed_, host_bytes(), "pages"));
  void* const all = pages_.memory().data();
  const size_t bytes = static_cast<size_t>(host_bytes());
  BITSHARD_RETURN_IF_ERROR(
      BITSHARD_CUDA_STATUS(cudaMemAdvise(all, bytes, cudaMemAdviseSetPreferredLocation, Host())));
  BITSHARD_RETURN_IF_ERROR(
      BITSHARD_CUDA_STATUS(cudaMemAdvise(all, bytes, cudaMemAdviseSetAccessedBy, Device(device_))));
  return Open();
}

// Managed memory has one copy of a page: one that was only read has to go back too.
absl::Status ManagedPager::Leave(std::span<const PagerMove> moves, cudaStream_t stream) {
  Batch back, dead;
  for (const PagerMove& move : moves) {
    if (move.displaced < 0) continue;
    (move.dead ? dead : back).Add(Home(move.displaced), stride_bytes());
  }
  BITSHARD_RETURN_IF_ERROR(dead.Discard(stream));
  BITSHARD_RETURN_IF_ERROR(back.Prefetch(Host(), stream));
  bytes_written_ += static_cast<int64_t>(back.at.size()) * stride_bytes();
  return absl::OkStatus();
}

absl::Status ManagedPager::Come(std::span<const PagerMove> moves, cudaStream_t stream) {
  Batch content, zeros;
  for (const PagerMove& move : moves)
    (move.read ? content : zeros).Add(Home(move.loaded), stride_bytes());
  BITSHARD_RETURN_IF_ERROR(zeros.DiscardAndPrefetch(Device(device_), stream));
  BITSHARD_RETURN_IF_ERROR(content.Prefetch(Device(device_), stream));
  bytes_read_ += static_cast<int64_t>(content.at.size()) * stride_bytes();
  for (void* page : zeros.at) {
    BITSHARD_RETURN_IF_ERROR(
        BITSHARD_CUDA_STATUS(cudaMemsetAsync(page, 0, static_cast<size_t>(page_bytes()), stream)));
  }
  return absl::OkStatus();
}

}  // namespace bitshard::paging
