#include "trainer/io/gguf.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/check.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/io/widen.h"

namespace bitshard::trainer::io {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read as it lies in the file");

constexpr int64_t kMaxNameBytes =
    65535;                             // What the format allows for keys; tensor names are shorter.
constexpr int64_t kMaxDimensions = 4;  // GGML_MAX_DIMS.
constexpr int kMaxArrayDepth = 4;      // Arrays of arrays; no known writer goes beyond 1.
constexpr int64_t kMaxAlignment = 1 << 20;     // Writers use 32.
constexpr int64_t kLeastKeyBytes = 8 + 4 + 1;  // Empty name, type, one-byte value.
constexpr int64_t kLeastTensorBytes =
    8 + 4 + 8 + 4 + 8;  // Empty name, one dimension, encoding, offset.

// Bytes of a scalar; 0 for strings, arrays and codes that do not exist.
int64_t ScalarBytes(GgufValueType type) {
  switch (type) {
    case GgufValueType::kUint8:
    case GgufValueType::kInt8:
    case GgufValueType::kBool:
      return 1;
    case GgufValueType::kUint16:
    case GgufValueType::kInt16:
      return 2;
    case GgufValueType::kUint32:
    case GgufValueType::kInt32:
    case GgufValueType::kFloat32:
      return 4;
    case GgufValueType::kUint64:
    case GgufValueType::kInt64:
    case GgufValueType::kFloat64:
      return 8;
    case GgufValueType::kString:
    case GgufValueType::kArray:
      break;
  }
  return 0;
}

const char* TypeText(GgufValueType type) {
  static constexpr const char* kNames[] = {"uint8",  "int8",    "uint16",  "int16",  "uint32",
                                           "int32",  "float32", "boolean", "string", "array",
                                           "uint64", "int64",   "float64"};
  return kNames[static_cast<size_t>(type)];
}

double ShortestDouble(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  double wide = 0;
  std::from_chars(text, end, wide);
  return wide;
}

}  // namespace

// Walks through the head of the file once.
class GgufParser {
 public:
  explicit GgufParser(GgufFile* file) : file_(*file), bytes_(file->map_->bytes()) {}

  absl::Status Parse() {
    BITSHARD_RETURN_IF_ERROR(ParseStart());
    for (int64_t i = 0; i < num_keys_; ++i) BITSHARD_RETURN_IF_ERROR(ParseKey(i));
    for (int64_t i = 0; i < num_tensors_; ++i) BITSHARD_RETURN_IF_ERROR(ParseTensor(i));
    return PlaceTensors();
  }

 private:
  absl::Status ParseStart();
  absl::Status ParseKey(int64_t index);
  absl::Status ParseArray(const std::string& where, GgufValue* value, int depth);
  absl::Status SkipElements(const std::string& where, GgufValueType type, int64_t count, int depth);
  absl::Status ParseTensor(int64_t index);
  absl::Status ParseShape(GgufTensor* tensor);
  absl::Status PlaceTensors();
  absl::StatusOr<int64_t> Alignment() const;

  int64_t left() const { return static_cast<int64_t>(bytes_.size() - at_); }

  absl::Status CutShort(const std::string& where) const {
    return file_.Error(where, absl::StrCat("the file ends inside it (", bytes_.size(),
                                           " bytes); it is cut short or damaged, get it again"));
  }

  template <class T>
  absl::StatusOr<T> Take(const std::string& where) {
    if (left() < static_cast<int64_t>(sizeof(T))) return CutShort(where);
    const T value = LoadUnaligned<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return value;
  }

  // A count or length that is followed by at least `least_bytes` for each of it.
  absl::StatusOr<int64_t> TakeCount(const std::string& where, int64_t least_bytes) {
    BITSHARD_ASSIGN_OR_RETURN(const uint64_t count, Take<uint64_t>(where));
    if (count > static_cast<uint64_t>(left() / least_bytes)) {
      return file_.Error(
          where,
          absl::StrCat("claims ", count, " entries or bytes, but only ", left(),
                       " bytes of the file are left; it is cut short or damaged, get it again"));
    }
    return static_cast<int64_t>(count);
  }

  absl::StatusOr<std::string> TakeName(const std::string& where) {
    BITSHARD_ASSIGN_OR_RETURN(const int64_t length, TakeCount(where, 1));
    if (length > kMaxNameBytes) {
      return file_.Error(
          where, absl::StrCat("has a name of ", length, " bytes, want at most ", kMaxNameBytes));
    }
    std::string name(reinterpret_cast<const char*>(bytes_.data() + at_),
                     static_cast<size_t>(length));
    at_ += static_cast<size_t>(length);
    return name;
  }

