// The suite of all pagers over the host's tiers, then what only the file tier has: errors of the
// disk.
#include "paging/paged_buffer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "tests/paging/pager_conformance.h"

namespace bitshard::paging {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::unique_ptr<PagedBuffer> Make(const PagingOptions& options, int64_t num_pages = kPages) {
  auto buffer = PagedBuffer::Create(num_pages, kPageBytes, options);
  BITSHARD_CHECK(buffer.ok()) << buffer.status().ToString();
  return *std::move(buffer);
}

PagingOptions FileTier(int64_t resident_pages) {
  return {.tier = Tier::kFile,
          .budget_bytes = resident_pages * kPageBytes,
          .directory = testing::TempDir()};
}

class HostPager : public PagerUnderTest {
 public:
  explicit HostPager(std::unique_ptr<PagedBuffer> buffer) : buffer_(std::move(buffer)) {}
  absl::Status BeginWalk() override { return buffer_->BeginWalk(); }
  absl::Status EndWalk() override { return buffer_->EndWalk(); }
  absl::Status Acquire(int64_t page) override {
    const auto bytes = buffer_->Acquire(page);
    if (!bytes.ok()) return bytes.status();
    EXPECT_EQ(static_cast<int64_t>(bytes->size()), kPageBytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes->data()) % 64, 0u);
    acquired_[page] = *bytes;
    return absl::OkStatus();
  }
  absl::Status Release(int64_t page, bool dirty) override {
    acquired_.erase(page);
    return buffer_->Release(page, {.dirty = dirty});
  }
  void Expect(int64_t page, int64_t version) override {
    EXPECT_TRUE(Holds(acquired_.at(page), page, version));
  }
  void Write(int64_t page, int64_t version) override { Fill(acquired_.at(page), page, version); }
  void Finish() override {}
  PagingCounters counters() override { return buffer_->counters(); }
  int64_t num_pages() override { return buffer_->num_pages(); }
  int64_t page_bytes() override { return buffer_->page_bytes(); }
  int64_t limit_bytes() override { return buffer_->resident_limit_bytes(); }

 private:
  std::unique_ptr<PagedBuffer> buffer_;
  std::map<int64_t, std::span<std::byte>> acquired_;
};

PagerCase Case(const std::string& name, const PagingOptions& options) {
  const int64_t resident =
      options.tier == Tier::kHost ? kPages : std::min(kPages, options.budget_bytes / kPageBytes);
  return {.name = name,
          .limit_bytes = resident * kPageBytes,
          .stride_bytes = kPageBytes,
          .resident = resident,
          .make = [options](int64_t num_pages) {
            return std::make_unique<HostPager>(Make(options, num_pages));
          }};
}

INSTANTIATE_TEST_SUITE_P(Host, PagerConformance,
                         testing::Values(Case("Host", {}), Case("FileTwoPages", FileTier(2)),
                                         Case("FileThreePages", FileTier(3)),
                                         Case("FileFivePages", FileTier(5)),
                                         Case("FileEightPages", FileTier(8)),
                                         Case("FileAllPages", FileTier(100))),
                         [](const auto& info) { return info.param.name; });

TEST(FileTier, CleanPagesAreNotWritten) {
  const auto buffer = Make(FileTier(2));
  for (int64_t page = 0; page < kPages; ++page) {
    ASSERT_TRUE(buffer->Acquire(page).ok());
    ASSERT_TRUE(buffer->Release(page, {}).ok());
  }
  EXPECT_EQ(buffer->counters().bytes_written, 0);
}

TEST(FileTier, RefusesABudgetOfLessThanTwoPages) {
  const auto buffer = PagedBuffer::Create(kPages, kPageBytes, FileTier(1));
  EXPECT_EQ(core::KindOf(buffer.status()), core::ErrorKind::kConfig);
  EXPECT_THAT(std::string(buffer.status().message()),
              AllOf(HasSubstr("paging.budget: 4160"), HasSubstr("8320")));
  EXPECT_TRUE(PagedBuffer::Create(1, kPageBytes, FileTier(1)).ok())
      << "one page needs no second frame";
}

TEST(FileTier, NamesADirectoryThatDoesNotExist) {
  PagingOptions options = FileTier(2);
  options.directory = "/nonexistent/folder";
  const auto buffer = PagedBuffer::Create(kPages, kPageBytes, options);
  EXPECT_EQ(core::KindOf(buffer.status()), core::ErrorKind::kConfig);
  EXPECT_THAT(std::string(buffer.status().message()), HasSubstr("/nonexistent/folder"));
}

