#include "trainer/data/cache_key.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/status_macros.h"
#include "trainer/io/gguf.h"

namespace bitshard::trainer {
namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = size_t{1} << 20;
constexpr int64_t kWholeFile = std::numeric_limits<int64_t>::max();
// What a Hugging Face folder's tokenizer and template are made from.
constexpr const char* kTokenizerFiles[] = {"tokenizer.json", "tokenizer_config.json",
                                           "special_tokens_map.json", "chat_template.jinja"};

// The first `limit` bytes of a file, and how many there were.
absl::Status HashFile(const std::string& path, int64_t limit, core::Hasher* hasher) {
  const auto failure = [&](const std::string& what) {
    return core::DataError(absl::StrCat(core::Escaped(path, 4096), ": ", what));
  };
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const core::ScopedFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return failure(absl::StrCat("can't be opened: ", std::strerror(errno)));
  struct stat info {};
  if (fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) return failure("not a regular file");
  std::vector<char> buffer(kReadBytes);
  int64_t done = 0;
  while (done < limit) {
    const size_t want = static_cast<size_t>(std::min<int64_t>(limit - done, kReadBytes));
    const ssize_t got = read(fd.get(), buffer.data(), want);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failure(absl::StrCat("read: ", std::strerror(errno)));
    if (got == 0) break;
    hasher->Update(buffer.data(), static_cast<size_t>(got));
    done += got;
  }
  hasher->UpdateInt(done);
  return absl::OkStatus();
}

absl::Status HashGguf(const std::string& path, core::Hasher* hasher) {
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<io::GgufFile> file, io::GgufFile::Open(path));
  int64_t metadata_end = kWholeFile;
  for (const io::GgufTensor& tensor : file->tensors()) {
    metadata_end = std::min(metadata_end, static_cast<int64_t>(tensor.offset));
  }
  hasher->UpdateString("gguf");
  return HashFile(path, metadata_end, hasher);
}

absl::Status HashTokenizer(const std::string& path, core::Hasher* hasher) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return HashGguf(path, hasher);
  for (const char* name : kTokenizerFiles) {
    const fs::path file = fs::path(path) / name;
    if (!fs::exists(file, error)) continue;
    hasher->UpdateString(name);
    BITSHARD_RETURN_IF_ERROR(HashFile(file.string(), kWholeFile, hasher));
  }
  return absl::OkStatus();
}

absl::Status HashPackage(const std::string& root, core::Hasher* hasher) {
  const fs::path folder = fs::path(root) / "trainer" / "text";
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".py") names.push_back(entry->path().filename().string());
  }
  if (error || names.empty()) {
    return core::ConfigError(absl::StrCat(core::Escaped(folder.string(), 4096),
                                          ": the Python package that prepares text is not there; "
                                          "the environment variable BITSHARD_PYTHONPATH names "
                                          "the folder that holds trainer/text"));
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    hasher->UpdateString(name);
    BITSHARD_RETURN_IF_ERROR(HashFile((folder / name).string(), kWholeFile, hasher));
  }
  return absl::OkStatus();
}

}  // namespace

const char* ExcessLengthName(ExcessLength value) {
  switch (value) {
    case ExcessLength::kDrop:
      return "drop";
    case ExcessLength::kTruncate:
      return "truncate";
    case ExcessLength::kRaise:
      return "raise";
  }
  BITSHARD_CHECK(false) << static_cast<int>(value);
  return "";
}

const char* SampleTypeName(SampleType value) {
  switch (value) {
    case SampleType::kAuto:
      return "auto";
    case SampleType::kAlpaca:
      return "alpaca";
    case SampleType::kChatTemplate:
      return "chat_template";
    case SampleType::kShareGpt:
      return "sharegpt";
    case SampleType::kCompletion:
      return "completion";
    case SampleType::kPromptCompletion:
      return "prompt_completion";
    case SampleType::kText:
      return "text";
  }
  BITSHARD_CHECK(false) << static_cast<int>(value);
  return "";
}

absl::StatusOr<std::string> TokenCacheKey(const TokenCacheSpec& spec) {
  core::Hasher hasher;
  hasher.UpdateString("bitshard token cache");
  hasher.UpdateInt(kTokenCacheVersion);
  BITSHARD_RETURN_IF_ERROR(HashPackage(spec.python.package_root, &hasher));
  BITSHARD_RETURN_IF_ERROR(HashTokenizer(spec.tokenizer, &hasher));
  hasher.UpdateInt(spec.sequence_len);
  hasher.UpdateString(ExcessLengthName(spec.excess_length));
  hasher.UpdateInt(spec.train_on_inputs ? 1 : 0);
  for (const DatasetOptions& dataset : spec.datasets) {
    hasher.UpdateString(SampleTypeName(dataset.type));
    hasher.UpdateString(fs::path(dataset.path).extension().string());
    BITSHARD_RETURN_IF_ERROR(HashFile(dataset.path, kWholeFile, &hasher));
  }
  return core::HexDigest(hasher.Digest());
}

}  // namespace bitshard::trainer
