#include "paging/residency_policy.h"

#include <algorithm>

#include "core/check.h"

namespace bitshard::paging {
namespace {

// Pages that are fetched before they are needed. One lets computing and I/O overlap; the second
// evens out an I/O that takes longer than usual, where there are frames for it.
int64_t ReadAhead(int64_t num_frames) { return num_frames >= 4 ? 2 : 1; }

}  // namespace

ResidencyPolicy::ResidencyPolicy(int64_t num_pages, int64_t num_frames)
    : pages_(static_cast<size_t>(num_pages)),
      frames_(static_cast<size_t>(num_frames)),
      read_ahead_(ReadAhead(num_frames)) {
  BITSHARD_CHECK(num_pages >= 1 && num_frames >= std::min<int64_t>(num_pages, 2))
      << num_pages << " pages, " << num_frames << " frames";
}

void ResidencyPolicy::BeginWalk() {
  walking_ = true;
  position_ = 0;
}

void ResidencyPolicy::EndWalk() { walking_ = false; }

int64_t ResidencyPolicy::FrameOf(int64_t page) const {
  const int64_t frame = pages_[static_cast<size_t>(page)].frame;
  return frame >= 0 && !frames_[static_cast<size_t>(frame)].moving ? frame : -1;
}

void ResidencyPolicy::Want(int64_t page) { wanted_ = page; }

bool ResidencyPolicy::CanLoad() const {
  return std::any_of(frames_.begin(), frames_.end(), [](const Frame& f) { return !f.acquired; });
}

void ResidencyPolicy::Acquire(int64_t page) {
  const int64_t frame = FrameOf(page);
  BITSHARD_CHECK(frame >= 0 && !frame_at(frame).acquired) << "page " << page;
  frame_at(frame).acquired = true;
  frame_at(frame).last_use = ++clock_;
  if (wanted_ == page) wanted_ = -1;
  if (walking_) position_ = page + 1;
}

void ResidencyPolicy::Release(int64_t page, bool dirty) {
  const int64_t frame = FrameOf(page);
  BITSHARD_CHECK(frame >= 0 && frame_at(frame).acquired) << "page " << page;
  frame_at(frame).acquired = false;
  frame_at(frame).dirty |= dirty;
}

std::optional<Move> ResidencyPolicy::StartMove() {
  if (wanted_ >= 0 && pages_[static_cast<size_t>(wanted_)].frame < 0) return StartLoad(wanted_);
  if (!walking_) return std::nullopt;
  const int64_t end = std::min(position_ + read_ahead_, static_cast<int64_t>(pages_.size()));
  for (int64_t page = position_; page < end; ++page) {
    if (pages_[static_cast<size_t>(page)].frame < 0) return StartLoad(page);
  }
  return std::nullopt;
}

// In a walk: the position at which the page is used next, in this walk or the following one.
int64_t ResidencyPolicy::NextUse(int64_t page) const {
  return page >= position_ ? page : page + static_cast<int64_t>(pages_.size());
}

int64_t ResidencyPolicy::Victim() const {
  int64_t victim = -1;
  for (size_t i = 0; i < frames_.size(); ++i) {
    const Frame& frame = frames_[i];
    if (frame.acquired || frame.moving) continue;
    if (frame.page >= 0 && frame.page == wanted_) continue;  // has come, is about to be acquired
    if (frame.page < 0) return static_cast<int64_t>(i);
    if (victim < 0) {
      victim = static_cast<int64_t>(i);
      continue;
    }
    const Frame& best = frames_[static_cast<size_t>(victim)];
    const bool better =
        walking_ ? NextUse(frame.page) > NextUse(best.page) : frame.last_use < best.last_use;
    if (better) victim = static_cast<int64_t>(i);
  }
  return victim;
}

std::optional<Move> ResidencyPolicy::StartLoad(int64_t page) {
  const int64_t victim = Victim();
  if (victim < 0) return std::nullopt;
  Frame& frame = frame_at(victim);
  // Reading ahead must not throw out what is used before it.
  if (page != wanted_ && frame.page >= 0 && NextUse(frame.page) < page) return std::nullopt;
  Page& loaded = pages_[static_cast<size_t>(page)];
  const Move move{.frame = victim,
                  .evicted = frame.dirty ? frame.page : -1,
                  .loaded = page,
                  .read = loaded.written};
  if (frame.page >= 0) {
    Page& evicted = pages_[static_cast<size_t>(frame.page)];
    evicted.frame = -1;
    evicted.written |= frame.dirty;
  }
  loaded.frame = victim;
  frame = {.page = page, .moving = true, .last_use = clock_};
  return move;
}

void ResidencyPolicy::FinishMove(const Move& move) {
  Frame& frame = frame_at(move.frame);
  BITSHARD_CHECK(frame.moving && frame.page == move.loaded) << "frame " << move.frame;
  frame.moving = false;
}

}  // namespace bitshard::paging
