#include "trainer/run_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/file.h"
#include "tests/trainer/checkpoint_test_support.h"

namespace bitshard::trainer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A child that takes the lock, says so, and waits to be killed.
pid_t StartHolder(const std::string& directory) {
  int ready[2];
  EXPECT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const auto lock = RunLock::Acquire(directory);
    const char answer = lock.ok() ? 'y' : 'n';
    if (write(ready[1], &answer, 1) != 1) _exit(1);
    for (;;) pause();
  }
  char answer = 0;
  EXPECT_EQ(read(ready[0], &answer, 1), 1);
  EXPECT_EQ(answer, 'y');
  close(ready[0]);
  close(ready[1]);
  return child;
}

TEST(RunLock, TheSecondJobIsRefusedAndTheFirstIsNamed) {
  const TemporaryFolder folder;
  const std::string directory = folder.path() + "/runs/x";
  const pid_t holder = StartHolder(directory);
  const auto second = RunLock::Acquire(directory);
  EXPECT_EQ(core::ExitCode(second.status()), 2);
  EXPECT_THAT(
      std::string(second.status().message()),
      AllOf(HasSubstr("runs/x is in use by"), HasSubstr(absl::StrCat("process ", holder, " on "))));
  kill(holder, SIGKILL);
  int status = 0;
  waitpid(holder, &status, 0);
  const auto third = RunLock::Acquire(directory);
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_THAT((*third)->taken_over_from(), HasSubstr(absl::StrCat("process ", holder)));
}

TEST(RunLock, ALockGivenBackLeavesNothingToTakeOver) {
  const TemporaryFolder folder;
  { ASSERT_TRUE(RunLock::Acquire(folder.path()).ok()); }
  const auto again = RunLock::Acquire(folder.path());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->taken_over_from(), "");
  EXPECT_FALSE(RunLock::Acquire(folder.path()).ok());
}

TEST(RunLock, AJobThatIsRefusedLeavesNoTrace) {
  const TemporaryFolder folder;
  const std::string made = folder.path() + "/runs/x";
  { ASSERT_TRUE(RunLock::Acquire(made).ok()); }
  EXPECT_FALSE(std::filesystem::exists(made));
  std::filesystem::create_directories(made);
  { ASSERT_TRUE(RunLock::Acquire(made).ok()); }
  EXPECT_TRUE(std::filesystem::is_empty(made));
  // A file that was there is another job's, and so is what stands beside the lock.
  {
    const auto lock = RunLock::Acquire(made);
    ASSERT_TRUE(lock.ok());
    (*lock)->Keep();
  }
  { ASSERT_TRUE(RunLock::Acquire(made).ok()); }
  EXPECT_TRUE(std::filesystem::exists(made + "/.lock"));
}

// Jobs that take the lock and leave no trace of it, all at once: one at a time holds it.
TEST(RunLock, ARemovedFileLocksNobodyIn) {
  const TemporaryFolder folder;
  std::atomic<int> holders = 0, taken = 0;
  std::vector<std::thread> jobs;
  for (int job = 0; job < 4; ++job) {
    jobs.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        const auto lock = RunLock::Acquire(folder.path());
        if (!lock.ok()) continue;
        EXPECT_EQ(++holders, 1);
        ++taken;
        --holders;
      }
    });
  }
  for (std::thread& job : jobs) job.join();
  EXPECT_GT(taken, 4);
}

TEST(RunLock, AFullDiskIsAnErrorOfStorageAndLeavesNoTrace) {
  const TemporaryFolder folder;
  const std::string made = folder.path() + "/run";
  signal(SIGXFSZ, SIG_IGN);
  rlimit saved{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &saved), 0);
  const rlimit low{.rlim_cur = 5, .rlim_max = saved.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  const auto lock = RunLock::Acquire(made);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &saved), 0);
  EXPECT_EQ(core::ExitCode(lock.status()), 6);
  EXPECT_THAT(std::string(lock.status().message()),
              AllOf(HasSubstr(made + "/.lock"), HasSubstr("ulimit -f")));
  EXPECT_FALSE(std::filesystem::exists(made));
}

TEST(RunLock, AFolderThatCanNotBeMadeIsAFaultOfTheConfiguration) {
  const TemporaryFolder folder;
  ASSERT_TRUE(core::WriteFileAtomically(folder.path() + "/file", "x").ok());
  const auto lock = RunLock::Acquire(folder.path() + "/file/run");
  EXPECT_EQ(core::ExitCode(lock.status()), 2);
  EXPECT_THAT(std::string(lock.status().message()), HasSubstr("output_dir"));
}

}  // namespace
}  // namespace bitshard::trainer
