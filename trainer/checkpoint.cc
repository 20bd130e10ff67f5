#include "trainer/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/check.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/status_macros.h"

namespace bitshard::trainer {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "checkpoint-";
constexpr char kManifestFile[] = "manifest.json";
constexpr char kLatestFile[] = "latest";
constexpr char kReplaced[] = ".old";
// Blocks go through memory in pieces of about this size.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

std::string Shown(const std::string& path) { return core::Escaped(path, 4096); }

// 40 for "checkpoint-40", -1 for any other name.
int64_t StepOfName(const std::string& name) {
  const std::string prefix = kPrefix;
  if (name.rfind(prefix, 0) != 0) return -1;
  const std::string digits = name.substr(prefix.size());
  const bool number = !digits.empty() && digits.size() <= 18 &&
                      digits.find_first_not_of("0123456789") == std::string::npos &&
                      (digits[0] != '0' || digits == "0");
  return number ? std::stoll(digits) : -1;
}

std::vector<std::string> NamesIn(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  return names;
}

absl::Status RemoveTree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error)
    return core::StorageError(absl::StrCat(Shown(path), ": can't be removed: ", error.message()));
  return absl::OkStatus();
}

// Half-written checkpoints and half-written `latest` files of jobs that were killed. A complete one
// that was on its way to be replaced (RenameOver) and never was gets its name back.
absl::Status RemoveLeftovers(const std::string& directory) {
  for (const std::string& name : NamesIn(directory)) {
    const size_t dot = name.find(".tmp.");
    if (dot == std::string::npos) continue;
    const std::string path = directory + "/" + name;
    const std::string stem = name.substr(0, dot);
    const bool replaced = name.size() > 4 && name.substr(name.size() - 4) == kReplaced;
    if (StepOfName(stem) < 0 && stem != kLatestFile) continue;
    if (replaced && rename(path.c_str(), (directory + "/" + stem).c_str()) == 0) continue;
    BITSHARD_RETURN_IF_ERROR(RemoveTree(path));
  }
  return absl::OkStatus();
}

int64_t BytesOf(const BlockSection& section, core::BlockRange blocks) {
  int64_t bytes = 0;
  for (int64_t block = blocks.begin; block < blocks.end; ++block)
    bytes += section.block_bytes(block);
  return bytes;
}

// Calls body(blocks, bytes) for pieces of `run` of about kPieceBytes.
template <class Body>
absl::Status ForEachPiece(const BlockSection& section, core::BlockRange run, Body body) {
  for (int64_t begin = run.begin; begin < run.end;) {
    int64_t end = begin;
    int64_t bytes = 0;
    while (end < run.end && bytes < kPieceBytes) bytes += section.block_bytes(end++);
    BITSHARD_RETURN_IF_ERROR(body(core::BlockRange{begin, end}, bytes));
    begin = end;
  }
  return absl::OkStatus();
}

// Renames the complete folder to its final name. Where one of that name stands already (a run that
// went back to an earlier step) the two are exchanged in one step, and the old one is left under
// the temporary name.
absl::Status RenameOver(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  if (errno == ENOTEMPTY || errno == EEXIST) {
    if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0)
      return RemoveTree(from);
    const std::string old = from + kReplaced;
    if (rename(to.c_str(), old.c_str()) == 0 && rename(from.c_str(), to.c_str()) == 0)
      return RemoveTree(old);
  }
  return core::StorageError(absl::StrCat(Shown(to), ": rename: ", std::strerror(errno)));
}

absl::Status CheckSharedFolder(const std::string& directory, const ShardEntry& shard) {
  struct stat info {};
  const std::string path = directory + "/" + shard.file;
  if (stat(path.c_str(), &info) == 0 && info.st_size == ShardFileBytes(shard.digest.body_bytes)) {
    return absl::OkStatus();
  }
  return core::StorageError(absl::StrCat(Shown(path),
                                         ": rank 0 does not see the shard that another rank wrote; "
                                         "output_dir must be one folder for all ranks"));
}

