#include "core/file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bitshard::core {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

class FileTest : public testing::Test {
 protected:
  FileTest() {
    std::string pattern = testing::TempDir() + "bitshard_file_XXXXXX";
    dir_ = mkdtemp(pattern.data());
  }
  ~FileTest() override { fs::remove_all(dir_); }

  std::string Path(const std::string& name) const { return dir_ + "/" + name; }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_)) names.push_back(entry.path().filename());
    return names;
  }
  static void Put(const std::string& path, const std::string& content) {
    std::ofstream(path) << content;
  }

  std::string dir_;
};

using AtomicFileTest = FileTest;
using MappedFileTest = FileTest;
using ReadFileTest = FileTest;

TEST_F(AtomicFileTest, IsThereOnlyAfterCommit) {
  Put(Path("a"), "old");
  auto file = AtomicFile::Create(Path("a"));
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->Write("new ").ok());
  ASSERT_TRUE((*file)->Write("content", 7).ok());
  EXPECT_EQ(*ReadFile(Path("a")), "old");
  EXPECT_EQ((*file)->bytes_written(), 11);
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_EQ(*ReadFile(Path("a")), "new content");
  file->reset();
  EXPECT_THAT(Names(), testing::ElementsAre("a"));
}

TEST_F(AtomicFileTest, LeavesNothingWithoutCommit) {
  {
    auto file = AtomicFile::Create(Path("a"));
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Write("half").ok());
    EXPECT_EQ(Names().size(), 1u);
  }
  EXPECT_THAT(Names(), testing::IsEmpty());
}

TEST_F(AtomicFileTest, LeavesNothingWhenTheRenameFails) {
  ASSERT_TRUE(fs::create_directory(Path("taken")));
  Put(Path("taken/inside"), "x");
  const absl::Status status = WriteFileAtomically(Path("taken"), "content");
  EXPECT_EQ(ExitCode(status), 6);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(Path("taken")), HasSubstr("rename")));
  EXPECT_THAT(Names(), testing::ElementsAre("taken"));
}

TEST_F(AtomicFileTest, DoesNotFollowALinkPutInItsPlace) {
  // Whoever may write the folder could otherwise have us overwrite another file.
  Put(Path("victim"), "precious");
  fs::create_symlink(Path("victim"), Path("a.tmp." + std::to_string(getpid())));
  EXPECT_EQ(ExitCode(AtomicFile::Create(Path("a")).status()), 6);
  EXPECT_EQ(*ReadFile(Path("victim")), "precious");
}

TEST_F(AtomicFileTest, NamesTheFolderThatIsMissing) {
  const absl::Status status = WriteFileAtomically(Path("none/a"), "content");
  EXPECT_EQ(ExitCode(status), 6);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(Path("none/a")), HasSubstr("No such file")));
}

TEST_F(AtomicFileTest, SaysThatTheFileSizeLimitIsReachedAndLeavesNothing) {
  rlimit saved{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &saved), 0);
  const auto saved_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit low = saved;
  low.rlim_cur = 4096;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  // The first write is cut at the limit, which is no error yet: the rest must be tried, and fail.
  const absl::Status status = WriteFileAtomically(Path("a"), std::string(10000, 'x'));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &saved), 0);
  std::signal(SIGXFSZ, saved_handler);
  EXPECT_EQ(ExitCode(status), 6);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(Path("a")), HasSubstr("ulimit -f")));
  EXPECT_THAT(Names(), testing::IsEmpty());
}

TEST(WriteAll, SaysThatTheDiskIsFull) {
  const ScopedFd fd(open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_GE(fd.get(), 0);
  const absl::Status status = WriteAll(fd.get(), "x", 1, "checkpoint/shard-0");
  EXPECT_EQ(ExitCode(status), 6);
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr("checkpoint/shard-0"), HasSubstr("No space left"), HasSubstr("free space")));
}