// The backing file of the only paged buffer alive, through /proc: it has no name of its own any
// more.
std::string BackingFile() {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error);
    if (absl::StrContains(target, "bitshard-paging-")) return entry.path();
  }
  return "";
}

TEST(FileTier, LeavesNothingInTheDirectory) {
  PagingOptions options = FileTier(2);
  options.directory = testing::TempDir() + absl::StrCat("bitshard_empty_", getpid());
  std::filesystem::create_directory(options.directory);
  const absl::Cleanup clean = [&] { std::filesystem::remove_all(options.directory); };
  const auto buffer = Make(options);
  ASSERT_NE(BackingFile(), "");
  EXPECT_EQ(std::filesystem::file_size(BackingFile()), static_cast<uintmax_t>(kPages * kPageBytes));
  EXPECT_TRUE(std::filesystem::is_empty(options.directory));
}

// A buffer of which page 3 has been written and pushed out to the file.
std::unique_ptr<PagedBuffer> BufferWithPage3InFile() {
  auto buffer = Make(FileTier(2));
  for (const int64_t page : {3, 4, 5, 6}) {
    const auto bytes = buffer->Acquire(page);
    EXPECT_TRUE(bytes.ok());
    Fill(*bytes, page, 1);
    EXPECT_TRUE(buffer->Release(page, {.dirty = page == 3}).ok());
  }
  return buffer;
}

void ExpectPage3Fails(PagedBuffer* buffer, const std::string& reason) {
  const absl::Status status = buffer->Acquire(3).status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kStorage) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("page 3"), HasSubstr(reason)));
  EXPECT_EQ(buffer->Acquire(0).status(), status) << "a buffer that has failed stays so";
  EXPECT_EQ(buffer->EndWalk(), status);
}

TEST(FileTier, FindsAnyFlippedBit) {
  for (const int64_t bit : {int64_t{0}, int64_t{8 * 2000 + 3}, 8 * kPageBytes - 1}) {
    const auto buffer = BufferWithPage3InFile();
    const int fd = open(BackingFile().c_str(), O_RDWR);
    ASSERT_GE(fd, 0);
    unsigned char byte = 0;
    ASSERT_EQ(pread(fd, &byte, 1, 3 * kPageBytes + bit / 8), 1);
    byte = static_cast<unsigned char>(byte ^ (1u << (bit % 8)));
    ASSERT_EQ(pwrite(fd, &byte, 1, 3 * kPageBytes + bit / 8), 1);
    close(fd);
    ExpectPage3Fails(buffer.get(), "checksum differs");
  }
}

TEST(FileTier, FindsATruncatedFile) {
  const auto buffer = BufferWithPage3InFile();
  std::filesystem::resize_file(BackingFile(), 3 * kPageBytes + 100);
  ExpectPage3Fails(buffer.get(), "the file ends before it");
}

TEST(FileTier, SaysWhatAFullDiskLacks) {
  // A mount namespace of this test's own, with a file system of 64 KiB.
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    GTEST_SKIP() << "needs to mount a file system (root): " << std::strerror(errno);
  }
  const std::string directory = testing::TempDir() + absl::StrCat("bitshard_full_disk_", getpid());
  std::filesystem::create_directories(directory);
  const absl::Cleanup clean = [&] { std::filesystem::remove(directory); };
  if (mount("tmpfs", directory.c_str(), "tmpfs", 0, "size=65536") != 0) {
    GTEST_SKIP() << "needs to mount a file system: " << std::strerror(errno);
  }
  PagingOptions options = FileTier(2);
  options.directory = directory;
  const absl::Status status = PagedBuffer::Create(100, kPageBytes, options).status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kStorage) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("needs 416000 bytes"), HasSubstr("has 65536 free")));
  EXPECT_TRUE(std::filesystem::is_empty(directory));
  EXPECT_TRUE(PagedBuffer::Create(10, kPageBytes, options).ok());
  umount(directory.c_str());
}

TEST(FileTier, SaysThatTheFileSizeLimitIsTooLow) {
  rlimit saved{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &saved), 0);
  const rlimit low{.rlim_cur = 10000, .rlim_max = saved.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  const absl::Status status = PagedBuffer::Create(kPages, kPageBytes, FileTier(2)).status();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &saved), 0);
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kStorage);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("10000 bytes"), HasSubstr("ulimit -f")));
}

TEST(HostTier, SaysHowMuchMemoryIsMissing) {
  const absl::Status status = PagedBuffer::Create(int64_t{1} << 40, 1 << 20, {}).status();
  EXPECT_EQ(core::KindOf(status), core::ErrorKind::kMemory);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1152921504606846976 bytes"));
}

}  // namespace
}  // namespace bitshard::paging
