// Checkpoints: sharded, checksummed, complete or not there, and readable by any number of ranks.
//
// A save writes `checkpoint-<step>.tmp.<job>/` (a shard file a rank, then the manifest), makes it
// durable, and renames it to `checkpoint-<step>/`: a kill at any moment leaves the last complete
// checkpoint as it was. Content is stored by blocks of the flat arena, whose bytes never depend on
// the world size (docs/checkpoints.md).
//
//   BITSHARD_ASSIGN_OR_RETURN(auto checkpoints, Checkpointer::Create({.directory = dir, .layout =
//   &layout}, comm)); BITSHARD_ASSIGN_OR_RETURN(const auto found, checkpoints->FindNewest()); if
//   (found.has_value()) BITSHARD_RETURN_IF_ERROR(checkpoints->Load(*found, sections_that_i_need));
//   ...
//   const absl::Status saved = checkpoints->Save(info, sections_that_i_own);    // kStorage:
//   training may go on
#ifndef BITSHARD_TRAINER_CHECKPOINT_H_
#define BITSHARD_TRAINER_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "core/flat_layout.h"
#include "trainer/checkpoint_manifest.h"

namespace bitshard::trainer {

/// One kind of content, by blocks: "parameters" (float32 [256] a block), "optimizer"
/// (ShardedOptimizer's bytes). Over all ranks the runs of a saved section cover each block of the
/// layout exactly once; the runs to load may be any, also all blocks on every rank.
struct BlockSection {
  std::string name;
  std::vector<core::BlockRange> runs;  ///< What this rank writes, or needs. Empty runs are skipped.
  /// Bytes of one block: the same on every rank and at every world size.
  std::function<int64_t(int64_t block)> block_bytes;
  /// For Save: writes the blocks' bytes; the range lies inside one of `runs` and takes about a MiB.
  std::function<absl::Status(core::BlockRange blocks, std::span<std::byte> out)> export_blocks =
      nullptr;
  /// For Load: takes the blocks' bytes; ranges as for export_blocks.
  std::function<absl::Status(core::BlockRange blocks, std::span<const std::byte> in)>
      import_blocks = nullptr;
};

struct CheckpointerOptions {
  std::string directory;         ///< output_dir: the same folder for all ranks. It must exist.
  int64_t save_total_limit = 0;  ///< Checkpoints to keep; 0: all.
  const core::FlatLayout* layout = nullptr;  ///< Outlives the checkpointer.
};

/// A checkpoint that has been verified.
struct FoundCheckpoint {
  std::string path;
  CheckpointManifest manifest;
  std::vector<std::string> skipped;  ///< Newer ones that were damaged, and why: for the user.
};

/// Threads: one thread calls it. Every function is a collective: all ranks call it and return the
/// same status. After kPeer the communicator is unusable.
class Checkpointer {
 public:
  /// Removes what killed jobs left half written in the directory, so the directory's lock
  /// (trainer/run_lock.h) must be held by rank 0.
  static absl::StatusOr<std::unique_ptr<Checkpointer>> Create(const CheckpointerOptions& options,
                                                              comm::Communicator* comm);

  /// Writes, publishes and reads back a checkpoint; then deletes the oldest beyond
  /// save_total_limit. layout_fingerprint and num_blocks of `info` are filled in here; `info` is
  /// rank 0's. Errors: kStorage (disk full, I/O error, a folder that ranks don't share): the
  /// earlier checkpoints are as they were. kPeer.
  absl::Status Save(CheckpointInfo info, const std::vector<BlockSection>& sections);

  /// The checkpoint with the highest step that verifies, every byte of it; nullopt where there is
  /// none at all. Errors: kData when there are some and none verifies, with the reasons.
  absl::StatusOr<std::optional<FoundCheckpoint>> FindNewest();

  /// The checkpoint at `path`. Errors: kData when it is missing or damaged.
  absl::StatusOr<FoundCheckpoint> Open(const std::string& path);

  /// Imports the blocks that `sections` ask for.
  /// Errors: kConfig when the checkpoint's tensors or block sizes are others than this run's;
  /// kData.
  absl::Status Load(const FoundCheckpoint& found, const std::vector<BlockSection>& sections);

 private:
  Checkpointer(const CheckpointerOptions& options, comm::Communicator* comm, std::string job_id)
      : options_(options), comm_(comm), job_id_(std::move(job_id)) {}

  std::string PathOf(int64_t step) const;
  std::string TemporaryPathOf(int64_t step) const;
  absl::StatusOr<ShardEntry> WriteShard(const CheckpointInfo& info,
                                        const std::vector<BlockSection>& sections) const;
  absl::Status Publish(const CheckpointManifest& manifest) const;
  absl::Status ReadBack(const CheckpointManifest& manifest) const;
  absl::Status DeleteOldest(int64_t newest_step) const;
  absl::StatusOr<CheckpointManifest> Verify(const std::string& path, int64_t expected_step) const;

  CheckpointerOptions options_;
  comm::Communicator* comm_;
  std::string job_id_;
};

/// Steps of the checkpoints in `directory` (complete by name; not verified), highest first.
std::vector<int64_t> ListCheckpoints(const std::string& directory);

/// The manifest at `path`, checked, without its shards. Errors: kData.
absl::StatusOr<CheckpointManifest> ReadCheckpointManifest(const std::string& path);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_CHECKPOINT_H_
