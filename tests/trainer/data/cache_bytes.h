// Token caches as bytes, written from the description in trainer/data/token_cache.h alone, for
// tests.
#ifndef BITSHARD_TESTS_TRAINER_DATA_CACHE_BYTES_H_
#define BITSHARD_TESTS_TRAINER_DATA_CACHE_BYTES_H_

#include <cstdint>
#include <string>
#include <vector>

namespace bitshard::trainer {

/// Bit 31 set: trained.
using SampleWords = std::vector<uint32_t>;

inline constexpr uint32_t kTrained = uint32_t{1} << 31;

/// A valid cache.
std::string CacheBytes(const std::vector<SampleWords>& samples);
std::string CacheBytes(const std::vector<SampleWords>& samples, const std::string& metadata);

/// Samples of the lengths given, all tokens but the first trained; token i of sample s is
/// (31 s + i) mod 1000.
std::vector<SampleWords> SamplesOfLengths(const std::vector<int64_t>& lengths);

/// Computes both checksums again over whatever stands there.
void RepairChecksums(std::string* bytes);

/// Overwrites the bytes at `offset` by the value.
void Put64(std::string* bytes, size_t offset, int64_t value);
void Put32(std::string* bytes, size_t offset, uint32_t value);

/// A folder of its own for one test, removed at its end.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  std::string path(const std::string& name) const { return path_ + "/" + name; }
  /// Writes a file and returns its path.
  std::string Write(const std::string& name, const std::string& content) const;

 private:
  std::string path_;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TESTS_TRAINER_DATA_CACHE_BYTES_H_
