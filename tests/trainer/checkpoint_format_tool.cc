// Writes a checkpoint of step 3 from two ranks, and prints every section's bytes in block order as
// hex, for checkpoint_format_test.py.
//   checkpoint_format_tool DIRECTORY
#include <cstdio>
#include <vector>

#include "comm/thread_communicator.h"
#include "tests/trainer/checkpoint_test_support.h"

int main(int argc, char** argv) {
  using bitshard::trainer::BlockSection;
  if (argc != 2) return 2;
  const bitshard::core::FlatLayout layout = bitshard::trainer::TestLayout(2000);
  const absl::Status saved = bitshard::trainer::SaveSteps(
      {.directory = argv[1], .layout = &layout, .ranks = 2, .first_step = 3, .last_step = 3});
  if (!saved.ok()) return 1;
  const auto comms = bitshard::comm::ThreadCommunicator::Create(1, {});
  for (const BlockSection& section : bitshard::trainer::SectionsToSave(layout, *comms[0], 3)) {
    std::printf("%s ", section.name.c_str());
    for (int64_t block = 0; block < layout.num_blocks(); ++block) {
      std::vector<std::byte> bytes(static_cast<size_t>(section.block_bytes(block)));
      if (!section.export_blocks({block, block + 1}, bytes).ok()) return 1;
      for (const std::byte byte : bytes) std::printf("%02x", static_cast<unsigned>(byte));
    }
    std::printf("\n");
  }
  return 0;
}
