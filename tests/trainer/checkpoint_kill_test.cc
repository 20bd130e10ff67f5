// Kills a process that saves checkpoints: at every system call of a save, and at random moments.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <random>
#include <set>

#include "core/status_macros.h"
#include "tests/trainer/checkpoint_test_support.h"

namespace bitshard::trainer {
namespace {

// Memory that a child and its parent share.
class SharedCounter {
 public:
  SharedCounter()
      : value_(static_cast<std::atomic<int64_t>*>(
            mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~SharedCounter() { munmap(value_, 4096); }
  std::atomic<int64_t>* get() { return value_; }

 private:
  std::atomic<int64_t>* value_;
};

pid_t StartChild(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child != 0) return child;
  alarm(60);
  body();
  _exit(0);
}

// Runs `body` in a child and kills it when it is about to enter its k-th system call. Returns false
// when the child ended before that.
bool RunUntilSystemCall(int64_t k, const std::function<void()>& body) {
  const pid_t child = StartChild([&] {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    body();
  });
  int status = 0;
  waitpid(child, &status, 0);
  // Each system call stops twice, at its entry and at its exit; the stop before exit of call k-1
  // comes first.
  for (int64_t stops = 0; stops < 2 * k - 1; ++stops) {
    ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
    waitpid(child, &status, 0);
    if (!WIFSTOPPED(status)) return false;
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return true;
}

bool CanTrace() {
  const pid_t child =
      StartChild([] { _exit(ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) == 0 ? 0 : 1); });
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(CheckpointKill, AtEverySystemCallTheLastCompleteOneStays) {
  if (!CanTrace()) GTEST_SKIP() << "ptrace is not permitted here";
  const core::FlatLayout layout = TestLayout(6);
  std::set<int64_t> steps_found;
  int64_t kills = 0;
  for (int64_t k = 1;; ++k) {
    const TemporaryFolder folder;
    ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout, .last_step = 2}),
              absl::OkStatus());
    const bool killed = RunUntilSystemCall(k, [&] {
      (void)SaveSteps({.directory = folder.path(),
                       .layout = &layout,
                       .first_step = 3,
                       .last_step = 3,
                       .save_total_limit = 2});
    });
    const auto step = LoadAndCheck(folder.path(), layout, 1);
    ASSERT_TRUE(step.ok()) << "killed at system call " << k << ": " << step.status();
    ASSERT_TRUE(*step == 2 || *step == 3) << *step;
    // What the killed job left behind is gone, and the next save works.
    ASSERT_EQ(
        SaveSteps({.directory = folder.path(), .layout = &layout, .first_step = 4, .last_step = 4}),
        absl::OkStatus());
    ASSERT_EQ(LoadAndCheck(folder.path(), layout, 1).value_or(-1), 4);
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
      EXPECT_EQ(entry.path().string().find(".tmp."), std::string::npos) << entry.path();
    }
    steps_found.insert(*step);
    if (!killed) break;
    ++kills;
  }
  std::printf("%d kills\n", static_cast<int>(kills));
  EXPECT_GE(kills, 30);
  EXPECT_EQ(steps_found, (std::set<int64_t>{2, 3}));
}

TEST(CheckpointKill, AStepThatIsSavedAgainSurvivesAtEverySystemCall) {
  if (!CanTrace()) GTEST_SKIP() << "ptrace is not permitted here";
  const core::FlatLayout layout = TestLayout(6);
  for (int64_t k = 1;; ++k) {
    const TemporaryFolder folder;
    ASSERT_EQ(SaveSteps({.directory = folder.path(), .layout = &layout}), absl::OkStatus());
    const bool killed = RunUntilSystemCall(
        k, [&] { (void)SaveSteps({.directory = folder.path(), .layout = &layout}); });
    const auto step = LoadAndCheck(folder.path(), layout, 1);
    ASSERT_TRUE(step.ok()) << "killed at system call " << k << ": " << step.status();
    ASSERT_EQ(*step, 1) << "killed at system call " << k;
    if (!killed) break;
  }
}

TEST(CheckpointKill, AtRandomMomentsNothingSavedIsLost) {
  const core::FlatLayout layout = TestLayout(300);
  std::mt19937_64 random(7);
  int64_t saved_in_all = 0;
  for (int repetition = 0; repetition < 30; ++repetition) {
    const TemporaryFolder folder;
    SharedCounter saved;
    const pid_t child = StartChild([&] {
      for (int64_t step = 1;; ++step) {
        const absl::Status status = SaveSteps({.directory = folder.path(),
                                               .layout = &layout,
                                               .ranks = 2,
                                               .first_step = step,
                                               .last_step = step,
                                               .save_total_limit = 2});
        if (!status.ok()) _exit(1);
        saved.get()->store(step);
      }
    });
    // Every second child is given the time for a first save, however slow the disk is.
    while (repetition % 2 == 0 && saved.get()->load() == 0 &&
           waitpid(child, nullptr, WNOHANG) == 0) {
      usleep(500);
    }
    usleep(static_cast<useconds_t>(2000 + random() % 60000));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    const int64_t last_saved = saved.get()->load();
    const auto step = LoadAndCheck(folder.path(), layout, 1 + repetition % 3);
    ASSERT_TRUE(step.ok()) << step.status();
    EXPECT_GE(*step, last_saved);
    EXPECT_LE(*step, last_saved + 1);
    saved_in_all += last_saved;
  }
  EXPECT_GE(saved_in_all, 15);
}

}  // namespace
}  // namespace bitshard::trainer
