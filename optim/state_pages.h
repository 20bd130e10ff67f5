// Where each of a rank's blocks keeps its state inside the pages of a PagedBuffer. Pure arithmetic.
//
// A page holds whole blocks. Consecutive blocks of one tensor that stand in one page form a
// segment, laid out as arrays, so that a segment is one StepRun:
//   8-bit    codes of each state [blocks * 256], absmax of each state [blocks * 256 / state_block]
//            float32
//   32-bit   each state [blocks * 256] float32
// each array at a multiple of 64 bytes.
#ifndef BITSHARD_OPTIM_STATE_PAGES_H_
#define BITSHARD_OPTIM_STATE_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/shard_map.h"
#include "core/flat_layout.h"
#include "optim/step.h"
#include "optim/tensor_groups.h"

namespace bitshard::optim {

struct StateSegment {
  core::BlockRange blocks;  ///< Global block numbers, all of one tensor.
  int64_t first_local = 0;  ///< The first block's number among this rank's blocks.
  int64_t page = 0;
  int64_t offset = 0;  ///< Bytes into the page.
  int64_t tensor = 0;  ///< Its index in the layout.
  StateForm form;
  int64_t first_elem = 0;  ///< In the tensor.
  int64_t elems = 0;       ///< Of the tensor, padding left out.
};

/// The arrays of one block's state, in the order in which checkpoints hold them.
struct BlockParts {
  std::byte* at[2 * kMaxStates];
  int64_t bytes[2 * kMaxStates];
  int count = 0;
  void Add(void* p, int64_t n) {
    at[count] = static_cast<std::byte*>(p);
    bytes[count++] = n;
  }
};

/// Codes that are not 0 where the state is.
struct ZeroCodes {
  uint8_t* at = nullptr;
  uint8_t code = 0;
  int64_t count = 0;
};

class StatePages {
 public:
  struct Options {
    int num_states = 2;
    std::vector<StateForm> forms;  ///< Of each tensor of the layout.
    /// Bytes that pages may take at a time; 0: no limit. Two pages fit, down to 4 KiB.
    int64_t budget_bytes = 0;
  };
  StatePages() = default;
  StatePages(const core::FlatLayout& layout, const comm::ShardMap& shards, int rank,
             const Options& options);

  int64_t num_pages() const { return num_pages_; }
  int64_t page_bytes() const { return page_bytes_; }
  const std::vector<StateSegment>& segments() const { return segments_; }
  std::span<const StateSegment> SegmentsOf(int64_t page) const;
  /// This rank's blocks up to the end of a page.
  int64_t BlocksThrough(int64_t page) const;
  /// The segment that holds global block `block`, or nullptr when this rank does not own it.
  const StateSegment* Find(int64_t block) const;
  /// Bytes of a block of the tensor in the form that checkpoints hold.
  int64_t BlockBytes(int64_t tensor) const;
  /// State pointers of a segment whose page is at `page`.
  StepRun RunOf(const StateSegment& segment, std::byte* page) const;
  /// Of the segment's global block `block`, in a page at `page`.
  BlockParts PartsOf(const StateSegment& segment, std::byte* page, int64_t block) const;
  /// What to fill a segment of a page of zeros with, so that its state is zero in canonical form:
  /// absmax 0 and the code of 0.
  std::vector<ZeroCodes> ZeroCodesOf(const StateSegment& segment, std::byte* page) const;
  /// The largest number of segments in a page.
  int64_t MostSegmentsOfPage() const;

 private:
  int64_t SegmentBytes(int64_t blocks, const StateForm& form) const;
  void Place(const core::FlatLayout& layout, int64_t tensor, core::BlockRange blocks,
             int64_t* local, int64_t* used);

  Options options_;
  int64_t num_pages_ = 0;
  int64_t page_bytes_ = 0;
  std::vector<StateSegment> segments_;  // By block.
  std::vector<size_t> first_segment_;   // [pages + 1]: of each page, and where the last ends.
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_STATE_PAGES_H_
