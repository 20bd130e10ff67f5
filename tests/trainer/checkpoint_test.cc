#include "trainer/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "core/error.h"
#include "core/file.h"
#include "core/status_macros.h"
#include "tests/trainer/checkpoint_test_support.h"

namespace bitshard::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string Read(const std::string& path) {
  const absl::StatusOr<std::string> text = core::ReadFile(path);
  EXPECT_TRUE(text.ok()) << text.status().message();
  return text.ok() ? *text : "";
}

void Write(const std::string& path, const std::string& content) {
  ASSERT_TRUE(core::WriteFileAtomically(path, content).ok());
}

std::vector<std::string> NamesIn(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(Checkpoint, AnyNumberOfRanksReadsWhatAnyNumberWrote) {
  const core::FlatLayout layout = TestLayout(101);
  for (const int writers : {1, 2, 3}) {
    const TemporaryFolder folder;
    ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .ranks = writers}),
              absl::OkStatus());
    for (const int readers : {1, 2, 3, 4, 7}) {
      const auto step = LoadAndCheck(folder.path(), layout, readers);
      ASSERT_TRUE(step.ok()) << writers << " -> " << readers << ": " << step.status();
      EXPECT_EQ(*step, 1);
    }
  }
}

TEST(Checkpoint, MoreRanksThanBlocksWork) {
  const core::FlatLayout layout = TestLayout(3);
  const TemporaryFolder folder;
  ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .ranks = 5}),
            absl::OkStatus());
  const auto step = LoadAndCheck(folder.path(), layout, 4);
  ASSERT_TRUE(step.ok()) << step.status();
}

TEST(Checkpoint, KeepsTheNewestAndSaysWhichIsLatest) {
  const core::FlatLayout layout = TestLayout(12);
  const TemporaryFolder folder;
  Write(folder.path() + "/other.txt", "x");
  ASSERT_EQ(SaveSteps({.directory = folder.path(),
                       .layout = &layout,
                       .ranks = 2,
                       .last_step = 5,
                       .save_total_limit = 2}),
            absl::OkStatus());
  EXPECT_THAT(NamesIn(folder.path()),
              ElementsAre("checkpoint-4", "checkpoint-5", "latest", "other.txt"));
  EXPECT_EQ(Read(folder.path() + "/latest"), "checkpoint-5\n");
  EXPECT_THAT(ListCheckpoints(folder.path()), ElementsAre(5, 4));
  EXPECT_THAT(NamesIn(folder.path() + "/checkpoint-5"),
              ElementsAre("manifest.json", "shard-00000.bin", "shard-00001.bin"));
}

TEST(Checkpoint, NothingToFindIsNoError) {
  const core::FlatLayout layout = TestLayout(12);
  const TemporaryFolder folder;
  const auto step = LoadAndCheck(folder.path(), layout, 2);
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_EQ(*step, 0);
}

TEST(Checkpoint, AStepThatIsSavedAgainReplacesTheOldOne) {
  const core::FlatLayout layout = TestLayout(12);
  const TemporaryFolder folder;
  ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .ranks = 2, .last_step = 2}),
            absl::OkStatus());
  const std::string shard = folder.path() + "/checkpoint-2/shard-00000.bin";
  Write(shard, "damaged");
  ASSERT_EQ(SaveSteps({.directory = folder.path(),
                       .layout = &layout,
                       .ranks = 1,
                       .first_step = 2,
                       .last_step = 2}),
            absl::OkStatus());
  EXPECT_THAT(NamesIn(folder.path()), ElementsAre("checkpoint-1", "checkpoint-2", "latest"));
  EXPECT_THAT(NamesIn(folder.path() + "/checkpoint-2"),
              ElementsAre("manifest.json", "shard-00000.bin"));
  EXPECT_EQ(LoadAndCheck(folder.path(), layout, 2).value_or(-1), 2);
}

TEST(Checkpoint, WhatAKilledJobLeftIsRemovedAndNothingElse) {
  const core::FlatLayout layout = TestLayout(12);
  const TemporaryFolder folder;
  for (const char* name :
       {"checkpoint-7.tmp.abc", "checkpoint-x.tmp.abc", "my.tmp.abc", "checkpoint-9.tmp.q.old"}) {
    fs::create_directories(folder.path() + "/" + name);
    Write(folder.path() + "/" + name + "/file", "x");
  }
  Write(folder.path() + "/latest.tmp.123", "x");
  EXPECT_FALSE(FindAlone(folder.path(), layout).ok());
  // A checkpoint that was being replaced gets its name back.
  EXPECT_THAT(NamesIn(folder.path()),
              ElementsAre("checkpoint-9", "checkpoint-x.tmp.abc", "my.tmp.abc"));
}

