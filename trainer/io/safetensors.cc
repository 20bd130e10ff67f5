#include "trainer/io/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/numeric.h"
#include "core/parallel.h"
#include "core/status_macros.h"
#include "trainer/io/json.h"
#include "trainer/io/widen.h"

namespace bitshard::trainer::io {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // The limit of Hugging Face's own reader.
constexpr int64_t kGrainElems = 1 << 20;          // About 1 ms of work for a thread.

struct DTypeName {
  const char* name;
  int64_t bytes;
};

constexpr std::array kDTypes = {
    DTypeName{"F32", 4},  DTypeName{"BF16", 2},    DTypeName{"F16", 2},     DTypeName{"F64", 8},
    DTypeName{"U8", 1},   DTypeName{"I8", 1},      DTypeName{"U16", 2},     DTypeName{"I16", 2},
    DTypeName{"U32", 4},  DTypeName{"I32", 4},     DTypeName{"U64", 8},     DTypeName{"I64", 8},
    DTypeName{"BOOL", 1}, DTypeName{"F8_E4M3", 1}, DTypeName{"F8_E5M2", 1},
};

const DTypeName* FindDType(const std::string& name) {
  const auto at = std::find_if(kDTypes.begin(), kDTypes.end(),
                               [&](const DTypeName& d) { return name == d.name; });
  return at == kDTypes.end() ? nullptr : &*at;
}

std::string FileName(core::DType dtype) {
  switch (dtype) {
    case core::DType::kFloat32:
      return "F32";
    case core::DType::kFloat16:
      return "F16";
    case core::DType::kBFloat16:
      return "BF16";
    case core::DType::kUInt8:
      return "U8";
    case core::DType::kInt8:
      return "I8";
    case core::DType::kInt32:
      return "I32";
    case core::DType::kInt64:
      return "I64";
  }
  return "";
}

// One entry of the header. `data_start` and `data_bytes` place the offsets in the file.
absl::StatusOr<SafetensorsTensor> ParseTensor(const std::string& name, const Json& json,
                                              const std::string& where, size_t data_start,
                                              size_t data_bytes) {
  constexpr IntRange kAny = {0, std::numeric_limits<int64_t>::max()};
  BITSHARD_ASSIGN_OR_RETURN(const JsonObject entry, JsonObject::Of(json, where));
  if (json.size() != 3) {
    return core::DataError(entry.where() + ": want exactly dtype, shape and data_offsets");
  }
  SafetensorsTensor tensor = {.name = name, .numel = 1};
  BITSHARD_ASSIGN_OR_RETURN(tensor.dtype, entry.GetString("dtype"));
  const DTypeName* dtype = FindDType(tensor.dtype);
  if (dtype == nullptr) {
    return entry.Error("dtype", absl::StrCat("\"", core::Escaped(tensor.dtype), "\" is unknown"));
  }
  BITSHARD_ASSIGN_OR_RETURN(tensor.shape, entry.GetInts("shape", kAny));
  int64_t want = dtype->bytes;
  bool wraps = false;
  for (const int64_t dimension : tensor.shape) {
    wraps = wraps || __builtin_mul_overflow(want, dimension, &want);
  }
  if (wraps) return entry.Error("shape", "has more elements than any file can hold");
  tensor.numel = want / dtype->bytes;
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<int64_t> offsets,
                            entry.GetInts("data_offsets", kAny));
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    return entry.Error("data_offsets", "want [begin, end]");
  }
  if (static_cast<uint64_t>(offsets[1]) > data_bytes) {
    return entry.Error("data_offsets",
                       absl::StrCat("end at byte ", offsets[1], ", but the file holds ", data_bytes,
                                    " bytes of data; it is cut short or damaged, get it again"));
  }
  if (offsets[1] - offsets[0] != want) {
    return entry.Error("data_offsets",
                       absl::StrCat("span ", offsets[1] - offsets[0], " bytes, want ", want,
                                    " for ", tensor.dtype, " of the shape"));
  }
  tensor.offset = data_start + static_cast<size_t>(offsets[0]);
  tensor.bytes = static_cast<size_t>(want);
  return tensor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<core::MappedFile> map, core::MappedFile::Open(path));
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(std::move(map)));
  BITSHARD_RETURN_IF_ERROR(file->Parse());
  BITSHARD_RETURN_IF_ERROR(file->CheckPlaces());
  return file;
}

