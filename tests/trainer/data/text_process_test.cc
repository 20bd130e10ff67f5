#include "trainer/data/text_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/file.h"
#include "tests/trainer/data/cache_bytes.h"
#include "trainer/data/cache_key.h"

namespace bitshard::trainer {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kModel[] = BITSHARD_SOURCE_DIR "/.deps/models/SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr char kLine[] = R"({"messages": [{"role": "user", "content": "What is a foo?"}, )"
                         R"({"role": "assistant", "content": "A bar, number 12."}]})";

class TextProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(kModel))
        << kModel << " is missing: run tests/run.sh or launch/quickstart.sh, which get it";
  }

  TokenCacheSpec Spec(const std::string& data) {
    return {.python = {.interpreter = BITSHARD_PYTHON, .package_root = BITSHARD_SOURCE_DIR},
            .cache_directory = folder_.path("cache"),
            .tokenizer = kModel,
            .datasets = {{.path = data, .type = SampleType::kAuto}}};
  }

  // A package whose __main__ is `program`: to see what happens to children that misbehave.
  TextPython FakePackage(const std::string& program) {
    std::filesystem::create_directories(folder_.path("fake/trainer/text"));
    folder_.Write("fake/trainer/text/__init__.py", "");
    folder_.Write("fake/trainer/text/__main__.py", program);
    return {.interpreter = BITSHARD_PYTHON, .package_root = folder_.path("fake")};
  }

  std::vector<std::string> CacheFiles(const std::string& ending) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path("cache"))) {
      const std::string name = entry.path().filename().string();
      if (absl::EndsWith(name, ending)) names.push_back(name);
    }
    return names;
  }

  TestFolder folder_;
};

TEST_F(TextProcessTest, MakesACacheOnceAndThenFindsIt) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", absl::StrCat(kLine, "\n", kLine, "\n")));
  std::vector<std::string> progress;
  spec.on_progress = [&](const std::string& line) { progress.push_back(line); };
  const auto first = PrepareTokenCache(spec);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(first->made);
  EXPECT_GT(first->text_process_peak_bytes, 1 << 20);
  EXPECT_THAT(progress, ::testing::Contains(HasSubstr("read as chat_template")));
  const TokenCache& cache = *first->cache;
  EXPECT_EQ(cache.num_samples(), 2);
  EXPECT_LE(cache.vocab_size(), 49152);
  EXPECT_THAT(cache.notes().prompts, ElementsAre("What is a foo?", "What is a foo?"));
  // "A bar, number 12." and <|im_end|> (2), but not the newline after it (198).
  std::vector<int32_t> trained;
  for (const uint32_t word : cache.sample(0)) {
    if (IsTrained(word)) trained.push_back(TokenOf(word));
  }
  EXPECT_THAT(trained, ElementsAre(49, 2753, 28, 1230, 216, 33, 34, 30, 2));
  EXPECT_EQ(TokenOf(cache.sample(0).back()), 198);

  const auto second = PrepareTokenCache(spec);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_FALSE(second->made);
  EXPECT_EQ(second->cache->content_hash(), cache.content_hash());
}

TEST_F(TextProcessTest, NamesTheCacheByContentAndSettings) {
  const TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  const std::string key = TokenCacheKey(spec).value();
  const auto expect_other = [&](const std::function<void(TokenCacheSpec*)>& change) {
    TokenCacheSpec changed = spec;
    change(&changed);
    EXPECT_NE(TokenCacheKey(changed).value(), key);
  };
  expect_other([](auto* s) { s->sequence_len = 511; });
  expect_other([](auto* s) { s->excess_length = ExcessLength::kTruncate; });
  expect_other([](auto* s) { s->train_on_inputs = true; });
  expect_other([](auto* s) { s->datasets[0].type = SampleType::kChatTemplate; });
  expect_other([](auto* s) { s->datasets.push_back(s->datasets[0]); });
  expect_other([&](auto* s) { s->datasets[0].path = folder_.Write("d.json", kLine); });
  expect_other(
      [&](auto* s) { s->datasets[0].path = folder_.Write("e.jsonl", absl::StrCat(kLine, " ")); });
  expect_other([&](auto* s) { s->python = FakePackage("print(1)"); });
  TokenCacheSpec moved = spec;
  moved.datasets[0].path = folder_.Write("elsewhere.jsonl", kLine);
  moved.cache_directory = folder_.path("other");
  EXPECT_EQ(TokenCacheKey(moved).value(), key);
  moved.datasets[0].path = folder_.path("none.jsonl");
  EXPECT_THAT(std::string(TokenCacheKey(moved).status().message()), HasSubstr("none.jsonl"));
}

