#include "trainer/config_field_types.h"

#include <charconv>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "core/error.h"

namespace bitshard::trainer {
namespace {

// Parses all of `text`; from_chars takes neither spaces, nor a plus sign, nor the locale into
// account.
template <class T>
std::errc ReadWhole(const std::string& text, T* value) {
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, *value);
  if (error != std::errc()) return error;
  return stopped == end ? std::errc() : std::errc::invalid_argument;
}

}  // namespace

std::string TypeText(const IntRange& range) {
  if (range.max == std::numeric_limits<int64_t>::max()) {
    return absl::StrCat("integer, at least ", range.min);
  }
  return absl::StrCat("integer, ", range.min, " to ", range.max);
}

std::string TypeText(const NumberRange& range) { return "number " + core::RangeText(range); }

bool Contains(const IntRange& range, int64_t value) {
  return value >= range.min && value <= range.max;
}

std::string Got(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kList:
      return "got a list";
    case YamlNode::Kind::kMap:
      return "got a map";
    case YamlNode::Kind::kNull:
      return "got nothing";
    case YamlNode::Kind::kScalar:
      break;
  }
  return absl::StrCat("got ", node.quoted ? "the string " : "", "\"", core::Escaped(node.scalar),
                      "\"");
}

std::string ReadInt(const YamlNode& node, int64_t* value) {
  int64_t read = 0;
  if (node.kind != YamlNode::Kind::kScalar || node.quoted) return Got(node);
  if (ReadWhole(node.scalar, &read) != std::errc()) return Got(node);
  *value = read;
  return "";
}

std::string ReadNumber(const YamlNode& node, double* value) {
  double read = 0;
  if (node.kind != YamlNode::Kind::kScalar || node.quoted) return Got(node);
  if (ReadWhole(node.scalar, &read) != std::errc() || !std::isfinite(read)) return Got(node);
  *value = read;
  return "";
}

std::string ReadBytes(const YamlNode& node, int64_t* value) {
  if (node.kind != YamlNode::Kind::kScalar || node.quoted) return Got(node);
  const size_t digits = node.scalar.find_first_not_of("0123456789");
  std::string unit = digits == std::string::npos ? "" : node.scalar.substr(digits);
  unit = std::string(absl::StripAsciiWhitespace(unit));
  static constexpr struct {
    const char* name;
    int64_t bytes;
  } kUnits[] = {{"", 1},
                {"B", 1},
                {"KiB", 1 << 10},
                {"MiB", 1 << 20},
                {"GiB", 1 << 30},
                {"TiB", int64_t{1} << 40},
                {"KB", 1000},
                {"MB", 1000000},
                {"GB", 1000000000},
                {"TB", 1000000000000}};
  for (const auto& candidate : kUnits) {
    if (unit != candidate.name) continue;
    int64_t read = 0;
    const std::string number = node.scalar.substr(0, digits);
    if (ReadWhole(number, &read) != std::errc()) return Got(node);
    if (read > std::numeric_limits<int64_t>::max() / candidate.bytes) return Got(node);
    *value = read * candidate.bytes;
    return "";
  }
  return Got(node);
}

std::string ReadBool(const YamlNode& node, bool* value) {
  if (node.kind != YamlNode::Kind::kScalar || node.quoted) return Got(node);
  const std::string text = absl::AsciiStrToLower(node.scalar);
  const bool yes = text == "true" || text == "yes" || text == "on";
  if (!yes && text != "false" && text != "no" && text != "off") return Got(node);
  *value = yes;
  return "";
}

std::string ReadString(const YamlNode& node, std::string* value) {
  if (node.kind != YamlNode::Kind::kScalar) return Got(node);
  *value = node.scalar;
  return "";
}

std::string ReadStrings(const YamlNode& node, std::vector<std::string>* values) {
  std::vector<std::string> read;
  if (node.kind == YamlNode::Kind::kScalar) read.push_back(node.scalar);
  if (node.kind == YamlNode::Kind::kMap) return Got(node);
  for (const YamlNode& item : node.items) {
    if (item.kind != YamlNode::Kind::kScalar) return Got(item) + " in the list";
    read.push_back(item.scalar);
  }
  *values = std::move(read);
  return "";
}

std::string PrintNumber(double value) {
  char buffer[64];
  const double size = std::abs(value);
  const bool plain = size == 0 || (size >= 1e-5 && size < 1e15);
  const auto result =
      std::to_chars(buffer, buffer + sizeof buffer, value,
                    plain ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer, result.ptr);
  const size_t exponent = text.find('e');
  // YAML 1.1 takes 1e-08 for a string, 1.0e-08 for a number.
  if (exponent != std::string::npos && text.find('.') == std::string::npos) {
    text.insert(exponent, ".0");
  }
  return text;
}

std::string PrintBytes(int64_t value) {
  constexpr int64_t kMebi = 1 << 20;
  constexpr int64_t kKibi = 1 << 10;
  if (value >= kMebi && value % kMebi == 0) return absl::StrCat(value / kMebi, "MiB");
  if (value >= kKibi && value % kKibi == 0) return absl::StrCat(value / kKibi, "KiB");
  return absl::StrCat(value);
}

std::string PrintStrings(const std::vector<std::string>& values) {
  const auto append_quoted = [](std::string* out, const std::string& value) {
    out->append(YamlQuoted(value));
  };
  return absl::StrCat("[", absl::StrJoin(values, ", ", append_quoted), "]");
}

}  // namespace bitshard::trainer
