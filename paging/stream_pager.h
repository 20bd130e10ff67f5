// What the managed and the pinned pager share: carries out the moves of ResidencyPolicy in stream
// order.
//
// A page leaves its frame on one stream and the next one comes on another, so that the copies run
// both ways at a time and beside the kernels of the pages before and after:
//
//   compute      ... use page 3 | wait 4 | use page 4     | wait 5 | use page 5
//   leaving          2 goes           | 3 goes (after its use)
//   coming       4 comes              | 5 comes (after 2 went)      | 6 comes (after 3 went)
//
// Order is kept by two events a frame. `used` is recorded at Release and `ready` when the page has
// come. Leaving waits for both; coming waits for all that left so far; a user of the page waits
// for both. Both streams are first in, first out: a page that comes again after it left does so
// behind its own leaving.
#ifndef BITSHARD_PAGING_STREAM_PAGER_H_
#define BITSHARD_PAGING_STREAM_PAGER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "core/cuda_stream.h"
#include "core/stall_meter.h"
#include "paging/device_paged_buffer.h"
#include "paging/residency_policy.h"

namespace bitshard::paging {

/// A move, and what it throws out.
struct PagerMove {
  int64_t frame = -1;
  int64_t displaced = -1;  ///< The page that was in the frame; -1: none.
  bool dirty = false;      ///< It was changed since it came.
  bool dead = false;       ///< It was never changed: zeros, as every page that was never written.
  int64_t loaded = -1;
  bool read = false;  ///< The loaded page has content; else it is zeros.
};

class StreamPager : public DevicePagedBuffer {
 public:
  int64_t num_pages() const override { return num_pages_; }
  int64_t page_bytes() const override { return page_bytes_; }
  absl::Status BeginWalk() override;
  absl::Status EndWalk() override;
  absl::StatusOr<std::byte*> Acquire(int64_t page, cudaStream_t stream) override;
  absl::Status Release(int64_t page, cudaStream_t stream, ReleaseOptions options) override;
  PagingCounters counters() const override;

 protected:
  StreamPager(int64_t num_pages, int64_t page_bytes, int64_t num_frames);
  /// Makes streams and events. Before any other call.
  absl::Status Open();
  /// Waits for all users and moves. In the destructor of the class that owns the memory.
  void Drain();

  /// Put what takes the displaced pages out, and what brings the loaded ones in, on `stream`.
  /// The frames and pages of a span differ.
  virtual absl::Status Leave(std::span<const PagerMove> moves, cudaStream_t stream) = 0;
  virtual absl::Status Come(std::span<const PagerMove> moves, cudaStream_t stream) = 0;
  virtual std::byte* AddressOf(int64_t page, int64_t frame) const = 0;

  int64_t num_frames() const { return static_cast<int64_t>(frames_.size()); }
  int64_t bytes_read_ = 0;
  int64_t bytes_written_ = 0;

 private:
  struct Frame {
    core::Event ready;
    core::Event used;
    int64_t page = -1;
    bool read = false;
  };

  Frame& frame_at(int64_t frame) { return frames_[static_cast<size_t>(frame)]; }
  absl::Status MakeMoves();
  absl::Status CarryOut(std::span<const PagerMove> moves);
  absl::Status Remember(absl::Status status);
  absl::Status WaitForPage(const Frame& frame, cudaStream_t stream);

  const int64_t num_pages_;
  const int64_t page_bytes_;
  ResidencyPolicy policy_;
  std::vector<Frame> frames_;
  core::Stream leaving_;
  core::Stream coming_;
  core::Event left_;
  absl::Status error_;  // The first one: every later call returns it.
  int64_t hits_ = 0;
  int64_t faults_ = 0;
  mutable core::StallMeter stalls_;
};

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_STREAM_PAGER_H_
