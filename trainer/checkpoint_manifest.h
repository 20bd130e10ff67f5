// The manifest of a checkpoint: what it is, which shard files it consists of, and what is in them.
// Nothing in it depends on how many ranks will read it.
//
//   const std::string text = ManifestText(manifest);
//   BITSHARD_ASSIGN_OR_RETURN(const CheckpointManifest manifest, ParseManifest(text, path));
#ifndef BITSHARD_TRAINER_CHECKPOINT_MANIFEST_H_
#define BITSHARD_TRAINER_CHECKPOINT_MANIFEST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/flat_layout.h"
#include "trainer/shard_file.h"

namespace bitshard::trainer {

inline constexpr int64_t kManifestVersion = 1;

/// What a checkpoint says about its run.
struct CheckpointInfo {
  int64_t step = 0;              ///< Steps done.
  int64_t optimizer_step = 0;    ///< Of them, those that changed the parameters: not the skipped.
  int64_t data_position = 0;     ///< Packs of the data order that have been used.
  int64_t total_tokens = 0;      ///< Tokens seen since the run began.
  int64_t trained_tokens = 0;    ///< Those that counted in the loss.
  std::string data_fingerprint;  ///< Of the prepared data.
  std::string config_hash;
  std::string config_text;  ///< The whole resolved configuration: enough to start the run again.
  std::string program_version;
  uint64_t layout_fingerprint = 0;  ///< core::FlatLayout::Fingerprint.
  int64_t num_blocks = 0;
};

/// A run of blocks in a shard: the next `bytes` of its payload.
struct StoredRun {
  core::BlockRange blocks;
  int64_t bytes = 0;
  friend bool operator==(const StoredRun&, const StoredRun&) = default;
};

/// "parameters", "optimizer": in a shard's payload one section follows another.
struct StoredSection {
  std::string name;
  std::vector<StoredRun> runs;
};

struct ShardEntry {
  std::string file;  ///< A plain name inside the checkpoint's folder.
  ShardDigest digest;
  std::vector<StoredSection> sections;
};

struct CheckpointManifest {
  CheckpointInfo info;
  std::vector<ShardEntry> shards;
};

/// The header that a shard's file carries; `digest` is no part of it.
std::string ShardHeader(const CheckpointInfo& info, const ShardEntry& shard);

/// One entry as text, for gathering entries from ranks. Errors of the reader: kData.
std::string ShardEntryText(const ShardEntry& shard);
absl::StatusOr<ShardEntry> ParseShardEntry(const std::string& text, const std::string& where);

/// The canonical text, with a checksum over itself.
std::string ManifestText(const CheckpointManifest& manifest);

/// Reads what ManifestText wrote: any other text, by as little as a space, is damaged. Checks too
/// that every section has each block of the layout exactly once, and that no file name leads out of
/// the folder. Errors: kData with `where`, key, found and wanted.
absl::StatusOr<CheckpointManifest> ParseManifest(const std::string& text, const std::string& where);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_CHECKPOINT_MANIFEST_H_