// Reads from `reader` what `wanted` and a stored run have in common.
absl::Status ImportCommon(const BlockSection& section, core::BlockRange wanted,
                          const StoredRun& stored, int64_t stored_offset, ShardReader* reader) {
  const core::BlockRange common{std::max(wanted.begin, stored.blocks.begin),
                                std::min(wanted.end, stored.blocks.end)};
  if (common.begin >= common.end) return absl::OkStatus();
  int64_t offset = stored_offset + BytesOf(section, {stored.blocks.begin, common.begin});
  std::vector<std::byte> buffer;
  return ForEachPiece(section, common, [&](core::BlockRange blocks, int64_t bytes) {
    buffer.resize(static_cast<size_t>(bytes));
    BITSHARD_RETURN_IF_ERROR(reader->Read(offset, buffer));
    offset += bytes;
    return section.import_blocks(blocks, buffer);
  });
}

absl::Status CheckStoredSizes(const BlockSection& section, const StoredSection& stored,
                              const std::string& file) {
  for (const StoredRun& run : stored.runs) {
    const int64_t wanted = BytesOf(section, run.blocks);
    if (wanted == run.bytes) continue;
    return core::ConfigError(absl::StrFormat(
        "%s: section %s holds %d bytes for blocks %d to %d, this run needs %d: it was saved with "
        "another optimizer, min_8bit_size or optimizer_overrides",
        Shown(file), section.name, run.bytes, run.blocks.begin, run.blocks.end, wanted));
  }
  return absl::OkStatus();
}

absl::Status LoadShard(const std::string& folder, const CheckpointManifest& manifest,
                       const ShardEntry& shard, const std::vector<BlockSection>& sections) {
  const std::string path = folder + "/" + shard.file;
  BITSHARD_ASSIGN_OR_RETURN(
      const std::unique_ptr<ShardReader> reader,
      ShardReader::Open(path, shard.digest, ShardHeader(manifest.info, shard)));
  int64_t offset = 0;
  for (const StoredSection& stored : shard.sections) {
    const auto section =
        std::find_if(sections.begin(), sections.end(),
                     [&](const BlockSection& candidate) { return candidate.name == stored.name; });
    if (section != sections.end())
      BITSHARD_RETURN_IF_ERROR(CheckStoredSizes(*section, stored, path));
    for (const StoredRun& run : stored.runs) {
      if (section != sections.end()) {
        for (const core::BlockRange& wanted : section->runs) {
          BITSHARD_RETURN_IF_ERROR(ImportCommon(*section, wanted, run, offset, reader.get()));
        }
      }
      offset += run.bytes;
    }
  }
  return absl::OkStatus();
}

bool HasSection(const CheckpointManifest& manifest, const std::string& name) {
  for (const ShardEntry& shard : manifest.shards) {
    for (const StoredSection& section : shard.sections) {
      if (section.name == name) return true;
    }
  }
  return false;
}

absl::Status CheckFits(const FoundCheckpoint& found, const core::FlatLayout& layout,
                       const std::vector<BlockSection>& sections) {
  const CheckpointInfo& info = found.manifest.info;
  if (info.layout_fingerprint != layout.Fingerprint() || info.num_blocks != layout.num_blocks()) {
    return core::ConfigError(
        absl::StrFormat("%s: its trained tensors (%d blocks) are not those of this run (%d "
                        "blocks); base_model, lora_r and "
                        "lora_target_modules must be as they were",
                        Shown(found.path), info.num_blocks, layout.num_blocks()));
  }
  for (const BlockSection& section : sections) {
    if (HasSection(found.manifest, section.name)) continue;
    return core::DataError(
        absl::StrFormat("%s: has no section %s", Shown(found.path), section.name));
  }
  return absl::OkStatus();
}

