// A checkpoint's shard: one file that one rank writes, in blocks of the flat arena.
//
// Layout (little-endian; docs/checkpoints.md):
//   0   8 bytes   "BITSHARD"
//   8   uint32    format version, 1
//   12  uint32    bytes of the header text
//   16  text      header: JSON, padded with spaces so that the payload begins at a multiple of 64
//   ..  payload   what the header lists
//   ..  uint64    XXH3-64 of each MiB of all the bytes above: one for each, the last for the rest
// The checksum of those hashes stands in the manifest, so no byte of a shard is believed that the
// manifest does not vouch for.
//
//   BITSHARD_ASSIGN_OR_RETURN(auto writer, ShardWriter::Create(path, header, payload_bytes));
//   BITSHARD_RETURN_IF_ERROR(writer->Write(bytes));
//   BITSHARD_ASSIGN_OR_RETURN(const ShardDigest digest, writer->Finish());
//   BITSHARD_ASSIGN_OR_RETURN(auto reader, ShardReader::Open(path, digest, header));
//   BITSHARD_RETURN_IF_ERROR(reader->Read(0, bytes));
#ifndef BITSHARD_TRAINER_SHARD_FILE_H_
#define BITSHARD_TRAINER_SHARD_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/file.h"

namespace bitshard::trainer {

inline constexpr int64_t kShardChunkBytes = int64_t{1} << 20;
inline constexpr uint32_t kShardVersion = 1;

/// What identifies a shard's content.
struct ShardDigest {
  int64_t body_bytes = 0;  ///< Everything but the hashes at the end.
  uint64_t checksum = 0;   ///< XXH3-64 of those hashes.
  friend bool operator==(const ShardDigest&, const ShardDigest&) = default;
};

/// Bytes of the whole file.
int64_t ShardFileBytes(int64_t body_bytes);

/// Threads: one thread calls it. Errors: kStorage with path and bytes.
class ShardWriter {
 public:
  /// Makes the file and preallocates it, so that a full disk is found here. An existing file is an
  /// error.
  static absl::StatusOr<std::unique_ptr<ShardWriter>> Create(const std::string& path,
                                                             const std::string& header,
                                                             int64_t payload_bytes);
  /// Appends to the payload.
  absl::Status Write(std::span<const std::byte> bytes);
  /// Writes the hashes and calls fsync. Exactly payload_bytes must have been written.
  absl::StatusOr<ShardDigest> Finish();

 private:
  ShardWriter(std::string path, core::ScopedFd fd, int64_t body_bytes);
  absl::Status Put(std::span<const std::byte> bytes);
  absl::Status FlushChunk();

  std::string path_;
  core::ScopedFd fd_;
  int64_t body_bytes_;
  int64_t put_bytes_ = 0;
  std::vector<std::byte> chunk_;
  std::vector<uint64_t> hashes_;
};

/// Threads: one thread calls it. Errors: kData with path and place; every byte that Read returns
/// has been checked.
class ShardReader {
 public:
  /// The file must be the one that `digest` and `header` describe. Links and what is no regular
  /// file are refused.
  static absl::StatusOr<std::unique_ptr<ShardReader>> Open(const std::string& path,
                                                           const ShardDigest& digest,
                                                           const std::string& header);
  /// Bytes [offset, offset + out.size()) of the payload.
  absl::Status Read(int64_t offset, std::span<std::byte> out);
  /// Reads and checks the whole file, from the disk and not from the page cache where the system
  /// allows it.
  absl::Status VerifyAll();
  int64_t payload_bytes() const { return digest_.body_bytes - payload_begin_; }

 private:
  ShardReader(std::string path, core::ScopedFd fd, const ShardDigest& digest);
  absl::Status ReadHashes();
  absl::Status CheckHeader(const std::string& header);
  absl::Status LoadChunk(int64_t index);
  absl::Status ReadAt(int64_t offset, std::span<std::byte> out);
  absl::Status ReadBody(int64_t offset, std::span<std::byte> out);

  std::string path_;
  core::ScopedFd fd_;
  ShardDigest digest_;
  int64_t payload_begin_ = 0;
  std::vector<uint64_t> hashes_;
  std::vector<std::byte> chunk_;
  int64_t chunk_index_ = -1;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_SHARD_FILE_H_
