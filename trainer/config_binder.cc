#include "trainer/config_binder.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/config_field_types.h"

namespace bitshard::trainer {
namespace {

// "paging" for "paging.tier".
std::set<std::string> Sections() {
  std::set<std::string> sections;
  for (const ConfigField& field : ConfigFields()) {
    const size_t dot = field.key.find('.');
    if (dot != std::string::npos) sections.insert(field.key.substr(0, dot));
  }
  return sections;
}

bool Names(const ConfigField& field, const std::string& key) {
  return field.key == key ||
         std::find(field.aliases.begin(), field.aliases.end(), key) != field.aliases.end();
}

const ConfigField* FindField(const std::string& key) {
  for (const ConfigField& field : ConfigFields()) {
    if (Names(field, key)) return &field;
  }
  return nullptr;
}

std::vector<std::string> KnownKeys() {
  std::vector<std::string> keys;
  for (const ConfigField& field : ConfigFields()) {
    keys.push_back(field.key);
    keys.insert(keys.end(), field.aliases.begin(), field.aliases.end());
  }
  for (const std::string& section : Sections()) keys.push_back(section);
  return keys;
}

}  // namespace

std::string ConfigBinder::WhereIs(const std::string& key) const {
  const auto it = given_.find(key);
  return it == given_.end() ? "" : it->second.where;
}

void ConfigBinder::Bind(const YamlNode& root, const std::string& name, bool is_override) {
  if (root.kind == YamlNode::Kind::kNull) return;
  if (root.kind != YamlNode::Kind::kMap) {
    return AddFault(name, "not a map of keys and values (key: value)");
  }
  for (const YamlMember& member : root.members) BindMember("", member, name, is_override);
}

void ConfigBinder::BindMember(const std::string& prefix, const YamlMember& member,
                              const std::string& name, bool is_override) {
  const std::string key = prefix + member.key;
  const std::string where = is_override ? name
                                        : absl::StrFormat("%s:%d:%d", core::Escaped(name, 4096),
                                                          member.line, member.column);
  if (const ConfigField* field = FindField(key)) {
    return BindField(*field, member, key, where, is_override);
  }
  if (prefix.empty() && Sections().count(key) > 0) {
    if (member.value.kind == YamlNode::Kind::kNull) return;
    if (member.value.kind != YamlNode::Kind::kMap) {
      return AddFault(where, key + ": want a map of its keys below it");
    }
    for (const YamlMember& inner : member.value.members) {
      BindMember(key + ".", inner, name, is_override);
    }
    return;
  }
  if (BindTranslated(member, key, where, is_override)) return;
  UnknownKey(key, where);
}

void ConfigBinder::BindField(const ConfigField& field, const YamlMember& member,
                             const std::string& written_as, const std::string& where,
                             bool is_override) {
  if (member.value.kind == YamlNode::Kind::kNull) {
    // `key:` without a value, as templates leave it, keeps the default.
    if (is_override) AddFault(where, written_as + ": want a value; '' is the empty string");
    return;
  }
  const auto before = given_.find(field.key);
  if (before != given_.end() && !is_override) {
    return AddFault(where,
                    absl::StrCat(written_as, ": says the same as ", before->second.written_as, " (",
                                 before->second.where, "); keep one of them"));
  }
  given_[field.key] = {where, written_as};
  const std::string fault = field.parse(member.value, &config_);
  if (!fault.empty()) AddFault(where, absl::StrCat(written_as, ": ", fault));
}

bool ConfigBinder::BindTranslated(const YamlMember& member, const std::string& key,
                                  const std::string& where, bool is_override) {
  std::vector<std::string> values;
  const std::string given = absl::AsciiStrToLower(member.value.scalar);
  for (const TranslatedKey& translated : TranslatedKeys()) {
    if (translated.key != key) continue;
    values.push_back(translated.given);
    if (member.value.kind == YamlNode::Kind::kNull) return true;
    if (member.value.kind != YamlNode::Kind::kScalar || translated.given != given) continue;
    if (translated.value.empty()) return true;
    YamlMember target{.key = translated.target, .line = member.line, .column = member.column};
    target.value = {.kind = YamlNode::Kind::kScalar, .scalar = translated.value};
    BindField(*FindField(translated.target), target, key, where, is_override);
    return true;
  }
  if (values.empty()) return false;
  const std::string text = absl::StrCat(key, ": ", Got(member.value));
  for (const RefusedKey& refused : RefusedKeys()) {
    if (refused.key == key) {
      AddFault(where, absl::StrCat(text, ": ", refused.advice));
      return true;
    }
  }
  AddFault(where, absl::StrCat(text, ", want ", absl::StrJoin(values, " | ")));
  return true;
}

void ConfigBinder::UnknownKey(const std::string& key, const std::string& where) {
  for (const RefusedKey& refused : RefusedKeys()) {
    if (refused.key == key) return AddFault(where, absl::StrCat(key, ": ", refused.advice));
  }
  const std::string nearest = core::Nearest(key, KnownKeys());
  AddFault(where, absl::StrCat(core::Escaped(key), ": unknown key",
                               nearest.empty() ? "; docs/config.md lists the keys"
                                               : "; did you mean " + nearest + "?"));
}

absl::StatusOr<YamlNode> ParseOverride(const std::string& text) {
  const std::string name = "--set " + text;
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    return core::ConfigError(core::Escaped(name, 4096) + ": want key=value, as in --set lora_r=8");
  }
  BITSHARD_ASSIGN_OR_RETURN(YamlNode node, ParseYaml(text.substr(equals + 1), name));
  const std::vector<std::string> parts = absl::StrSplit(text.substr(0, equals), '.');
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    YamlNode outer{.kind = YamlNode::Kind::kMap};
    outer.members.push_back({.key = *part, .value = std::move(node)});
    node = std::move(outer);
  }
  return node;
}

}  // namespace bitshard::trainer
