#include "trainer/data/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "core/rng.h"

namespace bitshard::trainer {

std::vector<int64_t> EpochOrder(uint64_t seed, int64_t epoch, int64_t num_packs) {
  const uint64_t key =
      core::RngKey(seed, core::RngPurpose::kDataOrder, static_cast<uint64_t>(epoch));
  std::vector<int64_t> order(static_cast<size_t>(num_packs));
  std::iota(order.begin(), order.end(), int64_t{0});
  for (uint64_t left = order.size(); left > 1; --left) {
    const core::Philox4 random = core::Philox(key, left, 0);
    const uint64_t word = static_cast<uint64_t>(random.word[0]) << 32 | random.word[1];
    // word * left / 2^64 is in [0, left).
    const uint64_t chosen =
        static_cast<uint64_t>(static_cast<unsigned __int128>(word) * left >> 64);
    std::swap(order[left - 1], order[chosen]);
  }
  return order;
}

PackSampler::PackSampler(const SamplerOptions& options) : options_(options) {
  BITSHARD_CHECK(options.num_packs >= 1 && options.micro_batch_size >= 1 &&
                 options.global_batch_size >= 1 &&
                 options.global_batch_size % options.micro_batch_size == 0)
      << options.num_packs << " packs, batches of " << options.micro_batch_size << " and "
      << options.global_batch_size;
}

int64_t PackSampler::PackAt(int64_t position) {
  const int64_t epoch = position / options_.num_packs;
  Order& order = orders_[static_cast<size_t>(epoch % 2)];
  if (order.epoch != epoch) {
    order = {.epoch = epoch, .packs = EpochOrder(options_.seed, epoch, options_.num_packs)};
  }
  return order.packs[static_cast<size_t>(position % options_.num_packs)];
}

std::vector<int64_t> PackSampler::MicroBatchPacks(int64_t step, int64_t index) {
  BITSHARD_DCHECK(step >= 1 && index >= 0 &&
                  index < options_.global_batch_size / options_.micro_batch_size);
  const int64_t first = (step - 1) * options_.global_batch_size + index * options_.micro_batch_size;
  std::vector<int64_t> packs;
  for (int64_t i = 0; i < options_.micro_batch_size; ++i) packs.push_back(PackAt(first + i));
  return packs;
}

double PackSampler::EpochAfter(int64_t step) const {
  return static_cast<double>(step) * static_cast<double>(options_.global_batch_size) /
         static_cast<double>(options_.num_packs);
}

int64_t PackSampler::StepsForEpochs(double epochs) const {
  const double packs = std::ceil(epochs * static_cast<double>(options_.num_packs));
  return static_cast<int64_t>(std::ceil(packs / static_cast<double>(options_.global_batch_size)));
}

std::vector<int64_t> SequentialMicroBatchPacks(int64_t num_packs, int64_t micro_batch_size,
                                               int64_t index) {
  const int64_t first = index * micro_batch_size;
  BITSHARD_DCHECK(first >= 0 && first < num_packs);
  std::vector<int64_t> packs(static_cast<size_t>(std::min(micro_batch_size, num_packs - first)));
  std::iota(packs.begin(), packs.end(), first);
  return packs;
}

MicroBatch BuildMicroBatch(const TokenCache& cache, const Packs& packs,
                           std::span<const int64_t> pack_ids) {
  MicroBatch batch;
  batch.starts.push_back(0);
  for (const int64_t pack : pack_ids) {
    for (const int64_t id : packs.pack(pack)) {
      const std::span<const uint32_t> words = cache.sample(id);
      for (size_t i = 0; i < words.size(); ++i) {
        const bool trained = i + 1 < words.size() && IsTrained(words[i + 1]);
        batch.tokens.push_back(TokenOf(words[i]));
        batch.targets.push_back(trained ? TokenOf(words[i + 1]) : -1);
      }
      batch.starts.push_back(static_cast<int32_t>(batch.tokens.size()));
      batch.sample_ids.push_back(id);
    }
  }
  return batch;
}

}  // namespace bitshard::trainer