  absl::StatusOr<GgufValueType> TakeType(const std::string& where) {
    BITSHARD_ASSIGN_OR_RETURN(const uint32_t type, Take<uint32_t>(where));
    if (type > static_cast<uint32_t>(GgufValueType::kFloat64)) {
      return file_.Error(where, absl::StrCat("has the unknown type ", type,
                                             ", want 0 to 12; the file is damaged"));
    }
    return static_cast<GgufValueType>(type);
  }

  GgufFile& file_;
  const std::span<const std::byte> bytes_;
  size_t at_ = 0;
  int64_t num_keys_ = 0;
  int64_t num_tensors_ = 0;
};

absl::Status GgufParser::ParseStart() {
  const std::string where = "header";
  BITSHARD_ASSIGN_OR_RETURN(const uint32_t magic, Take<uint32_t>(where));
  if (magic != 0x46554747u) return file_.Error(where, "does not start with \"GGUF\": no GGUF file");
  BITSHARD_ASSIGN_OR_RETURN(const uint32_t version, Take<uint32_t>(where));
  if (version != 2 && version != 3) {
    const bool swapped = __builtin_bswap32(version) <= 3 && version != 0;
    return file_.Error(where,
                       swapped ? "is a big-endian GGUF file; convert it to little-endian"
                               : absl::StrCat("is GGUF version ", version,
                                              ", want 2 or 3; convert it with a newer llama.cpp"));
  }
  BITSHARD_ASSIGN_OR_RETURN(num_tensors_, TakeCount("header: tensor count", kLeastTensorBytes));
  BITSHARD_ASSIGN_OR_RETURN(num_keys_, TakeCount("header: key count", kLeastKeyBytes));
  return absl::OkStatus();
}

absl::Status GgufParser::ParseKey(int64_t index) {
  BITSHARD_ASSIGN_OR_RETURN(const std::string key, TakeName(absl::StrCat("key ", index)));
  GgufValue value;
  BITSHARD_ASSIGN_OR_RETURN(value.type, TakeType(key));
  if (value.type == GgufValueType::kArray) {
    BITSHARD_RETURN_IF_ERROR(ParseArray(key, &value, 0));
  } else if (value.type == GgufValueType::kString) {
    BITSHARD_ASSIGN_OR_RETURN(value.count, TakeCount(key, 1));
    value.offset = at_;
    at_ += static_cast<size_t>(value.count);
  } else {
    value.offset = at_;
    BITSHARD_RETURN_IF_ERROR(SkipElements(key, value.type, 1, 0));
  }
  if (!file_.values_.emplace(key, value).second) {
    return file_.Error(key, "stands twice in the metadata");
  }
  return absl::OkStatus();
}

absl::Status GgufParser::ParseArray(const std::string& where, GgufValue* value, int depth) {
  if (depth == kMaxArrayDepth) {
    return file_.Error(where,
                       absl::StrCat("arrays inside arrays more than ", kMaxArrayDepth, " deep"));
  }
  BITSHARD_ASSIGN_OR_RETURN(value->element_type, TakeType(where));
  // The least that an element takes: an empty string is its length, an empty array its type and
  // length.
  const int64_t least = value->element_type == GgufValueType::kString ? 8
                        : value->element_type == GgufValueType::kArray
                            ? 12
                            : ScalarBytes(value->element_type);
  BITSHARD_ASSIGN_OR_RETURN(value->count, TakeCount(where, least));
  value->offset = at_;
  return SkipElements(where, value->element_type, value->count, depth);
}

absl::Status GgufParser::SkipElements(const std::string& where, GgufValueType type, int64_t count,
                                      int depth) {
  if (type == GgufValueType::kString) {
    for (int64_t i = 0; i < count; ++i) {
      BITSHARD_ASSIGN_OR_RETURN(const int64_t length, TakeCount(where, 1));
      at_ += static_cast<size_t>(length);
    }
    return absl::OkStatus();
  }
  if (type == GgufValueType::kArray) {
    GgufValue inner;
    for (int64_t i = 0; i < count; ++i) {
      BITSHARD_RETURN_IF_ERROR(ParseArray(where, &inner, depth + 1));
    }
    return absl::OkStatus();
  }
  if (count > left() / ScalarBytes(type)) return CutShort(where);
  const size_t end = at_ + static_cast<size_t>(count * ScalarBytes(type));
  for (; type == GgufValueType::kBool && at_ < end; ++at_) {
    if (std::to_integer<int>(bytes_[at_]) > 1) {
      return file_.Error(where, "holds a boolean that is neither 0 nor 1");
    }
  }
  at_ = end;
  return absl::OkStatus();
}

