// What an earlier run has left in an output_dir in which another one starts anew. Nothing of it may
// be lost, and nothing of it may be taken for the new run's: --resume goes on from the newest
// checkpoint of the folder, and trainer_state.json is made from its metrics.
#ifndef BITSHARD_TRAINER_EARLIER_RUN_H_
#define BITSHARD_TRAINER_EARLIER_RUN_H_

#include <string>

#include "absl/status/statusor.h"

namespace bitshard::trainer {

/// Moves what a run writes from `directory` to `directory`/earlier-N, N being the first number that
/// is free; files of other names stay. Returns that folder's path, or "" where there was nothing to
/// keep: no checkpoint and no result, so that what else a run has left is removed. Killed in the
/// middle it leaves every file in one of the two folders.
/// Errors: kStorage - a file can't be moved or removed.
absl::StatusOr<std::string> SetEarlierRunAside(const std::string& directory);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_EARLIER_RUN_H_
