#include "optim/block_norm.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace bitshard::optim {

double BlockSquaresNorm(const core::FlatLayout& layout, const comm::ShardMap& shards,
                        std::span<const std::vector<double>> parts) {
  std::vector<double> blocks(static_cast<size_t>(layout.num_blocks()));
  std::vector<size_t> taken(parts.size(), 0);
  for (int64_t bucket = 0; bucket < shards.num_buckets(); ++bucket) {
    for (size_t rank = 0; rank < parts.size(); ++rank) {
      const core::BlockRange run = shards.Run(bucket, static_cast<int>(rank));
      const double* from = parts[rank].data() + taken[rank];
      std::copy(from, from + run.size(), blocks.begin() + run.begin);
      taken[rank] += static_cast<size_t>(run.size());
    }
  }
  double total = 0;
  for (const core::FlatTensor& tensor : layout.tensors()) {
    double sum = 0;
    for (int64_t b = tensor.blocks.begin; b < tensor.blocks.end; ++b)
      sum += blocks[static_cast<size_t>(b)];
    total += sum;
  }
  return std::sqrt(total);
}

}  // namespace bitshard::optim
