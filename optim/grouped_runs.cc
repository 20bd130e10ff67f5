#include "optim/grouped_runs.h"

namespace bitshard::optim {

void GroupedRuns::Clear() {
  for (auto& runs : runs_) runs.clear();
  for (auto& first : first_) first.clear();
}

void GroupedRuns::Add(const StatePages& pages, std::span<const StateSegment> segments,
                      std::byte* page, const RunSource& source) {
  for (const StateSegment& segment : segments) {
    StepRun run = pages.RunOf(segment, page);
    run.parameter = source.parameters + segment.blocks.begin * core::kBlockElems;
    run.gradient = source.gradients + segment.first_local * core::kBlockElems;
    if (!source.update_scales.empty())
      run.update_scale = source.update_scales[static_cast<size_t>(segment.tensor)];
    const size_t group = static_cast<size_t>(groups_->GroupOf(segment.tensor));
    runs_[group].push_back(run);
    first_[group].push_back(segment.first_local);
  }
}

}  // namespace bitshard::optim
