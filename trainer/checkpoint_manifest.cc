#include "trainer/checkpoint_manifest.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/status_macros.h"
#include "trainer/io/json.h"

namespace bitshard::trainer {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr char kFormat[] = "bitshard checkpoint";
constexpr int64_t kMaxCount = int64_t{1} << 62;
// Shallower than any manifest needs, and enough for a newer one to be told apart.
constexpr io::JsonLimits kLimits{.max_bytes = int64_t{64} << 20, .max_depth = 16};

OrderedJson SectionsJson(const ShardEntry& shard) {
  OrderedJson sections = OrderedJson::array();
  for (const StoredSection& section : shard.sections) {
    OrderedJson runs = OrderedJson::array();
    for (const StoredRun& run : section.runs) {
      runs.push_back({run.blocks.begin, run.blocks.end, run.bytes});
    }
    sections.push_back({{"name", section.name}, {"runs", runs}});
  }
  return sections;
}

OrderedJson ShardJson(const ShardEntry& shard) {
  return {{"file", shard.file},
          {"body_bytes", shard.digest.body_bytes},
          {"checksum", core::HexDigest(shard.digest.checksum)},
          {"sections", SectionsJson(shard)}};
}

OrderedJson ManifestJson(const CheckpointManifest& manifest, const std::string& checksum) {
  const CheckpointInfo& info = manifest.info;
  OrderedJson shards = OrderedJson::array();
  for (const ShardEntry& shard : manifest.shards) shards.push_back(ShardJson(shard));
  return {
      {"format", kFormat},
      {"format_version", kManifestVersion},
      {"program_version", info.program_version},
      {"step", info.step},
      {"optimizer_step", info.optimizer_step},
      {"data_position", info.data_position},
      {"total_tokens", info.total_tokens},
      {"trained_tokens", info.trained_tokens},
      {"data_fingerprint", info.data_fingerprint},
      {"config_hash", info.config_hash},
      {"layout",
       {{"fingerprint", core::HexDigest(info.layout_fingerprint)}, {"blocks", info.num_blocks}}},
      {"shards", shards},
      {"config", info.config_text},
      {"checksum", checksum}};
}

absl::StatusOr<uint64_t> ReadHex(const io::JsonObject& object, const std::string& key) {
  BITSHARD_ASSIGN_OR_RETURN(const std::string text, object.GetString(key));
  const bool hex = text.size() == 16 && std::all_of(text.begin(), text.end(), [](char c) {
                     return absl::ascii_isxdigit(static_cast<unsigned char>(c));
                   });
  if (!hex) return object.Error(key, "want 16 hex digits");
  return std::stoull(text, nullptr, 16);
}

absl::StatusOr<std::vector<StoredRun>> ReadRuns(const io::JsonObject& section, int64_t max_block) {
  const auto found = section.json().find("runs");
  if (found == section.json().end() || !found->is_array())
    return section.Error("runs", "want a list");
  std::vector<StoredRun> runs;
  for (const io::Json& item : *found) {
    const bool three = item.is_array() && item.size() == 3 &&
                       std::all_of(item.begin(), item.end(),
                                   [](const io::Json& n) { return n.is_number_unsigned(); });
    if (!three) return section.Error("runs", "want lists of [first block, end block, bytes]");
    // Compared as unsigned: a number above 2^63 is no block.
    const auto begin = item[0].get<uint64_t>();
    const auto end = item[1].get<uint64_t>();
    const auto bytes = item[2].get<uint64_t>();
    if (begin >= end || end > static_cast<uint64_t>(max_block) ||
        bytes > static_cast<uint64_t>(kMaxCount)) {
      return section.Error("runs",
                           absl::StrFormat("[%d, %d, %d] is no run of blocks", begin, end, bytes));
    }
    runs.push_back({.blocks = {static_cast<int64_t>(begin), static_cast<int64_t>(end)},
                    .bytes = static_cast<int64_t>(bytes)});
  }
  return runs;
}

bool IsPlainName(const std::string& name) {
  return !name.empty() && name.size() < 200 && name[0] != '.' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' ||
                  c == '_';
         });
}