absl::Status SafetensorsFile::Parse() {
  const std::span<const std::byte> bytes = map_->bytes();
  const std::string name = core::Escaped(path(), 4096);
  const uint64_t header_bytes = bytes.size() < 8 ? 0 : LoadUnaligned<uint64_t>(bytes.data());
  if (bytes.size() < 8 || header_bytes > bytes.size() - 8) {
    return core::DataError(absl::StrCat(name, ": header: want 8 bytes of length and ", header_bytes,
                                        " bytes of text, "
                                        "but the file has ",
                                        bytes.size(),
                                        " bytes; it is no safetensors file, or cut short"));
  }
  if (header_bytes > static_cast<uint64_t>(kMaxHeaderBytes)) {
    return core::DataError(
        absl::StrCat(name, ": header: ", header_bytes, " bytes, want at most ", kMaxHeaderBytes));
  }
  const std::string text(reinterpret_cast<const char*>(bytes.data() + 8),
                         static_cast<size_t>(header_bytes));
  if (text.empty() || text[0] != '{') {
    return core::DataError(name + ": header: does not start with \"{\"");
  }
  BITSHARD_ASSIGN_OR_RETURN(const Json header,
                            ParseJson(text, path() + ": header", {.max_bytes = kMaxHeaderBytes}));
  const size_t data_start = 8 + static_cast<size_t>(header_bytes);
  for (const auto& [key, value] : header.items()) {
    if (key == "__metadata__") {
      BITSHARD_ASSIGN_OR_RETURN(const JsonObject object,
                                JsonObject::Of(value, path() + ": __metadata__"));
      for (const auto& [field, unused] : value.items()) {
        BITSHARD_ASSIGN_OR_RETURN(metadata_[field], object.GetString(field));
      }
      continue;
    }
    BITSHARD_ASSIGN_OR_RETURN(
        SafetensorsTensor tensor,
        ParseTensor(key, value, absl::StrCat(path(), ": tensor ", core::Escaped(key)), data_start,
                    bytes.size() - data_start));
    tensors_.push_back(std::move(tensor));  // The header's keys come sorted.
  }
  return absl::OkStatus();
}

absl::Status SafetensorsFile::CheckPlaces() const {
  std::vector<const SafetensorsTensor*> order;
  for (const SafetensorsTensor& tensor : tensors_) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const SafetensorsTensor* a, const SafetensorsTensor* b) {
    return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
  });
  size_t end = 8 + static_cast<size_t>(LoadUnaligned<uint64_t>(map_->bytes().data()));
  for (const SafetensorsTensor* tensor : order) {
    if (tensor->offset != end) {
      return Error(tensor->name, absl::StrCat("its data begins at byte ", tensor->offset, ", want ",
                                              end, ": tensors that overlap or leave a hole"));
    }
    end += tensor->bytes;
  }
  if (end == map_->bytes().size()) return absl::OkStatus();
  return core::DataError(
      absl::StrCat(core::Escaped(path(), 4096), ": ", map_->bytes().size() - end,
                   " bytes stand behind the last tensor; the file is damaged, get it again"));
}

const SafetensorsTensor* SafetensorsFile::Find(const std::string& name) const {
  const auto at = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const SafetensorsTensor& tensor, const std::string& key) { return tensor.name < key; });
  return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

bool SafetensorsFile::IsFloat(const SafetensorsTensor& tensor) {
  return tensor.dtype == "F32" || tensor.dtype == "F16" || tensor.dtype == "BF16";
}