// A shard of several chunks: each is cut at every chunk edge, one byte before and one after.
TEST(Checkpoint, AShardCutOffAnywhereFallsBackToTheOneBefore) {
  const core::FlatLayout layout = TestLayout(1500);
  const TemporaryFolder folder;
  ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .last_step = 2}),
            absl::OkStatus());
  const std::string shard = folder.path() + "/checkpoint-2/shard-00000.bin";
  const std::string whole = Read(shard);
  const auto size = static_cast<int64_t>(whole.size());
  ASSERT_GT(size, 3 * kShardChunkBytes);
  std::vector<int64_t> cuts = {0,  1,  7,  8,  11,       12,       15,       16,
                               17, 63, 64, 65, size - 9, size - 8, size - 1, size + 1};
  for (int64_t edge = kShardChunkBytes; edge < size; edge += kShardChunkBytes) {
    for (const int64_t cut : {edge - 1, edge, edge + 1}) cuts.push_back(cut);
  }
  for (const int64_t cut : cuts) {
    ASSERT_EQ(truncate(shard.c_str(), cut), 0);
    const auto found = FindAlone(folder.path(), layout);
    ASSERT_TRUE(found.ok()) << cut << ": " << found.status();
    EXPECT_EQ(found->manifest.info.step, 1) << cut;
    ASSERT_EQ(found->skipped.size(), 1u);
    EXPECT_THAT(found->skipped[0],
                AllOf(HasSubstr("checkpoint-2/shard-00000.bin"), HasSubstr("bytes, want")));
    const auto named = FindAlone(folder.path(), layout, folder.path() + "/checkpoint-2");
    EXPECT_EQ(core::ExitCode(named.status()), 3) << cut;
    Write(shard, whole);
  }
  EXPECT_EQ(FindAlone(folder.path(), layout)->manifest.info.step, 2);
}

TEST(Checkpoint, NoFlippedBitGoesUndetected) {
  const core::FlatLayout layout = TestLayout(40);
  const TemporaryFolder folder;
  ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .ranks = 2}),
            absl::OkStatus());
  const std::string checkpoint = folder.path() + "/checkpoint-1";
  std::mt19937_64 random(1);
  int detected = 0;
  int tried = 0;
  for (const std::string& name : NamesIn(checkpoint)) {
    const std::string path = checkpoint + "/" + name;
    const std::string whole = Read(path);
    // Every byte of the manifest, of the start and of the hashes; random ones elsewhere.
    std::vector<size_t> places;
    for (size_t i = 0; i < whole.size(); ++i) {
      if (name == "manifest.json" || i < 400 || i + 16 > whole.size()) places.push_back(i);
    }
    for (int i = 0; i < 1000; ++i) places.push_back(random() % whole.size());
    for (const size_t place : places) {
      std::string flipped = whole;
      flipped[place] = static_cast<char>(flipped[place] ^ (1 << (random() % 8)));
      std::FILE* file = std::fopen(path.c_str(), "r+b");
      ASSERT_NE(file, nullptr);
      ASSERT_EQ(std::fwrite(flipped.data(), 1, flipped.size(), file), flipped.size());
      std::fclose(file);
      const auto found = FindAlone(folder.path(), layout, checkpoint);
      EXPECT_EQ(core::ExitCode(found.status()), 3) << name << " byte " << place;
      detected += found.ok() ? 0 : 1;
      ++tried;
    }
    Write(path, whole);
  }
  EXPECT_EQ(detected, tried);
  EXPECT_GE(tried, 4000);
  EXPECT_TRUE(FindAlone(folder.path(), layout, checkpoint).ok());
}

// Each case damages checkpoint-2 and says what the message must name.
struct Damage {
  const char* name;
  std::function<void(const std::string& folder)> apply;
  const char* message;
};

std::string Checkpoint2(const std::string& folder, const std::string& file) {
  return folder + "/checkpoint-2/" + file;
}

