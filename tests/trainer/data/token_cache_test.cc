#include "trainer/data/token_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "tests/trainer/data/cache_bytes.h"

namespace bitshard::trainer {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Where the fields of the header lie (trainer/data/token_cache.h).
constexpr size_t kVersion = 8, kHeaderBytes = 12, kFileBytes = 16, kSamples = 24, kTokens = 32,
                 kTrainedTokens = 40, kVocab = 48, kLongest = 56, kBoundariesOffset = 64,
                 kMetadataOffset = 72, kMetadataBytes = 80, kTokensBegin = 128;

std::string SmallCache() {
  return CacheBytes(
      {{5, 6 | kTrained, 7 | kTrained}, {999, 0 | kTrained}, {1, 2, 3, 4 | kTrained}});
}

absl::Status OpenStatus(const std::string& bytes) {
  const TestFolder folder;
  return TokenCache::Open(folder.Write("small.tokens", bytes)).status();
}

TEST(TokenCache, ReadsSamplesAndNotes) {
  const TestFolder folder;
  const auto cache = TokenCache::Open(folder.Write("c", SmallCache()));
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ((*cache)->num_samples(), 3);
  EXPECT_EQ((*cache)->num_tokens(), 9);
  EXPECT_EQ((*cache)->num_trained(), 4);
  EXPECT_EQ((*cache)->vocab_size(), 1000);
  EXPECT_EQ((*cache)->max_sample_tokens(), 4);
  EXPECT_EQ((*cache)->bytes(), static_cast<int64_t>(SmallCache().size()));
  EXPECT_THAT((*cache)->SampleLengths(), ElementsAre(3, 2, 4));
  EXPECT_THAT((*cache)->sample(1), ElementsAre(999, kTrained));
  EXPECT_EQ(TokenOf((*cache)->sample(0)[1]), 6);
  EXPECT_TRUE(IsTrained((*cache)->sample(0)[1]));
  EXPECT_FALSE(IsTrained((*cache)->sample(0)[0]));
  EXPECT_EQ((*cache)->notes().dropped_too_long, 3);
  EXPECT_EQ((*cache)->notes().dropped_untrained, 2);
  EXPECT_EQ((*cache)->notes().truncated, 1);
  EXPECT_THAT((*cache)->notes().prompts, ElementsAre("a", "b"));
}

TEST(TokenCache, HashesTheContentAndNotTheMetadata) {
  const TestFolder folder;
  const char* notes = R"({"dropped_too_long":0,"dropped_untrained":0,"truncated":0,"prompts":[]})";
  const auto hash = [&](const std::vector<SampleWords>& samples, const std::string& metadata) {
    const auto cache = TokenCache::Open(folder.Write("c", CacheBytes(samples, metadata)));
    EXPECT_TRUE(cache.ok()) << cache.status();
    return (*cache)->content_hash();
  };
  const std::vector<SampleWords> samples = {{1, 2 | kTrained}, {3, 4, 5 | kTrained}};
  const uint64_t expected = hash(samples, notes);
  EXPECT_EQ(hash(samples, absl::StrCat(notes, "   ")), expected);
  std::set<uint64_t> different = {expected,
                                  hash({{1, 2 | kTrained}, {3, 4 | kTrained, 5 | kTrained}}, notes),
                                  hash({{1, 2 | kTrained}, {3, 4, 6 | kTrained}}, notes),
                                  hash({{1, 2 | kTrained, 3}, {4, 5 | kTrained}}, notes)};
  EXPECT_EQ(different.size(), 4u);
}

TEST(TokenCache, RefusesAFileCutAtAnyByte) {
  const std::string whole = SmallCache();
  for (size_t size = 0; size < whole.size(); ++size) {
    const absl::Status status = OpenStatus(whole.substr(0, size));
    ASSERT_FALSE(status.ok()) << size;
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("small.tokens: token cache: "), HasSubstr("delete the file")));
  }
  EXPECT_FALSE(OpenStatus(whole + '\0').ok());
}

TEST(TokenCache, FindsEveryFlippedBit) {
  const std::string whole = SmallCache();
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    ASSERT_EQ(core::KindOf(OpenStatus(damaged)), core::ErrorKind::kData) << "bit " << bit;
  }
}

