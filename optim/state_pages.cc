#include "optim/state_pages.h"

#include <algorithm>

#include "quant/codebook.h"

namespace bitshard::optim {
namespace {

// 4096 blocks of 8-bit AdamW: large enough that reading a page runs at the device's bandwidth.
constexpr int64_t kPageBytes = 4096 * 520;
// One block of 32-bit states.
constexpr int64_t kLeastPageBytes = kMaxStates * core::kBlockElems * 4;

int64_t Align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// One page to work on and one on its way must fit the budget.
int64_t PageBytesFor(int64_t budget_bytes) {
  if (budget_bytes == 0) return Align64(kPageBytes);
  return std::clamp(budget_bytes / 2 / 64 * 64, kLeastPageBytes, Align64(kPageBytes));
}

}  // namespace

StatePages::StatePages(const core::FlatLayout& layout, const comm::ShardMap& shards, int rank,
                       const Options& options)
    : options_(options), page_bytes_(PageBytesFor(options.budget_bytes)) {
  int64_t local = 0, used = 0;
  for (const core::BlockRange run : shards.RunsOf(rank)) {
    for (int64_t block = run.begin; block < run.end;) {
      const core::FlatTensor& tensor = layout.tensor(layout.TensorOfBlock(block));
      const int64_t end = std::min(run.end, tensor.blocks.end);
      Place({block, end}, tensor, &local, &used);
      block = end;
    }
  }
  num_pages_ = segments_.empty() ? 0 : segments_.back().page + 1;
  if (num_pages_ == 1) page_bytes_ = Align64(used);
}

// Cuts a run of one tensor's blocks into segments, going on where the last page ends.
void StatePages::Place(core::BlockRange blocks, const core::FlatTensor& tensor, int64_t* local,
                       int64_t* used) {
  const bool is_8bit = Is8Bit(tensor);
  while (blocks.size() > 0) {
    int64_t count = std::min(blocks.size(), (page_bytes_ - *used) / SegmentBytes(1, is_8bit) + 1);
    while (count > 0 && *used + SegmentBytes(count, is_8bit) > page_bytes_) --count;
    const int64_t page = segments_.empty() ? 0 : segments_.back().page;
    if (count == 0) {
      *used = 0;
      count = std::min(blocks.size(), page_bytes_ / SegmentBytes(1, is_8bit));
    }
    const bool new_page = !segments_.empty() && *used == 0;
    const int64_t first_elem = (blocks.begin - tensor.blocks.begin) * core::kBlockElems;
    segments_.push_back({.blocks = {blocks.begin, blocks.begin + count},
                         .first_local = *local,
                         .page = page + (new_page ? 1 : 0),
                         .offset = *used,
                         .is_8bit = is_8bit,
                         .elems = std::min(count * core::kBlockElems, tensor.numel - first_elem)});
    *used += SegmentBytes(count, is_8bit);
    *local += count;
    blocks.begin += count;
  }
}

int64_t StatePages::SegmentBytes(int64_t blocks, bool is_8bit) const {
  if (!is_8bit) return options_.num_states * blocks * core::kBlockElems * 4;
  return options_.num_states * (blocks * core::kBlockElems + Align64(blocks * 4));
}

int64_t StatePages::BlockBytes(bool is_8bit) const {
  return options_.num_states * (is_8bit ? core::kBlockElems + 4 : core::kBlockElems * 4);
}

const StateSegment* StatePages::Find(int64_t block) const {
  const auto after =
      std::upper_bound(segments_.begin(), segments_.end(), block,
                       [](int64_t b, const StateSegment& s) { return b < s.blocks.begin; });
  if (after == segments_.begin()) return nullptr;
  const StateSegment& segment = *(after - 1);
  return block < segment.blocks.end ? &segment : nullptr;
}

StepRun StatePages::RunOf(const StateSegment& segment, std::byte* page) const {
  const int64_t blocks = segment.blocks.size(), elems = blocks * core::kBlockElems;
  std::byte* at = page + segment.offset;
  StepRun run{.elems = segment.elems};
  for (int i = 0; i < options_.num_states; ++i) {
    if (segment.is_8bit) {
      run.states[i].codes = reinterpret_cast<uint8_t*>(at);
      at += elems;
    } else {
      run.states[i].values = reinterpret_cast<float*>(at);
      at += elems * 4;
    }
  }
  for (int i = 0; i < options_.num_states && segment.is_8bit; ++i) {
    run.states[i].absmax = reinterpret_cast<float*>(at);
    at += Align64(blocks * 4);
  }
  return run;
}

BlockParts StatePages::PartsOf(const StepRun& run, int64_t block) const {
  BlockParts parts;
  const int64_t elem = block * core::kBlockElems;
  for (int i = 0; i < options_.num_states; ++i) {
    if (run.is_8bit()) {
      parts.Add(run.states[i].codes + elem, core::kBlockElems);
    } else {
      parts.Add(run.states[i].values + elem, core::kBlockElems * 4);
    }
  }
  for (int i = 0; i < options_.num_states && run.is_8bit(); ++i)
    parts.Add(run.states[i].absmax + block, 4);
  return parts;
}

std::vector<ZeroCodes> StatePages::ZeroCodesOf(const StateSegment& segment, std::byte* page) const {
  const StepRun run = RunOf(segment, page);
  const int64_t elems = segment.blocks.size() * core::kBlockElems;
  std::vector<ZeroCodes> codes;
  for (int i = 0; i < options_.num_states && run.is_8bit(); ++i) {
    const quant::CodeTable& table =
        IsSignedState(i) ? quant::SignedDynamicTable() : quant::UnsignedDynamicTable();
    codes.push_back({run.states[i].codes, table.zero_code, elems});
  }
  return codes;
}

int64_t StatePages::MostSegmentsOfPage() const {
  int64_t most = 0, count = 0, page = -1;
  for (const StateSegment& segment : segments_) {
    count = segment.page == page ? count + 1 : 1;
    page = segment.page;
    most = std::max(most, count);
  }
  return most;
}

}  // namespace bitshard::optim
