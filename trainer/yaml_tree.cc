#include "trainer/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/error.h"

namespace bitshard::trainer {
namespace {

// Far more than a configuration has; keeps the search for a key that stands twice short.
constexpr size_t kMaxKeys = 1000;

struct Position {
  int line = 1;
  int column = 1;
};

Position PositionOf(const YAML::Mark& mark) { return {mark.line + 1, mark.column + 1}; }

Position PositionOf(const std::string& text, size_t byte) {
  Position position;
  for (size_t i = 0; i < byte; ++i) {
    position.column = text[i] == '\n' ? 1 : position.column + 1;
    position.line += text[i] == '\n' ? 1 : 0;
  }
  return position;
}

absl::Status FaultAt(const std::string& name, Position at, const std::string& what) {
  return core::ConfigError(
      absl::StrFormat("%s:%d:%d: %s", core::Escaped(name, 4096), at.line, at.column, what));
}

// Builds the tree from the parser's events. The first fault is kept and the rest of the document
// skipped over, so nothing has to be thrown through the parser.
class TreeBuilder : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    Fail(mark, "aliases (*name) are not read; write the value out");
  }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Leaf(mark, anchor, {.kind = YamlNode::Kind::kNull});
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (tag != "?" && tag != "!" && !tag.empty()) return Fail(mark, "tags (!name) are not read");
    Leaf(mark, anchor, {.kind = YamlNode::Kind::kScalar, .scalar = value, .quoted = tag == "!"});
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { Close(); }

  const std::string& fault() const { return fault_; }
  Position fault_at() const { return fault_at_; }
  YamlNode TakeRoot() { return std::move(root_); }

 private:
  // A container that is being filled; for a map also the key whose value comes next.
  struct Level {
    YamlNode node;
    YamlMember member;
    bool has_key = false;
  };

  void Fail(const YAML::Mark& mark, const std::string& what) {
    if (!fault_.empty()) return;
    fault_ = what;
    fault_at_ = PositionOf(mark);
  }

  void Open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    if (tag != "?" && !tag.empty()) Fail(mark, "tags (!name) are not read");
    if (anchor != 0) Fail(mark, "anchors (&name) are not read; write the value out");
    if (levels_.size() >= static_cast<size_t>(kMaxYamlDepth)) {
      Fail(mark, absl::StrCat("nested deeper than ", kMaxYamlDepth, " levels"));
    }
    if (!levels_.empty() && levels_.back().node.kind == YamlNode::Kind::kMap &&
        !levels_.back().has_key) {
      Fail(mark, "a key must be a word, not a list or a map");
    }
    if (!fault_.empty()) return;
    const Position at = PositionOf(mark);
    levels_.push_back({.node = {.kind = kind, .line = at.line, .column = at.column}});
  }

  void Close() {
    if (!fault_.empty()) return;
    YamlNode node = std::move(levels_.back().node);
    levels_.pop_back();
    Add(std::move(node));
  }

  void Leaf(const YAML::Mark& mark, YAML::anchor_t anchor, YamlNode node) {
    if (anchor != 0) Fail(mark, "anchors (&name) are not read; write the value out");
    if (!fault_.empty()) return;
    const Position at = PositionOf(mark);
    node.line = at.line;
    node.column = at.column;
    Level* level = levels_.empty() ? nullptr : &levels_.back();
    if (level == nullptr || level->node.kind != YamlNode::Kind::kMap || level->has_key) {
      return Add(std::move(node));
    }
    if (node.kind == YamlNode::Kind::kNull || node.scalar.empty()) {
      return Fail(mark, "a key is missing before ':'");
    }
    if (level->node.members.size() >= kMaxKeys) {
      return Fail(mark, absl::StrCat("more than ", kMaxKeys, " keys in one map"));
    }
    for (const YamlMember& member : level->node.members) {
      if (member.key != node.scalar) continue;
      return Fail(mark, absl::StrCat(core::Escaped(node.scalar),
                                     ": the key stands twice, first in line ", member.line));
    }
    level->member = {.key = std::move(node.scalar), .line = at.line, .column = at.column};
    level->has_key = true;
  }

  void Add(YamlNode node) {
    if (levels_.empty()) {
      root_ = std::move(node);
      return;
    }
    Level& level = levels_.back();
    if (level.node.kind == YamlNode::Kind::kList) {
      level.node.items.push_back(std::move(node));
      return;
    }
    level.member.value = std::move(node);
    level.node.members.push_back(std::move(level.member));
    level.has_key = false;
  }

  std::vector<Level> levels_;
  YamlNode root_;
  std::string fault_;
  Position fault_at_;
};

