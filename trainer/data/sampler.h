// PackSampler: which packs stand in which micro-batch of which step. A pure function of the seed,
// the step and the micro-batch's number over all ranks: it knows neither ranks nor what was asked
// before, so the step number is all that a resumed run needs.
//
//   PackSampler sampler({.seed = 42, .num_packs = packs.num_packs(), .micro_batch_size = 1,
//                        .global_batch_size = 8});
//   const MicroBatch batch = BuildMicroBatch(*cache, packs, sampler.MicroBatchPacks(step, index));
//
// An epoch is one pass over all packs in an order of its own. Steps run on through the end of an
// epoch: a step that begins with the last packs of one ends with the first of the next, so every
// step is full and every pack is used equally often.
//
// Threads: one thread calls a PackSampler (it keeps the orders of the last two epochs).
#ifndef BITSHARD_TRAINER_DATA_SAMPLER_H_
#define BITSHARD_TRAINER_DATA_SAMPLER_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "trainer/data/micro_batch.h"
#include "trainer/data/packing.h"
#include "trainer/data/token_cache.h"

namespace bitshard::trainer {

/// A permutation of [0, num_packs): Fisher-Yates with the counter RNG. A position's choice has a
/// bias below num_packs / 2^64.
std::vector<int64_t> EpochOrder(uint64_t seed, int64_t epoch, int64_t num_packs);

struct SamplerOptions {
  uint64_t seed = 0;
  int64_t num_packs = 0;          ///< At least 1.
  int64_t micro_batch_size = 1;   ///< Packs.
  int64_t global_batch_size = 1;  ///< Packs; a multiple of micro_batch_size.
};

class PackSampler {
 public:
  explicit PackSampler(const SamplerOptions& options);

  /// The packs of micro-batch `index` (over all ranks) of step `step` (from 1).
  std::vector<int64_t> MicroBatchPacks(int64_t step, int64_t index);
  /// Passes over the data completed by the end of `step`.
  double EpochAfter(int64_t step) const;
  /// Steps that hold `epochs` passes: the last one goes on into the next pass where it must.
  int64_t StepsForEpochs(double epochs) const;

 private:
  struct Order {
    int64_t epoch = -1;
    std::vector<int64_t> packs;
  };
  int64_t PackAt(int64_t position);

  SamplerOptions options_;
  std::array<Order, 2> orders_;
};

/// The packs of micro-batch `index` when all packs are taken once in their own order, as evaluation
/// does; the last micro-batch may be smaller.
std::vector<int64_t> SequentialMicroBatchPacks(int64_t num_packs, int64_t micro_batch_size,
                                               int64_t index);

/// The samples of the packs one after another; sample_ids are the cache's sample numbers. A
/// target is the sample's next token where that one is trained, else -1; a sample's last is -1.
MicroBatch BuildMicroBatch(const TokenCache& cache, const Packs& packs,
                           std::span<const int64_t> pack_ids);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_DATA_SAMPLER_H_
