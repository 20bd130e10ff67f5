// The runs of one or more pages of state, group by group, as optim::Step takes them.
//
//   runs.Clear();
//   runs.Add(pages, pages.SegmentsOf(page), at, {.parameters = arena, .gradients = gradients});
//   for (int64_t g = 0; g < groups.num_groups(); ++g) ... runs.of(g) ...
#ifndef BITSHARD_OPTIM_GROUPED_RUNS_H_
#define BITSHARD_OPTIM_GROUPED_RUNS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "optim/state_pages.h"
#include "optim/step.h"
#include "optim/tensor_groups.h"

namespace bitshard::optim {

/// Pointers to host or device memory.
struct RunSource {
  float* parameters = nullptr;  ///< The whole arena, float32 [layout.padded_elems()].
  /// This rank's blocks, float32, in the order of shards.RunsOf(rank).
  const float* gradients = nullptr;
  /// UpdateScale of each tensor; empty: 1.
  std::span<const double> update_scales;
};

/// `groups` outlives it. Threads: one thread uses it.
class GroupedRuns {
 public:
  explicit GroupedRuns(const TensorGroups* groups)
      : groups_(groups), runs_(static_cast<size_t>(groups->num_groups())), first_(runs_.size()) {}

  void Clear();
  /// The segments of the page that is at `page`.
  void Add(const StatePages& pages, std::span<const StateSegment> segments, std::byte* page,
           const RunSource& source);
  std::span<const StepRun> of(int64_t group) const { return runs_[static_cast<size_t>(group)]; }
  /// For each run of the group the number of its first block among this rank's blocks.
  std::span<const int64_t> first_local_of(int64_t group) const {
    return first_[static_cast<size_t>(group)];
  }

 private:
  const TensorGroups* groups_;
  std::vector<std::vector<StepRun>> runs_;
  std::vector<std::vector<int64_t>> first_;
};

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_GROUPED_RUNS_H_