// What the parser would misread or choke on is refused before it sees the text.
absl::Status CheckText(const std::string& text, const std::string& name) {
  if (text.size() > static_cast<size_t>(kMaxYamlBytes)) {
    return core::ConfigError(absl::StrFormat(
        "%s: %d bytes, want at most %d", core::Escaped(name, 4096), text.size(), kMaxYamlBytes));
  }
  if (text.rfind("\xEF\xBB\xBF", 0) == 0) {
    return FaultAt(name, {}, "starts with a byte order mark; save it as UTF-8 without one");
  }
  const size_t bad = core::FirstInvalidUtf8(text);
  if (bad != std::string::npos) {
    return FaultAt(name, PositionOf(text, bad), "not UTF-8; save it as UTF-8");
  }
  const auto control = std::find_if(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return (byte < 0x20 && c != '\t' && c != '\n' && c != '\r') || byte == 0x7F;
  });
  if (control != text.end()) {
    return FaultAt(name, PositionOf(text, static_cast<size_t>(control - text.begin())),
                   "a control character; write it as an escape in double quotes");
  }
  return absl::OkStatus();
}

// Whether the line of `at`, or the one before it, where the parser may have lost the thread, is
// indented with a tab.
bool TabIndented(const std::string& text, Position at) {
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; number <= at.line && std::getline(lines, line); ++number) {
    const size_t tab = line.find('\t');
    if (number >= at.line - 1 && tab != std::string::npos && tab == line.find_first_not_of(' '))
      return true;
  }
  return false;
}

// The parser's words, and what most often leads to them.
std::string Explained(const YAML::Exception& error, const std::string& text) {
  namespace msg = YAML::ErrorMsg;
  static const struct {
    const char* message;
    const char* advice;
  } kAdvice[] = {
      {msg::MAP_VALUE,
       "no 'key: value'; look here and in the line before for a missing ':', for none "
       "of the spaces after it, and for an indent that differs"},
      {msg::END_OF_MAP, "a map ends here; look for an indent that differs"},
      {msg::END_OF_SEQ, "a list ends here; look for an indent that differs"},
      {msg::END_OF_MAP_FLOW, "a '{' without its '}'"},
      {msg::END_OF_SEQ_FLOW, "a '[' without its ']'"},
      {msg::UNKNOWN_ANCHOR, "aliases (*name) are not read; write the value out"},
  };
  if (TabIndented(text, PositionOf(error.mark))) return "indented with a tab; YAML wants spaces";
  for (const auto& [message, advice] : kAdvice) {
    if (error.msg == message) return advice;
  }
  return core::Escaped(error.msg);
}

// yaml-cpp reports by exceptions: this is the one border where they become a Status.
absl::Status RunParser(const std::string& text, const std::string& name, TreeBuilder* builder) {
  std::istringstream stream(text);
  try {
    YAML::Parser parser(stream);
    parser.HandleNextDocument(*builder);
    TreeBuilder second;
    if (builder->fault().empty() && parser.HandleNextDocument(second)) {
      return core::ConfigError(
          absl::StrCat(core::Escaped(name, 4096), ": holds more than one document (---)"));
    }
  } catch (const YAML::Exception& error) {
    return FaultAt(name, PositionOf(error.mark), Explained(error, text));
  } catch (const std::exception& error) {
    return core::ConfigError(
        absl::StrCat(core::Escaped(name, 4096), ": not YAML: ", core::Escaped(error.what())));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<YamlNode> ParseYaml(const std::string& text, const std::string& name) {
  const absl::Status text_status = CheckText(text, name);
  if (!text_status.ok()) return text_status;
  TreeBuilder builder;
  // What is no YAML comes first: it may be the reason for the other fault.
  const absl::Status status = RunParser(text, name, &builder);
  if (!status.ok()) return status;
  if (!builder.fault().empty()) return FaultAt(name, builder.fault_at(), builder.fault());
  return builder.TakeRoot();
}

std::string YamlQuoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      absl::StrAppendFormat(&out, "\\x%02x", byte);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace bitshard::trainer