TEST_F(TextProcessTest, MakesADamagedCacheAnew) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  ASSERT_TRUE(PrepareTokenCache(spec).ok());
  const std::string path = folder_.path("cache/" + CacheFiles(".tokens").at(0));
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  std::string progress;
  spec.on_progress = [&](const std::string& line) { progress += line + "\n"; };
  const auto again = PrepareTokenCache(spec);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->made);
  EXPECT_THAT(progress, HasSubstr("making it anew"));
}

TEST_F(TextProcessTest, ReportsBadDataWithFileAndLine) {
  const std::string data = folder_.Write("d.jsonl", absl::StrCat(kLine, "\n{\"messages\": [{\"ro"));
  const auto prepared = PrepareTokenCache(Spec(data));
  EXPECT_EQ(core::KindOf(prepared.status()), core::ErrorKind::kData);
  EXPECT_THAT(std::string(prepared.status().message()),
              AllOf(HasSubstr(data + ":2: "), Not(HasSubstr("Traceback"))));
  EXPECT_THAT(CacheFiles(".tokens"), IsEmpty());
  EXPECT_EQ(CacheFiles("").size(), 1u);  // The lock.
}

TEST_F(TextProcessTest, ReportsACacheThatCannotBeWrittenAndLeavesNothing) {
  const TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  rlimit saved{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &saved), 0);
  const rlimit low{.rlim_cur = 100, .rlim_max = saved.rlim_max};  // The lock's text fits.
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  const absl::Status status = PrepareTokenCache(spec).status();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &saved), 0);
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kStorage);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(".tokens.tmp."), HasSubstr("File too large"), HasSubstr("ulimit -f"),
                    Not(HasSubstr("Traceback"))));
  EXPECT_EQ(CacheFiles("").size(), 1u);  // The lock.
}

TEST_F(TextProcessTest, KeepsTheKindOfAnError) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  spec.sequence_len = 1;
  const absl::Status status = PrepareTokenCache(spec).status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kConfig);
  EXPECT_THAT(std::string(status.message()), HasSubstr("sequence_len: 1, want at least 2"));
}

TEST_F(TextProcessTest, SaysWhenTheInterpreterIsMissing) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  spec.python.interpreter = "/nonexistent/python";
  const absl::Status status = PrepareTokenCache(spec).status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kConfig);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nonexistent/python: can't be started"));
}

TEST_F(TextProcessTest, ReportsAKilledChildWithItsLastWordsAndLeavesNothing) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  spec.python = FakePackage(
      "import json, os, sys\n"
      "spec = json.loads(sys.stdin.readline())\n"
      "open(spec['output'] + '.tmp.1', 'w').write('half')\n"
      "print('about to go', file=sys.stderr, flush=True)\n"
      "print('{\"progress\": \"going\"}', flush=True)\n"
      "os.kill(os.getpid(), 9)\n");
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = PrepareTokenCache(spec).status();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("was killed by signal 9"), HasSubstr("about to go")));
  EXPECT_EQ(CacheFiles("").size(), 1u);
}

TEST_F(TextProcessTest, NamesTheProcessThatHoldsTheLockAndDoesNotGetOn) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  spec.python =
      FakePackage("import time\nprint('{\"progress\": \"x\"}', flush=True)\ntime.sleep(600)\n");
  spec.caller = "rank 7";
  std::atomic<bool> has_lock = false, stop = false;
  spec.on_progress = [&](const std::string&) { has_lock = true; };
  spec.python.stop_requested = [&] { return stop.load(); };
  std::thread holder([&] {
    EXPECT_EQ(core::KindOf(PrepareTokenCache(spec).status()), core::ErrorKind::kInterrupted);
  });
  while (!has_lock) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  TokenCacheSpec waiter = spec;
  waiter.lock_timeout_seconds = 0.3;
  const absl::Status status = PrepareTokenCache(waiter).status();
  stop = true;
  holder.join();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kPeer);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(absl::StrCat("rank 7 (process ", getpid(), " on ")),
                    HasSubstr("has not got on for 0.3 s"), HasSubstr("comm.timeout")));
}

