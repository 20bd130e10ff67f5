#include "paging/file_buffer.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::paging {

absl::StatusOr<std::unique_ptr<PagedBuffer>> FileBuffer::Create(int64_t num_pages,
                                                                int64_t page_bytes,
                                                                const PagingOptions& options) {
  const int64_t least_frames = std::min<int64_t>(num_pages, 2);
  const int64_t num_frames = std::min(num_pages, options.budget_bytes / page_bytes);
  if (num_frames < least_frames) {
    return core::ConfigError(absl::StrCat("paging.budget: ", options.budget_bytes,
                                          " bytes, want at least ", least_frames * page_bytes, " (",
                                          least_frames, " pages of ", page_bytes,
                                          " bytes: one to work on, one on its way)"));
  }
  std::unique_ptr<FileBuffer> buffer(
      new FileBuffer(num_pages, page_bytes, num_frames, options.budget_bytes));
  BITSHARD_RETURN_IF_ERROR(buffer->Open(options.directory));
  return buffer;
}

FileBuffer::FileBuffer(int64_t num_pages, int64_t page_bytes, int64_t num_frames,
                       int64_t budget_bytes)
    : num_pages_(num_pages),
      page_bytes_(page_bytes),
      num_frames_(num_frames),
      limited_(&host_, {.limit_bytes = budget_bytes}),
      policy_(num_pages, num_frames) {}

absl::Status FileBuffer::Open(const std::string& directory) {
  BITSHARD_ASSIGN_OR_RETURN(
      file_, PageFile::Create(
                 {.directory = directory, .num_pages = num_pages_, .page_bytes = page_bytes_}));
  BITSHARD_ASSIGN_OR_RETURN(frames_, Allocation<Resource>::Create(
                                         &limited_, num_frames_ * page_bytes_, "resident pages"));
  io_ = std::thread([this] { RunIo(); });
  return absl::OkStatus();
}

FileBuffer::~FileBuffer() {
  if (!io_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  io_.join();
}

std::span<std::byte> FileBuffer::FrameBytes(int64_t frame) const {
  return frames_.memory().subspan(static_cast<size_t>(frame * page_bytes_),
                                  static_cast<size_t>(page_bytes_));
}

absl::Status FileBuffer::BeginWalk() {
  const std::lock_guard lock(mutex_);
  policy_.BeginWalk();
  changed_.notify_all();
  return error_;
}

absl::Status FileBuffer::EndWalk() {
  std::unique_lock lock(mutex_);
  policy_.EndWalk();
  WaitForIo(lock, [this] { return !moving_; });
  return error_;
}

absl::StatusOr<std::span<std::byte>> FileBuffer::Acquire(int64_t page) {
  BITSHARD_CHECK(page >= 0 && page < num_pages_) << page;
  std::unique_lock lock(mutex_);
  if (policy_.FrameOf(page) >= 0) {
    ++counters_.hits;
  } else {
    ++counters_.faults;
    BITSHARD_CHECK(policy_.CanLoad())
        << "page " << page << ": all " << num_frames_ << " frames are acquired";
    policy_.Want(page);
    changed_.notify_all();
    WaitForIo(lock, [&] { return policy_.FrameOf(page) >= 0 || !error_.ok(); });
  }
  if (!error_.ok()) return error_;
  policy_.Acquire(page);
  changed_.notify_all();
  return FrameBytes(policy_.FrameOf(page));
}

absl::Status FileBuffer::Release(int64_t page, ReleaseOptions options) {
  const std::lock_guard lock(mutex_);
  policy_.Release(page, options.dirty);
  changed_.notify_all();
  return error_;
}

PagingCounters FileBuffer::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

template <class Condition>
void FileBuffer::WaitForIo(std::unique_lock<std::mutex>& lock, Condition condition) {
  const auto started = std::chrono::steady_clock::now();
  changed_.wait(lock, condition);
  counters_.stall_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

void FileBuffer::RunIo() {
  std::unique_lock lock(mutex_);
  while (true) {
    std::optional<Move> move;
    changed_.wait(lock, [&] {
      if (stop_ || !error_.ok()) return true;
      move = policy_.StartMove();
      return move.has_value();
    });
    if (!move) return;
    moving_ = true;
    lock.unlock();
    const absl::Status done = Execute(*move);
    lock.lock();
    moving_ = false;
    counters_.bytes_read = file_->bytes_read();
    counters_.bytes_written = file_->bytes_written();
    if (done.ok()) {
      policy_.FinishMove(*move);
    } else {
      error_ = done;
    }
    changed_.notify_all();
  }
}

absl::Status FileBuffer::Execute(const Move& move) {
  const std::span<std::byte> frame = FrameBytes(move.frame);
  if (move.evicted >= 0) BITSHARD_RETURN_IF_ERROR(file_->Write(move.evicted, frame));
  if (move.read) return file_->Read(move.loaded, frame);
  std::memset(frame.data(), 0, frame.size());
  return absl::OkStatus();
}

}  // namespace bitshard::paging
