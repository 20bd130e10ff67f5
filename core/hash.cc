#include "core/hash.h"

#include <xxhash.h>

#include "absl/strings/str_format.h"
#include "core/check.h"

namespace bitshard::core {

uint64_t Hash64(const void* data, size_t bytes) { return XXH3_64bits(data, bytes); }

struct Hasher::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  BITSHARD_CHECK(state_->xxh != nullptr && XXH3_64bits_reset(state_->xxh) == XXH_OK);
}
Hasher::~Hasher() = default;

void Hasher::Update(const void* data, size_t bytes) {
  (void)XXH3_64bits_update(state_->xxh, data, bytes);
}

void Hasher::UpdateInt(int64_t value) { Update(&value, sizeof value); }

void Hasher::UpdateString(const std::string& text) {
  UpdateInt(static_cast<int64_t>(text.size()));
  Update(text.data(), text.size());
}

uint64_t Hasher::Digest() const { return XXH3_64bits_digest(state_->xxh); }

std::string HexDigest(uint64_t hash) { return absl::StrFormat("%016x", hash); }

}  // namespace bitshard::core
