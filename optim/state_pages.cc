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
      const int64_t tensor = layout.TensorOfBlock(block);
      const int64_t end = std::min(run.end, layout.tensor(tensor).blocks.end);
      Place(layout, tensor, {block, end}, &local, &used);
      block = end;
    }
  }
  num_pages_ = segments_.empty() ? 0 : segments_.back().page + 1;
  if (num_pages_ == 1) page_bytes_ = Align64(used);
  for (size_t i = 0; i < segments_.size(); ++i) {
    if (i == 0 || segments_[i].page != segments_[i - 1].page) first_segment_.push_back(i);
  }
  first_segment_.push_back(segments_.size());
}

// Cuts a run of one tensor's blocks into segments, going on where the last page ends.
void StatePages::Place(const core::FlatLayout& layout, int64_t tensor, core::BlockRange blocks,
                       int64_t* local, int64_t* used) {
  const core::FlatTensor& of = layout.tensor(tensor);
  const StateForm form = options_.forms[static_cast<size_t>(tensor)];
  const auto fitting = [&](int64_t bytes) {
    int64_t count = std::min(blocks.size(), bytes / BlockBytes(tensor));
    while (count > 0 && SegmentBytes(count, form) > bytes) --count;  // What alignment takes.
    return count;
  };
  while (blocks.size() > 0) {
    int64_t count = fitting(page_bytes_ - *used);
    const int64_t page = segments_.empty() ? 0 : segments_.back().page;
    if (count == 0) {
      *used = 0;
      count = fitting(page_bytes_);
    }
    const bool new_page = !segments_.empty() && *used == 0;
    const int64_t first_elem = (blocks.begin - of.blocks.begin) * core::kBlockElems;
    segments_.push_back({.blocks = {blocks.begin, blocks.begin + count},
                         .first_local = *local,
                         .page = page + (new_page ? 1 : 0),
                         .offset = *used,
                         .tensor = tensor,
                         .form = form,
                         .first_elem = first_elem,
                         .elems = std::min(count * core::kBlockElems, of.numel - first_elem)});
    *used += SegmentBytes(count, form);
    *local += count;
    blocks.begin += count;
  }
}

int64_t StatePages::SegmentBytes(int64_t blocks, const StateForm& form) const {
  if (!form.is_8bit) return options_.num_states * blocks * core::kBlockElems * 4;
  return options_.num_states *
         (blocks * core::kBlockElems + Align64(blocks * form.absmax_per_block() * 4));
}

int64_t StatePages::BlockBytes(int64_t tensor) const {
  const StateForm& form = options_.forms[static_cast<size_t>(tensor)];
  return options_.num_states *
         (form.is_8bit ? core::kBlockElems + form.absmax_per_block() * 4 : core::kBlockElems * 4);
}

std::span<const StateSegment> StatePages::SegmentsOf(int64_t page) const {
  const size_t first = first_segment_[static_cast<size_t>(page)];
  return std::span(segments_).subspan(first, first_segment_[static_cast<size_t>(page) + 1] - first);
}

int64_t StatePages::BlocksThrough(int64_t page) const {
  const StateSegment& last = SegmentsOf(page).back();
  return last.first_local + last.blocks.size();
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
  StepRun run{.elems = segment.elems, .tensor = segment.tensor, .first_elem = segment.first_elem};
  for (int i = 0; i < options_.num_states; ++i) {
    if (segment.form.is_8bit) {
      run.states[i].codes = reinterpret_cast<uint8_t*>(at);
      at += elems;
    } else {
      run.states[i].values = reinterpret_cast<float*>(at);
      at += elems * 4;
    }
  }
  for (int i = 0; i < options_.num_states && segment.form.is_8bit; ++i) {
    run.states[i].absmax = reinterpret_cast<float*>(at);
    at += Align64(blocks * segment.form.absmax_per_block() * 4);
  }
  return run;
}

BlockParts StatePages::PartsOf(const StateSegment& segment, std::byte* page, int64_t block) const {
  const StepRun run = RunOf(segment, page);
  const int64_t index = block - segment.blocks.begin;
  const int64_t elem = index * core::kBlockElems;
  const int64_t per_block = segment.form.absmax_per_block();
  BlockParts parts;
  for (int i = 0; i < options_.num_states; ++i) {
    if (run.is_8bit()) {
      parts.Add(run.states[i].codes + elem, core::kBlockElems);
    } else {
      parts.Add(run.states[i].values + elem, core::kBlockElems * 4);
    }
  }
  for (int i = 0; i < options_.num_states && run.is_8bit(); ++i)
    parts.Add(run.states[i].absmax + index * per_block, per_block * 4);
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
  int64_t most = 0;
  for (int64_t page = 0; page < num_pages_; ++page)
    most = std::max(most, static_cast<int64_t>(SegmentsOf(page).size()));
  return most;
}

}  // namespace bitshard::optim
