#include "trainer/data/token_cache.h"

#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/check.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/status_macros.h"
#include "trainer/io/json.h"

namespace bitshard::trainer {
namespace {

static_assert(std::endian::native == std::endian::little, "the file is mapped as it stands");

constexpr char kMagic[] = "BSTOKENS";
constexpr int64_t kHeaderBytes = 128;
constexpr int64_t kHeaderCrcOffset = 124;
// Vocabularies of known models end below 300,000; ids must leave bit 31 free.
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxTokens = int64_t{1} << 40;
constexpr int64_t kCheckedAtATime = int64_t{4} << 20;

template <class T>
T Load(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

uint32_t Crc(uint32_t crc, const char* data, int64_t bytes) {
  return static_cast<uint32_t>(
      crc32_z(crc, reinterpret_cast<const Bytef*>(data), static_cast<size_t>(bytes)));
}

int64_t RoundUp8(int64_t value) { return (value + 7) / 8 * 8; }

}  // namespace

absl::Status TokenCache::Damaged(const std::string& what) const {
  return core::DataError(absl::StrCat(core::Escaped(map_->path(), 4096), ": token cache: ", what,
                                      "; delete the file, and the next run makes it again"));
}

absl::StatusOr<std::unique_ptr<TokenCache>> TokenCache::Open(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<core::MappedFile> map, core::MappedFile::Open(path));
  std::unique_ptr<TokenCache> cache(new TokenCache(std::move(map)));
  BITSHARD_RETURN_IF_ERROR(cache->ReadHeader());
  BITSHARD_RETURN_IF_ERROR(cache->CheckBody());
  BITSHARD_RETURN_IF_ERROR(cache->CheckBoundaries());
  BITSHARD_RETURN_IF_ERROR(cache->CheckTokens());
  BITSHARD_RETURN_IF_ERROR(cache->ReadNotes());
  return cache;
}

absl::Status TokenCache::ReadHeader() {
  const int64_t size = bytes();
  if (size < kHeaderBytes) {
    return Damaged(absl::StrFormat("%d bytes, want at least %d", size, kHeaderBytes));
  }
  if (std::memcmp(data(), kMagic, 8) != 0) return Damaged("does not begin with BSTOKENS");
  const uint32_t version = Load<uint32_t>(data() + 8);
  if (version != kTokenCacheVersion) {
    return Damaged(absl::StrFormat("version %d, want %d", version, kTokenCacheVersion));
  }
  if (Crc(0, data(), kHeaderCrcOffset) != Load<uint32_t>(data() + kHeaderCrcOffset)) {
    return Damaged("the header's checksum does not fit");
  }
  if (Load<uint32_t>(data() + 12) != kHeaderBytes) return Damaged("the header has another length");
  const struct {
    const char* name;
    int64_t* value;
    int64_t offset, min, max;
  } fields[] = {{"samples", &num_samples_, 24, 1, kMaxTokens},
                {"tokens", &num_tokens_, 32, 2, kMaxTokens},
                {"trained tokens", &num_trained_, 40, 1, kMaxTokens},
                {"largest token + 1", &vocab_size_, 48, 1, kMaxVocab},
                {"tokens of the longest sample", &max_sample_tokens_, 56, 2, kMaxTokens},
                {"offset of boundaries", &boundaries_offset_, 64, kHeaderBytes, size},
                {"offset of metadata", &metadata_offset_, 72, kHeaderBytes, size}};
  for (const auto& field : fields) {
    *field.value = Load<int64_t>(data() + field.offset);
    if (*field.value < field.min || *field.value > field.max) {
      return Damaged(
          absl::StrFormat("%s: %d, want %d to %d", field.name, *field.value, field.min, field.max));
    }
  }
  const int64_t boundaries = kHeaderBytes + RoundUp8(num_tokens_ * 4);
  const int64_t metadata = boundaries + 8 * (num_samples_ + 1);
  const int64_t end = metadata + Load<int64_t>(data() + 80);
  if (boundaries_offset_ != boundaries || metadata_offset_ != metadata || metadata > size) {
    return Damaged(absl::StrFormat("%d tokens and %d samples do not fit a file of %d bytes",
                                   num_tokens_, num_samples_, size));
  }
  if (end != size || Load<int64_t>(data() + 16) != size) {
    return Damaged(absl::StrFormat("%d bytes, want %d", size, Load<int64_t>(data() + 16)));
  }
  body_crc_ = Load<uint32_t>(data() + 88);
  words_ = {reinterpret_cast<const uint32_t*>(data() + kHeaderBytes),
            static_cast<size_t>(num_tokens_)};
  boundaries_ = {reinterpret_cast<const int64_t*>(data() + boundaries),
                 static_cast<size_t>(num_samples_) + 1};
  return absl::OkStatus();
}

// Piece by piece, each given back to the kernel at once: a check must not make a large cache
// resident.
absl::Status TokenCache::CheckBody() {
  core::Hasher hasher;
  uint32_t crc = 0;
  for (int64_t at = kHeaderBytes; at < bytes(); at += kCheckedAtATime) {
    const int64_t piece = std::min(kCheckedAtATime, bytes() - at);
    crc = Crc(crc, data() + at, piece);
    const int64_t hashed = std::min(piece, metadata_offset_ - at);
    if (hashed > 0) hasher.Update(data() + at, static_cast<size_t>(hashed));
    map_->Release(static_cast<size_t>(at), static_cast<size_t>(piece));
  }
  if (crc != body_crc_) return Damaged("the checksum does not fit the content");
  content_hash_ = hasher.Digest();
  return absl::OkStatus();
}

absl::Status TokenCache::CheckBoundaries() {
  if (boundaries_.front() != 0 || boundaries_.back() != num_tokens_) {
    return Damaged("boundaries do not begin at 0 or do not end at the last token");
  }
  int64_t longest = 0;
  for (size_t s = 0; s + 1 < boundaries_.size(); ++s) {
    // Checked by comparison before subtraction: a damaged value could overflow it.
    if (boundaries_[s + 1] < 0 || boundaries_[s + 1] > num_tokens_ ||
        boundaries_[s] + 2 > boundaries_[s + 1]) {
      return Damaged(absl::StrFormat("sample %d: tokens [%d, %d), want at least 2 of them", s,
                                     boundaries_[s], boundaries_[s + 1]));
    }
    longest = std::max(longest, boundaries_[s + 1] - boundaries_[s]);
  }
  if (longest != max_sample_tokens_) {
    return Damaged(absl::StrFormat("the longest sample has %d tokens, the header says %d", longest,
                                   max_sample_tokens_));
  }
  return absl::OkStatus();
}

absl::Status TokenCache::CheckTokens() {
  int64_t trained = 0, largest = 0;
  int64_t released = kHeaderBytes;
  for (int64_t s = 0; s < num_samples_; ++s) {
    const std::span<const uint32_t> words = sample(s);
    int64_t trained_here = 0;
    for (const uint32_t word : words) {
      trained_here += IsTrained(word) ? 1 : 0;
      largest = std::max<int64_t>(largest, TokenOf(word));
    }
    if (IsTrained(words[0]) || trained_here == 0) {
      return Damaged(absl::StrFormat("sample %d: its first token is trained, or none is", s));
    }
    trained += trained_here;
    const int64_t done = kHeaderBytes + 4 * boundaries_[static_cast<size_t>(s) + 1];
    if (done - released >= kCheckedAtATime || s + 1 == num_samples_) {
      map_->Release(static_cast<size_t>(released), static_cast<size_t>(done - released));
      released = done;
    }
  }
  if (largest + 1 != vocab_size_) {
    return Damaged(
        absl::StrFormat("the largest token is %d, the header says %d", largest, vocab_size_ - 1));
  }
  if (trained != num_trained_) {
    return Damaged(absl::StrFormat("%d trained tokens, the header says %d", trained, num_trained_));
  }
  return absl::OkStatus();
}

absl::Status TokenCache::ReadNotes() {
  const std::string text(data() + metadata_offset_, data() + bytes());
  const std::string where = core::Escaped(path(), 4096);
  BITSHARD_ASSIGN_OR_RETURN(const io::Json json, io::ParseJson(text, where));
  BITSHARD_ASSIGN_OR_RETURN(const io::JsonObject object, io::JsonObject::Of(json, where));
  const io::IntRange count = {0, kMaxTokens};
  BITSHARD_ASSIGN_OR_RETURN(notes_.dropped_too_long, object.GetInt("dropped_too_long", count));
  BITSHARD_ASSIGN_OR_RETURN(notes_.dropped_untrained, object.GetInt("dropped_untrained", count));
  BITSHARD_ASSIGN_OR_RETURN(notes_.truncated, object.GetInt("truncated", count));
  BITSHARD_ASSIGN_OR_RETURN(notes_.prompts, object.GetStrings("prompts"));
  return absl::OkStatus();
}

std::span<const uint32_t> TokenCache::sample(int64_t s) const {
  BITSHARD_DCHECK(s >= 0 && s < num_samples_);
  return words_.subspan(static_cast<size_t>(boundaries_[static_cast<size_t>(s)]),
                        static_cast<size_t>(sample_length(s)));
}

int64_t TokenCache::sample_length(int64_t s) const {
  return boundaries_[static_cast<size_t>(s) + 1] - boundaries_[static_cast<size_t>(s)];
}

std::vector<int64_t> TokenCache::SampleLengths() const {
  std::vector<int64_t> lengths(static_cast<size_t>(num_samples_));
  for (int64_t s = 0; s < num_samples_; ++s) lengths[static_cast<size_t>(s)] = sample_length(s);
  return lengths;
}

}  // namespace bitshard::trainer