void EditManifest(const std::string& folder, const std::string& from, const std::string& to) {
  const std::string path = Checkpoint2(folder, "manifest.json");
  std::string text = Read(path);
  ASSERT_NE(text.find(from), std::string::npos) << from;
  Write(path, absl::StrReplaceAll(text, {{from, to}}));
}

// Writes a manifest with a right checksum over a wrong content.
void ForgeManifest(const std::string& folder,
                   const std::function<void(CheckpointManifest*)>& edit) {
  auto manifest = ReadCheckpointManifest(folder + "/checkpoint-2");
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  edit(&*manifest);
  Write(Checkpoint2(folder, "manifest.json"), ManifestText(*manifest));
}

std::vector<Damage> Damages() {
  const auto shard = [](const std::string& folder, int i) {
    return Checkpoint2(folder, absl::StrCat("shard-0000", i, ".bin"));
  };
  return {
      {"missing shard", [=](auto& f) { fs::remove(shard(f, 1)); },
       "shard-00001.bin: can't be opened"},
      {"missing manifest", [](auto& f) { fs::remove(Checkpoint2(f, "manifest.json")); },
       "manifest.json"},
      {"foreign shard",
       [=](auto& f) {
         fs::copy_file(f + "/checkpoint-1/shard-00001.bin", shard(f, 1),
                       fs::copy_options::overwrite_existing);
       },
       "not this checkpoint's"},
      {"doubled shard",
       [=](auto& f) {
         fs::copy_file(shard(f, 0), shard(f, 1), fs::copy_options::overwrite_existing);
       },
       "shard-00001.bin"},
      {"swapped shards",
       [=](auto& f) {
         fs::rename(shard(f, 0), f + "/x");
         fs::rename(shard(f, 1), shard(f, 0));
         fs::rename(f + "/x", shard(f, 1));
       },
       "shard-0000"},
      {"entry doubled",
       [](auto& f) { ForgeManifest(f, [](auto* m) { m->shards.push_back(m->shards[0]); }); },
       "stands twice"},
      {"entry missing", [](auto& f) { ForgeManifest(f, [](auto* m) { m->shards.pop_back(); }); },
       "exactly once"},
      {"block twice",
       [](auto& f) {
         ForgeManifest(f, [](auto* m) { m->shards[0].sections[0].runs[0].blocks.end++; });
       },
       "exactly once"},
      {"other section",
       [](auto& f) { ForgeManifest(f, [](auto* m) { m->shards[0].sections[0].name = "x"; }); },
       "exactly once"},
      {"way out",
       [](auto& f) {
         ForgeManifest(f, [](auto* m) { m->shards[0].file = "../checkpoint-1/shard-00000.bin"; });
       },
       "plain file name"},
      {"absolute",
       [](auto& f) { ForgeManifest(f, [](auto* m) { m->shards[0].file = "/etc/passwd"; }); },
       "plain file name"},
      {"header of other step",
       [](auto& f) { ForgeManifest(f, [](auto* m) { m->info.layout_fingerprint ^= 1; }); },
       "header"},
      {"step of another", [](auto& f) { ForgeManifest(f, [](auto* m) { m->info.step = 9; }); },
       "says step 9"},
      {"huge count",
       [](auto& f) { EditManifest(f, "\"blocks\": 101", "\"blocks\": 18446744073709551615"); },
       "blocks"},
      {"newer version",
       [](auto& f) { EditManifest(f, "\"format_version\": 1", "\"format_version\": 2"); },
       "newer bitshard"},
      {"other format",
       [](auto& f) { EditManifest(f, "bitshard checkpoint", "bitshard chequepoint"); }, "format"},
      {"a space more", [](auto& f) { EditManifest(f, "\"step\":", "\"step\" :"); }, "checksum"},
      {"a key more", [](auto& f) { EditManifest(f, "\"step\":", "\"extra\": 1,\n  \"step\":"); },
       "checksum"},
      {"not JSON", [](auto& f) { Write(Checkpoint2(f, "manifest.json"), "{"); }, "manifest.json"},
      {"deep JSON",
       [](auto& f) { Write(Checkpoint2(f, "manifest.json"), std::string(100000, '[')); },
       "manifest.json"},
      {"shard is a link",
       [=](auto& f) {
         fs::rename(shard(f, 0), f + "/x");
         fs::create_symlink(f + "/x", shard(f, 0));
       },
       "shard-00000.bin: can't be opened"},
      {"shard is a FIFO",
       [=](auto& f) {
         fs::remove(shard(f, 0));
         ASSERT_EQ(mkfifo(shard(f, 0).c_str(), 0644), 0);
       },
       "not a regular file"},
      {"manifest is a link",
       [](auto& f) {
         fs::rename(Checkpoint2(f, "manifest.json"), f + "/x");
         fs::create_symlink(f + "/x", Checkpoint2(f, "manifest.json"));
       },
       "a link"},
      {"folder is a file",
       [](auto& f) {
         fs::remove_all(f + "/checkpoint-2");
         Write(f + "/checkpoint-2", "");
       },
       ""},
  };
}

