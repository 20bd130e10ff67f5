// One suite over every tier and budget, then what only the file tier has: errors of the disk.
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

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error.h"
#include "core/rng.h"

namespace bitshard::paging {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kPages = 11;
constexpr int64_t kPageBytes = 4160;  // a multiple of 64, not of the system's pages

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

// What the test believes a page to hold: a version number, spread over the page.
void Fill(std::span<std::byte> bytes, int64_t page, int64_t version) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = version == 0
                   ? std::byte{0}
                   : static_cast<std::byte>(core::Philox(static_cast<uint64_t>(page),
                                                         static_cast<uint64_t>(version), i / 64)
                                                .word[i % 4]);
  }
}

testing::AssertionResult Holds(std::span<const std::byte> bytes, int64_t page, int64_t version) {
  std::vector<std::byte> want(kPageBytes);
  Fill(want, page, version);
  if (std::equal(bytes.begin(), bytes.end(), want.begin(), want.end()))
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << "page " << page << " does not hold version " << version;
}

struct Case {
  std::string name;
  PagingOptions options;
};

class PagedBufferConformance : public testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Tiers, PagedBufferConformance,
                         testing::Values(Case{"Host", {}}, Case{"FileTwoPages", FileTier(2)},
                                         Case{"FileThreePages", FileTier(3)},
                                         Case{"FileFivePages", FileTier(5)},
                                         Case{"FileAllPages", FileTier(100)}),
                         [](const auto& info) { return info.param.name; });

TEST_P(PagedBufferConformance, PagesStartAsZeros) {
  const auto buffer = Make(GetParam().options);
  for (const int64_t page : {int64_t{7}, int64_t{0}, kPages - 1}) {
    const auto bytes = buffer->Acquire(page);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_EQ(static_cast<int64_t>(bytes->size()), kPageBytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes->data()) % 64, 0u);
    EXPECT_TRUE(Holds(*bytes, page, 0));
    EXPECT_TRUE(buffer->Release(page, {}).ok());
  }
  EXPECT_EQ(buffer->counters().bytes_read, 0) << "zeros are not read";
}

TEST_P(PagedBufferConformance, WalksKeepWhatWasWritten) {
  const auto buffer = Make(GetParam().options);
  for (int64_t version = 1; version <= 6; ++version) {
    ASSERT_TRUE(buffer->BeginWalk().ok());
    for (int64_t page = 0; page < kPages; ++page) {
      const auto bytes = buffer->Acquire(page);
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      ASSERT_TRUE(Holds(*bytes, page, version - 1));
      Fill(*bytes, page, version);
      ASSERT_TRUE(buffer->Release(page, {.dirty = true}).ok());
    }
    ASSERT_TRUE(buffer->EndWalk().ok());
  }
}

TEST_P(PagedBufferConformance, AnyOrderOutsideOfWalksKeepsWhatWasWritten) {
  const auto buffer = Make(GetParam().options);
  std::vector<int64_t> version(kPages, 0);
  for (uint64_t i = 0; i < 400; ++i) {
    const core::Philox4 random = core::Philox(11, i, 0);
    if (random.word[2] % 64 == 0) {
      ASSERT_TRUE(buffer->BeginWalk().ok());
    } else if (random.word[2] % 64 == 1) {
      ASSERT_TRUE(buffer->EndWalk().ok());
    }
    const int64_t page = random.word[0] % kPages;
    const auto bytes = buffer->Acquire(page);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    ASSERT_TRUE(Holds(*bytes, page, version[static_cast<size_t>(page)])) << "access " << i;
    const bool dirty = random.word[1] % 3 == 0;
    if (dirty) Fill(*bytes, page, ++version[static_cast<size_t>(page)]);
    ASSERT_TRUE(buffer->Release(page, {.dirty = dirty}).ok());
  }
  const PagingCounters counters = buffer->counters();
  EXPECT_EQ(counters.hits + counters.faults, 400);
}

TEST_P(PagedBufferConformance, TwoPagesCanBeHeldAtATime) {
  const auto buffer = Make(GetParam().options);
  for (int64_t page = 0; page + 1 < kPages; ++page) {
    const auto first = buffer->Acquire(page);
    const auto second = buffer->Acquire(page + 1);
    ASSERT_TRUE(first.ok() && second.ok());
    Fill(*first, page, 5);
    Fill(*second, page + 1, 6);
    EXPECT_TRUE(Holds(*first, page, 5));
    EXPECT_TRUE(buffer->Release(page + 1, {.dirty = true}).ok());
    EXPECT_TRUE(buffer->Release(page, {.dirty = true}).ok());
  }
}

TEST_P(PagedBufferConformance, HoldsNoMoreThanItSays) {
  const auto buffer = Make(GetParam().options);
  EXPECT_EQ(buffer->num_pages(), kPages);
  EXPECT_EQ(buffer->page_bytes(), kPageBytes);
  if (GetParam().options.tier == Tier::kHost) {
    EXPECT_EQ(buffer->resident_limit_bytes(), kPages * kPageBytes);
  } else {
    EXPECT_EQ(buffer->resident_limit_bytes(),
              std::min(kPages * kPageBytes, GetParam().options.budget_bytes));
  }
}

TEST_P(PagedBufferConformance, NoPagesAreFine) {
  const auto buffer = Make(GetParam().options, 0);
  EXPECT_TRUE(buffer->BeginWalk().ok());
  EXPECT_TRUE(buffer->EndWalk().ok());
}

// Every page is dirtied in each walk.
PagingCounters CountersOfWalks(int64_t resident_pages, int64_t walks) {
  const auto buffer = Make(FileTier(resident_pages));
  for (int64_t walk = 0; walk < walks; ++walk) {
    EXPECT_TRUE(buffer->BeginWalk().ok());
    for (int64_t page = 0; page < kPages; ++page) {
      EXPECT_TRUE(buffer->Acquire(page).ok());
      EXPECT_TRUE(buffer->Release(page, {.dirty = true}).ok());
    }
    EXPECT_TRUE(buffer->EndWalk().ok());
  }
  return buffer->counters();
}

TEST(FileTier, MovesOnlyWhatDoesNotFit) {
  const PagingCounters all = CountersOfWalks(kPages, 4);
  EXPECT_EQ(all.bytes_read, 0);
  EXPECT_EQ(all.bytes_written, 0);
  EXPECT_EQ(all.hits + all.faults, 4 * kPages);

  // Pages that stay from walk to walk are neither written nor read. One frame passes the others
  // through, up to two more hold what was read ahead.
  for (const int64_t resident : {2, 3, 5, 8}) {
    const PagingCounters some = CountersOfWalks(resident, 5);
    const int64_t streamed = kPages - resident;
    EXPECT_GE(some.bytes_read, 4 * streamed * kPageBytes) << resident;
    EXPECT_LE(some.bytes_read, 4 * (streamed + 2) * kPageBytes) << resident;
    EXPECT_GE(some.bytes_written, some.bytes_read) << resident;
    EXPECT_LE(some.bytes_written, 5 * (streamed + 2) * kPageBytes) << resident;
  }
}

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
