#include "trainer/io/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace bitshard::trainer::io {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ParseJson, BuildsNestedDocuments) {
  const auto json = ParseJson(
      R"({"a": [1, -2, 3.5, true, null, "x\u00e4"], "b": {"c": {}}, "d": 18446744073709551615})",
      "f");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(json->dump(),
            "{\"a\":[1,-2,3.5,true,null,\"x\xc3\xa4\"],\"b\":{\"c\":{}},"
            "\"d\":18446744073709551615}");
}

TEST(ParseJson, AcceptsARootThatIsNoObject) {
  EXPECT_EQ(ParseJson(" 17 ", "f")->dump(), "17");
  EXPECT_EQ(ParseJson("[[], [{}]]", "f")->dump(), "[[],[{}]]");
}

TEST(ParseJson, NamesFileLineAndColumn) {
  struct Case {
    const char* text;
    const char* message;
  };
  const Case cases[] = {
      {"{\"a\": 1,\n \"b\": }", "dir/f.json:2:7: not valid JSON: "},
      {"", "dir/f.json:1:1: not valid JSON: "},
      {"{\"a\": 1", "dir/f.json:1:8: not valid JSON: "},
      {"{} {}", "dir/f.json:1:4: not valid JSON: "},
      {"{\"a\": 1,\n  \"a\": 2}", "dir/f.json:2:3: not valid JSON: key \"a\" stands twice"},
      {"{\"a\": {\"\": 0, \"\": 1}}", "dir/f.json:1:15: not valid JSON: key \"\" stands twice"},
      {"[1e999]", "dir/f.json:1:6: not valid JSON: a number out of the range"},
      {"[\"\xff\"]", "ill-formed UTF-8"},
      {"[NaN]", "not valid JSON"},
      {"{'a': 1}", "not valid JSON"},
      {"[1,]", "not valid JSON"},
      {"// no\n{}", "not valid JSON"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text);
    const auto json = ParseJson(c.text, "dir/f.json");
    ASSERT_FALSE(json.ok());
    EXPECT_EQ(core::KindOf(json.status()), core::ErrorKind::kData);
    EXPECT_THAT(std::string(json.status().message()), HasSubstr(c.message));
    EXPECT_THAT(std::string(json.status().message()), HasSubstr("dir/f.json:"));
  }
}

TEST(ParseJson, EscapesWhatItQuotes) {
  const auto json = ParseJson("{\"\\u001b[2J\": 1, \"\\u001b[2J\": 1}", "f\n.json");
  ASSERT_FALSE(json.ok());
  const std::string message(json.status().message());
  EXPECT_EQ(message.find('\x1b'), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(ParseJson, StopsAtTheDepthLimit) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_TRUE(ParseJson(nested(64), "f").ok());
  const auto json = ParseJson(nested(65), "f");
  ASSERT_FALSE(json.ok());
  EXPECT_THAT(std::string(json.status().message()), HasSubstr("f:1:65: "));
  EXPECT_FALSE(ParseJson(std::string(10'000'000, '['), "f").ok());
}

TEST(ParseJson, StopsAtTheSizeLimit) {
  EXPECT_TRUE(ParseJson("[12345678]", "f", {.max_bytes = 10}).ok());
  EXPECT_FALSE(ParseJson("[123456789]", "f", {.max_bytes = 10}).ok());
}

TEST(JsonObject, ReadsTypedFields) {
  const auto json = ParseJson(
      R"({"i": 7, "x": 2, "y": 1e-5, "b": true, "s": "t", "n": null, "l": ["a", "b"],
          "k": [1, 2], "o": {"p": 3}})",
      "c.json");
  ASSERT_TRUE(json.ok());
  const auto object = JsonObject::Of(*json, "c.json");
  ASSERT_TRUE(object.ok());
  EXPECT_EQ(*object->GetInt("i", {0, 7}), 7);
  EXPECT_EQ(*object->GetIntOr("n", 5), 5);
  EXPECT_EQ(*object->GetIntOr("absent", 6), 6);
  EXPECT_EQ(*object->GetNumber("x"), 2.0);
  EXPECT_EQ(*object->GetNumberOr("y", 0), 1e-5);
  EXPECT_TRUE(*object->GetBoolOr("b", false));
  EXPECT_EQ(*object->GetString("s"), "t");
  EXPECT_THAT(*object->GetStrings("l"), ElementsAre("a", "b"));
  EXPECT_THAT(*object->GetInts("k"), ElementsAre(1, 2));
  EXPECT_FALSE(object->Has("n"));
  const auto inner = object->GetObject("o");
  ASSERT_TRUE(inner.ok());
  EXPECT_EQ(*inner->GetInt("p"), 3);
  EXPECT_THAT(std::string(inner->GetInt("q").status().message()),
              HasSubstr("c.json: o: q: missing"));
}

TEST(JsonObject, SaysWhatItFoundAndWhatItWanted) {
  const auto json = ParseJson(
      R"({"i": 1.5, "s": 3, "b": 1, "big": 18446744073709551615, "l": ["a", 1], "o": []})", "c");
  ASSERT_TRUE(json.ok());
  const auto object = JsonObject::Of(*json, "c");
  ASSERT_TRUE(object.ok());
  const auto message = [](const auto& result) { return std::string(result.status().message()); };
  EXPECT_EQ(message(object->GetInt("i")), "c: i: is a number, want an integer");
  EXPECT_EQ(message(object->GetString("s")), "c: s: is an integer, want a string");
  EXPECT_EQ(message(object->GetBoolOr("b", true)), "c: b: is an integer, want true or false");
  EXPECT_THAT(message(object->GetInt("big")), HasSubstr("c: big: is 18446744073709551615, want"));
  EXPECT_EQ(message(object->GetInt("s", {4, 9})), "c: s: is 3, want an integer from 4 to 9");
  EXPECT_THAT(message(object->GetStrings("l")), HasSubstr("c: l: is an integer"));
  EXPECT_EQ(message(object->GetObject("o")), "c: o: is a list, want an object");
  EXPECT_EQ(message(JsonObject::Of((*json)["l"], "d")), "d: is a list, want an object {...}");
}

TEST(JsonText, KeepsTheOrderOfKeys) {
  nlohmann::ordered_json json;
  json["z"] = 1;
  json["a"] = {1.5, "x"};
  EXPECT_EQ(JsonText(json), "{\n  \"z\": 1,\n  \"a\": [\n    1.5,\n    \"x\"\n  ]\n}\n");
}

}  // namespace
}  // namespace bitshard::trainer::io
