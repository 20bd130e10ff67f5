// GgufFile: the container format of llama.cpp (versions 2 and 3, little-endian): typed metadata,
// and tensors by name.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto file, io::GgufFile::Open("model.gguf"));
//   BITSHARD_ASSIGN_OR_RETURN(const std::string arch, file->GetString("general.architecture"));
//   const io::GgufTensor* tensor = file->FindTensor("blk.0.attn_q.weight");
//   std::vector<float> values(static_cast<size_t>(tensor->numel));
//   file->Read(*tensor, 0, std::span<float>(values));
//
// File: "GGUF", u32 version, u64 tensors, u64 keys; each key: string, u32 type, value; each tensor:
// string, u32 dimensions, u64 each (fastest first), u32 encoding, u64 offset; then, from the next
// multiple of `general.alignment`, the data. A string is a u64 length and its bytes. Every length,
// count and offset is checked against the file before it is used, and nothing is allocated by a
// number that the file only claims. Source: ggml's GGUF specification.
//
// Threads: immutable after Open; safe to share.
#ifndef BITSHARD_TRAINER_IO_GGUF_H_
#define BITSHARD_TRAINER_IO_GGUF_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/file.h"
#include "trainer/io/gguf_dequantize.h"
#include "trainer/io/int_range.h"

namespace bitshard::trainer::io {

/// The type codes of metadata values, as the file stores them.
enum class GgufValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

/// A metadata value where it stands in the file.
struct GgufValue {
  GgufValueType type = GgufValueType::kUint8;
  GgufValueType element_type = GgufValueType::kUint8;  ///< Of an array.
  int64_t count = 1;                                   ///< Elements of an array; bytes of a string.
  size_t offset = 0;  ///< Of the scalar, the string's first byte, or the array's first element.
};

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  ///< Row-major, as torch has it: the file's order turned round.
  const GgufFormat* format = nullptr;
  int64_t numel = 0;
  size_t offset = 0;  ///< Of the first byte, from the file's start.
  size_t bytes = 0;
};

class GgufFile {
 public:
  /// Errors: kData naming the file and the key or tensor: not GGUF, another version or byte order,
  /// cut short, damaged, a name twice, tensors that overlap, an encoding that can't be read.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  const std::string& path() const { return map_->path(); }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* FindTensor(const std::string& name) const;
  /// nullptr when the file has no such key.
  const GgufValue* FindKey(const std::string& key) const;

  /// Scalars by key. Errors: kData naming file, key, what was found and what was wanted.
  absl::StatusOr<int64_t> GetInt(const std::string& key, IntRange range) const;
  absl::StatusOr<int64_t> GetIntOr(const std::string& key, int64_t fallback, IntRange range) const;
  /// A finite number. A float32 is widened to the float64 with the fewest decimal digits that
  /// rounds to it (1e-05, not 9.999999747378752e-06).
  absl::StatusOr<double> GetNumber(const std::string& key) const;
  absl::StatusOr<double> GetNumberOr(const std::string& key, double fallback) const;
  absl::StatusOr<std::string> GetString(const std::string& key) const;
  absl::StatusOr<std::string> GetStringOr(const std::string& key,
                                          const std::string& fallback) const;
  /// Elements of the array `key`.
  absl::StatusOr<int64_t> GetArrayCount(const std::string& key) const;

  /// Elements [first, first + out.size()) of a tensor as float32, in the file's order; both ends on
  /// block borders.
  void Read(const GgufTensor& tensor, int64_t first, std::span<float> out) const;
  /// The pages of a tensor are not needed again soon.
  void Release(const GgufTensor& tensor) const { map_->Release(tensor.offset, tensor.bytes); }

  /// "model.gguf: key: problem".
  absl::Status Error(const std::string& key, const std::string& problem) const;

 private:
  friend class GgufParser;
  explicit GgufFile(std::unique_ptr<core::MappedFile> map) : map_(std::move(map)) {}
  absl::StatusOr<const GgufValue*> Value(const std::string& key) const;

  std::unique_ptr<core::MappedFile> map_;
  absl::flat_hash_map<std::string, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  absl::flat_hash_map<std::string, size_t> tensor_index_;
};

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_GGUF_H_
