#include "core/flat_layout.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/check.h"
#include "core/error.h"
#include "core/hash.h"

namespace bitshard::core {
namespace {

constexpr int64_t kMaxElems = int64_t{1} << 62;

}  // namespace

absl::StatusOr<FlatLayout> FlatLayout::Create(const std::vector<TensorSpec>& tensors) {
  FlatLayout layout;
  for (const TensorSpec& spec : tensors) {
    FlatTensor tensor{.name = spec.name, .shape = spec.shape, .numel = 1};
    for (const int64_t dim : spec.shape) {
      if (dim < 1 || tensor.numel > kMaxElems / dim) {
        return ConfigError(absl::StrCat(
            "tensor ", Escaped(spec.name), ": shape [", absl::StrJoin(spec.shape, ", "),
            "]: every dimension must be at least 1 and the product at most 2^62"));
      }
      tensor.numel *= dim;
    }
    if (tensor.numel > kMaxElems - layout.padded_elems()) {
      return ConfigError(absl::StrCat("tensor ", Escaped(spec.name),
                                      ": with it the tensors have more than 2^62 elements"));
    }
    const int64_t blocks = (tensor.numel + kBlockElems - 1) / kBlockElems;
    tensor.blocks = {layout.num_blocks_, layout.num_blocks_ + blocks};
    if (!layout.index_.emplace(spec.name, layout.num_tensors()).second) {
      return ConfigError(absl::StrCat("tensor ", Escaped(spec.name), ": the name stands twice"));
    }
    layout.num_blocks_ += blocks;
    layout.numel_ += tensor.numel;
    layout.tensors_.push_back(std::move(tensor));
  }
  return layout;
}

int64_t FlatLayout::Find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? -1 : it->second;
}

int64_t FlatLayout::TensorOfBlock(int64_t block) const {
  BITSHARD_CHECK(block >= 0 && block < num_blocks_) << block;
  const auto after =
      std::upper_bound(tensors_.begin(), tensors_.end(), block,
                       [](int64_t b, const FlatTensor& t) { return b < t.blocks.begin; });
  return after - tensors_.begin() - 1;
}

uint64_t FlatLayout::Fingerprint() const {
  Hasher hasher;
  for (const FlatTensor& tensor : tensors_) {
    hasher.UpdateString(tensor.name);
    hasher.UpdateInt(static_cast<int64_t>(tensor.shape.size()));
    for (const int64_t dim : tensor.shape) hasher.UpdateInt(dim);
  }
  return hasher.Digest();
}

}  // namespace bitshard::core