// With the checksums made right again, each rule of the format is the only thing that can refuse.
TEST(TokenCache, ChecksEachFieldBehindTheChecksums) {
  const std::string whole = SmallCache();
  const size_t boundaries = kTokensBegin + 40;
  const struct {
    const char* name;
    size_t offset;
    int64_t value;
    const char* message;
  } cases[] = {
      {"no sample", kSamples, 0, "samples: 0"},
      {"negative samples", kSamples, -1, "samples: -1"},
      {"more samples than bytes", kSamples, 1000, "do not fit a file"},
      {"samples that overflow", kSamples, int64_t{1} << 61, "samples: "},
      {"more tokens than bytes", kTokens, 100, "do not fit a file"},
      {"tokens that overflow", kTokens, int64_t{1} << 62, "tokens: "},
      {"another trained count", kTrainedTokens, 5, "4 trained tokens, the header says 5"},
      {"a smaller largest token", kVocab, 999, "the largest token is 999, the header says 998"},
      {"a token with bit 31", kVocab, int64_t{1} << 31, "largest token + 1"},
      {"another longest sample", kLongest, 5, "the longest sample has 4 tokens"},
      {"boundaries elsewhere", kBoundariesOffset, 128, "do not fit a file"},
      {"metadata elsewhere", kMetadataOffset, 128, "do not fit a file"},
      {"metadata too long", kMetadataBytes, 1 << 20, "bytes, want"},
      {"negative metadata", kMetadataBytes, -8, "bytes, want"},
      {"another file size", kFileBytes, 128, "bytes, want 128"},
      {"first boundary", boundaries, 1, "do not begin at 0"},
      {"boundaries that fall", boundaries + 8, 6, "sample 1: tokens [6, 5)"},
      {"a sample of one token", boundaries + 8, 4, "sample 1: tokens [4, 5)"},
      {"a negative boundary", boundaries + 8, INT64_MIN, "sample 0"},
      {"a boundary past the end", boundaries + 16, INT64_MAX, "sample 1"},
      {"last boundary", boundaries + 24, 8, "do not end at the last token"}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    std::string bytes = whole;
    Put64(&bytes, c.offset, c.value);
    RepairChecksums(&bytes);
    const absl::Status status = OpenStatus(bytes);
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

TEST(TokenCache, ChecksVersionAndHeaderLength) {
  for (const auto& [offset, message] :
       {std::pair(kVersion, "version 2, want 1"), std::pair(kHeaderBytes, "another length")}) {
    std::string bytes = SmallCache();
    Put32(&bytes, offset, 2);
    RepairChecksums(&bytes);
    EXPECT_THAT(std::string(OpenStatus(bytes).message()), HasSubstr(message));
  }
}

TEST(TokenCache, RefusesSamplesThatCannotBeTrained) {
  EXPECT_THAT(std::string(OpenStatus(CacheBytes({{1, 2}})).message()),
              HasSubstr("trained tokens: 0"));
  EXPECT_THAT(std::string(OpenStatus(CacheBytes({{1, 2 | kTrained}, {1, 2}})).message()),
              HasSubstr("sample 1: its first token is trained, or none is"));
  EXPECT_THAT(std::string(OpenStatus(CacheBytes({{1 | kTrained, 2 | kTrained}})).message()),
              HasSubstr("sample 0: its first token is trained, or none is"));
}

TEST(TokenCache, RefusesBadMetadata) {
  for (const char* metadata :
       {"", "[]", "{", R"({"dropped_too_long": 1})",
        R"({"dropped_too_long": -1, "dropped_untrained": 0, "truncated": 0, "prompts": []})",
        R"({"dropped_too_long": 0, "dropped_untrained": 0, "truncated": 0, "prompts": [1]})"}) {
    SCOPED_TRACE(metadata);
    const absl::Status status = OpenStatus(CacheBytes({{1, 2 | kTrained}}, metadata));
    EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("small.tokens"));
  }
}

TEST(TokenCache, RefusesAFolderAndAMissingFile) {
  const TestFolder folder;
  EXPECT_EQ(core::KindOf(TokenCache::Open(folder.path(".")).status()), core::ErrorKind::kData);
  EXPECT_EQ(core::KindOf(TokenCache::Open(folder.path("none")).status()), core::ErrorKind::kData);
}

}  // namespace
}  // namespace bitshard::trainer
