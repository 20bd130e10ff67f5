// A YAML document as a tree that remembers where each node stood. The part of YAML that
// configuration needs: one document, maps, lists and scalars, a few levels deep. Anchors, aliases,
// tags, merge keys and keys that stand twice are refused, so a small file can't become a large tree
// and no value is silently dropped.
//
//   BITSHARD_ASSIGN_OR_RETURN(const YamlNode root, ParseYaml(text, "run.yaml"));
#ifndef BITSHARD_TRAINER_YAML_TREE_H_
#define BITSHARD_TRAINER_YAML_TREE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace bitshard::trainer {

struct YamlMember;

/// Lines and columns count from 1.
struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string scalar;
  bool quoted =
      false;  ///< The scalar stood in quotes or as a block: a string, whatever it looks like.
  int line = 1;
  int column = 1;
  std::vector<YamlNode> items;      ///< kList.
  std::vector<YamlMember> members;  ///< kMap, in the file's order.
};

struct YamlMember {
  std::string key;
  int line = 1;
  int column = 1;
  YamlNode value;
};

inline constexpr int64_t kMaxYamlBytes = int64_t{1} << 20;
inline constexpr int kMaxYamlDepth = 8;

/// Errors: kConfig with `name`:line:column.
absl::StatusOr<YamlNode> ParseYaml(const std::string& text, const std::string& name);

/// `text` as a double-quoted YAML scalar; other YAML readers understand it too.
std::string YamlQuoted(const std::string& text);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_YAML_TREE_H_
