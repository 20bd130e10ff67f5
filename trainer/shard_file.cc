#include "trainer/shard_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/check.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/status_macros.h"

namespace bitshard::trainer {
namespace {

constexpr char kMagic[] = "BITSHARD";
constexpr size_t kMagicBytes = 8;
constexpr int64_t kPrefixBytes = 16;
constexpr int64_t kAlignment = 64;

std::string Shown(const std::string& path) { return core::Escaped(path, 4096); }

std::span<const std::byte> BytesOf(const void* data, size_t bytes) {
  return {static_cast<const std::byte*>(data), bytes};
}

// Magic, version, length and the padded header: everything before the payload.
std::string Preamble(const std::string& header) {
  const int64_t begin = (kPrefixBytes + static_cast<int64_t>(header.size()) + kAlignment - 1) /
                        kAlignment * kAlignment;
  std::string padded = header;
  padded.resize(static_cast<size_t>(begin - kPrefixBytes), ' ');
  const uint32_t fields[2] = {kShardVersion, static_cast<uint32_t>(padded.size())};
  std::string preamble(kMagic, kMagicBytes);
  preamble.append(reinterpret_cast<const char*>(fields), sizeof fields);
  return preamble + padded;
}

int64_t NumChunks(int64_t body_bytes) {
  return (body_bytes + kShardChunkBytes - 1) / kShardChunkBytes;
}

absl::Status Preallocate(int fd, int64_t bytes, const std::string& path) {
  const int error = posix_fallocate(fd, 0, bytes);
  // File systems without it: a full disk is then found by write.
  if (error == 0 || error == EOPNOTSUPP || error == EINVAL || error == ENOSYS)
    return absl::OkStatus();
  struct statvfs info {};
  const bool known = fstatvfs(fd, &info) == 0;
  const int64_t free_bytes =
      static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  return core::StorageError(
      absl::StrFormat("%s: needs %d bytes: %s%s", Shown(path), bytes, std::strerror(error),
                      known ? absl::StrFormat(" (%d bytes free)", free_bytes) : ""));
}

}  // namespace

int64_t ShardFileBytes(int64_t body_bytes) {
  return body_bytes + NumChunks(body_bytes) * static_cast<int64_t>(sizeof(uint64_t));
}

ShardWriter::ShardWriter(std::string path, core::ScopedFd fd, int64_t body_bytes)
    : path_(std::move(path)), fd_(std::move(fd)), body_bytes_(body_bytes) {
  chunk_.reserve(static_cast<size_t>(kShardChunkBytes));
}

absl::StatusOr<std::unique_ptr<ShardWriter>> ShardWriter::Create(const std::string& path,
                                                                 const std::string& header,
                                                                 int64_t payload_bytes) {
  core::ScopedFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (fd.get() < 0) {
    const char* hint =
        errno == ENOENT ? "; rank 0 has made the folder: output_dir must be one for all ranks" : "";
    return core::StorageError(
        absl::StrCat(Shown(path), ": can't be created: ", std::strerror(errno), hint));
  }
  const std::string preamble = Preamble(header);
  const int64_t body_bytes = static_cast<int64_t>(preamble.size()) + payload_bytes;
  BITSHARD_RETURN_IF_ERROR(Preallocate(fd.get(), ShardFileBytes(body_bytes), path));
  std::unique_ptr<ShardWriter> writer(new ShardWriter(path, std::move(fd), body_bytes));
  BITSHARD_RETURN_IF_ERROR(writer->Put(BytesOf(preamble.data(), preamble.size())));
  return writer;
}

absl::Status ShardWriter::FlushChunk() {
  if (chunk_.empty()) return absl::OkStatus();
  hashes_.push_back(core::Hash64(chunk_.data(), chunk_.size()));
  BITSHARD_RETURN_IF_ERROR(core::WriteAll(fd_.get(), chunk_.data(), chunk_.size(), path_));
  chunk_.clear();
  return absl::OkStatus();
}

absl::Status ShardWriter::Put(std::span<const std::byte> bytes) {
  put_bytes_ += static_cast<int64_t>(bytes.size());
  while (!bytes.empty()) {
    const size_t room = static_cast<size_t>(kShardChunkBytes) - chunk_.size();
    const auto part = bytes.first(std::min(room, bytes.size()));
    chunk_.insert(chunk_.end(), part.begin(), part.end());
    bytes = bytes.subspan(part.size());
    if (chunk_.size() == static_cast<size_t>(kShardChunkBytes))
      BITSHARD_RETURN_IF_ERROR(FlushChunk());
  }
  return absl::OkStatus();
}

absl::Status ShardWriter::Write(std::span<const std::byte> bytes) { return Put(bytes); }

absl::StatusOr<ShardDigest> ShardWriter::Finish() {
  BITSHARD_CHECK(put_bytes_ == body_bytes_) << path_ << ": " << put_bytes_ << " of " << body_bytes_;
  BITSHARD_RETURN_IF_ERROR(FlushChunk());
  const size_t bytes = hashes_.size() * sizeof hashes_[0];
  BITSHARD_RETURN_IF_ERROR(core::WriteAll(fd_.get(), hashes_.data(), bytes, path_));
  if (fsync(fd_.get()) != 0) {
    return core::StorageError(absl::StrCat(Shown(path_), ": fsync: ", std::strerror(errno)));
  }
  return ShardDigest{.body_bytes = body_bytes_, .checksum = core::Hash64(hashes_.data(), bytes)};
}

ShardReader::ShardReader(std::string path, core::ScopedFd fd, const ShardDigest& digest)
    : path_(std::move(path)), fd_(std::move(fd)), digest_(digest) {}

absl::StatusOr<std::unique_ptr<ShardReader>> ShardReader::Open(const std::string& path,
                                                               const ShardDigest& digest,
                                                               const std::string& header) {
  // O_NONBLOCK: opening a FIFO without a writer must not wait.
  core::ScopedFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (fd.get() < 0)
    return core::DataError(absl::StrCat(Shown(path), ": can't be opened: ", std::strerror(errno)));
  struct stat info {};
  if (fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return core::DataError(absl::StrCat(Shown(path), ": not a regular file"));
  }
  const int64_t wanted = ShardFileBytes(digest.body_bytes);
  if (info.st_size != wanted) {
    return core::DataError(
        absl::StrFormat("%s: %d bytes, want %d: cut off or not this checkpoint's", Shown(path),
                        info.st_size, wanted));
  }
  std::unique_ptr<ShardReader> reader(new ShardReader(path, std::move(fd), digest));
  BITSHARD_RETURN_IF_ERROR(reader->ReadHashes());
  BITSHARD_RETURN_IF_ERROR(reader->CheckHeader(header));
  return reader;
}

absl::Status ShardReader::ReadHashes() {
  hashes_.resize(static_cast<size_t>(NumChunks(digest_.body_bytes)));
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span<uint64_t>(hashes_));
  BITSHARD_RETURN_IF_ERROR(ReadAt(digest_.body_bytes, bytes));
  if (core::Hash64(bytes.data(), bytes.size()) == digest_.checksum) return absl::OkStatus();
  return core::DataError(absl::StrCat(
      Shown(path_), ": its hashes do not match the manifest: damaged or not this checkpoint's"));
}

