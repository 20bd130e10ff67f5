// Packing: which samples stand together in one pack of sequence_len tokens. Pure.
//
//   const Packs packs = PackBestFitDecreasing(cache->SampleLengths(), 512);
//   for (const int64_t sample : packs.pack(3)) ...
//
// Threads: pure functions, plain values.
#ifndef BITSHARD_TRAINER_DATA_PACKING_H_
#define BITSHARD_TRAINER_DATA_PACKING_H_

#include <cstdint>
#include <span>
#include <vector>

namespace bitshard::trainer {

/// Every sample stands in exactly one pack.
struct Packs {
  std::vector<int64_t> samples;  ///< Sample numbers, pack after pack.
  std::vector<int64_t> starts = {
      0};  ///< [num_packs + 1]: pack p is samples [starts[p], starts[p + 1]).
  int64_t num_packs() const { return static_cast<int64_t>(starts.size()) - 1; }
  std::span<const int64_t> pack(int64_t p) const {
    const size_t begin = static_cast<size_t>(starts[static_cast<size_t>(p)]);
    const size_t end = static_cast<size_t>(starts[static_cast<size_t>(p) + 1]);
    return std::span<const int64_t>(samples).subspan(begin, end - begin);
  }
};

/// Best-fit decreasing: longest sample first (ties: the lower number), into the fullest pack that
/// still has room (ties: the older pack). lengths[s] in [1, capacity]. O(n log n).
/// Source: Johnson, "Near-optimal bin packing algorithms", MIT 1973: at most 11/9 of the fewest
/// packs possible, plus 4.
Packs PackBestFitDecreasing(std::span<const int64_t> lengths, int64_t capacity);

/// Pack p is sample p.
Packs OneSampleAPack(int64_t num_samples);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_DATA_PACKING_H_