TEST(Checkpoint, DamageIsNamedAndTheOneBeforeIsUsed) {
  const core::FlatLayout layout = TestLayout(101);
  for (const Damage& damage : Damages()) {
    SCOPED_TRACE(damage.name);
    const TemporaryFolder folder;
    ASSERT_EQ(
        SaveSteps({.directory = folder.path(), .layout = &layout, .ranks = 2, .last_step = 2}),
        absl::OkStatus());
    damage.apply(folder.path());
    const auto found = FindAlone(folder.path(), layout);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->manifest.info.step, 1);
    if (*damage.message != '\0') {
      ASSERT_EQ(found->skipped.size(), 1u);
      EXPECT_THAT(found->skipped[0], AllOf(HasSubstr("checkpoint-2"), HasSubstr(damage.message)));
    }
    EXPECT_EQ(LoadAndCheck(folder.path(), layout, 3).value_or(-1), 1);
  }
}

TEST(Checkpoint, AManifestCutOffAtAnyBoundaryFallsBackToTheOneBefore) {
  const core::FlatLayout layout = TestLayout(12);
  const TemporaryFolder folder;
  ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .ranks = 2, .last_step = 2}),
            absl::OkStatus());
  const std::string path = Checkpoint2(folder.path(), "manifest.json");
  const std::string whole = Read(path);
  int cuts = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    if (std::string("{}[],:\"\n").find(whole[i]) == std::string::npos) continue;
    for (const size_t size : {i, i + 1}) {
      if (size == whole.size()) continue;
      ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(size)), 0);
      const auto found = FindAlone(folder.path(), layout);
      ASSERT_TRUE(found.ok()) << size << ": " << found.status();
      EXPECT_EQ(found->manifest.info.step, 1) << size;
      EXPECT_THAT(found->skipped, ElementsAre(HasSubstr("checkpoint-2/manifest.json"))) << size;
      std::FILE* file = std::fopen(path.c_str(), "w");
      ASSERT_NE(file, nullptr);
      ASSERT_EQ(std::fwrite(whole.data(), 1, whole.size(), file), whole.size());
      std::fclose(file);
      ++cuts;
    }
  }
  EXPECT_GT(cuts, 200);
  EXPECT_EQ(FindAlone(folder.path(), layout)->manifest.info.step, 2);
}

TEST(Checkpoint, WhereNoneVerifiesEachIsNamed) {
  const core::FlatLayout layout = TestLayout(12);
  const TemporaryFolder folder;
  ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .last_step = 2}),
            absl::OkStatus());
  for (const char* name : {"/checkpoint-1", "/checkpoint-2"})
    Write(folder.path() + name + "/shard-00000.bin", "x");
  for (const absl::Status& status : OnRanks(2, [&](comm::Communicator* comm) -> absl::Status {
         BITSHARD_ASSIGN_OR_RETURN(
             auto checkpointer,
             Checkpointer::Create({.directory = folder.path(), .layout = &layout}, comm));
         return checkpointer->FindNewest().status();
       })) {
    EXPECT_EQ(core::ExitCode(status), 3);
    EXPECT_THAT(Message(status), AllOf(HasSubstr("none of its 2"), HasSubstr("checkpoint-1"),
                                       HasSubstr("checkpoint-2")));
  }
  EXPECT_EQ(core::ExitCode(FindAlone(folder.path(), layout, folder.path() + "/nowhere").status()),
            3);
}

