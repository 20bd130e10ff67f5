// A deterministic mutation fuzzer for readers of files.
//
// One registration adds a reader (a file tests/fuzz/x_fuzz.cc, and a line in
// tests/fuzz/CMakeLists.txt):
//
//   TEST(Fuzz, TokenCache) {
//     fuzz::Run({.name = "token cache",
//                .file = "cache.bin",
//                .seeds = {SmallCache(), EmptyCache()},
//                .read = [](const std::string& path) { return ReadEverything(path); }});
//   }
//
// Each input is a seed file with up to four mutations: bits flipped, bytes set, ranges cut,
// doubled, moved or taken from another seed, integers of all widths set to values at the borders of
// their ranges, decimal numbers in text replaced by such values, words of the dictionary written
// over or between. It is written to a file and read. What must hold for every input:
//   - the reader returns (a crash, a sanitizer's report or an exception ends the test; the input is
//   then in the file
//     that the first line of the output names);
//   - its status is OK, or of kind kData or kConfig with a message of one printable line that names
//   the folder or
//     the file;
//   - it takes less than one second of processor time, and never holds more than 64 MiB of heap
//   beyond what it held.
// And over all inputs the messages are of `least_messages` kinds at least: mutations that always
// end at the same check would test nothing behind it.
//
// Which mutations are made depends on the name and the number of the input only.
// BITSHARD_FUZZ_INPUTS sets another number of inputs, BITSHARD_FUZZ_FIRST the first of them: so a
// long search can be continued, and one input repeated.
#ifndef BITSHARD_TESTS_FUZZ_FUZZ_H_
#define BITSHARD_TESTS_FUZZ_FUZZ_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace bitshard::fuzz {

struct Target {
  std::string name;
  std::string file;                ///< The input's name in the folder of the test: "model.gguf".
  std::vector<std::string> seeds;  ///< Valid files; read must return OK for each. Small: a few KiB.
  /// Words of the format, in its bytes.
  std::vector<std::string> dictionary;
  /// Opens the file and reads all there is in it.
  std::function<absl::Status(const std::string& path)> read;
  /// Writes the other files that the reader needs to the folder, once.
  std::function<void(const std::string& folder)> prepare;
  /// Makes lengths and checksums right again, so that a mutation reaches what lies behind them;
  /// applied to every second input.
  std::function<void(std::string* input)> repair;
  int64_t inputs = 10'000;
  int least_messages = 8;  ///< Different ends of messages, numbers and quoted text left out.
};

/// Runs a target; failures are GoogleTest failures.
void Run(const Target& target);

}  // namespace bitshard::fuzz

#endif  // BITSHARD_TESTS_FUZZ_FUZZ_H_