absl::Status GgufParser::ParseTensor(int64_t index) {
  GgufTensor tensor;
  BITSHARD_ASSIGN_OR_RETURN(tensor.name, TakeName(absl::StrCat("tensor ", index)));
  BITSHARD_RETURN_IF_ERROR(ParseShape(&tensor));
  BITSHARD_ASSIGN_OR_RETURN(const uint32_t type, Take<uint32_t>(tensor.name));
  tensor.format = FindGgufFormat(type);
  if (tensor.format == nullptr) {
    return file_.Error(tensor.name, absl::StrCat("is stored as ", GgufTypeName(type),
                                                 ", which can't be read; want ", GgufFormatNames(),
                                                 " (llama-quantize converts)"));
  }
  const GgufFormat& format = *tensor.format;
  if (tensor.shape.back() % format.block_elems != 0) {
    return file_.Error(
        tensor.name, absl::StrCat("rows of ", tensor.shape.back(), " elements, want a multiple of ",
                                  format.block_elems, " for ", format.name));
  }
  const int64_t blocks = tensor.numel / format.block_elems;
  // No tensor is larger than the file: this bound keeps the arithmetic from wrapping.
  if (blocks > static_cast<int64_t>(bytes_.size()) / format.block_bytes) {
    return CutShort(tensor.name);
  }
  tensor.bytes = static_cast<size_t>(blocks * format.block_bytes);
  BITSHARD_ASSIGN_OR_RETURN(const uint64_t offset, Take<uint64_t>(tensor.name));
  if (offset > bytes_.size()) return CutShort(tensor.name);
  tensor.offset = static_cast<size_t>(offset);
  if (!file_.tensor_index_.emplace(tensor.name, file_.tensors_.size()).second) {
    return file_.Error(tensor.name, "two tensors have this name");
  }
  file_.tensors_.push_back(std::move(tensor));
  return absl::OkStatus();
}