absl::Status ShardReader::CheckHeader(const std::string& header) {
  const std::string wanted = Preamble(header);
  payload_begin_ = static_cast<int64_t>(wanted.size());
  if (payload_begin_ > digest_.body_bytes) {
    return core::DataError(absl::StrCat(Shown(path_), ": shorter than its header"));
  }
  std::string found(wanted.size(), '\0');
  BITSHARD_RETURN_IF_ERROR(ReadBody(0, std::as_writable_bytes(std::span<char>(found))));
  if (found == wanted) return absl::OkStatus();
  return core::DataError(
      absl::StrCat(Shown(path_), ": its header is not the one that the manifest describes"));
}

absl::Status ShardReader::ReadAt(int64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = pread(fd_.get(), out.data(), out.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return core::DataError(absl::StrFormat("%s: at byte %d: %s", Shown(path_), offset,
                                             got == 0 ? "cut off" : std::strerror(errno)));
    }
    out = out.subspan(static_cast<size_t>(got));
    offset += got;
  }
  return absl::OkStatus();
}

absl::Status ShardReader::LoadChunk(int64_t index) {
  if (index == chunk_index_) return absl::OkStatus();
  chunk_index_ = -1;
  const int64_t begin = index * kShardChunkBytes;
  chunk_.resize(static_cast<size_t>(std::min(kShardChunkBytes, digest_.body_bytes - begin)));
  BITSHARD_RETURN_IF_ERROR(ReadAt(begin, chunk_));
  if (core::Hash64(chunk_.data(), chunk_.size()) != hashes_[static_cast<size_t>(index)]) {
    return core::DataError(absl::StrFormat("%s: bytes %d to %d are damaged (checksum)",
                                           Shown(path_), begin,
                                           begin + static_cast<int64_t>(chunk_.size())));
  }
  chunk_index_ = index;
  return absl::OkStatus();
}

absl::Status ShardReader::ReadBody(int64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    BITSHARD_RETURN_IF_ERROR(LoadChunk(offset / kShardChunkBytes));
    const auto begin = static_cast<size_t>(offset % kShardChunkBytes);
    const size_t bytes = std::min(out.size(), chunk_.size() - begin);
    std::memcpy(out.data(), chunk_.data() + begin, bytes);
    out = out.subspan(bytes);
    offset += static_cast<int64_t>(bytes);
  }
  return absl::OkStatus();
}

absl::Status ShardReader::Read(int64_t offset, std::span<std::byte> out) {
  if (offset < 0 || static_cast<int64_t>(out.size()) > payload_bytes() - offset) {
    return core::DataError(absl::StrFormat("%s: %d bytes at %d of a payload of %d", Shown(path_),
                                           out.size(), offset, payload_bytes()));
  }
  return ReadBody(payload_begin_ + offset, out);
}

absl::Status ShardReader::VerifyAll() {
  posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
  chunk_index_ = -1;
  for (int64_t index = 0; index < NumChunks(digest_.body_bytes); ++index)
    BITSHARD_RETURN_IF_ERROR(LoadChunk(index));
  return absl::OkStatus();
}

}  // namespace bitshard::trainer