TEST(Checkpoint, AnotherModelOrOptimizerIsRefused) {
  const core::FlatLayout layout = TestLayout(101);
  const TemporaryFolder folder;
  ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout}), absl::OkStatus());
  const core::FlatLayout other = TestLayout(102);
  const auto status = LoadAndCheck(folder.path(), other, 2).status();
  EXPECT_EQ(core::ExitCode(status), 2);
  EXPECT_THAT(Message(status), HasSubstr("lora_r"));
  const auto load = [&](const BlockSection& section) {
    return FirstError(OnRanks(1, [&](comm::Communicator* comm) -> absl::Status {
      BITSHARD_ASSIGN_OR_RETURN(
          auto checkpointer,
          Checkpointer::Create({.directory = folder.path(), .layout = &layout}, comm));
      BITSHARD_ASSIGN_OR_RETURN(const auto found, checkpointer->FindNewest());
      return checkpointer->Load(*found, {section});
    }));
  };
  const auto bytes = [](int64_t) { return int64_t{8}; };
  EXPECT_THAT(Message(load({.name = "optimizer", .block_bytes = bytes})),
              HasSubstr("another optimizer"));
  EXPECT_THAT(Message(load({.name = "momenta", .block_bytes = bytes})),
              HasSubstr("no section momenta"));
}

TEST(Checkpoint, AFailedSaveOfOneRankFailsAllAndKeepsTheOldOnes) {
  const core::FlatLayout layout = TestLayout(101);
  const TemporaryFolder folder;
  ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .ranks = 2}),
            absl::OkStatus());
  const auto statuses = OnRanks(3, [&](comm::Communicator* comm) -> absl::Status {
    BITSHARD_ASSIGN_OR_RETURN(
        auto checkpointer,
        Checkpointer::Create({.directory = folder.path(), .layout = &layout}, comm));
    std::vector<BlockSection> sections = SectionsToSave(layout, *comm, 2);
    if (comm->rank() == 1) {
      sections[1].export_blocks = [](core::BlockRange, std::span<std::byte>) {
        return core::StorageError("page 3: checksum");
      };
    }
    return checkpointer->Save(TestInfo(2), sections);
  });
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(core::ExitCode(status), 6);
    EXPECT_THAT(Message(status), AllOf(HasSubstr("rank 1"), HasSubstr("page 3")));
  }
  EXPECT_THAT(NamesIn(folder.path()), ElementsAre("checkpoint-1", "latest"));
  EXPECT_EQ(LoadAndCheck(folder.path(), layout, 2).value_or(-1), 1);
}

TEST(Checkpoint, ARankWithAFolderOfItsOwnIsToldSo) {
  const core::FlatLayout layout = TestLayout(12);
  const TemporaryFolder folders[2];
  const auto statuses = OnRanks(2, [&](comm::Communicator* comm) -> absl::Status {
    BITSHARD_ASSIGN_OR_RETURN(
        auto checkpointer,
        Checkpointer::Create({.directory = folders[comm->rank()].path(), .layout = &layout}, comm));
    return checkpointer->Save(TestInfo(1), SectionsToSave(layout, *comm, 1));
  });
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(core::ExitCode(status), 6);
    EXPECT_THAT(Message(status), AllOf(HasSubstr(folders[1].path()), HasSubstr("rank 1"),
                                       HasSubstr("output_dir must be one for all ranks")));
  }
  EXPECT_THAT(NamesIn(folders[0].path()), IsEmpty());
}

TEST(Checkpoint, AFullDiskFailsTheSaveAndALaterOneWorks) {
  const core::FlatLayout layout = TestLayout(101);
  const TemporaryFolder folder;
  ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .ranks = 2}),
            absl::OkStatus());
  signal(SIGXFSZ, SIG_IGN);
  struct rlimit before {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit small { .rlim_cur = 20000, .rlim_max = before.rlim_max };
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = SaveSteps(
      {.directory = folder.path(), .layout = &layout, .ranks = 2, .first_step = 2, .last_step = 2});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(core::ExitCode(status), 6);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("shard-0000"), HasSubstr("needs"), HasSubstr("bytes free")));
  EXPECT_THAT(NamesIn(folder.path()), ElementsAre("checkpoint-1", "latest"));
  ASSERT_EQ(SaveSteps({.directory = folder.path(),
                       .layout = &layout,
                       .ranks = 2,
                       .first_step = 3,
                       .last_step = 3}),
            absl::OkStatus());
  EXPECT_EQ(LoadAndCheck(folder.path(), layout, 1).value_or(-1), 3);
}

}  // namespace
}  // namespace bitshard::trainer
