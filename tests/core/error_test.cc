#include "core/error.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

TEST(ErrorKind, IsTheExitCode) {
  EXPECT_EQ(ExitCode(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCode(MakeError(ErrorKind::kInternal, "")), 1);
  EXPECT_EQ(ExitCode(ConfigError("")), 2);
  EXPECT_EQ(ExitCode(DataError("")), 3);
  EXPECT_EQ(ExitCode(MemoryError("")), 4);
  EXPECT_EQ(ExitCode(PeerError("")), 5);
  EXPECT_EQ(ExitCode(StorageError("")), 6);
  EXPECT_EQ(ExitCode(NumericsError("")), 7);
  EXPECT_EQ(ExitCode(InterruptedError("")), 143);
}

TEST(ErrorKind, OfAStatusFromElsewhereFollowsItsCode) {
  EXPECT_EQ(KindOf(absl::InvalidArgumentError("")), ErrorKind::kConfig);
  EXPECT_EQ(KindOf(absl::NotFoundError("")), ErrorKind::kData);
  EXPECT_EQ(KindOf(absl::ResourceExhaustedError("")), ErrorKind::kMemory);
  EXPECT_EQ(KindOf(absl::DeadlineExceededError("")), ErrorKind::kPeer);
  EXPECT_EQ(KindOf(absl::UnknownError("")), ErrorKind::kInternal);
}

TEST(AddContext, PutsThePrefixBeforeTheMessageAndKeepsTheKind) {
  for (const absl::Status& status :
       {StorageError("disk full"), NumericsError("disk full"), PeerError("disk full")}) {
    const absl::Status with = AddContext(AddContext(status, "checkpoint"), "rank 1");
    EXPECT_EQ(std::string(with.message()), "rank 1: checkpoint: disk full");
    EXPECT_EQ(KindOf(with), KindOf(status));
    EXPECT_EQ(with.code(), status.code());
  }
  EXPECT_TRUE(AddContext(absl::OkStatus(), "rank 1").ok());
}

TEST(Escaped, KeepsPrintableTextOfAllScripts) {
  for (const char* text :
       {"plain name", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\\ and 'quotes'", "\xC2\xA0"}) {
    EXPECT_EQ(Escaped(text), text);
  }
}

TEST(Escaped, ReplacesWhatATerminalWouldObey) {
  EXPECT_EQ(Escaped("\x1B[31mred\n"), "\\x1b[31mred\\x0a");
  EXPECT_EQ(Escaped(std::string("a\0b\x7F", 4)), "a\\x00b\\x7f");
  EXPECT_EQ(Escaped("\xC2\x9B"
                    "31m"),
            "\\xc2\\x9b31m");  // CSI as one C1 character.
}

TEST(Escaped, ReplacesBrokenUtf8ByteByByte) {
  EXPECT_EQ(Escaped("\xFFz"), "\\xffz");
  EXPECT_EQ(Escaped("\xE2\x82"), "\\xe2\\x82");                    // Cut short.
  EXPECT_EQ(Escaped("\xC0\x80"), "\\xc0\\x80");                    // Overlong.
  EXPECT_EQ(Escaped("\xED\xA0\x80"), "\\xed\\xa0\\x80");           // A surrogate.
  EXPECT_EQ(Escaped("\xF4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // Beyond U+10FFFF.
}

TEST(Escaped, CutsLongTextWithoutSplittingACharacter) {
  EXPECT_EQ(Escaped("abcdef", 3), "abc...");
  EXPECT_EQ(Escaped("abc", 3), "abc");
  EXPECT_EQ(Escaped("a\xE2\x82\xAC"
                    "b",
                    2),
            "a\xE2\x82\xAC...");
}

TEST(FirstInvalidUtf8, AgreesWithTheDefinitionOnEveryCodePoint) {
  // Encodes by the bit pattern of RFC 3629, table 3; surrogates are encoded the same way and must
  // be refused.
  for (uint32_t c = 0; c < 0x110000; ++c) {
    std::string text;
    const auto tail = [c](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
    if (c < 0x80) {
      text = {static_cast<char>(c)};
    } else if (c < 0x800) {
      text = {static_cast<char>(0xC0 | c >> 6), tail(0)};
    } else if (c < 0x10000) {
      text = {static_cast<char>(0xE0 | c >> 12), tail(6), tail(0)};
    } else {
      text = {static_cast<char>(0xF0 | c >> 18), tail(12), tail(6), tail(0)};
    }
    const bool surrogate = c >= 0xD800 && c <= 0xDFFF;
    ASSERT_EQ(FirstInvalidUtf8(text), surrogate ? 0 : std::string::npos) << std::hex << c;
    if (text.size() > 1) {
      ASSERT_EQ(FirstInvalidUtf8("ab" + text.substr(0, text.size() - 1)), 2u) << std::hex << c;
    }
  }
}

TEST(EditDistance, CountsInsertionsDeletionsAndSubstitutions) {
  EXPECT_EQ(EditDistance("", ""), 0);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("sitting", "kitten"), 3);
  EXPECT_EQ(EditDistance("lora_r", "lora_rank"), 3);
}

TEST(Nearest, FindsTheKeyThatWasMeantOrNothing) {
  const std::vector<std::string> keys = {"lora_r", "learning_rate", "max_steps"};
  EXPECT_EQ(Nearest("lora_rank", keys), "lora_r");
  EXPECT_EQ(Nearest("learningrate", keys), "learning_rate");
  EXPECT_EQ(Nearest("max_step", keys), "max_steps");
  EXPECT_EQ(Nearest("zzz", keys), "");
  EXPECT_EQ(Nearest("lora_r", std::vector<std::string>{}), "");
}

}  // namespace
}  // namespace bitshard::core
