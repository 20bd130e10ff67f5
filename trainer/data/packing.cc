#include "trainer/data/packing.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "core/check.h"

namespace bitshard::trainer {

Packs PackBestFitDecreasing(std::span<const int64_t> lengths, int64_t capacity) {
  std::vector<int64_t> order(lengths.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const int64_t length_a = lengths[static_cast<size_t>(a)];
    const int64_t length_b = lengths[static_cast<size_t>(b)];
    return length_a != length_b ? length_a > length_b : a < b;
  });
  std::vector<std::vector<int64_t>> contents;
  std::set<std::pair<int64_t, size_t>> room;  // (tokens left, pack) of packs that are not full
  for (const int64_t sample : order) {
    const int64_t length = lengths[static_cast<size_t>(sample)];
    BITSHARD_CHECK(length >= 1 && length <= capacity) << "sample " << sample << ": " << length;
    const auto best = room.lower_bound({length, 0});
    int64_t left = capacity;
    size_t pack = contents.size();
    if (best != room.end()) {
      left = best->first;
      pack = best->second;
      room.erase(best);
    } else {
      contents.emplace_back();
    }
    contents[pack].push_back(sample);
    if (left > length) room.insert({left - length, pack});
  }
  Packs packs;
  packs.samples.reserve(lengths.size());
  for (const std::vector<int64_t>& samples : contents) {
    packs.samples.insert(packs.samples.end(), samples.begin(), samples.end());
    packs.starts.push_back(static_cast<int64_t>(packs.samples.size()));
  }
  return packs;
}

Packs OneSampleAPack(int64_t num_samples) {
  Packs packs;
  packs.samples.resize(static_cast<size_t>(num_samples));
  std::iota(packs.samples.begin(), packs.samples.end(), int64_t{0});
  packs.starts.resize(static_cast<size_t>(num_samples) + 1);
  std::iota(packs.starts.begin(), packs.starts.end(), int64_t{0});
  return packs;
}

}  // namespace bitshard::trainer