absl::StatusOr<ShardEntry> ReadShard(const io::JsonObject& object, int64_t max_block) {
  ShardEntry shard;
  BITSHARD_ASSIGN_OR_RETURN(shard.file, object.GetString("file"));
  if (!IsPlainName(shard.file)) return object.Error("file", "want a plain file name");
  BITSHARD_ASSIGN_OR_RETURN(shard.digest.body_bytes, object.GetInt("body_bytes", {1, kMaxCount}));
  BITSHARD_ASSIGN_OR_RETURN(shard.digest.checksum, ReadHex(object, "checksum"));
  const auto sections = object.json().find("sections");
  if (sections == object.json().end() || !sections->is_array())
    return object.Error("sections", "want a list");
  int64_t payload = 0;
  for (const io::Json& item : *sections) {
    BITSHARD_ASSIGN_OR_RETURN(const io::JsonObject section,
                              io::JsonObject::Of(item, object.where()));
    StoredSection stored;
    BITSHARD_ASSIGN_OR_RETURN(stored.name, section.GetString("name"));
    BITSHARD_ASSIGN_OR_RETURN(stored.runs, ReadRuns(section, max_block));
    for (const StoredRun& run : stored.runs) {
      if (run.bytes > shard.digest.body_bytes - payload)
        return section.Error("runs", "more bytes than the file has");
      payload += run.bytes;
    }
    shard.sections.push_back(std::move(stored));
  }
  return shard;
}

