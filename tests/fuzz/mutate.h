// The mutations of the fuzzer: a pure function of seeds, dictionary and a random stream.
#ifndef BITSHARD_TESTS_FUZZ_MUTATE_H_
#define BITSHARD_TESTS_FUZZ_MUTATE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "core/rng.h"

namespace bitshard::fuzz {

/// Reproducible numbers: stream `key`, drawn one after another.
class Stream {
 public:
  explicit Stream(uint64_t key) : key_(key) {}
  uint64_t Next() {
    const core::Philox4 x = core::Philox(key_, counter_++, 0);
    return static_cast<uint64_t>(x.word[0]) << 32 | x.word[1];
  }
  /// From 0 to n - 1; 0 when n is 0.
  size_t Below(size_t n) { return n == 0 ? 0 : Next() % n; }

 private:
  uint64_t key_;
  uint64_t counter_ = 0;
};

/// One to four mutations of one of the seeds. At most twice as long as the longest seed, and 1 KiB.
std::string Mutate(const std::vector<std::string>& seeds,
                   const std::vector<std::string>& dictionary, Stream* stream);

}  // namespace bitshard::fuzz

#endif  // BITSHARD_TESTS_FUZZ_MUTATE_H_
