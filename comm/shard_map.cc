#include "comm/shard_map.h"

#include <algorithm>

#include "core/check.h"

namespace bitshard::comm {
namespace {

constexpr int64_t kBlockBytes = core::kBlockElems * static_cast<int64_t>(sizeof(float));

// The last bucket's communication starts when backward ends, so nothing hides it: it holds at most
// this share of bucket_bytes, where tensors are small enough for that.
constexpr int64_t kLastBucketDivisor = 8;

// Index of the first tensor of each bucket.
std::vector<int64_t> BucketStarts(const core::FlatLayout& layout, int64_t bucket_bytes) {
  std::vector<int64_t> starts;
  int64_t filled_bytes = bucket_bytes;  // "full", so that the first tensor opens a bucket
  for (int64_t i = 0; i < layout.num_tensors(); ++i) {
    const int64_t bytes = layout.tensor(i).blocks.size() * kBlockBytes;
    if (filled_bytes >= bucket_bytes || bytes >= bucket_bytes) {
      starts.push_back(i);
      filled_bytes = 0;
    }
    filled_bytes += bytes;
  }
  return starts;
}

// Splits the last bucket if it is larger than it should be and has more than one tensor.
void KeepLastSmall(const core::FlatLayout& layout, int64_t bucket_bytes,
                   std::vector<int64_t>* starts) {
  if (starts->empty()) return;
  int64_t first = layout.num_tensors() - 1;
  int64_t bytes = layout.tensor(first).blocks.size() * kBlockBytes;
  while (first > starts->back()) {
    const int64_t more = layout.tensor(first - 1).blocks.size() * kBlockBytes;
    if (bytes + more > bucket_bytes / kLastBucketDivisor) break;
    bytes += more;
    --first;
  }
  if (first > starts->back()) starts->push_back(first);
}

}  // namespace

ShardMap::ShardMap(const core::FlatLayout& layout, int world_size, int64_t bucket_bytes)
    : world_size_(world_size) {
  BITSHARD_CHECK(world_size >= 1 && bucket_bytes >= 1)
      << world_size << " ranks, " << bucket_bytes << " bytes";
  std::vector<int64_t> starts = BucketStarts(layout, bucket_bytes);
  KeepLastSmall(layout, bucket_bytes, &starts);
  bucket_of_tensor_.resize(static_cast<size_t>(layout.num_tensors()));
  for (size_t b = 0; b < starts.size(); ++b) {
    const int64_t end = b + 1 < starts.size() ? starts[b + 1] : layout.num_tensors();
    std::fill(bucket_of_tensor_.begin() + starts[b], bucket_of_tensor_.begin() + end,
              static_cast<int64_t>(b));
    buckets_.push_back({layout.tensor(starts[b]).blocks.begin, layout.tensor(end - 1).blocks.end});
  }
}

core::BlockRange ShardMap::Run(int64_t bucket, int rank) const {
  BITSHARD_CHECK(bucket >= 0 && bucket < num_buckets() && rank >= 0 && rank < world_size_)
      << "bucket " << bucket << ", rank " << rank;
  const core::BlockRange all = buckets_[static_cast<size_t>(bucket)];
  // The first size % world_size ranks have one block more.
  const int64_t each = all.size() / world_size_;
  const int64_t longer = all.size() % world_size_;
  const int64_t begin = all.begin + each * rank + std::min<int64_t>(rank, longer);
  return {begin, begin + each + (rank < longer ? 1 : 0)};
}

std::vector<core::BlockRange> ShardMap::RunsOf(int rank) const {
  std::vector<core::BlockRange> runs;
  runs.reserve(buckets_.size());
  for (int64_t bucket = 0; bucket < num_buckets(); ++bucket) runs.push_back(Run(bucket, rank));
  return runs;
}

int64_t ShardMap::NumBlocksOf(int rank) const {
  int64_t blocks = 0;
  for (int64_t bucket = 0; bucket < num_buckets(); ++bucket) blocks += Run(bucket, rank).size();
  return blocks;
}

}  // namespace bitshard::comm
