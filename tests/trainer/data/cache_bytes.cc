#include "tests/trainer/data/cache_bytes.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace bitshard::trainer {
namespace {

uint32_t Crc(const std::string& bytes, size_t begin, size_t end) {
  return static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()) + begin,
                                       std::max(begin, end) - begin));
}

template <class T>
void Append(std::string* bytes, T value) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof value);
}

}  // namespace

void Put64(std::string* bytes, size_t offset, int64_t value) {
  std::memcpy(bytes->data() + offset, &value, sizeof value);
}

void Put32(std::string* bytes, size_t offset, uint32_t value) {
  std::memcpy(bytes->data() + offset, &value, sizeof value);
}

void RepairChecksums(std::string* bytes) {
  if (bytes->size() < 128) return;
  Put32(bytes, 88, Crc(*bytes, 128, bytes->size()));
  Put32(bytes, 124, Crc(*bytes, 0, 124));
}

std::string CacheBytes(const std::vector<SampleWords>& samples) {
  return CacheBytes(
      samples,
      R"({"dropped_too_long": 3, "dropped_untrained": 2, "truncated": 1, "prompts": ["a", "b"]})");
}

std::string CacheBytes(const std::vector<SampleWords>& samples, const std::string& metadata) {
  std::string bytes(128, '\0');
  std::vector<int64_t> boundaries = {0};
  int64_t trained = 0, longest = 0, largest = 0;
  for (const SampleWords& words : samples) {
    for (const uint32_t word : words) {
      Append(&bytes, word);
      trained += word >> 31;
      largest = std::max(largest, static_cast<int64_t>(word & ~kTrained));
    }
    boundaries.push_back(boundaries.back() + static_cast<int64_t>(words.size()));
    longest = std::max(longest, static_cast<int64_t>(words.size()));
  }
  bytes.resize((bytes.size() + 7) / 8 * 8);
  const int64_t boundaries_offset = static_cast<int64_t>(bytes.size());
  for (const int64_t boundary : boundaries) Append(&bytes, boundary);
  const int64_t metadata_offset = static_cast<int64_t>(bytes.size());
  bytes += metadata;
  std::memcpy(bytes.data(), "BSTOKENS", 8);
  Put32(&bytes, 8, 1);
  Put32(&bytes, 12, 128);
  const int64_t fields[] = {static_cast<int64_t>(bytes.size()),
                            static_cast<int64_t>(samples.size()),
                            boundaries.back(),
                            trained,
                            largest + 1,
                            longest,
                            boundaries_offset,
                            metadata_offset,
                            static_cast<int64_t>(metadata.size())};
  for (size_t i = 0; i < std::size(fields); ++i) Put64(&bytes, 16 + 8 * i, fields[i]);
  RepairChecksums(&bytes);
  return bytes;
}

std::vector<SampleWords> SamplesOfLengths(const std::vector<int64_t>& lengths) {
  std::vector<SampleWords> samples;
  for (size_t s = 0; s < lengths.size(); ++s) {
    SampleWords words;
    for (size_t i = 0; i < static_cast<size_t>(lengths[s]); ++i) {
      words.push_back(static_cast<uint32_t>((31 * s + i) % 1000) | (i > 0 ? kTrained : 0));
    }
    samples.push_back(words);
  }
  return samples;
}

TestFolder::TestFolder() {
  std::string name = ::testing::TempDir() + "bitshard_data_XXXXXX";
  EXPECT_NE(mkdtemp(name.data()), nullptr) << name;
  path_ = name;
}

TestFolder::~TestFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::string TestFolder::Write(const std::string& name, const std::string& content) const {
  std::ofstream file(path(name), std::ios::binary | std::ios::trunc);
  file << content;
  file.close();
  EXPECT_TRUE(file.good()) << path(name);
  return path(name);
}

}  // namespace bitshard::trainer
