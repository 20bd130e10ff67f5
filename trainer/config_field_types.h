// The kinds of value that a configuration key can have: how each is read, printed and checked. Used
// by trainer/config_fields.cc only, which lists the keys.
//
// `at` is a generic accessor, [](auto& config) -> auto& { return config.lora.r; }, so one name
// serves reading and writing.
#ifndef BITSHARD_TRAINER_CONFIG_FIELD_TYPES_H_
#define BITSHARD_TRAINER_CONFIG_FIELD_TYPES_H_

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/number_range.h"
#include "trainer/config_binder.h"

namespace bitshard::trainer {

struct IntRange {
  int64_t min = 0;
  int64_t max = std::numeric_limits<int64_t>::max();
};

using core::NumberRange;

std::string TypeText(const IntRange& range);
std::string TypeText(const NumberRange& range);
bool Contains(const IntRange& range, int64_t value);

/// Each reads a whole scalar and returns what was wrong ("got \"12abc\""), or "".
std::string ReadInt(const YamlNode& node, int64_t* value);
std::string ReadNumber(const YamlNode& node, double* value);
/// 64MiB, 64 MiB, 1000000, 2GB: KiB, MiB, GiB are powers of 1024 and KB, MB, GB of 1000.
std::string ReadBytes(const YamlNode& node, int64_t* value);
std::string ReadBool(const YamlNode& node, bool* value);
std::string ReadString(const YamlNode& node, std::string* value);
/// A list of scalars; a scalar alone is a list of one.
std::string ReadStrings(const YamlNode& node, std::vector<std::string>* values);

/// The shortest text that reads back as the same double, in a form that YAML 1.1 and 1.2 take for a
/// number.
std::string PrintNumber(double value);
/// 64MiB where it is a whole number of MiB or KiB, else plain.
std::string PrintBytes(int64_t value);
std::string PrintStrings(const std::vector<std::string>& values);
/// "got \"x\"", escaped; for a list or map what it is.
std::string Got(const YamlNode& node);

inline std::string WithWanted(const std::string& fault, const std::string& type) {
  return fault.empty() ? fault : absl::StrCat(fault, ", want ", type);
}

template <class At>
ConfigField IntField(std::string key, std::vector<std::string> aliases, At at, IntRange range) {
  const std::string type = TypeText(range);
  return {.key = std::move(key),
          .aliases = std::move(aliases),
          .type = type,
          .parse = [=](const YamlNode& node,
                       Config* config) { return WithWanted(ReadInt(node, &at(*config)), type); },
          .print = [=](const Config& config) { return absl::StrCat(at(config)); },
          .check =
              [=](const Config& config) {
                return Contains(range, at(config))
                           ? ""
                           : absl::StrCat("got ", at(config), ", want ", type);
              }};
}

template <class At>
ConfigField NumberField(std::string key, std::vector<std::string> aliases, At at,
                        NumberRange range) {
  const std::string type = TypeText(range);
  return {.key = std::move(key),
          .aliases = std::move(aliases),
          .type = type,
          .parse = [=](const YamlNode& node,
                       Config* config) { return WithWanted(ReadNumber(node, &at(*config)), type); },
          .print = [=](const Config& config) { return PrintNumber(at(config)); },
          .check =
              [=](const Config& config) {
                return Contains(range, at(config))
                           ? ""
                           : absl::StrCat("got ", PrintNumber(at(config)), ", want ", type);
              }};
}

template <class At>
ConfigField BytesField(std::string key, std::vector<std::string> aliases, At at, IntRange range) {
  const std::string type =
      range.max == IntRange().max
          ? absl::StrCat("bytes, at least ", PrintBytes(range.min))
          : absl::StrCat("bytes, ", PrintBytes(range.min), " to ", PrintBytes(range.max));
  return {.key = std::move(key),
          .aliases = std::move(aliases),
          .type = type,
          .parse =
              [=](const YamlNode& node, Config* config) {
                return WithWanted(ReadBytes(node, &at(*config)), type + ", as in 64MiB");
              },
          .print = [=](const Config& config) { return PrintBytes(at(config)); },
          .check =
              [=](const Config& config) {
                return Contains(range, at(config))
                           ? ""
                           : absl::StrCat("got ", PrintBytes(at(config)), ", want ", type);
              }};
}

template <class At>
ConfigField BoolField(std::string key, std::vector<std::string> aliases, At at) {
  return {.key = std::move(key),
          .aliases = std::move(aliases),
          .type = "true or false",
          .parse =
              [=](const YamlNode& node, Config* config) {
                return WithWanted(ReadBool(node, &at(*config)), "true or false");
              },
          .print = [=](const Config& config) { return at(config) ? "true" : "false"; },
          .check = [](const Config&) { return ""; }};
}

template <class At>
ConfigField StringField(std::string key, std::vector<std::string> aliases, At at,
                        std::string type) {
  return {.key = std::move(key),
          .aliases = std::move(aliases),
          .type = type,
          .parse = [=](const YamlNode& node,
                       Config* config) { return WithWanted(ReadString(node, &at(*config)), type); },
          .print = [=](const Config& config) { return YamlQuoted(at(config)); },
          .check = [](const Config&) { return ""; }};
}

template <class At>
ConfigField StringsField(std::string key, At at) {
  return {.key = std::move(key),
          .type = "list of strings",
          .parse =
              [=](const YamlNode& node, Config* config) {
                return WithWanted(ReadStrings(node, &at(*config)), "a list of strings");
              },
          .print = [=](const Config& config) { return PrintStrings(at(config)); },
          .check = [](const Config&) { return ""; }};
}

/// The names of an enum's values. Of several names of one value the first is printed.
template <class E>
using EnumNames = std::vector<std::pair<std::string, E>>;

template <class E>
std::string EnumType(const EnumNames<E>& names) {
  return absl::StrJoin(names, " | ",
                       [](std::string* out, const auto& name) { out->append(name.first); });
}

template <class E>
std::string ReadEnum(const YamlNode& node, const EnumNames<E>& names, E* value) {
  if (node.kind != YamlNode::Kind::kScalar) return Got(node);
  for (const auto& [name, meaning] : names) {
    if (name != node.scalar) continue;
    *value = meaning;
    return "";
  }
  return Got(node);
}

template <class E>
std::string PrintEnum(const EnumNames<E>& names, E value) {
  for (const auto& [name, meaning] : names) {
    if (meaning == value) return name;
  }
  return "";
}

template <class At, class E>
ConfigField EnumField(std::string key, std::vector<std::string> aliases, At at,
                      EnumNames<E> names) {
  const std::string type = EnumType(names);
  return {.key = std::move(key),
          .aliases = std::move(aliases),
          .type = type,
          .parse =
              [=](const YamlNode& node, Config* config) {
                return WithWanted(ReadEnum(node, names, &at(*config)), type);
              },
          .print = [=](const Config& config) { return PrintEnum(names, at(config)); },
          .check = [](const Config&) { return ""; }};
}

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_CONFIG_FIELD_TYPES_H_