// The waiting process has its whole time anew with each line that the child says: it gets the lock,
// and starts a child of its own.
TEST_F(TextProcessTest, WaitsAsLongAsTheCacheGetsOn) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  const std::string first_ended = folder_.path("first_ended");
  spec.python =
      FakePackage(absl::StrCat("import os, time\n"
                               "second = os.path.exists('",
                               first_ended,
                               "')\n"
                               "for i in range(0 if second else 40):\n"
                               "  print('{\"progress\": \"x\"}', flush=True)\n"
                               "  time.sleep(0.25)\n"
                               "open('",
                               first_ended,
                               "', 'w').close()\n"
                               "print('{\"error\": \"%s child\", \"exit_code\": 3}' % ('second' if "
                               "second else 'first'))\n"));
  std::atomic<bool> has_lock = false;
  spec.on_progress = [&](const std::string&) { has_lock = true; };
  absl::Status held;
  std::thread holder([&] { held = PrepareTokenCache(spec).status(); });
  while (!has_lock) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  TokenCacheSpec waiter = spec;
  waiter.lock_timeout_seconds = 5;
  const absl::Status waited = PrepareTokenCache(waiter).status();
  holder.join();
  EXPECT_EQ(held.message(), "first child");
  EXPECT_EQ(waited.message(), "second child");
}

TEST_F(TextProcessTest, ReportsABugInThePackage) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  spec.python = FakePackage("raise RuntimeError('oh no')\n");
  const absl::Status status = PrepareTokenCache(spec).status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("ended with status 1"), HasSubstr("RuntimeError: oh no")));
}

TEST_F(TextProcessTest, ReportsAChildThatHangs) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  spec.python = FakePackage("import time\ntime.sleep(1000)\n");
  spec.python.stall_timeout_seconds = 0.5;
  const absl::Status status = PrepareTokenCache(spec).status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData);
  EXPECT_THAT(std::string(status.message()), HasSubstr("gave no sign of life for 0.5 s"));
}

TEST_F(TextProcessTest, StopsWhenAsked) {
  TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  spec.python = FakePackage("import time\ntime.sleep(1000)\n");
  std::atomic<int> asked = 0;
  spec.python.stop_requested = [&] { return ++asked > 3; };
  EXPECT_EQ(core::KindOf(PrepareTokenCache(spec).status()), core::ErrorKind::kInterrupted);
}

TEST_F(TextProcessTest, LetsOneOfSeveralProcessesMakeTheCache) {
  const TokenCacheSpec spec = Spec(folder_.Write("d.jsonl", kLine));
  std::vector<pid_t> children;
  for (int i = 0; i < 3; ++i) {
    const pid_t pid = fork();
    if (pid == 0) {
      const auto prepared = PrepareTokenCache(spec);
      _exit(!prepared.ok() ? 9 : prepared->made ? 1 : 0);
    }
    children.push_back(pid);
  }
  int made = 0;
  for (const pid_t pid : children) {
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) <= 1) << status;
    made += WEXITSTATUS(status);
  }
  EXPECT_EQ(made, 1);
}

