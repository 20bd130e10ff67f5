// The reader of token caches.
#include <gtest/gtest.h>

#include "core/status_macros.h"
#include "tests/fuzz/fuzz.h"
#include "tests/trainer/data/cache_bytes.h"
#include "trainer/data/sampler.h"
#include "trainer/data/token_cache.h"

namespace bitshard::trainer {
namespace {

// Everything that training reads from a cache.
absl::Status ReadCache(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(const auto cache, TokenCache::Open(path));
  const Packs packs = OneSampleAPack(cache->num_samples());
  for (int64_t p = 0; p < packs.num_packs(); ++p) {
    const MicroBatch batch = BuildMicroBatch(*cache, packs, std::vector<int64_t>{p});
    if (batch.num_tokens() != cache->sample_length(p) || batch.num_trained() == 0)
      return absl::InternalError(path + ": a sample is not what the cache says of it");
  }
  return absl::OkStatus();
}

TEST(Fuzz, TokenCache) {
  fuzz::Target target = {.name = "token cache",
                         .file = "cache.tokens",
                         .read = ReadCache,
                         .repair = RepairChecksums,
                         .least_messages = 20};
  target.seeds = {CacheBytes(SamplesOfLengths({2, 3, 30, 4})), CacheBytes({{1, 2 | kTrained}}),
                  CacheBytes({{1, 2, 3, 4 | kTrained, 5}, {7, 8 | kTrained}})};
  target.dictionary = {"BSTOKENS", "\"prompts\"", "\"truncated\"", "[]", "{", "null", "-1"};
  fuzz::Run(target);
}

}  // namespace
}  // namespace bitshard::trainer
