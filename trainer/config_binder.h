// The keys of the configuration: one ConfigField each. Reading, printing, range checks, the hash,
// differences and the tests of docs/config.md all walk the same list, so a key can't be known to
// one and unknown to another.
//
//   for (const ConfigField& field : ConfigFields()) std::cout << field.key << ": " <<
//   field.print(config);
#ifndef BITSHARD_TRAINER_CONFIG_BINDER_H_
#define BITSHARD_TRAINER_CONFIG_BINDER_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "trainer/config.h"
#include "trainer/yaml_tree.h"

namespace bitshard::trainer {

/// What a key decides.
enum class KeyRole {
  kResult,     ///< The adapter that comes out: part of ConfigHash.
  kPlacement,  ///< Where, how fast and with which reports it is made.
};

struct ConfigField {
  std::string key;                   ///< "lora_r"; inside a section with a dot: "paging.tier".
  std::vector<std::string> aliases;  ///< Other names of the same key and the same values.
  KeyRole role = KeyRole::kResult;
  std::string type;  ///< "integer, 1 to 4096": for messages and docs/config.md.
  /// Sets the value from the node; returns what was wrong, or "". A null node never gets here.
  std::function<std::string(const YamlNode&, Config*)> parse;
  /// The value as YAML that parse reads back.
  std::function<std::string(const Config&)> print;
  /// What is wrong with the value by itself ("got 0, want an integer, 1 to 4096"), or "".
  std::function<std::string(const Config&)> check;
  /// What stands for the value in ConfigHash, where that is not print's text. Empty: nothing, so
  /// that a new key can leave the hashes of configurations that do without it as they were.
  std::function<std::string(const Config&)> hashed = nullptr;
};

/// All keys, in the order of docs/config.md.
const std::vector<ConfigField>& ConfigFields();

/// A key of another trainer whose values mean something here: {"bf16", "true"} is compute_type:
/// bf16. An empty `value` means that it asks for nothing.
struct TranslatedKey {
  std::string key;
  std::string given;  ///< The value as written, lower case.
  std::string target;
  std::string value;
};
const std::vector<TranslatedKey>& TranslatedKeys();

/// A key of another trainer that can't be met, and what to write instead.
struct RefusedKey {
  std::string key;
  std::string advice;
};
const std::vector<RefusedKey>& RefusedKeys();

/// A fault, and where it was written ("run.yaml:3:1"; empty when it comes from a default).
struct ConfigFault {
  std::string where;
  std::string text;  ///< "lora_r: got 0, want ..."
};

/// Binds trees to a Config, one after another: the file first, then each override.
class ConfigBinder {
 public:
  /// `name` stands in messages: the file, or the override as written. In a file no key may stand
  /// twice, also not by an alias; an override replaces what was there.
  void Bind(const YamlNode& root, const std::string& name, bool is_override);

  const std::vector<ConfigFault>& faults() const { return faults_; }
  void AddFault(const std::string& where, const std::string& text) {
    faults_.push_back({where, text});
  }
  /// Where `key` was written, or "".
  std::string WhereIs(const std::string& key) const;
  bool IsGiven(const std::string& key) const { return given_.count(key) > 0; }
  Config& config() { return config_; }

 private:
  struct Given {
    std::string where;
    std::string written_as;
  };

  void BindMember(const std::string& prefix, const YamlMember& member, const std::string& name,
                  bool is_override);
  void BindField(const ConfigField& field, const YamlMember& member, const std::string& written_as,
                 const std::string& where, bool is_override);
  bool BindTranslated(const YamlMember& member, const std::string& key, const std::string& where,
                      bool is_override);
  void UnknownKey(const std::string& key, const std::string& where);

  Config config_;
  std::map<std::string, Given> given_;
  std::vector<ConfigFault> faults_;
};

/// "paging.tier=file" as the tree {paging: {tier: file}}. Errors: kConfig.
absl::StatusOr<YamlNode> ParseOverride(const std::string& text);

/// All faults that stand in the values themselves, by key.
struct KeyFault {
  std::string key;
  std::string text;
};
std::vector<KeyFault> FindKeyFaults(const Config& config);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_CONFIG_BINDER_H_
