#include "trainer/data/child_process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>

#include "core/error.h"

namespace bitshard::trainer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const WaitOptions kWait = {.seconds = 60};

std::unique_ptr<ChildProcess> Shell(const std::string& script,
                                    const std::vector<std::string>& environment = {}) {
  auto child = ChildProcess::Start({.arguments = {"sh", "-c", script}, .environment = environment});
  EXPECT_TRUE(child.ok()) << child.status();
  return *std::move(child);
}

TEST(ChildProcess, PassesLinesOfAnySizeBothWays) {
  const auto child = Shell("cat");
  for (const size_t size : {size_t{0}, size_t{1}, size_t{65535}, size_t{65536}, size_t{300000}}) {
    // In pieces that the channels hold: nobody reads the echo while this thread writes.
    const std::string line(size, 'x');
    std::string echoed;
    for (size_t at = 0; at < size; at += 50000) {
      ASSERT_TRUE(child->WriteLine(line.substr(at, 50000), kWait).ok());
      echoed += child->ReadLine(kWait).value().value();
    }
    EXPECT_EQ(echoed, line);
  }
  child->CloseInput();
  EXPECT_EQ(child->ReadLine(kWait).value(), std::nullopt);
  EXPECT_EQ(child->End(), "ended with status 0");
}

TEST(ChildProcess, JoinsLinesThatArriveInPieces) {
  const auto child = Shell("printf 'a\\nb'; sleep 0.1; printf 'c\\n\\nd'");
  EXPECT_EQ(child->ReadLine(kWait).value(), "a");
  EXPECT_EQ(child->ReadLine(kWait).value(), "bc");
  EXPECT_EQ(child->ReadLine(kWait).value(), "");
  EXPECT_EQ(child->ReadLine(kWait).value(), std::nullopt);  // No line without its newline.
}

TEST(ChildProcess, InheritsNeitherFilesNorSignals) {
  const int open_file = open("/dev/null", O_RDONLY);  // Without O_CLOEXEC.
  ASSERT_GE(open_file, 3);
  signal(SIGUSR1, SIG_IGN);
  const auto child = Shell(
      "for f in /proc/$$/fd/*; do case ${f##*/} in 0|1|2) ;; *) readlink $f;; esac; done; "
      "kill -USR1 $$; echo survived");
  EXPECT_EQ(child->ReadLine(kWait).value(), std::nullopt);
  EXPECT_THAT(child->End(), HasSubstr("was killed by signal 10"));
  signal(SIGUSR1, SIG_DFL);
  close(open_file);
}

TEST(ChildProcess, ReplacesVariablesOfTheEnvironment) {
  setenv("BITSHARD_TEST_A", "old", 1);
  setenv("BITSHARD_TEST_AB", "kept", 1);
  const auto child =
      Shell("echo $BITSHARD_TEST_A $BITSHARD_TEST_AB; env | grep -c ^BITSHARD_TEST_A=",
            {"BITSHARD_TEST_A=new"});
  EXPECT_EQ(child->ReadLine(kWait).value(), "new kept");
  EXPECT_EQ(child->ReadLine(kWait).value(), "1");
}

TEST(ChildProcess, KeepsTheLastWordsOfALongSpeech) {
  const auto child = Shell(
      "i=0; while [ $i -lt 5000 ]; do echo line $i >&2; i=$((i+1)); done; printf 'end\\033[31m' "
      ">&2");
  EXPECT_EQ(child->ReadLine(kWait).value(), std::nullopt);
  EXPECT_EQ(child->End(), "ended with status 0");
  EXPECT_THAT(child->LastWords(),
              AllOf(HasSubstr("line 4999\nend\\x1b"), Not(HasSubstr("line 4980\n"))));
}

TEST(ChildProcess, KillsAChildThatOutlivesItsOutput) {
  const auto child = Shell("exec >&-; exec sleep 1000");
  EXPECT_EQ(child->ReadLine(kWait).value(), std::nullopt);
  EXPECT_THAT(child->End(), HasSubstr("was killed by signal 9"));
  EXPECT_EQ(core::KindOf(child->WriteLine("x", kWait)), core::ErrorKind::kData);
}

TEST(ChildProcess, LeavesNothingBehindWhenDestroyed) {
  auto child = Shell("sleep 1000 & echo $!; wait");
  const pid_t grandchild = std::stoi(child->ReadLine(kWait).value().value());
  const pid_t pid = child->pid();
  EXPECT_EQ(kill(grandchild, 0), 0);
  child.reset();
  EXPECT_EQ(kill(pid, 0), -1);
  // The grandchild was killed with the group: it goes, or stays as a zombie where whoever adopted
  // it does not wait for it.
  bool gone = false;
  for (int i = 0; i < 1000 && !gone; ++i) {
    std::string text;  // "ID (sleep) S ..."
    std::getline(std::ifstream("/proc/" + std::to_string(grandchild) + "/stat"), text);
    gone = text.empty() || text.find(") Z ") != std::string::npos;
    usleep(10000);
  }
  EXPECT_TRUE(gone);
}

TEST(ChildProcess, SaysWhatCannotBeStarted) {
  const absl::Status status = ChildProcess::Start({.arguments = {"/no/such\nprogram"}}).status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kConfig);
  EXPECT_THAT(std::string(status.message()), HasSubstr("program: can't be started: No such file"));
}

}  // namespace
}  // namespace bitshard::trainer
