// Which pages are in memory, and what is moved next. Pure: decides, touches no data;
// paging/file_buffer.h acts.
//
// A walk acquires pages 0 .. n-1 in order, and walks repeat, so the time of each page's next use is
// known: the page to give up is the one used last (Belady, "A study of replacement algorithms for
// virtual storage", IBM Systems Journal 1966). In a walk that is the page just passed, so that with
// f frames nearly f pages stay from walk to walk, where LRU would reload every one. Outside of
// walks the next use is unknown and LRU decides.
//
//   while (std::optional<Move> move = policy.StartMove()) { ...; policy.FinishMove(*move); }
#ifndef BITSHARD_PAGING_RESIDENCY_POLICY_H_
#define BITSHARD_PAGING_RESIDENCY_POLICY_H_

#include <cstdint>
#include <optional>
#include <vector>

namespace bitshard::paging {

/// Into `frame`: first write out `evicted` (if >= 0), then bring in `loaded`: read it, or fill the
/// frame with zeros where the page has never been written.
struct Move {
  int64_t frame = -1;
  int64_t evicted = -1;  ///< A page to write before its frame is reused; -1: nothing to write.
  int64_t loaded = -1;
  bool read = false;
  friend bool operator==(const Move&, const Move&) = default;
};

/// Not thread-safe.
class ResidencyPolicy {
 public:
  /// num_frames >= 2, or 1 where there is only one page.
  ResidencyPolicy(int64_t num_pages, int64_t num_frames);

  void BeginWalk();
  void EndWalk();

  /// The page's frame, or -1 while it is not in memory (or on its way).
  int64_t FrameOf(int64_t page) const;
  /// Asks for a page that is not in memory: the next move brings it. One at a time; Acquire takes
  /// the request back.
  void Want(int64_t page);
  /// False when a wanted page can't come: every frame holds an acquired page.
  bool CanLoad() const;

  /// The page must be in memory. It stays there until Release.
  void Acquire(int64_t page);
  void Release(int64_t page, bool dirty);

  /// The next move, which is then under way: the wanted page, else the next page of the walk within
  /// the read-ahead distance. Nothing when there is nothing to do or no frame to do it with.
  std::optional<Move> StartMove();
  void FinishMove(const Move& move);

 private:
  struct Frame {
    int64_t page = -1;
    bool acquired = false;
    bool dirty = false;
    bool moving = false;
    int64_t last_use = 0;
  };
  struct Page {
    int64_t frame = -1;
    bool written = false;  ///< Has content in the lower tier.
  };

  Frame& frame_at(int64_t frame) { return frames_[static_cast<size_t>(frame)]; }
  int64_t NextUse(int64_t page) const;
  int64_t Victim() const;
  std::optional<Move> StartLoad(int64_t page);

  std::vector<Page> pages_;
  std::vector<Frame> frames_;
  const int64_t read_ahead_;
  int64_t wanted_ = -1;
  bool walking_ = false;
  int64_t position_ = 0;  ///< Next page of the walk to be acquired.
  int64_t clock_ = 0;
};

}  // namespace bitshard::paging

#endif  // BITSHARD_PAGING_RESIDENCY_POLICY_H_
