#include "tests/trainer/checkpoint_test_support.h"

#include <stdlib.h>

#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "comm/shard_map.h"
#include "comm/thread_communicator.h"
#include "core/check.h"
#include "core/error.h"
#include "core/status_macros.h"

namespace bitshard::trainer {
namespace {

std::byte ByteOf(uint64_t section, int64_t step, int64_t block, int64_t i) {
  uint64_t x = section * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(step) * 0xBF58476D1CE4E5B9u +
               static_cast<uint64_t>(block) * 0x94D049BB133111EBu + static_cast<uint64_t>(i);
  x = (x ^ (x >> 29)) * 0xD6E8FEB86659FD93u;
  return static_cast<std::byte>(x >> 56);
}

// Calls visit(block, i, at) for each byte of the blocks.
template <class Visit>
void ForEachByte(const BlockSection& section, core::BlockRange blocks, Visit visit) {
  size_t at = 0;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    for (int64_t i = 0; i < section.block_bytes(block); ++i) visit(block, i, at++);
  }
}

BlockSection MakeSection(const core::FlatLayout& layout, bool is_optimizer) {
  if (!is_optimizer)
    return {.name = "parameters", .block_bytes = [](int64_t) { return int64_t{1024}; }};
  return {.name = "optimizer",
          .block_bytes = [&layout](int64_t block) { return OptimizerBlockBytes(layout, block); }};
}

// Sections that compare what they are given with the bytes of `step` and count the blocks.
struct LoadCheck {
  int64_t step = 0;
  std::map<std::string, int64_t> blocks_seen;
};

BlockSection SectionToLoad(const core::FlatLayout& layout, bool is_optimizer,
                           std::vector<core::BlockRange> runs, LoadCheck* check) {
  BlockSection section = MakeSection(layout, is_optimizer);
  section.runs = std::move(runs);
  section.import_blocks = [section, is_optimizer, check](core::BlockRange blocks,
                                                         std::span<const std::byte> in) {
    bool inside = false;
    for (const core::BlockRange& run : section.runs)
      inside |= blocks.begin >= run.begin && blocks.end <= run.end;
    bool equal = inside;
    ForEachByte(section, blocks, [&](int64_t block, int64_t i, size_t at) {
      equal &= at < in.size() && in[at] == ByteOf(is_optimizer ? 1 : 0, check->step, block, i);
    });
    check->blocks_seen[section.name] += blocks.size();
    return equal ? absl::OkStatus() : absl::InternalError("a byte was loaded wrong");
  };
  return section;
}

absl::Status LoadOnRank(Checkpointer* checkpointer, const FoundCheckpoint& found,
                        const core::FlatLayout& layout, comm::Communicator* comm) {
  LoadCheck check{.step = found.manifest.info.step};
  const comm::ShardMap shards(layout, comm->world_size(), 4096);
  const std::vector<BlockSection> sections = {
      SectionToLoad(layout, false, {{0, layout.num_blocks()}}, &check),
      SectionToLoad(layout, true, shards.RunsOf(comm->rank()), &check)};
  BITSHARD_RETURN_IF_ERROR(checkpointer->Load(found, sections));
  if (check.blocks_seen["parameters"] != layout.num_blocks() ||
      check.blocks_seen["optimizer"] != shards.NumBlocksOf(comm->rank())) {
    return absl::InternalError("not every block was loaded once");
  }
  return absl::OkStatus();
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string name = std::filesystem::temp_directory_path() / "bitshard_checkpoint_XXXXXX";
  BITSHARD_CHECK(mkdtemp(name.data()) != nullptr) << name;
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

core::FlatLayout TestLayout(int64_t blocks) {
  const int64_t third = blocks / 3;
  const auto layout = core::FlatLayout::Create(
      {{"a", {third, 256}}, {"b", {third * 256}}, {"c", {blocks - 2 * third, 256}}});
  BITSHARD_CHECK(layout.ok() && layout->num_blocks() == blocks);
  return *layout;
}

int64_t OptimizerBlockBytes(const core::FlatLayout& layout, int64_t block) {
  return block < layout.num_blocks() / 2 ? 520 : 2048;
}

std::vector<absl::Status> OnRanks(int ranks,
                                  const std::function<absl::Status(comm::Communicator*)>& body) {
  auto comms = comm::ThreadCommunicator::Create(ranks, {.timeout = absl::Seconds(60)});
  std::vector<absl::Status> statuses(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (size_t r = 1; r < comms.size(); ++r) {
    threads.emplace_back([&, r] { statuses[r] = body(comms[r].get()); });
  }
  statuses[0] = body(comms[0].get());
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

absl::Status FirstError(const std::vector<absl::Status>& statuses) {
  for (const absl::Status& status : statuses) BITSHARD_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

std::vector<BlockSection> SectionsToSave(const core::FlatLayout& layout,
                                         const comm::Communicator& comm, int64_t step) {
  const comm::ShardMap shards(layout, comm.world_size(), 4096);
  std::vector<BlockSection> sections;
  for (const bool is_optimizer : {false, true}) {
    BlockSection section = MakeSection(layout, is_optimizer);
    section.runs = shards.RunsOf(comm.rank());
    section.export_blocks = [section, is_optimizer, step](core::BlockRange blocks,
                                                          std::span<std::byte> out) {
      ForEachByte(section, blocks, [&](int64_t block, int64_t i, size_t at) {
        out[at] = ByteOf(is_optimizer ? 1 : 0, step, block, i);
      });
      return absl::OkStatus();
    };
    sections.push_back(std::move(section));
  }
  return sections;
}

CheckpointInfo TestInfo(int64_t step) {
  return {.step = step,
          .data_position = 8 * step,
          .total_tokens = 1000 * step,
          .trained_tokens = 600 * step,
          .data_fingerprint = "d",
          .config_hash = "c",
          .config_text = "lora_r: 16\nbase_model: \"\xC3\xA4\"\n",
          .program_version = "test"};
}

absl::Status SaveSteps(const SaveArgs& args) {
  return FirstError(OnRanks(args.ranks, [&](comm::Communicator* comm) -> absl::Status {
    BITSHARD_ASSIGN_OR_RETURN(auto checkpointer,
                              Checkpointer::Create({.directory = args.directory,
                                                    .save_total_limit = args.save_total_limit,
                                                    .layout = args.layout},
                                                   comm));
    for (int64_t step = args.first_step; step <= args.last_step; ++step) {
      BITSHARD_RETURN_IF_ERROR(
          checkpointer->Save(TestInfo(step), SectionsToSave(*args.layout, *comm, step)));
    }
    return absl::OkStatus();
  }));
}

absl::StatusOr<int64_t> LoadAndCheck(const std::string& directory, const core::FlatLayout& layout,
                                     int ranks) {
  std::vector<int64_t> steps(static_cast<size_t>(ranks), 0);
  BITSHARD_RETURN_IF_ERROR(FirstError(OnRanks(ranks, [&](comm::Communicator* comm) -> absl::Status {
    BITSHARD_ASSIGN_OR_RETURN(
        auto checkpointer, Checkpointer::Create({.directory = directory, .layout = &layout}, comm));
    BITSHARD_ASSIGN_OR_RETURN(const auto found, checkpointer->FindNewest());
    if (!found.has_value()) return absl::OkStatus();
    const CheckpointInfo& info = found->manifest.info;
    const CheckpointInfo wanted = TestInfo(info.step);
    if (info.data_position != wanted.data_position || info.config_text != wanted.config_text ||
        info.total_tokens != wanted.total_tokens || info.trained_tokens != wanted.trained_tokens) {
      return absl::InternalError("the manifest says something else than was saved");
    }
    steps[static_cast<size_t>(comm->rank())] = info.step;
    return LoadOnRank(checkpointer.get(), *found, layout, comm);
  })));
  for (const int64_t step : steps) {
    if (step != steps[0]) return absl::InternalError("ranks found different steps");
  }
  return steps[0];
}

absl::StatusOr<FoundCheckpoint> FindAlone(const std::string& directory,
                                          const core::FlatLayout& layout, const std::string& path) {
  const auto comms = comm::ThreadCommunicator::Create(1, {});
  BITSHARD_ASSIGN_OR_RETURN(
      auto checkpointer,
      Checkpointer::Create({.directory = directory, .layout = &layout}, comms[0].get()));
  if (!path.empty()) return checkpointer->Open(path);
  BITSHARD_ASSIGN_OR_RETURN(auto found, checkpointer->FindNewest());
  if (!found.has_value()) return absl::NotFoundError("no checkpoint");
  return *std::move(found);
}

absl::Status OpenAndLoad(const std::string& path, const core::FlatLayout& layout) {
  const auto comms = comm::ThreadCommunicator::Create(1, {});
  BITSHARD_ASSIGN_OR_RETURN(
      auto checkpointer,
      Checkpointer::Create({.directory = path, .layout = &layout}, comms[0].get()));
  BITSHARD_ASSIGN_OR_RETURN(const FoundCheckpoint found, checkpointer->Open(path));
  std::vector<BlockSection> sections;
  for (const bool is_optimizer : {false, true}) {
    BlockSection section = MakeSection(layout, is_optimizer);
    section.runs = {{0, layout.num_blocks()}};
    section.import_blocks = [](core::BlockRange, std::span<const std::byte>) {
      return absl::OkStatus();
    };
    sections.push_back(std::move(section));
  }
  return checkpointer->Load(found, sections);
}

}  // namespace bitshard::trainer
