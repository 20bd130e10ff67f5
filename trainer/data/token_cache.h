// TokenCache: the samples of a run as tokens, in a file made by trainer/text and mapped here.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto cache, TokenCache::Open(path));
//   for (const uint32_t word : cache->sample(7)) { TokenOf(word); IsTrained(word); }
//
// File (version 1, little-endian; docs/data.md has the same table):
//     0 char[8]  "BSTOKENS"          8 u32 version            12 u32 header bytes, 128
//    16 u64 file bytes              24 u64 samples            32 u64 tokens
//    40 u64 trained tokens          48 u64 largest token + 1  56 u64 tokens of the longest sample
//    64 u64 offset of boundaries    72 u64 offset of metadata 80 u64 bytes of metadata
//    88 u32 CRC-32 of bytes [128, file bytes)                 92 zeros
//   124 u32 CRC-32 of bytes [0, 124)
//   128 u32[tokens]       bit 31: trained, bits 0-30: token id; then zeros up to a multiple of 8
//     . i64[samples + 1]  boundaries: sample s is tokens [b[s], b[s + 1])
//     . char[]            metadata: a JSON object, up to the end of the file
//
// Threads: immutable after Open; safe to share.
#ifndef BITSHARD_TRAINER_DATA_TOKEN_CACHE_H_
#define BITSHARD_TRAINER_DATA_TOKEN_CACHE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/file.h"

namespace bitshard::trainer {

inline constexpr uint32_t kTokenCacheVersion = 1;

/// The token id of a word of the cache.
inline int32_t TokenOf(uint32_t word) { return static_cast<int32_t>(word & 0x7FFFFFFFu); }
/// Whether the token counts in the loss.
inline bool IsTrained(uint32_t word) { return (word >> 31) != 0; }

/// What the metadata says about how the cache came about.
struct TokenCacheNotes {
  int64_t dropped_too_long = 0;   ///< Samples longer than sequence_len, left out.
  int64_t dropped_untrained = 0;  ///< Samples in which no token was left to train on.
  int64_t truncated = 0;          ///< Samples cut at sequence_len.
  /// What the user says in the first samples that have exactly one user turn; long ones left out.
  std::vector<std::string> prompts;
};

class TokenCache {
 public:
  /// Checks the whole file, and gives its pages back to the kernel afterwards.
  /// Errors: kData with path, field, got and wanted: not a token cache, another version, cut short,
  /// damaged.
  static absl::StatusOr<std::unique_ptr<TokenCache>> Open(const std::string& path);

  int64_t num_samples() const { return num_samples_; }
  int64_t num_tokens() const { return num_tokens_; }
  /// Tokens that count in the loss: never a sample's first, at least one in each sample.
  int64_t num_trained() const { return num_trained_; }
  /// The largest token id that occurs, and one: the model's vocabulary must be at least as large.
  int64_t vocab_size() const { return vocab_size_; }
  int64_t max_sample_tokens() const { return max_sample_tokens_; }
  const TokenCacheNotes& notes() const { return notes_; }

  /// The words of sample s, in [0, num_samples).
  std::span<const uint32_t> sample(int64_t s) const;
  int64_t sample_length(int64_t s) const;
  /// The length of every sample.
  std::vector<int64_t> SampleLengths() const;

  /// XXH3-64 over tokens, what is trained, and boundaries: the same for the same samples, whatever
  /// the metadata says.
  uint64_t content_hash() const { return content_hash_; }
  /// Bytes of the mapping.
  int64_t bytes() const { return static_cast<int64_t>(map_->bytes().size()); }
  const std::string& path() const { return map_->path(); }

 private:
  explicit TokenCache(std::unique_ptr<core::MappedFile> map) : map_(std::move(map)) {}
  absl::Status ReadHeader();
  absl::Status CheckBody();
  absl::Status CheckBoundaries();
  absl::Status CheckTokens();
  absl::Status ReadNotes();
  absl::Status Damaged(const std::string& what) const;
  const char* data() const { return reinterpret_cast<const char*>(map_->bytes().data()); }

  std::unique_ptr<core::MappedFile> map_;
  int64_t num_samples_ = 0;
  int64_t num_tokens_ = 0;
  int64_t num_trained_ = 0;
  int64_t vocab_size_ = 0;
  int64_t max_sample_tokens_ = 0;
  int64_t boundaries_offset_ = 0;
  int64_t metadata_offset_ = 0;
  uint32_t body_crc_ = 0;
  uint64_t content_hash_ = 0;
  std::span<const uint32_t> words_;
  std::span<const int64_t> boundaries_;
  TokenCacheNotes notes_;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_DATA_TOKEN_CACHE_H_
