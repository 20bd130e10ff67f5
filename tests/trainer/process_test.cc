#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "core/error.h"
#include "trainer/process_memory.h"
#include "trainer/progress.h"
#include "trainer/signals.h"

namespace bitshard::trainer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Everything that can be read from `fd` without waiting.
std::string Drain(int fd) {
  fcntl(fd, F_SETFL, O_NONBLOCK);
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(fd, buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(got));
  return text;
}

TEST(ProgressLine, FitsAnyWidth) {
  const ProgressState state{.step = 41,
                            .total_steps = 100,
                            .loss = 2.31,
                            .tokens_per_second = 310.4,
                            .seconds_left = 200};
  EXPECT_EQ(ProgressLine(state, 70),
            "step 41/100 [=========             ] loss 2.3100  310 tok/s  ETA 3:20");
  EXPECT_EQ(ProgressLine(state, 50), "step 41/100 loss 2.3100  310 tok/s  ETA 3:20");
  for (int width = 1; width < 200; ++width) {
    EXPECT_LE(ProgressLine(state, width).size(), static_cast<size_t>(std::max(width - 1, 1)))
        << width;
  }
}

TEST(DurationText, ReadsLikeAClock) {
  EXPECT_EQ(DurationText(0), "0:00");
  EXPECT_EQ(DurationText(59.6), "1:00");
  EXPECT_EQ(DurationText(3723), "1:02:03");
  EXPECT_EQ(DurationText(90061), "1d 1:01:01");
  EXPECT_EQ(DurationText(-5), "0:00");
}

TEST(Progress, WritesPlainLinesWhereThereIsNoTerminal) {
  int out[2];
  ASSERT_EQ(pipe(out), 0);
  Console console({.output_fd = out[1], .progress_fd = out[1]});
  EXPECT_FALSE(console.is_terminal());
  Progress progress(&console, {.total_steps = 25, .every = 10});
  for (int64_t step = 1; step <= 25; ++step)
    progress.Update({.step = step, .loss = 2, .tokens_per_second = 5});
  progress.Finish();
  const std::string text = Drain(out[0]);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4);  // 1, 10, 20, 25
  EXPECT_THAT(text, AllOf(HasSubstr("step 1/25 "), HasSubstr("step 20/25"),
                          HasSubstr("step 25/25  loss 2.0000"), Not(HasSubstr("\r")),
                          Not(HasSubstr("\x1b"))));
  close(out[0]);
  close(out[1]);
}

TEST(Progress, RedrawsOneLineOnATerminal) {
  int master = -1;
  int slave = -1;
  struct winsize size {
    .ws_row = 24, .ws_col = 60
  };
  ASSERT_EQ(openpty(&master, &slave, nullptr, nullptr, &size), 0);
  Console console({.output_fd = slave, .progress_fd = slave});
  ASSERT_TRUE(console.is_terminal());
  EXPECT_EQ(console.width(), 60);
  Progress progress(&console, {.total_steps = 3});
  progress.Update({.step = 1, .loss = 2});
  console.Say("hello");
  progress.Update({.step = 3, .loss = 1});
  progress.Finish();
  const std::string text = Drain(master);
  EXPECT_THAT(text,
              AllOf(HasSubstr("\rstep 1/3"), HasSubstr("\r\x1b[Khello"), HasSubstr("\rstep 3/3")));
  close(master);
  close(slave);
}

TEST(Console, AFullOrClosedOutputIsRememberedAndSurvived) {
  signal(SIGPIPE, SIG_IGN);
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  Console console({.output_fd = full, .progress_fd = full});
  console.Say("one");
  console.Say("two");
  EXPECT_EQ(core::ExitCode(console.status()), 6);
  EXPECT_THAT(std::string(console.status().message()), HasSubstr("standard output"));
  close(full);
  Console closed({.output_fd = full, .progress_fd = full});
  closed.Warn("x");
  EXPECT_FALSE(closed.status().ok());
  int broken[2];
  ASSERT_EQ(pipe(broken), 0);
  close(broken[0]);
  Console pipe_console({.output_fd = broken[1], .progress_fd = broken[1]});
  pipe_console.Say("x");
  EXPECT_FALSE(pipe_console.status().ok());
  close(broken[1]);
}

TEST(Console, SilentRanksWriteNothing) {
  Console console({.silent = true, .output_fd = -1, .progress_fd = -1});
  console.Say("x");
  console.Warn("x");
  EXPECT_TRUE(console.status().ok());
}

TEST(ProcessMemory, ReadsTheKernelsFigures) {
  const auto parsed = ParseProcessStatus("Name:\tx\nVmHWM:\t    300 kB\nVmRSS:\t     20 kB\n");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->peak_rss_bytes, 300 << 10);
  EXPECT_EQ(parsed->rss_bytes, 20 << 10);
  EXPECT_FALSE(ParseProcessStatus("VmHWM: x kB\nVmRSS: 1 kB\n").ok());
  EXPECT_FALSE(ParseProcessStatus("").ok());
}

TEST(ProcessMemory, ThePeakFollowsWhatIsTouchedAndCanBeReset) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer's allocator keeps what is freed";
#endif
  ASSERT_TRUE(ApplyMallocPolicy());
  constexpr size_t kBytes = 64 << 20;
  const auto before = ReadProcessMemory();
  ASSERT_TRUE(before.ok());
  {
    std::unique_ptr<char[]> block(new char[kBytes]);
    std::memset(block.get(), 1, kBytes);
    const auto during = ReadProcessMemory();
    ASSERT_TRUE(during.ok());
    EXPECT_GE(during->rss_bytes, before->rss_bytes + static_cast<int64_t>(kBytes) - (1 << 20));
  }
  const auto after = ReadProcessMemory();
  ASSERT_TRUE(after.ok());
  EXPECT_LT(after->rss_bytes, before->rss_bytes + (8 << 20));  // Freed memory went back at once.
  EXPECT_GE(after->peak_rss_bytes, before->rss_bytes + static_cast<int64_t>(kBytes) - (1 << 20));
}

// Runs `body` in a child and returns its wait status.
template <class Body>
int InChild(Body body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    body();
    _exit(99);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

TEST(StopSignals, TheFirstIsAFlagAndTheSecondEndsTheProcess) {
  for (const int signal_number : {SIGTERM, SIGINT}) {
    const int status = InChild([&] {
      InstallStopSignals();
      if (StopSignal() != 0) _exit(1);
      raise(signal_number);
      if (StopSignal() != signal_number) _exit(2);
      raise(SIGUSR1);
      if (StopSignal() != signal_number) _exit(3);
      usleep(600000);
      raise(signal_number);
      _exit(4);
    });
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 128 + signal_number);
  }
}

TEST(StopSignals, TwoAtOnceAreOneRequest) {
  const int status = InChild([] {
    InstallStopSignals();
    raise(SIGTERM);
    raise(SIGTERM);
    raise(SIGINT);
    _exit(StopSignal() == SIGTERM ? 0 : 1);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(StopSignals, ANoticeComesByUsr1AndMayComeTwice) {
  const int status = InChild([] {
    InstallStopSignals();
    raise(SIGUSR1);
    raise(SIGUSR1);
    _exit(StopSignal() == SIGUSR1 ? 0 : 1);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(StopSignals, AClosedPipeIsAnErrorOfWrite) {
  const int status = InChild([] {
    InstallStopSignals();
    int ends[2];
    if (pipe(ends) != 0) _exit(1);
    close(ends[0]);
    _exit(write(ends[1], "x", 1) == -1 && errno == EPIPE ? 0 : 2);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace bitshard::trainer
