// safetensors: Hugging Face's container of named tensors. A u64 length, a JSON header of that
// length, the data.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto file, io::SafetensorsFile::Open("model.safetensors"));
//   for (const io::SafetensorsTensor& tensor : file->tensors()) { ... file->ReadFloats(tensor, 0,
//   out); }
//
//   BITSHARD_ASSIGN_OR_RETURN(auto writer, io::SafetensorsWriter::Create(path, entries, {{"format",
//   "pt"}})); for (...) BITSHARD_RETURN_IF_ERROR(writer->WriteFloats(values));   // in the order of
//   `entries` BITSHARD_RETURN_IF_ERROR(writer->Commit());
//
// Header: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//          "__metadata__": {"key": "text"}}, padded with spaces; offsets count from the end of the
//          header.
// Source: github.com/huggingface/safetensors, README "Format".
#ifndef BITSHARD_TRAINER_IO_SAFETENSORS_H_
#define BITSHARD_TRAINER_IO_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/dtype.h"
#include "core/file.h"

namespace bitshard::trainer::io {

struct SafetensorsTensor {
  std::string name;
  std::string dtype;           ///< As the file has it: "F32", "BF16", "U8", ...
  std::vector<int64_t> shape;  ///< Row-major; empty for a scalar; dimensions may be 0.
  int64_t numel = 0;
  size_t offset = 0;  ///< Of the first byte, from the file's start.
  size_t bytes = 0;
};

/// Threads: immutable after Open; safe to share.
class SafetensorsFile {
 public:
  /// Checks the whole header: length (at most 100 MB) and JSON, known dtypes, shapes that match
  /// their bytes, data without holes and overlaps up to the end of the file, no name twice. Errors:
  /// kData naming the file and the tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const std::string& path() const { return map_->path(); }
  /// Sorted by name.
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }
  const SafetensorsTensor* Find(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// A tensor's bytes as they lie in the file, little-endian; no alignment is promised.
  std::span<const std::byte> Bytes(const SafetensorsTensor& tensor) const {
    return map_->bytes().subspan(tensor.offset, tensor.bytes);
  }
  /// True for F32, F16 and BF16.
  static bool IsFloat(const SafetensorsTensor& tensor);
  /// Elements [first, first + out.size()) of a tensor with IsFloat, widened exactly to float32.
  void ReadFloats(const SafetensorsTensor& tensor, int64_t first, std::span<float> out) const;
  /// The pages of a tensor are not needed again soon.
  void Release(const SafetensorsTensor& tensor) const {
    map_->Release(tensor.offset, tensor.bytes);
  }
  /// "model.safetensors: tensor x: problem".
  absl::Status Error(const std::string& tensor, const std::string& problem) const;

 private:
  explicit SafetensorsFile(std::unique_ptr<core::MappedFile> map) : map_(std::move(map)) {}
  absl::Status Parse();
  absl::Status CheckPlaces() const;

  std::unique_ptr<core::MappedFile> map_;
  std::vector<SafetensorsTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

struct SafetensorsEntry {
  std::string name;
  core::DType dtype = core::DType::kFloat32;
  std::vector<int64_t> shape;
};

/// Writes tensor by tensor, so that a file of any size needs memory for one piece only. The file
/// appears under its name at Commit; without it nothing is left. Thread-compatible.
class SafetensorsWriter {
 public:
  /// The data lies in the order of `entries`. Errors: kStorage. Two entries of one name, or one
  /// called
  /// "__metadata__", are a bug of the caller.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, const std::vector<SafetensorsEntry>& entries,
      const std::map<std::string, std::string>& metadata);

  /// The next bytes of the data: a tensor, or a piece of one.
  absl::Status Write(std::span<const std::byte> bytes);
  /// The next elements of a kFloat32 or kBFloat16 tensor (rounded to nearest even); a call does not
  /// go on into the next tensor.
  absl::Status WriteFloats(std::span<const float> values);
  /// Every byte of every tensor must have been written.
  absl::Status Commit();

 private:
  SafetensorsWriter(std::unique_ptr<core::AtomicFile> file, std::vector<SafetensorsEntry> entries)
      : file_(std::move(file)), entries_(std::move(entries)) {}
  absl::Status WriteHeader(const std::map<std::string, std::string>& metadata);

  std::unique_ptr<core::AtomicFile> file_;
  std::vector<SafetensorsEntry> entries_;
  std::vector<int64_t> ends_;  // Of each entry's data, in bytes from the end of the header.
  size_t current_ = 0;         // The entry that WriteFloats is in.
  int64_t written_ = 0;        // Bytes of data.
};

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_SAFETENSORS_H_