std::string MakeJobId() {
  char host[256] = "";
  (void)gethostname(host, sizeof host - 1);
  core::Hasher hasher;
  hasher.UpdateString(host);
  hasher.UpdateInt(getpid());
  hasher.UpdateInt(std::chrono::steady_clock::now().time_since_epoch().count());
  return core::HexDigest(hasher.Digest());
}

}  // namespace

std::vector<int64_t> ListCheckpoints(const std::string& directory) {
  std::vector<int64_t> steps;
  for (const std::string& name : NamesIn(directory)) {
    struct stat info {};
    const bool folder =
        lstat((directory + "/" + name).c_str(), &info) == 0 && S_ISDIR(info.st_mode);
    if (folder && StepOfName(name) >= 0) steps.push_back(StepOfName(name));
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

absl::StatusOr<CheckpointManifest> ReadCheckpointManifest(const std::string& path) {
  const std::string file = path + "/" + kManifestFile;
  struct stat info {};
  if (lstat(file.c_str(), &info) == 0 && S_ISLNK(info.st_mode)) {
    return core::DataError(Shown(file) + ": a link; the manifest must be a file");
  }
  BITSHARD_ASSIGN_OR_RETURN(const std::string text, core::ReadFile(file, int64_t{64} << 20));
  return ParseManifest(text, file);
}

absl::StatusOr<std::unique_ptr<Checkpointer>> Checkpointer::Create(
    const CheckpointerOptions& options, comm::Communicator* comm) {
  BITSHARD_CHECK(options.layout != nullptr);
  absl::Status status = comm->rank() == 0 ? RemoveLeftovers(options.directory) : absl::OkStatus();
  BITSHARD_RETURN_IF_ERROR(comm->AgreeOnStatus(status));
  BITSHARD_ASSIGN_OR_RETURN(std::string job_id, comm->BroadcastString(MakeJobId(), "job id"));
  return std::unique_ptr<Checkpointer>(new Checkpointer(options, comm, std::move(job_id)));
}

std::string Checkpointer::PathOf(int64_t step) const {
  return absl::StrCat(options_.directory, "/", kPrefix, step);
}

std::string Checkpointer::TemporaryPathOf(int64_t step) const {
  return absl::StrCat(PathOf(step), ".tmp.", job_id_);
}

absl::StatusOr<ShardEntry> Checkpointer::WriteShard(
    const CheckpointInfo& info, const std::vector<BlockSection>& sections) const {
  ShardEntry shard{.file = absl::StrFormat("shard-%05d.bin", comm_->rank())};
  int64_t payload = 0;
  for (const BlockSection& section : sections) {
    StoredSection stored{.name = section.name};
    for (const core::BlockRange& run : section.runs) {
      if (run.size() > 0) stored.runs.push_back({.blocks = run, .bytes = BytesOf(section, run)});
      if (run.size() > 0) payload += stored.runs.back().bytes;
    }
    shard.sections.push_back(std::move(stored));
  }
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<ShardWriter> writer,
                            ShardWriter::Create(TemporaryPathOf(info.step) + "/" + shard.file,
                                                ShardHeader(info, shard), payload));
  std::vector<std::byte> buffer;
  for (const BlockSection& section : sections) {
    for (const core::BlockRange& run : section.runs) {
      BITSHARD_RETURN_IF_ERROR(
          ForEachPiece(section, run, [&](core::BlockRange blocks, int64_t bytes) {
            buffer.resize(static_cast<size_t>(bytes));
            BITSHARD_RETURN_IF_ERROR(section.export_blocks(blocks, buffer));
            return writer->Write(buffer);
          }));
    }
  }
  BITSHARD_ASSIGN_OR_RETURN(shard.digest, writer->Finish());
  return shard;
}

absl::Status Checkpointer::Publish(const CheckpointManifest& manifest) const {
  const std::string temporary = TemporaryPathOf(manifest.info.step);
  const std::string final_path = PathOf(manifest.info.step);
  for (const ShardEntry& shard : manifest.shards)
    BITSHARD_RETURN_IF_ERROR(CheckSharedFolder(temporary, shard));
  const std::string text = ManifestText(manifest);
  BITSHARD_CHECK(ParseManifest(text, final_path).ok())
      << ParseManifest(text, final_path).status().ToString();
  // Commit makes the manifest and the folder, with the shards' names in it, durable.
  BITSHARD_RETURN_IF_ERROR(core::WriteFileAtomically(temporary + "/" + kManifestFile, text));
  BITSHARD_RETURN_IF_ERROR(RenameOver(temporary, final_path));
  BITSHARD_RETURN_IF_ERROR(core::SyncDirectory(options_.directory));
  return core::WriteFileAtomically(options_.directory + "/" + kLatestFile,
                                   absl::StrCat(kPrefix, manifest.info.step, "\n"));
}

absl::Status Checkpointer::ReadBack(const CheckpointManifest& manifest) const {
  const std::string path = PathOf(manifest.info.step);
  const ShardEntry& shard = manifest.shards[static_cast<size_t>(comm_->rank())];
  absl::StatusOr<std::unique_ptr<ShardReader>> reader =
      ShardReader::Open(path + "/" + shard.file, shard.digest, ShardHeader(manifest.info, shard));
  const absl::Status status = reader.ok() ? (*reader)->VerifyAll() : reader.status();
  if (status.ok()) return status;
  return core::StorageError(absl::StrCat("the checkpoint just written does not read back: ",
                                         std::string(status.message())));
}

absl::Status Checkpointer::DeleteOldest(int64_t newest_step) const {
  if (options_.save_total_limit <= 0) return absl::OkStatus();
  int64_t kept = 0;
  for (const int64_t step : ListCheckpoints(options_.directory)) {
    // Those of later steps belong to another run of this folder, not to this one's history.
    if (step > newest_step || ++kept <= options_.save_total_limit) continue;
    // Renamed first, so that what is half deleted no longer has a checkpoint's name.
    const std::string doomed = TemporaryPathOf(step);
    if (rename(PathOf(step).c_str(), doomed.c_str()) != 0) {
      return core::StorageError(
          absl::StrCat(Shown(PathOf(step)), ": can't be removed: ", std::strerror(errno)));
    }
    BITSHARD_RETURN_IF_ERROR(RemoveTree(doomed));
  }
  return absl::OkStatus();
}

absl::Status Checkpointer::Save(CheckpointInfo info, const std::vector<BlockSection>& sections) {
  info.layout_fingerprint = options_.layout->Fingerprint();
  info.num_blocks = options_.layout->num_blocks();
  const bool leads = comm_->rank() == 0;
  const std::string temporary = TemporaryPathOf(info.step);

  absl::Status status;
  if (leads) status = core::MakeDirectories(temporary);
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(status));

  absl::StatusOr<ShardEntry> mine = WriteShard(info, sections);
  status = comm_->AgreeOnStatus(mine.status());
  if (!status.ok()) {
    if (leads) (void)RemoveTree(temporary);
    return status;
  }

  BITSHARD_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                            comm_->GatherStrings(ShardEntryText(*mine), "checkpoint shards"));
  CheckpointManifest manifest{.info = std::move(info)};
  for (const std::string& text : texts) {
    BITSHARD_ASSIGN_OR_RETURN(ShardEntry shard, ParseShardEntry(text, "gathered shard"));
    manifest.shards.push_back(std::move(shard));
  }
  if (leads) {
    status = Publish(manifest);
    if (!status.ok()) (void)RemoveTree(temporary);
  }
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(status));

  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(ReadBack(manifest)));
  if (leads) status = DeleteOldest(manifest.info.step);
  return comm_->AgreeOnStatus(status);
}

