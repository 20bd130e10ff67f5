#include "trainer/io/json.h"

#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/file.h"
#include "core/status_macros.h"

namespace bitshard::trainer::io {
namespace {

// Walks over the text and keeps count of what the lexer has taken, so that errors found between
// tokens (a key that stands twice, nesting too deep) have a position too.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, size_t* taken) : at_(at), taken_(taken) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    ++at_;
    ++*taken_;
    return *this;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const CountingIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  size_t* taken_;
};

// Builds the document from the parser's events, and stops it at the first thing that is not
// allowed.
class GuardedBuilder : public nlohmann::json_sax<Json> {
 public:
  GuardedBuilder(int max_depth, const size_t* taken) : max_depth_(max_depth), taken_(taken) {}

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t&) override { return Add(value); }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t&) override { return Fail(*taken_, "binary value"); }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    const auto [slot, is_new] = open_.back()->get_ref<Json::object_t&>().emplace(name, nullptr);
    if (!is_new) {
      const size_t start = *taken_ > name.size() + 1 ? *taken_ - name.size() - 1 : 1;
      return Fail(start, absl::StrCat("key \"", core::Escaped(name),
                                      "\" stands twice in one object; remove one of them"));
    }
    slot_ = &slot->second;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception& error) override {
    // nlohmann: "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error
    // ..."; the id and its own position are left out, ours is line:column before the text.
    std::string text = error.what();
    if (text.rfind("[json.exception.parse_error", 0) == 0) {
      const size_t start = text.find(": ");
      if (start != std::string::npos) text.erase(0, start + 2);
    } else if (text.rfind("[json.exception.out_of_range", 0) == 0) {
      text = "a number out of the range of float64";
    }
    return Fail(position, core::Escaped(text));
  }

  Json Take() { return std::move(root_); }
  size_t error_position() const { return error_position_; }
  const std::string& error() const { return error_; }

 private:
  bool Fail(size_t position, std::string problem) {
    error_position_ = position;
    error_ = std::move(problem);
    return false;
  }

  // Puts the value where the document goes on: the root, an array's end, or the object's newest
  // key.
  Json* Place(Json&& value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json* parent = open_.back();
    if (parent->is_array()) {
      parent->get_ref<Json::array_t&>().push_back(std::move(value));
      return &parent->get_ref<Json::array_t&>().back();
    }
    *slot_ = std::move(value);
    return slot_;
  }

  template <class Value>
  bool Add(Value&& value) {
    Place(Json(std::forward<Value>(value)));
    return true;
  }

  bool Open(Json&& container) {
    if (open_.size() >= static_cast<size_t>(max_depth_)) {
      return Fail(*taken_, absl::StrCat("nested more than ", max_depth_, " levels deep"));
    }
    open_.push_back(Place(std::move(container)));
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  const int max_depth_;
  const size_t* taken_;
  Json root_;
  std::vector<Json*> open_;  // A parent's storage does not move while a child is open.
  Json* slot_ = nullptr;
  size_t error_position_ = 0;
  std::string error_;
};

// The 1-based line and column of the 1-based byte `position`.
std::string LineAndColumn(const std::string& text, size_t position) {
  int64_t line = 1, column = 1;
  for (size_t i = 0; i + 1 < position && i < text.size(); ++i) {
    if (text[i] == '\n') {
      ++line;
      column = 1;
    } else {
      ++column;
    }
  }
  return absl::StrCat(line, ":", column);
}

const char* TypeName(const Json& value) {
  if (value.is_number_integer()) return "an integer";
  if (value.is_number()) return "a number";
  if (value.is_boolean()) return "a boolean";
  if (value.is_string()) return "a string";
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  return "null";
}

}  // namespace

absl::StatusOr<Json> ParseJson(const std::string& text, const std::string& where,
                               const JsonLimits& limits) {
  const std::string name = core::Escaped(where, 4096);
  if (static_cast<int64_t>(text.size()) > limits.max_bytes) {
    return core::DataError(absl::StrFormat("%s: %d bytes of JSON, want at most %d", name,
                                           text.size(), limits.max_bytes));
  }
  size_t taken = 0;
  GuardedBuilder builder(limits.max_depth, &taken);
  const bool ok = Json::sax_parse(CountingIterator(text.data(), &taken),
                                  CountingIterator(text.data() + text.size(), &taken), &builder);
  if (!ok) {
    return core::DataError(absl::StrCat(name, ":", LineAndColumn(text, builder.error_position()),
                                        ": not valid JSON: ", builder.error()));
  }
  return builder.Take();
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path, const JsonLimits& limits) {
  BITSHARD_ASSIGN_OR_RETURN(const std::string text, core::ReadFile(path, limits.max_bytes));
  return ParseJson(text, path, limits);
}