absl::Status GgufParser::ParseShape(GgufTensor* tensor) {
  BITSHARD_ASSIGN_OR_RETURN(const uint32_t dimensions, Take<uint32_t>(tensor->name));
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return file_.Error(tensor->name,
                       absl::StrCat("has ", dimensions, " dimensions, want 1 to ", kMaxDimensions));
  }
  tensor->numel = 1;
  for (uint32_t d = 0; d < dimensions; ++d) {
    BITSHARD_ASSIGN_OR_RETURN(const uint64_t size, Take<uint64_t>(tensor->name));
    if (size < 1 || size > uint64_t{std::numeric_limits<int64_t>::max()} ||
        __builtin_mul_overflow(tensor->numel, static_cast<int64_t>(size), &tensor->numel)) {
      return file_.Error(tensor->name,
                         absl::StrCat("dimension ", d, " is ", size, "; the file is damaged"));
    }
    tensor->shape.insert(tensor->shape.begin(), static_cast<int64_t>(size));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> GgufParser::Alignment() const {
  const std::string key = "general.alignment";
  BITSHARD_ASSIGN_OR_RETURN(const int64_t alignment, file_.GetIntOr(key, 32, {8, kMaxAlignment}));
  if (!std::has_single_bit(static_cast<uint64_t>(alignment))) {
    return file_.Error(key, absl::StrCat("is ", alignment, ", want a power of two"));
  }
  return alignment;
}

absl::Status GgufParser::PlaceTensors() {
  BITSHARD_ASSIGN_OR_RETURN(const int64_t alignment, Alignment());
  const size_t mask = static_cast<size_t>(alignment) - 1;
  const size_t data = (at_ + mask) & ~mask;
  std::vector<const GgufTensor*> order;
  for (GgufTensor& tensor : file_.tensors_) {
    if ((tensor.offset & mask) != 0) {
      return file_.Error(tensor.name,
                         absl::StrCat("offset ", tensor.offset, " is no multiple of ", alignment));
    }
    tensor.offset += data;
    if (tensor.offset > bytes_.size() || tensor.bytes > bytes_.size() - tensor.offset) {
      return CutShort(tensor.name);
    }
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
      return file_.Error(order[i]->name,
                         absl::StrCat("overlaps tensor ", core::Escaped(order[i - 1]->name)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  BITSHARD_ASSIGN_OR_RETURN(std::unique_ptr<core::MappedFile> map, core::MappedFile::Open(path));
  std::unique_ptr<GgufFile> file(new GgufFile(std::move(map)));
  BITSHARD_RETURN_IF_ERROR(GgufParser(file.get()).Parse());
  return file;
}

const GgufTensor* GgufFile::FindTensor(const std::string& name) const {
  const auto at = tensor_index_.find(name);
  return at == tensor_index_.end() ? nullptr : &tensors_[at->second];
}

const GgufValue* GgufFile::FindKey(const std::string& key) const {
  const auto at = values_.find(key);
  return at == values_.end() ? nullptr : &at->second;
}

absl::Status GgufFile::Error(const std::string& key, const std::string& problem) const {
  return core::DataError(
      absl::StrCat(core::Escaped(path(), 4096), ": ", core::Escaped(key), ": ", problem));
}

absl::StatusOr<const GgufValue*> GgufFile::Value(const std::string& key) const {
  const GgufValue* value = FindKey(key);
  if (value == nullptr) return Error(key, "missing in the metadata");
  return value;
}

absl::StatusOr<int64_t> GgufFile::GetInt(const std::string& key, IntRange range) const {
  BITSHARD_ASSIGN_OR_RETURN(const GgufValue* value, Value(key));
  const std::byte* at = map_->bytes().data() + value->offset;
  int64_t number = 0;
  switch (value->type) {
    case GgufValueType::kUint8:
      number = LoadUnaligned<uint8_t>(at);
      break;
    case GgufValueType::kInt8:
      number = LoadUnaligned<int8_t>(at);
      break;
    case GgufValueType::kUint16:
      number = LoadUnaligned<uint16_t>(at);
      break;
    case GgufValueType::kInt16:
      number = LoadUnaligned<int16_t>(at);
      break;
    case GgufValueType::kUint32:
      number = LoadUnaligned<uint32_t>(at);
      break;
    case GgufValueType::kInt32:
      number = LoadUnaligned<int32_t>(at);
      break;
    case GgufValueType::kInt64:
      number = LoadUnaligned<int64_t>(at);
      break;
    case GgufValueType::kUint64: {
      const uint64_t wide = LoadUnaligned<uint64_t>(at);
      if (wide > uint64_t{std::numeric_limits<int64_t>::max()}) {
        return Error(key, absl::StrCat("is ", wide, ", too large"));
      }
      number = static_cast<int64_t>(wide);
      break;
    }
    default:
      return Error(key, absl::StrCat("is of type ", TypeText(value->type), ", want an integer"));
  }
  if (number < range.least || number > range.most) {
    return Error(key, absl::StrCat("is ", number, ", want ", range.least, " to ", range.most));
  }
  return number;
}

absl::StatusOr<int64_t> GgufFile::GetIntOr(const std::string& key, int64_t fallback,
                                           IntRange range) const {
  if (FindKey(key) == nullptr) return fallback;
  return GetInt(key, range);
}

absl::StatusOr<double> GgufFile::GetNumber(const std::string& key) const {
  BITSHARD_ASSIGN_OR_RETURN(const GgufValue* value, Value(key));
  const std::byte* at = map_->bytes().data() + value->offset;
  double number = 0;
  if (value->type == GgufValueType::kFloat32) {
    number = ShortestDouble(LoadUnaligned<float>(at));
  } else if (value->type == GgufValueType::kFloat64) {
    number = LoadUnaligned<double>(at);
  } else {
    BITSHARD_ASSIGN_OR_RETURN(const int64_t integer, GetInt(key, {}));
    number = static_cast<double>(integer);
  }
  if (!std::isfinite(number)) return Error(key, "is not a finite number");
  return number;
}

absl::StatusOr<double> GgufFile::GetNumberOr(const std::string& key, double fallback) const {
  if (FindKey(key) == nullptr) return fallback;
  return GetNumber(key);
}

absl::StatusOr<std::string> GgufFile::GetString(const std::string& key) const {
  BITSHARD_ASSIGN_OR_RETURN(const GgufValue* value, Value(key));
  if (value->type != GgufValueType::kString) {
    return Error(key, absl::StrCat("is of type ", TypeText(value->type), ", want a string"));
  }
  return std::string(reinterpret_cast<const char*>(map_->bytes().data() + value->offset),
                     static_cast<size_t>(value->count));
}

absl::StatusOr<std::string> GgufFile::GetStringOr(const std::string& key,
                                                  const std::string& fallback) const {
  if (FindKey(key) == nullptr) return fallback;
  return GetString(key);
}

absl::StatusOr<int64_t> GgufFile::GetArrayCount(const std::string& key) const {
  BITSHARD_ASSIGN_OR_RETURN(const GgufValue* value, Value(key));
  if (value->type != GgufValueType::kArray) {
    return Error(key, absl::StrCat("is of type ", TypeText(value->type), ", want an array"));
  }
  return value->count;
}

void GgufFile::Read(const GgufTensor& tensor, int64_t first, std::span<float> out) const {
  const GgufFormat& format = *tensor.format;
  const int64_t count = static_cast<int64_t>(out.size());
  BITSHARD_CHECK(first >= 0 && count <= tensor.numel - first && first % format.block_elems == 0 &&
                 count % format.block_elems == 0)
      << tensor.name << ": elements " << first << " + " << count << " of " << tensor.numel;
  const int64_t begin = first / format.block_elems * format.block_bytes;
  const int64_t bytes = count / format.block_elems * format.block_bytes;
  DequantizeGguf(
      format,
      map_->bytes().subspan(tensor.offset + static_cast<size_t>(begin), static_cast<size_t>(bytes)),
      out);
}

}  // namespace bitshard::trainer::io