TEST_F(MappedFileTest, ShowsTheFilesBytesAlsoAfterRelease) {
  std::string content;
  for (int i = 0; i < 50000; ++i) content += static_cast<char>(i % 251);
  ASSERT_TRUE(WriteFileAtomically(Path("a"), content).ok());
  const auto map = MappedFile::Open(Path("a"));
  ASSERT_TRUE(map.ok());
  const auto text = [&] {
    return std::string(reinterpret_cast<const char*>((*map)->bytes().data()),
                       (*map)->bytes().size());
  };
  EXPECT_EQ(text(), content);
  (*map)->Release(100, 40000);
  EXPECT_EQ(text(), content);
  EXPECT_EQ((*map)->path(), Path("a"));
}

TEST_F(MappedFileTest, OfAnEmptyFileIsEmpty) {
  Put(Path("a"), "");
  const auto map = MappedFile::Open(Path("a"));
  ASSERT_TRUE(map.ok());
  EXPECT_TRUE((*map)->bytes().empty());
}

TEST_F(MappedFileTest, RefusesWhatIsNoRegularFileWithoutWaiting) {
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  for (const std::string& path : {Path("fifo"), dir_, std::string("/dev/null"), Path("missing")}) {
    for (const absl::Status& status : {MappedFile::Open(path).status(), ReadFile(path).status()}) {
      EXPECT_EQ(ExitCode(status), 3) << path;
      EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    }
  }
}

TEST_F(ReadFileTest, RefusesMoreThanTheLimitAndNamesBothSizes) {
  Put(Path("a"), "12345");
  EXPECT_EQ(*ReadFile(Path("a"), 5), "12345");
  const absl::Status status = ReadFile(Path("a"), 4).status();
  EXPECT_EQ(ExitCode(status), 3);
  EXPECT_THAT(std::string(status.message()), HasSubstr("5 bytes, want at most 4"));
}

TEST_F(ReadFileTest, EscapesNamesThatATerminalWouldObey) {
  const absl::Status status = ReadFile(Path("\x1B[2J")).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("\\x1b[2J"));
}

TEST_F(FileTest, DirectoriesAreMadeWithTheirParents) {
  EXPECT_TRUE(MakeDirectories(Path("a/b/c")).ok());
  EXPECT_TRUE(MakeDirectories(Path("a/b/c")).ok());
  EXPECT_TRUE(fs::is_directory(Path("a/b/c")));
  Put(Path("file"), "");
  const absl::Status status = MakeDirectories(Path("file/b"));
  EXPECT_EQ(ExitCode(status), 6);
  EXPECT_THAT(std::string(status.message()), HasSubstr(Path("file/b")));
}

TEST_F(FileTest, SyncOfADirectoryFailsWhereThereIsNone) {
  EXPECT_TRUE(SyncDirectory(dir_).ok());
  EXPECT_EQ(ExitCode(SyncDirectory(Path("missing"))), 6);
}

TEST_F(FileTest, NoFileGetsTheNumberOfAClosedStandardDescriptor) {
  for (const int closed : {0, 1, 2}) {
    const pid_t child = fork();
    if (child == 0) {
      for (int fd = 0; fd <= closed; ++fd) close(fd);
      if (!OpenStandardDescriptors().ok()) _exit(1);
      const int file = open(Path("metrics").c_str(), O_WRONLY | O_CREAT, 0600);
      _exit(file > 2 && fcntl(1, F_GETFD) == 0 && write(1, "text", 4) == 4 ? 0 : 2);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << closed << ": " << status;
    EXPECT_EQ(fs::file_size(Path("metrics")), 0u);
  }
}

TEST_F(FileTest, ScopedFdClosesOnceAndMoves) {
  int number = -1;
  {
    ScopedFd fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
    number = fd.get();
    ScopedFd other(std::move(fd));
    EXPECT_EQ(fd.get(), -1);
    EXPECT_EQ(other.get(), number);
    ScopedFd third;
    third = std::move(other);
    EXPECT_EQ(third.get(), number);
    EXPECT_NE(fcntl(number, F_GETFD), -1);
  }
  EXPECT_EQ(fcntl(number, F_GETFD), -1);
}

}  // namespace
}  // namespace bitshard::core