void SafetensorsFile::ReadFloats(const SafetensorsTensor& tensor, int64_t first,
                                 std::span<float> out) const {
  const int64_t count = static_cast<int64_t>(out.size());
  BITSHARD_CHECK(IsFloat(tensor) && first >= 0 && count <= tensor.numel - first)
      << tensor.name << " (" << tensor.dtype << "): elements " << first << " + " << count << " of "
      << tensor.numel;
  const int64_t elem_bytes = tensor.dtype == "F32" ? 4 : 2;
  const std::byte* from = Bytes(tensor).data() + first * elem_bytes;
  core::ParallelFor(count, kGrainElems, [&](int64_t begin, int64_t end) {
    const std::byte* at = from + begin * elem_bytes;
    if (tensor.dtype == "F32") {
      std::memcpy(out.data() + begin, at, static_cast<size_t>((end - begin) * elem_bytes));
    } else if (tensor.dtype == "BF16") {
      WidenBf16(at, end - begin, out.data() + begin);
    } else {
      WidenFp16(at, end - begin, out.data() + begin);
    }
  });
}

absl::Status SafetensorsFile::Error(const std::string& tensor, const std::string& problem) const {
  return core::DataError(
      absl::StrCat(core::Escaped(path(), 4096), ": tensor ", core::Escaped(tensor), ": ", problem));
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata) {
  BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<core::AtomicFile> file, core::AtomicFile::Create(path));
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter(std::move(file), entries));
  BITSHARD_RETURN_IF_ERROR(writer->WriteHeader(metadata));
  return writer;
}

absl::Status SafetensorsWriter::WriteHeader(const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t end = 0;
  for (const SafetensorsEntry& entry : entries_) {
    BITSHARD_CHECK(!header.contains(entry.name)) << "two tensors called " << entry.name;
    const int64_t begin = end;
    int64_t numel = 1;
    for (const int64_t dimension : entry.shape) numel *= dimension;
    end += numel * core::ByteSize(entry.dtype);
    header[entry.name] = {
        {"dtype", FileName(entry.dtype)}, {"shape", entry.shape}, {"data_offsets", {begin, end}}};
    ends_.push_back(end);
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // The data starts on a multiple of 8.
  const uint64_t header_bytes = text.size();
  BITSHARD_RETURN_IF_ERROR(file_->Write(&header_bytes, sizeof header_bytes));
  return file_->Write(text);
}

absl::Status SafetensorsWriter::Write(std::span<const std::byte> bytes) {
  written_ += static_cast<int64_t>(bytes.size());
  BITSHARD_CHECK(written_ <= (ends_.empty() ? 0 : ends_.back()))
      << "more data than the tensors have";
  return file_->Write(bytes.data(), bytes.size());
}

absl::Status SafetensorsWriter::WriteFloats(std::span<const float> values) {
  if (values.empty()) return absl::OkStatus();
  while (current_ < ends_.size() && ends_[current_] <= written_) ++current_;
  BITSHARD_CHECK(current_ < entries_.size()) << "more data than the tensors have";
  const SafetensorsEntry& entry = entries_[current_];
  BITSHARD_CHECK(written_ + static_cast<int64_t>(values.size()) * core::ByteSize(entry.dtype) <=
                 ends_[current_])
      << entry.name << ": " << values.size() << " values go beyond it";
  if (entry.dtype == core::DType::kFloat32) return Write(std::as_bytes(values));
  BITSHARD_CHECK(entry.dtype == core::DType::kBFloat16)
      << entry.name << " is " << core::Name(entry.dtype);
  std::vector<uint16_t> narrow(std::min<size_t>(values.size(), size_t{kGrainElems}));
  while (!values.empty()) {
    const std::span<const float> piece = values.first(std::min(values.size(), narrow.size()));
    for (size_t i = 0; i < piece.size(); ++i) narrow[i] = core::Bf16FromFloat(piece[i]);
    BITSHARD_RETURN_IF_ERROR(Write(std::as_bytes(std::span(narrow).first(piece.size()))));
    values = values.subspan(piece.size());
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Commit() {
  BITSHARD_CHECK(written_ == (ends_.empty() ? 0 : ends_.back()))
      << "tensors with missing data: " << written_;
  return file_->Commit();
}

}  // namespace bitshard::trainer::io
