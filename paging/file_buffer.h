// The file tier of PagedBuffer: some frames of host memory over a PageFile. A thread of the buffer
// does all I/O, so that reading ahead and writing behind overlap with the caller's computing.
#ifndef BITSHARD_PAGING_FILE_BUFFER_H_
#define BITSHARD_PAGING_FILE_BUFFER_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

#include "paging/memory_resource.h"
#include "paging/page_file.h"
#include "paging/paged_buffer.h"
#include "paging/residency_policy.h"

namespace bitshard::paging {

class FileBuffer : public PagedBuffer {
 public:
  /// Errors: kConfig when the budget holds less than two pages; those of PageFile::Create; kMemory.
  static absl::StatusOr<std::unique_ptr<PagedBuffer>> Create(int64_t num_pages, int64_t page_bytes,
                                                             const PagingOptions& options);
  ~FileBuffer() override;

  int64_t num_pages() const override { return num_pages_; }
  int64_t page_bytes() const override { return page_bytes_; }
  int64_t resident_limit_bytes() const override { return limited_.allocated_bytes(); }
  absl::Status BeginWalk() override;
  absl::Status EndWalk() override;
  absl::StatusOr<std::span<std::byte>> Acquire(int64_t page) override;
  absl::Status Release(int64_t page, ReleaseOptions options) override;
  PagingCounters counters() const override;

 private:
  using Resource = LimitingAdaptor<HostResource>;

  FileBuffer(int64_t num_pages, int64_t page_bytes, int64_t num_frames, int64_t budget_bytes);
  absl::Status Open(const std::string& directory);
  std::span<std::byte> FrameBytes(int64_t frame) const;
  void RunIo();
  absl::Status Execute(const Move& move);
  template <class Condition>
  void WaitForIo(std::unique_lock<std::mutex>& lock, Condition condition);

  const int64_t num_pages_;
  const int64_t page_bytes_;
  const int64_t num_frames_;
  HostResource host_;
  Resource limited_;
  Allocation<Resource> frames_;
  std::unique_ptr<PageFile> file_;  // The I/O thread's alone.

  mutable std::mutex mutex_;  // Guards what follows. A frame's bytes belong to the thread that
                              // moves or acquires it.
  std::condition_variable changed_;
  ResidencyPolicy policy_;
  absl::Status error_;  // The first I/O error: every later call returns it.
  PagingCounters counters_;
  bool moving_ = false;
  bool stop_ = false;
  std::thread io_;
};

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_FILE_BUFFER_H_
