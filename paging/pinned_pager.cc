#include "paging/pinned_pager.h"

#include <cuda_runtime_api.h>

#include "core/cuda_status.h"
#include "core/status_macros.h"

namespace bitshard::paging {

absl::StatusOr<std::unique_ptr<DevicePagedBuffer>> PinnedPager::Create(int64_t num_pages,
                                                                       int64_t page_bytes,
                                                                       int64_t num_frames) {
  std::unique_ptr<PinnedPager> pager(new PinnedPager(num_pages, page_bytes, num_frames));
  BITSHARD_RETURN_IF_ERROR(pager->Allocate());
  return pager;
}

absl::Status PinnedPager::Allocate() {
  BITSHARD_ASSIGN_OR_RETURN(frames_, Allocation<DeviceResource>::Create(
                                         &device_, num_frames() * page_bytes(), "resident pages"));
  BITSHARD_ASSIGN_OR_RETURN(
      pages_, Allocation<PinnedResource>::Create(&pinned_, num_pages() * page_bytes(), "pages"));
  return Open();
}

absl::Status PinnedPager::Leave(std::span<const PagerMove> moves, cudaStream_t stream) {
  for (const PagerMove& move : moves) {
    if (!move.dirty) continue;
    BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(
        cudaMemcpyAsync(Home(move.displaced), Frame(move.frame), static_cast<size_t>(page_bytes()),
                        cudaMemcpyDeviceToHost, stream)));
    bytes_written_ += page_bytes();
  }
  return absl::OkStatus();
}

absl::Status PinnedPager::Come(std::span<const PagerMove> moves, cudaStream_t stream) {
  for (const PagerMove& move : moves) {
    const size_t bytes = static_cast<size_t>(page_bytes());
    if (!move.read) {
      BITSHARD_RETURN_IF_ERROR(
          BITSHARD_CUDA_STATUS(cudaMemsetAsync(Frame(move.frame), 0, bytes, stream)));
      continue;
    }
    BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaMemcpyAsync(
        Frame(move.frame), Home(move.loaded), bytes, cudaMemcpyHostToDevice, stream)));
    bytes_read_ += page_bytes();
  }
  return absl::OkStatus();
}

}  // namespace bitshard::paging
