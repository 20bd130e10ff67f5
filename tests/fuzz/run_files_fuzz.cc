// The readers of a run's own files: the configuration, a checkpoint's manifest and its shards.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/status_macros.h"
#include "nlohmann/json.hpp"
#include "tests/fuzz/fuzz.h"
#include "tests/trainer/checkpoint_test_support.h"
#include "trainer/config.h"
#include "trainer/config_binder.h"

namespace bitshard::trainer {
namespace {

std::string Content(const std::string& path) {
  const absl::StatusOr<std::string> text = core::ReadFile(path);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

// All faults of a configuration stand in one message, a line each; every line is checked like a
// message of its own.
absl::Status ReadConfig(const std::string& path) {
  const absl::StatusOr<Config> config = LoadConfig({.path = path});
  if (!config.ok()) {
    return core::ConfigError(
        absl::StrReplaceAll(std::string(config.status().message()), {{"\n  ", "; "}}));
  }
  const std::string text = ConfigToYaml(*config);
  const absl::StatusOr<Config> again = ParseConfig(text, path);
  if (!again.ok() || ConfigToYaml(*again) != text || ConfigHash(*again) != ConfigHash(*config)) {
    return absl::InternalError(path + ": the resolved configuration does not read back");
  }
  return absl::OkStatus();
}

TEST(Fuzz, Config) {
  fuzz::Target target = {
      .name = "config", .file = "run.yaml", .read = ReadConfig, .least_messages = 100};
  for (const auto& entry : std::filesystem::directory_iterator(BITSHARD_SOURCE_DIR "/configs")) {
    target.seeds.push_back(Content(entry.path()));
  }
  std::sort(target.seeds.begin(), target.seeds.end());
  target.seeds.push_back("base_model: m\n");
  for (const char* word :
       {"&a ", "*a", "!!str ", "<<: ",         "---\n", "...\n", "? ",  "| \n",        "> \n", "{",
        "}",   "[",  "]",      "\"",           "'",     "\\x",   "#",   "%YAML 1.2\n", "~",    ": ",
        "- ",  "\t", "\r\n",   "\xEF\xBB\xBF", "64MiB", "1e999", ".nan"}) {
    target.dictionary.push_back(word);
  }
  for (const ConfigField& field : ConfigFields()) {
    target.dictionary.push_back(absl::StrCat(field.key, ": "));
  }
  fuzz::Run(target);
}

constexpr int64_t kBlocks = 12;

// A checkpoint of two ranks; its files are the seeds.
struct SavedCheckpoint {
  SavedCheckpoint() {
    const absl::Status saved =
        SaveSteps({.directory = folder.path(), .layout = &layout, .ranks = 2});
    EXPECT_TRUE(saved.ok()) << saved;
  }
  std::string path(const std::string& file) const {
    return absl::StrCat(folder.path(), "/checkpoint-1/", file);
  }
  TemporaryFolder folder;
  core::FlatLayout layout = TestLayout(kBlocks);
};

// Puts the right checksum over whatever the manifest now says.
void RepairManifest(std::string* text) {
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(*text, nullptr, false);
  if (!json.is_object()) return;
  const auto dump = [&] {
    return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  };
  json["checksum"] = "";
  const std::string unsigned_text = dump();
  json["checksum"] = core::HexDigest(core::Hash64(unsigned_text.data(), unsigned_text.size()));
  *text = dump();
}

TEST(Fuzz, CheckpointManifest) {
  const SavedCheckpoint saved;
  fuzz::Target target = {.name = "checkpoint manifest", .file = "manifest.json"};
  target.seeds = {Content(saved.path("manifest.json"))};
  target.dictionary = {"\"step\"",       "\"shards\"",      "\"runs\"", "\"file\"",
                       "\"body_bytes\"", "shard-",          "../",      "[0, 12, 1]",
                       "\"optimizer\"",  "\"blocks\": ",    "null",     "\"parameters\"",
                       "\"checksum\"",   "0000000000000000"};
  target.prepare = [&](const std::string& folder) {
    for (const char* shard : {"shard-00000.bin", "shard-00001.bin"}) {
      std::filesystem::copy_file(saved.path(shard), absl::StrCat(folder, "/", shard));
    }
  };
  target.repair = RepairManifest;
  target.read = [&](const std::string& path) {
    return OpenAndLoad(path.substr(0, path.rfind('/')), saved.layout);
  };
  target.least_messages = 40;
  fuzz::Run(target);
}

// A shard is opened as what its own size and hashes say that it is, so that what lies behind those
// checks is reached.
TEST(Fuzz, CheckpointShard) {
  const SavedCheckpoint saved;
  const absl::StatusOr<CheckpointManifest> manifest =
      ReadCheckpointManifest(saved.folder.path() + "/checkpoint-1");
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  const std::string header = ShardHeader(manifest->info, manifest->shards[0]);
  fuzz::Target target = {.name = "checkpoint shard", .file = "shard-00000.bin"};
  target.seeds = {Content(saved.path("shard-00000.bin"))};
  target.dictionary = {"BITSHARD", "\"runs\"", "\"sections\""};
  target.repair = [](std::string* input) {
    if (input->size() <= sizeof(uint64_t)) return;
    const size_t body = input->size() - sizeof(uint64_t);
    const uint64_t hash = core::Hash64(input->data(), body);
    std::memcpy(input->data() + body, &hash, sizeof hash);
  };
  target.read = [&](const std::string& path) -> absl::Status {
    const std::string content = Content(path);
    const size_t hashes = std::min(content.size(), sizeof(uint64_t));
    const ShardDigest digest = {
        .body_bytes = static_cast<int64_t>(content.size() - hashes),
        .checksum = core::Hash64(content.data() + content.size() - hashes, hashes)};
    BITSHARD_ASSIGN_OR_RETURN(const auto reader, ShardReader::Open(path, digest, header));
    BITSHARD_RETURN_IF_ERROR(reader->VerifyAll());
    std::vector<std::byte> payload(static_cast<size_t>(reader->payload_bytes()));
    return reader->Read(0, payload);
  };
  target.least_messages = 3;
  fuzz::Run(target);
}

}  // namespace
}  // namespace bitshard::trainer