// Every section has each block once: a shard that is missing, doubled or of another checkpoint
// shows here.
absl::Status CheckCoverage(const CheckpointManifest& manifest, const std::string& where) {
  std::map<std::string, std::vector<core::BlockRange>> sections;
  std::set<std::string> files;
  for (const ShardEntry& shard : manifest.shards) {
    if (!files.insert(shard.file).second)
      return core::DataError(where + ": shards: " + shard.file + " stands twice");
    for (const StoredSection& section : shard.sections) {
      std::vector<core::BlockRange>& runs = sections[section.name];
      for (const StoredRun& run : section.runs) runs.push_back(run.blocks);
    }
  }
  for (auto& [name, runs] : sections) {
    std::sort(runs.begin(), runs.end(),
              [](const auto& a, const auto& b) { return a.begin < b.begin; });
    int64_t next = 0;
    for (const core::BlockRange& run : runs) {
      if (run.begin != next) break;
      next = run.end;
    }
    if (next != manifest.info.num_blocks || (!runs.empty() && runs.back().end != next)) {
      return core::DataError(
          absl::StrFormat("%s: section %s does not have each of the %d blocks exactly once", where,
                          core::Escaped(name), manifest.info.num_blocks));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadInfo(const io::JsonObject& object, CheckpointInfo* info) {
  BITSHARD_ASSIGN_OR_RETURN(info->program_version, object.GetString("program_version"));
  BITSHARD_ASSIGN_OR_RETURN(info->step, object.GetInt("step", {0, kMaxCount}));
  BITSHARD_ASSIGN_OR_RETURN(info->optimizer_step, object.GetInt("optimizer_step", {0, info->step}));
  BITSHARD_ASSIGN_OR_RETURN(info->data_position, object.GetInt("data_position", {0, kMaxCount}));
  BITSHARD_ASSIGN_OR_RETURN(info->total_tokens, object.GetInt("total_tokens", {0, kMaxCount}));
  BITSHARD_ASSIGN_OR_RETURN(info->trained_tokens, object.GetInt("trained_tokens", {0, kMaxCount}));
  BITSHARD_ASSIGN_OR_RETURN(info->data_fingerprint, object.GetString("data_fingerprint"));
  BITSHARD_ASSIGN_OR_RETURN(info->config_hash, object.GetString("config_hash"));
  BITSHARD_ASSIGN_OR_RETURN(info->config_text, object.GetString("config"));
  BITSHARD_ASSIGN_OR_RETURN(const io::JsonObject layout, object.GetObject("layout"));
  BITSHARD_ASSIGN_OR_RETURN(info->layout_fingerprint, ReadHex(layout, "fingerprint"));
  BITSHARD_ASSIGN_OR_RETURN(info->num_blocks, layout.GetInt("blocks", {0, kMaxCount}));
  return absl::OkStatus();
}

absl::Status CheckFormat(const io::JsonObject& object) {
  BITSHARD_ASSIGN_OR_RETURN(const std::string format, object.GetString("format"));
  if (format != kFormat) return object.Error("format", absl::StrCat("want \"", kFormat, "\""));
  BITSHARD_ASSIGN_OR_RETURN(const int64_t version, object.GetInt("format_version"));
  if (version == kManifestVersion) return absl::OkStatus();
  return object.Error(
      "format_version",
      absl::StrFormat(
          "found %d, this program reads %d: %s", version, kManifestVersion,
          version > kManifestVersion ? "written by a newer bitshard" : "no such version"));
}

}  // namespace

std::string ShardHeader(const CheckpointInfo& info, const ShardEntry& shard) {
  return OrderedJson{{"format", kFormat},
                     {"step", info.step},
                     {"layout", core::HexDigest(info.layout_fingerprint)},
                     {"file", shard.file},
                     {"sections", SectionsJson(shard)}}
      .dump();
}

std::string ShardEntryText(const ShardEntry& shard) { return io::JsonText(ShardJson(shard)); }

absl::StatusOr<ShardEntry> ParseShardEntry(const std::string& text, const std::string& where) {
  BITSHARD_ASSIGN_OR_RETURN(const io::Json json, io::ParseJson(text, where, kLimits));
  BITSHARD_ASSIGN_OR_RETURN(const io::JsonObject object, io::JsonObject::Of(json, where));
  return ReadShard(object, kMaxCount);
}

std::string ManifestText(const CheckpointManifest& manifest) {
  const std::string unsigned_text = io::JsonText(ManifestJson(manifest, ""));
  const uint64_t checksum = core::Hash64(unsigned_text.data(), unsigned_text.size());
  return io::JsonText(ManifestJson(manifest, core::HexDigest(checksum)));
}

absl::StatusOr<CheckpointManifest> ParseManifest(const std::string& text,
                                                 const std::string& where) {
  BITSHARD_ASSIGN_OR_RETURN(const io::Json json, io::ParseJson(text, where, kLimits));
  BITSHARD_ASSIGN_OR_RETURN(const io::JsonObject object, io::JsonObject::Of(json, where));
  BITSHARD_RETURN_IF_ERROR(CheckFormat(object));
  CheckpointManifest manifest;
  BITSHARD_RETURN_IF_ERROR(ReadInfo(object, &manifest.info));
  const auto shards = json.find("shards");
  if (shards == json.end() || !shards->is_array()) return object.Error("shards", "want a list");
  for (const io::Json& item : *shards) {
    BITSHARD_ASSIGN_OR_RETURN(const io::JsonObject shard,
                              io::JsonObject::Of(item, where + ": shards"));
    BITSHARD_ASSIGN_OR_RETURN(ShardEntry entry, ReadShard(shard, manifest.info.num_blocks));
    manifest.shards.push_back(std::move(entry));
  }
  // What was read is written out again, checksum included: a byte that differs anywhere, even in
  // white space or in a key that nobody reads, makes another text.
  if (ManifestText(manifest) != text) {
    return core::DataError(core::Escaped(where, 4096) + ": damaged: its checksum does not match");
  }
  BITSHARD_RETURN_IF_ERROR(CheckCoverage(manifest, core::Escaped(where, 4096)));
  return manifest;
}

}  // namespace bitshard::trainer