std::string JsonText(const nlohmann::ordered_json& json) {
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

absl::StatusOr<JsonObject> JsonObject::Of(const Json& value, const std::string& where) {
  const std::string name = core::Escaped(where, 4096);
  if (!value.is_object()) {
    return core::DataError(absl::StrCat(name, ": is ", TypeName(value), ", want an object {...}"));
  }
  return JsonObject(&value, name);
}

absl::Status JsonObject::Error(const std::string& key, const std::string& problem) const {
  return core::DataError(absl::StrCat(where_, ": ", core::Escaped(key), ": ", problem));
}

bool JsonObject::Has(const std::string& key) const {
  const auto at = json_->find(key);
  return at != json_->end() && !at->is_null();
}

absl::StatusOr<const Json*> JsonObject::Field(const std::string& key) const {
  const auto at = json_->find(key);
  if (at == json_->end()) return Error(key, "missing");
  return &*at;
}

absl::Status JsonObject::WrongType(const std::string& key, const Json& value,
                                   const std::string& want) const {
  return Error(key, absl::StrCat("is ", TypeName(value), ", want ", want));
}

absl::StatusOr<int64_t> JsonObject::AsInt(const std::string& key, const Json& value,
                                          IntRange range) const {
  if (!value.is_number_integer()) return WrongType(key, value, "an integer");
  const bool too_big = value.is_number_unsigned() &&
                       value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()};
  const int64_t number = too_big ? 0 : value.get<int64_t>();
  if (too_big || number < range.least || number > range.most) {
    return Error(key, absl::StrCat("is ", value.dump(), ", want an integer from ", range.least,
                                   " to ", range.most));
  }
  return number;
}

absl::StatusOr<int64_t> JsonObject::GetInt(const std::string& key, IntRange range) const {
  BITSHARD_ASSIGN_OR_RETURN(const Json* value, Field(key));
  return AsInt(key, *value, range);
}

absl::StatusOr<int64_t> JsonObject::GetIntOr(const std::string& key, int64_t fallback,
                                             IntRange range) const {
  if (!Has(key)) return fallback;
  return GetInt(key, range);
}

absl::StatusOr<double> JsonObject::GetNumber(const std::string& key) const {
  BITSHARD_ASSIGN_OR_RETURN(const Json* value, Field(key));
  if (!value->is_number()) return WrongType(key, *value, "a number");
  return value->get<double>();
}

absl::StatusOr<double> JsonObject::GetNumberOr(const std::string& key, double fallback) const {
  if (!Has(key)) return fallback;
  return GetNumber(key);
}

absl::StatusOr<bool> JsonObject::GetBoolOr(const std::string& key, bool fallback) const {
  if (!Has(key)) return fallback;
  BITSHARD_ASSIGN_OR_RETURN(const Json* value, Field(key));
  if (!value->is_boolean()) return WrongType(key, *value, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonObject::GetString(const std::string& key) const {
  BITSHARD_ASSIGN_OR_RETURN(const Json* value, Field(key));
  if (!value->is_string()) return WrongType(key, *value, "a string");
  return value->get<std::string>();
}

absl::StatusOr<std::string> JsonObject::GetStringOr(const std::string& key,
                                                    const std::string& fallback) const {
  if (!Has(key)) return fallback;
  return GetString(key);
}

absl::StatusOr<std::vector<std::string>> JsonObject::GetStrings(const std::string& key) const {
  BITSHARD_ASSIGN_OR_RETURN(const Json* value, Field(key));
  if (!value->is_array()) return WrongType(key, *value, "a list of strings");
  std::vector<std::string> strings;
  for (const Json& entry : *value) {
    if (!entry.is_string()) return WrongType(key, entry, "strings in the list");
    strings.push_back(entry.get<std::string>());
  }
  return strings;
}

absl::StatusOr<std::vector<int64_t>> JsonObject::GetInts(const std::string& key,
                                                         IntRange range) const {
  BITSHARD_ASSIGN_OR_RETURN(const Json* value, Field(key));
  if (!value->is_array()) return WrongType(key, *value, "a list of integers");
  std::vector<int64_t> numbers;
  for (const Json& entry : *value) {
    BITSHARD_ASSIGN_OR_RETURN(const int64_t number, AsInt(key, entry, range));
    numbers.push_back(number);
  }
  return numbers;
}

absl::StatusOr<JsonObject> JsonObject::GetObject(const std::string& key) const {
  BITSHARD_ASSIGN_OR_RETURN(const Json* value, Field(key));
  if (!value->is_object()) return WrongType(key, *value, "an object");
  return JsonObject(value, absl::StrCat(where_, ": ", core::Escaped(key)));
}

}  // namespace bitshard::trainer::io
