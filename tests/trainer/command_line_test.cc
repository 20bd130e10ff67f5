#include "trainer/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"

namespace bitshard::trainer {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<CommandLine> Parsed(std::vector<const char*> words) {
  words.insert(words.begin(), "bitshard");
  return ParseCommandLine(static_cast<int>(words.size()), words.data());
}

std::string Refusal(const std::vector<const char*>& words) {
  const auto line = Parsed(words);
  EXPECT_EQ(core::ExitCode(line.status()), 2);
  return std::string(line.status().message());
}

TEST(CommandLine, NamesAnUnknownCommandAndTheNearest) {
  EXPECT_EQ(
      Refusal({"tain", "--config", "x"}),
      "command line: unknown command \"tain\", did you mean train? Known: train, plan, evaluate, "
      "generate, quantize");
  EXPECT_THAT(Refusal({"run.yaml"}), HasSubstr("unknown command \"run.yaml\". Known: train"));
}

TEST(CommandLine, SaysWhichNumbersOfRanksThereAre) {
  const std::string message = Refusal({"plan", "--config", "x", "--ranks", "0"});
  EXPECT_THAT(message, HasSubstr("--ranks: Value 0 not in range"));
  EXPECT_LT(message.size(), 120u) << message;
}

TEST(CommandLine, HelpOfACommandSaysHowItIsCalled) {
  const auto line = Parsed({"train", "--help"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_THAT(line->help, HasSubstr("Usage: bitshard train [OPTIONS]"));
}

}  // namespace
}  // namespace bitshard::trainer
