// XXH3-64 checksums (xxHash library). For detecting damage and naming caches; not for security.
#ifndef BITSHARD_CORE_HASH_H_
#define BITSHARD_CORE_HASH_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace bitshard::core {

/// XXH3-64 of one buffer, seed 0.
uint64_t Hash64(const void* data, size_t bytes);

/// XXH3-64 of a sequence of pieces. UpdateString and UpdateInt are framed: ("a", "bc") differs from
/// ("ab", "c").
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void Update(const void* data, size_t bytes);
  void UpdateInt(int64_t value);
  void UpdateString(const std::string& text);
  uint64_t Digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// 16 lower-case hex digits.
std::string HexDigest(uint64_t hash);

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_HASH_H_
