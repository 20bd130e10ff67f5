#include "optim/block_norm.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace bitshard::optim {
namespace {

// The parts of all ranks, by block.
template <class T>
std::vector<T> ByBlock(const core::FlatLayout& layout, const comm::ShardMap& shards,
                       std::span<const std::vector<T>> parts) {
  std::vector<T> blocks(static_cast<size_t>(layout.num_blocks()));
  std::vector<size_t> taken(parts.size(), 0);
  for (int64_t bucket = 0; bucket < shards.num_buckets(); ++bucket) {
    for (size_t rank = 0; rank < parts.size(); ++rank) {
      const core::BlockRange run = shards.Run(bucket, static_cast<int>(rank));
      const T* from = parts[rank].data() + taken[rank];
      std::copy(from, from + run.size(), blocks.begin() + run.begin);
      taken[rank] += static_cast<size_t>(run.size());
    }
  }
  return blocks;
}

}  // namespace

double BlockSquaresNorm(const core::FlatLayout& layout, const comm::ShardMap& shards,
                        std::span<const std::vector<double>> parts) {
  const std::vector<double> blocks = ByBlock(layout, shards, parts);
  double total = 0;
  for (const core::FlatTensor& tensor : layout.tensors()) {
    double sum = 0;
    for (int64_t b = tensor.blocks.begin; b < tensor.blocks.end; ++b)
      sum += blocks[static_cast<size_t>(b)];
    total += sum;
  }
  return std::sqrt(total);
}

std::vector<double> UpdateScales(const core::FlatLayout& layout, const comm::ShardMap& shards,
                                 std::span<const std::vector<BlockNorms>> parts, double max_unorm) {
  const std::vector<BlockNorms> blocks = ByBlock(layout, shards, parts);
  std::vector<double> scales;
  for (const core::FlatTensor& tensor : layout.tensors()) {
    BlockNorms sum;
    for (int64_t b = tensor.blocks.begin; b < tensor.blocks.end; ++b) {
      sum.parameter += blocks[static_cast<size_t>(b)].parameter;
      sum.update += blocks[static_cast<size_t>(b)].update;
    }
    scales.push_back(UpdateScale(max_unorm, sum));
  }
  return scales;
}

}  // namespace bitshard::optim
