// Consecutive pieces of one buffer, at multiples of 64 bytes; without a buffer they are only
// counted, so that a plan and an allocation have one layout.
//
//   Pieces count(nullptr);
//   Layout(&count);
//   buffer = Allocate(count.used());
//   Pieces pieces(buffer);
//   Layout(&pieces);
#ifndef BITSHARD_TRAINER_MODEL_PIECES_H_
#define BITSHARD_TRAINER_MODEL_PIECES_H_

#include <cstddef>
#include <cstdint>

namespace bitshard::trainer {

class Pieces {
 public:
  explicit Pieces(std::byte* base) : base_(base) {}

  /// nullptr where there is no buffer.
  void* Take(int64_t bytes) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + 63) / 64 * 64;
    return at;
  }
  template <class T>
  void Take(T** at, int64_t elems) {
    *at = static_cast<T*>(Take(elems * static_cast<int64_t>(sizeof(T))));
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_PIECES_H_
