// Which rank owns which blocks. Pure arithmetic on block numbers: no data, no communication.
//
// The arena is cut into buckets (runs of blocks whose limits do not depend on the world size); each
// bucket is cut into world_size runs, one a rank, whose sizes differ by at most one block. A run
// may be empty.
#ifndef BITSHARD_COMM_SHARD_MAP_H_
#define BITSHARD_COMM_SHARD_MAP_H_

#include <cstdint>
#include <vector>

#include "core/flat_layout.h"

namespace bitshard::comm {

class ShardMap {
 public:
  ShardMap() = default;
  /// Buckets end at the first tensor end at which they hold at least `bucket_bytes` of float32
  /// gradient; a larger tensor is a bucket of its own. The last bucket (the one that backward
  /// completes last, so the one whose communication nothing hides) is kept small: see the .cc.
  ShardMap(const core::FlatLayout& layout, int world_size, int64_t bucket_bytes);

  int world_size() const { return world_size_; }
  int64_t num_buckets() const { return static_cast<int64_t>(buckets_.size()); }
  core::BlockRange bucket(int64_t index) const { return buckets_[static_cast<size_t>(index)]; }
  int64_t BucketOfTensor(int64_t tensor) const {
    return bucket_of_tensor_[static_cast<size_t>(tensor)];
  }

  /// Rank's run inside a bucket.
  core::BlockRange Run(int64_t bucket, int rank) const;
  /// All runs of a rank, one a bucket, in order; empty ones included.
  std::vector<core::BlockRange> RunsOf(int rank) const;
  /// Blocks that a rank owns.
  int64_t NumBlocksOf(int rank) const;

 private:
  int world_size_ = 1;
  std::vector<core::BlockRange> buckets_;
  std::vector<int64_t> bucket_of_tensor_;
};

}  // namespace bitshard::comm

#endif  // BITSHARD_COMM_SHARD_MAP_H_
