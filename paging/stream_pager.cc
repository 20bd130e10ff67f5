#include "paging/stream_pager.h"

#include <optional>
#include <utility>

#include "core/check.h"
#include "core/status_macros.h"

namespace bitshard::paging {

StreamPager::StreamPager(int64_t num_pages, int64_t page_bytes, int64_t num_frames)
    : num_pages_(num_pages),
      page_bytes_(page_bytes),
      policy_(num_pages, num_frames),
      frames_(static_cast<size_t>(num_frames)) {}

absl::Status StreamPager::Open() {
  BITSHARD_ASSIGN_OR_RETURN(leaving_, core::Stream::Create());
  BITSHARD_ASSIGN_OR_RETURN(coming_, core::Stream::Create());
  BITSHARD_ASSIGN_OR_RETURN(left_, core::Event::Create());
  for (Frame& frame : frames_) {
    BITSHARD_ASSIGN_OR_RETURN(frame.ready, core::Event::Create());
    BITSHARD_ASSIGN_OR_RETURN(frame.used, core::Event::Create());
  }
  return absl::OkStatus();
}

// Errors have been reported by other calls, or nobody is left to hear them.
void StreamPager::Drain() {
  if (coming_.get() == nullptr) return;
  for (const Frame& frame : frames_) (void)frame.used.Synchronize();
  (void)leaving_.Synchronize();
  (void)coming_.Synchronize();
}

absl::Status StreamPager::Remember(absl::Status status) {
  if (error_.ok()) error_ = std::move(status);
  return error_;
}

absl::Status StreamPager::BeginWalk() {
  BITSHARD_RETURN_IF_ERROR(error_);
  policy_.BeginWalk();
  return Remember(MakeMoves());
}

absl::Status StreamPager::EndWalk() {
  policy_.EndWalk();
  return error_;
}

absl::StatusOr<std::byte*> StreamPager::Acquire(int64_t page, cudaStream_t stream) {
  BITSHARD_CHECK(page >= 0 && page < num_pages_) << page;
  BITSHARD_RETURN_IF_ERROR(error_);
  if (policy_.FrameOf(page) >= 0) {
    ++hits_;
  } else {
    ++faults_;
    BITSHARD_CHECK(policy_.CanLoad())
        << "page " << page << ": all " << num_frames() << " frames are acquired";
    policy_.Want(page);
    BITSHARD_RETURN_IF_ERROR(Remember(MakeMoves()));
  }
  const int64_t frame = policy_.FrameOf(page);
  policy_.Acquire(page);
  BITSHARD_RETURN_IF_ERROR(Remember(WaitForPage(frame_at(frame), stream)));
  BITSHARD_RETURN_IF_ERROR(Remember(MakeMoves()));
  return AddressOf(page, frame);
}

absl::Status StreamPager::WaitForPage(const Frame& frame, cudaStream_t stream) {
  BITSHARD_RETURN_IF_ERROR(frame.used.MakeWait(stream));
  return stalls_.Wait(stream, frame.ready);
}

absl::Status StreamPager::Release(int64_t page, cudaStream_t stream, ReleaseOptions options) {
  const int64_t frame = policy_.FrameOf(page);
  policy_.Release(page, options.dirty);
  BITSHARD_RETURN_IF_ERROR(error_);
  BITSHARD_RETURN_IF_ERROR(Remember(frame_at(frame).used.Record(stream)));
  return Remember(MakeMoves());
}

// Every move that the policy has, as one batch: it is under way as soon as it is on the streams.
absl::Status StreamPager::MakeMoves() {
  std::vector<PagerMove> moves;
  std::vector<Move> started;
  while (const std::optional<Move> move = policy_.StartMove()) {
    Frame& frame = frame_at(move->frame);
    moves.push_back({.frame = move->frame,
                     .displaced = frame.page,
                     .dirty = move->evicted >= 0,
                     .dead = move->evicted < 0 && !frame.read,
                     .loaded = move->loaded,
                     .read = move->read});
    frame.page = move->loaded;
    frame.read = move->read;
    started.push_back(*move);
  }
  if (moves.empty()) return absl::OkStatus();
  BITSHARD_RETURN_IF_ERROR(CarryOut(moves));
  for (const Move& move : started) policy_.FinishMove(move);
  return absl::OkStatus();
}

absl::Status StreamPager::CarryOut(std::span<const PagerMove> moves) {
  for (const PagerMove& move : moves) {
    BITSHARD_RETURN_IF_ERROR(frame_at(move.frame).used.MakeWait(leaving_.get()));
    BITSHARD_RETURN_IF_ERROR(frame_at(move.frame).ready.MakeWait(leaving_.get()));
  }
  BITSHARD_RETURN_IF_ERROR(Leave(moves, leaving_.get()));
  BITSHARD_RETURN_IF_ERROR(left_.Record(leaving_.get()));
  BITSHARD_RETURN_IF_ERROR(left_.MakeWait(coming_.get()));
  BITSHARD_RETURN_IF_ERROR(Come(moves, coming_.get()));
  for (const PagerMove& move : moves)
    BITSHARD_RETURN_IF_ERROR(frame_at(move.frame).ready.Record(coming_.get()));
  return absl::OkStatus();
}

PagingCounters StreamPager::counters() const {
  return {.bytes_read = bytes_read_,
          .bytes_written = bytes_written_,
          .hits = hits_,
          .faults = faults_,
          .stall_seconds = stalls_.Seconds()};
}

}  // namespace bitshard::paging
