// A made-up run for the tests of checkpoints: a layout, and sections whose bytes are a known
// function of section, step, block and position, so that every loaded byte can be checked without
// keeping a copy.
#ifndef BITSHARD_TESTS_TRAINER_CHECKPOINT_TEST_SUPPORT_H_
#define BITSHARD_TESTS_TRAINER_CHECKPOINT_TEST_SUPPORT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "core/flat_layout.h"
#include "trainer/checkpoint.h"

namespace bitshard::trainer {

/// A folder that is removed at the end of its scope.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// `blocks` blocks in a few tensors.
core::FlatLayout TestLayout(int64_t blocks);

/// Bytes of a block's optimizer state: 520 in the first half of the layout, 2048 in the second.
int64_t OptimizerBlockBytes(const core::FlatLayout& layout, int64_t block);

/// Runs body(comm) on `ranks` threads, one a rank, and returns what each returned.
std::vector<absl::Status> OnRanks(int ranks,
                                  const std::function<absl::Status(comm::Communicator*)>& body);
/// OK when all are OK, else the first that is not.
absl::Status FirstError(const std::vector<absl::Status>& statuses);

/// The sections of `comm`'s rank, filled with the bytes of `step`.
std::vector<BlockSection> SectionsToSave(const core::FlatLayout& layout,
                                         const comm::Communicator& comm, int64_t step);

CheckpointInfo TestInfo(int64_t step);

struct SaveArgs {
  std::string directory;
  const core::FlatLayout* layout = nullptr;
  int ranks = 1;
  int64_t first_step = 1;
  int64_t last_step = 1;
  int64_t save_total_limit = 0;
};
/// Saves a checkpoint at each step.
absl::Status SaveSteps(const SaveArgs& args);

/// Finds the newest checkpoint on `ranks` ranks, loads what each rank needs, and checks every byte.
/// Returns the step; 0 where there is no checkpoint.
absl::StatusOr<int64_t> LoadAndCheck(const std::string& directory, const core::FlatLayout& layout,
                                     int ranks);

/// Finds, or opens `path` where it is not empty, on one rank; OK when every byte verifies.
absl::StatusOr<FoundCheckpoint> FindAlone(const std::string& directory,
                                          const core::FlatLayout& layout,
                                          const std::string& path = "");

/// Opens the checkpoint at `path` on one rank and loads all of it, as a program that trusts nothing
/// but the layout.
absl::Status OpenAndLoad(const std::string& path, const core::FlatLayout& layout);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TESTS_TRAINER_CHECKPOINT_TEST_SUPPORT_H_
