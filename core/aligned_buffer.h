// Memory for numbers that vector code walks over.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto buffer, core::AlignedBuffer::Create(bytes, "gradients"));
//   std::span<float> values = buffer.as<float>();
#ifndef BITSHARD_CORE_ALIGNED_BUFFER_H_
#define BITSHARD_CORE_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace bitshard::core {

/// Bytes that start at a multiple of 64 and are not initialised: pages that are never touched cost
/// no memory. Movable; the address stays.
class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;
  /// Errors: kMemory with `purpose` and the size. 0 bytes are fine.
  static absl::StatusOr<AlignedBuffer> Create(int64_t bytes, const std::string& purpose);

  std::span<std::byte> bytes() const { return {data_.get(), size_}; }
  /// The bytes as whole values of a trivial type.
  template <class T>
  std::span<T> as() const {
    return {reinterpret_cast<T*>(data_.get()), size_ / sizeof(T)};
  }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_ALIGNED_BUFFER_H_