TEST_F(TextProcessTest, DiesWithItsParent) {
  // The child of our child says its id, and must be gone once our child has been killed.
  const std::string id_file = folder_.path("id");
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const pid_t parent = fork();
  if (parent == 0) {
    const auto session = TextSession::Start(
        {.python = {.interpreter = BITSHARD_PYTHON, .package_root = BITSHARD_SOURCE_DIR},
         .tokenizer = kModel});
    if (!session.ok()) _exit(9);
    std::ofstream(id_file + ".part") << (*session)->process_id();
    std::filesystem::rename(id_file + ".part", id_file);
    pause();
    _exit(0);
  }
  while (!std::filesystem::exists(id_file)) {
    int status = 0;
    ASSERT_EQ(waitpid(parent, &status, WNOHANG), 0) << "the session did not start";
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  pid_t grandchild = 0;
  std::ifstream(id_file) >> grandchild;
  kill(parent, SIGKILL);
  int status = 0;
  ASSERT_EQ(waitpid(parent, &status, 0), parent);
  // Adopted by this process, which therefore can wait for it.
  ASSERT_EQ(waitpid(grandchild, &status, 0), grandchild);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  prctl(PR_SET_CHILD_SUBREAPER, 0);
}

TEST_F(TextProcessTest, EncodesAndDecodes) {
  auto session = TextSession::Start(
      {.python = {.interpreter = BITSHARD_PYTHON, .package_root = BITSHARD_SOURCE_DIR},
       .tokenizer = kModel});
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ((*session)->vocab_size(), 49152);
  EXPECT_THAT((*session)->stop_tokens(), ElementsAre(2));
  const std::vector<int32_t> hello = {19556, 216, 33, 34, 35, 905, 19133, 216, 2};
  EXPECT_EQ((*session)->Encode("Hello 123 world\xc2\xb2 <|im_end|>").value(), hello);
  EXPECT_EQ((*session)->Decode(hello).value(), "Hello 123 world\xc2\xb2 ");
  const std::vector<int32_t> prompt = (*session)->RenderPrompt({{"user", "Hi"}}).value();
  EXPECT_EQ(prompt[0], 1);
  EXPECT_THAT(*(*session)->Decode(prompt), HasSubstr("user\nHi\nassistant\n"));
  const std::string hostile = "a\n\"\\\x01\t\xe2\x80\xa8{}<|im_start|";
  EXPECT_EQ((*session)->Decode((*session)->Encode(hostile).value()).value(), hostile);
  EXPECT_EQ((*session)->Encode("\xff").value(), (*session)->Encode("\xef\xbf\xbd").value());
  EXPECT_THAT((*session)->Encode("").value(), IsEmpty());
  // An error is an answer: the session goes on.
  EXPECT_THAT(std::string((*session)->Decode(std::vector<int32_t>{49152}).status().message()),
              HasSubstr("below 49152"));
  EXPECT_EQ((*session)->Decode(hello).value(), "Hello 123 world\xc2\xb2 ");
}

TEST_F(TextProcessTest, ExportsTheTokenizer) {
  auto session = TextSession::Start(
      {.python = {.interpreter = BITSHARD_PYTHON, .package_root = BITSHARD_SOURCE_DIR},
       .tokenizer = kModel});
  ASSERT_TRUE(session.ok()) << session.status();
  const std::string folder = folder_.path("exported");
  const absl::Status missing = (*session)->Export(folder);
  EXPECT_EQ(core::KindOf(missing), core::ErrorKind::kStorage) << missing;
  std::filesystem::create_directories(folder);
  ASSERT_TRUE((*session)->Export(folder).ok());
  auto again = TextSession::Start(
      {.python = {.interpreter = BITSHARD_PYTHON, .package_root = BITSHARD_SOURCE_DIR},
       .tokenizer = folder});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->RenderPrompt({{"user", "Hi 12"}}).value(),
            (*session)->RenderPrompt({{"user", "Hi 12"}}).value());
}

TEST_F(TextProcessTest, ReportsASessionWhoseChildDied) {
  auto session = TextSession::Start(
      {.python = {.interpreter = BITSHARD_PYTHON, .package_root = BITSHARD_SOURCE_DIR},
       .tokenizer = kModel});
  ASSERT_TRUE(session.ok()) << session.status();
  kill((*session)->process_id(), SIGKILL);
  const absl::Status status = (*session)->Encode("x").status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData);
  EXPECT_THAT(std::string(status.message()), HasSubstr("was killed by signal 9"));
  EXPECT_FALSE((*session)->Encode("x").ok());
}

TEST_F(TextProcessTest, SaysWhyASessionCannotStart) {
  const absl::Status status = TextSession::Start({.python = {.interpreter = BITSHARD_PYTHON,
                                                             .package_root = BITSHARD_SOURCE_DIR},
                                                  .tokenizer = folder_.path("none")})
                                  .status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kData);
  EXPECT_THAT(std::string(status.message()), HasSubstr("none: does not exist"));
}

}  // namespace
}  // namespace bitshard::trainer