absl::StatusOr<CheckpointManifest> Checkpointer::Verify(const std::string& path,
                                                        int64_t expected_step) const {
  // Rank 0 reads the manifest, the ranks share the shards.
  std::string text;
  absl::Status status;
  if (comm_->rank() == 0) {
    absl::StatusOr<CheckpointManifest> manifest = ReadCheckpointManifest(path);
    status = manifest.status();
    if (manifest.ok()) text = ManifestText(*manifest);
    if (expected_step < 0 && access((path + "/" + kManifestFile).c_str(), F_OK) != 0) {
      status = core::DataError(absl::StrCat(
          Shown(path), ": no checkpoint, it has no ", kManifestFile,
          "; resume_from_checkpoint takes true, auto or the folder of a checkpoint, as in "
          "runs/x/checkpoint-40"));
    }
    if (manifest.ok() && expected_step >= 0 && manifest->info.step != expected_step) {
      status = core::DataError(
          absl::StrFormat("%s: its manifest says step %d", Shown(path), manifest->info.step));
    }
  }
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(status));
  BITSHARD_ASSIGN_OR_RETURN(text, comm_->BroadcastString(text, "checkpoint manifest"));
  BITSHARD_ASSIGN_OR_RETURN(CheckpointManifest manifest,
                            ParseManifest(text, path + "/" + kManifestFile));
  for (size_t i = static_cast<size_t>(comm_->rank()); i < manifest.shards.size() && status.ok();
       i += static_cast<size_t>(comm_->world_size())) {
    const ShardEntry& shard = manifest.shards[i];
    absl::StatusOr<std::unique_ptr<ShardReader>> reader =
        ShardReader::Open(path + "/" + shard.file, shard.digest, ShardHeader(manifest.info, shard));
    status = reader.ok() ? (*reader)->VerifyAll() : reader.status();
  }
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(status));
  return manifest;
}

