// The flat arena: every trainable tensor, padded with zeros to whole blocks of 256 elements, one
// after another.
//
// A block belongs to exactly one tensor and its content never depends on the world size: quantised
// state moves between world sizes by slicing runs of blocks, never by requantising. Buckets and
// shards are runs of blocks.
#ifndef BITSHARD_CORE_FLAT_LAYOUT_H_
#define BITSHARD_CORE_FLAT_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace bitshard::core {

/// Elements of a block: the unit of quantisation, sharding and checkpoints.
inline constexpr int64_t kBlockElems = 256;

/// A run of blocks, [begin, end).
struct BlockRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const BlockRange&, const BlockRange&) = default;
};

/// A tensor as its owner names it. Shape: any rank, row-major, every dimension > 0.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};

/// A tensor's place in the arena: elements [offset(), offset() + numel), then zeros up to the
/// block's end.
struct FlatTensor {
  std::string name;
  std::vector<int64_t> shape;
  int64_t numel = 0;
  BlockRange blocks;
  int64_t offset() const { return blocks.begin * kBlockElems; }
};

/// Immutable; safe to share between threads.
class FlatLayout {
 public:
  FlatLayout() = default;

  /// Places the tensors in the order given. For a trainer that order is the one in which backward
  /// finishes their gradients, so that a bucket is a contiguous run that becomes complete at one
  /// moment. Errors: kInvalidArgument for a name that stands twice, a dimension < 1 or more than
  /// 2^62 elements.
  static absl::StatusOr<FlatLayout> Create(const std::vector<TensorSpec>& tensors);

  int64_t num_tensors() const { return static_cast<int64_t>(tensors_.size()); }
  const FlatTensor& tensor(int64_t index) const { return tensors_[static_cast<size_t>(index)]; }
  const std::vector<FlatTensor>& tensors() const { return tensors_; }
  int64_t num_blocks() const { return num_blocks_; }
  /// Elements of the arena, padding included.
  int64_t padded_elems() const { return num_blocks_ * kBlockElems; }
  /// Elements of the tensors, padding left out.
  int64_t numel() const { return numel_; }

  /// The tensor's index, or -1.
  int64_t Find(const std::string& name) const;
  /// The index of the tensor that owns `block`.
  int64_t TensorOfBlock(int64_t block) const;
  /// Hash over names, shapes and order: equal exactly when two layouts are equal.
  uint64_t Fingerprint() const;

 private:
  std::vector<FlatTensor> tensors_;
  absl::flat_hash_map<std::string, int64_t> index_;
  int64_t num_blocks_ = 0;
  int64_t numel_ = 0;
};

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_FLAT_LAYOUT_H_
