// JSON from files that nobody vouches for: bounded in size and depth, no duplicate keys, no
// exceptions, and errors that name file, line, column and key.
//
//   BITSHARD_ASSIGN_OR_RETURN(const io::Json json, io::ReadJsonFile(path));
//   BITSHARD_ASSIGN_OR_RETURN(const io::JsonObject config, io::JsonObject::Of(json, path));
//   BITSHARD_ASSIGN_OR_RETURN(const int64_t layers, config.GetInt("num_hidden_layers", {1, 4096}));
//
// Threads: everything here is a pure function of its arguments, or const.
#ifndef BITSHARD_TRAINER_IO_JSON_H_
#define BITSHARD_TRAINER_IO_JSON_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/io/int_range.h"

namespace bitshard::trainer::io {

using Json = nlohmann::json;

struct JsonLimits {
  int64_t max_bytes = int64_t{64} << 20;
  int max_depth = 64;  ///< Arrays and objects that may stand inside each other.
};

/// Parses one JSON document. The result holds at most about 25 bytes for each byte of `text`.
/// `where` (a path) stands at the start of every message.
/// Errors: kData with `where:line:column` - bad syntax, ill-formed UTF-8, a number out of range, a
/// key that stands twice in one object, too deep, too long, text after the document.
absl::StatusOr<Json> ParseJson(const std::string& text, const std::string& where,
                               const JsonLimits& limits = {});

/// The JSON document in the file `path`. Errors: those of ParseJson, and kData when it can't be
/// read.
absl::StatusOr<Json> ReadJsonFile(const std::string& path, const JsonLimits& limits = {});

/// Indented by two spaces, keys as they stand (nlohmann::ordered_json keeps their order), ends with
/// a newline. Ill-formed UTF-8 is replaced by U+FFFD.
std::string JsonText(const nlohmann::ordered_json& json);

/// Typed reading of one object's fields. Holds a reference: the Json must outlive it.
/// A field that is null counts as absent. Errors: kData naming the file, the path of keys, what was
/// found and what was wanted.
class JsonObject {
 public:
  /// `where`: the file, and below the top level the path of keys too ("config.json: rope_scaling").
  static absl::StatusOr<JsonObject> Of(const Json& value, const std::string& where);

  const Json& json() const { return *json_; }
  const std::string& where() const { return where_; }
  bool Has(const std::string& key) const;

  absl::StatusOr<int64_t> GetInt(const std::string& key, IntRange range = {}) const;
  absl::StatusOr<int64_t> GetIntOr(const std::string& key, int64_t fallback,
                                   IntRange range = {}) const;
  /// A finite number; integers are numbers too.
  absl::StatusOr<double> GetNumber(const std::string& key) const;
  absl::StatusOr<double> GetNumberOr(const std::string& key, double fallback) const;
  absl::StatusOr<bool> GetBoolOr(const std::string& key, bool fallback) const;
  absl::StatusOr<std::string> GetString(const std::string& key) const;
  absl::StatusOr<std::string> GetStringOr(const std::string& key,
                                          const std::string& fallback) const;
  absl::StatusOr<std::vector<std::string>> GetStrings(const std::string& key) const;
  /// An array of integers, each in `range`.
  absl::StatusOr<std::vector<int64_t>> GetInts(const std::string& key, IntRange range = {}) const;
  absl::StatusOr<JsonObject> GetObject(const std::string& key) const;

  /// "config.json: key: problem".
  absl::Status Error(const std::string& key, const std::string& problem) const;

 private:
  JsonObject(const Json* json, std::string where) : json_(json), where_(std::move(where)) {}
  /// Errors when the key is absent.
  absl::StatusOr<const Json*> Field(const std::string& key) const;
  absl::Status WrongType(const std::string& key, const Json& value, const std::string& want) const;
  absl::StatusOr<int64_t> AsInt(const std::string& key, const Json& value, IntRange range) const;

  const Json* json_;
  std::string where_;
};

}  // namespace bitshard::trainer::io

#endif  // BITSHARD_TRAINER_IO_JSON_H_
