// Element types of tensors in files and in memory.
#ifndef BITSHARD_CORE_DTYPE_H_
#define BITSHARD_CORE_DTYPE_H_

#include <cstdint>
#include <string>

namespace bitshard::core {

enum class DType : uint8_t { kFloat32, kFloat16, kBFloat16, kUInt8, kInt8, kInt32, kInt64 };

/// Bytes of one element.
constexpr int64_t ByteSize(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kInt64:
      return 8;
    case DType::kUInt8:
    case DType::kInt8:
      return 1;
  }
  return 0;
}

/// "float32", "bfloat16", ...: the names that config.json and torch use.
std::string Name(DType dtype);

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_DTYPE_H_