absl::StatusOr<std::optional<FoundCheckpoint>> Checkpointer::FindNewest() {
  std::string list;
  if (comm_->rank() == 0) list = absl::StrJoin(ListCheckpoints(options_.directory), "\n");
  BITSHARD_ASSIGN_OR_RETURN(list, comm_->BroadcastString(list, "checkpoint list"));
  std::vector<std::string> skipped;
  for (const std::string& step :
       std::vector<std::string>(absl::StrSplit(list, '\n', absl::SkipEmpty()))) {
    const std::string path = PathOf(std::stoll(step));
    absl::StatusOr<CheckpointManifest> manifest = Verify(path, std::stoll(step));
    if (manifest.ok()) {
      return std::optional<FoundCheckpoint>(FoundCheckpoint{
          .path = path, .manifest = *std::move(manifest), .skipped = std::move(skipped)});
    }
    if (core::KindOf(manifest.status()) != core::ErrorKind::kData) return manifest.status();
    skipped.push_back(std::string(manifest.status().message()));
  }
  if (skipped.empty()) return std::optional<FoundCheckpoint>();
  // Every rank knows; agreed, so that one speaks for all.
  return comm_->AgreeOnStatus(core::DataError(
      absl::StrCat(Shown(options_.directory), ": none of its ", skipped.size(),
                   " checkpoints can be used:\n  ", absl::StrJoin(skipped, "\n  "))));
}

absl::StatusOr<FoundCheckpoint> Checkpointer::Open(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(CheckpointManifest manifest, Verify(path, -1));
  return FoundCheckpoint{.path = path, .manifest = std::move(manifest)};
}

absl::Status Checkpointer::Load(const FoundCheckpoint& found,
                                const std::vector<BlockSection>& sections) {
  absl::Status status = CheckFits(found, *options_.layout, sections);
  for (const ShardEntry& shard : found.manifest.shards) {
    if (status.ok()) status = LoadShard(found.path, found.manifest, shard, sections);
  }
  return comm_->AgreeOnStatus(status);
}

}  // namespace bitshard::trainer
