// What every pager must do, on the host and on a device: one suite, instantiated for each tier and
// budget by INSTANTIATE_TEST_SUITE_P(..., PagerConformance, ...).
#ifndef BITSHARD_TESTS_PAGING_PAGER_CONFORMANCE_H_
#define BITSHARD_TESTS_PAGING_PAGER_CONFORMANCE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/rng.h"
#include "paging/paged_buffer.h"

namespace bitshard::paging {

constexpr int64_t kPages = 11;
constexpr int64_t kPageBytes = 4160;  // a multiple of 64, not of the system's pages

/// What a test believes a page to hold: a version number, spread over the page; version 0 is zeros.
inline void Fill(std::span<std::byte> bytes, int64_t page, int64_t version) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = version == 0
                   ? std::byte{0}
                   : static_cast<std::byte>(core::Philox(static_cast<uint64_t>(page),
                                                         static_cast<uint64_t>(version), i / 64)
                                                .word[i % 4]);
  }
}

inline testing::AssertionResult Holds(std::span<const std::byte> bytes, int64_t page,
                                      int64_t version) {
  std::vector<std::byte> want(kPageBytes);
  Fill(want, page, version);
  if (std::equal(bytes.begin(), bytes.end(), want.begin(), want.end()))
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << "page " << page << " does not hold version " << version;
}

/// A pager with the means to look into its acquired pages and to change them. On a device both are
/// put on a stream and return at once: what was seen is checked by Finish.
class PagerUnderTest {
 public:
  virtual ~PagerUnderTest() = default;
  virtual absl::Status BeginWalk() = 0;
  virtual absl::Status EndWalk() = 0;
  virtual absl::Status Acquire(int64_t page) = 0;
  virtual absl::Status Release(int64_t page, bool dirty) = 0;
  virtual void Expect(int64_t page, int64_t version) = 0;
  virtual void Write(int64_t page, int64_t version) = 0;
  virtual void Finish() = 0;
  virtual PagingCounters counters() = 0;
  virtual int64_t num_pages() = 0;
  virtual int64_t page_bytes() = 0;
  virtual int64_t limit_bytes() = 0;
};

struct PagerCase {
  std::string name;
  int64_t limit_bytes = 0;         ///< What kPages pages may hold in fast memory.
  int64_t stride_bytes = 0;        ///< What moving a page moves.
  int64_t resident = kPages;       ///< Pages that fit.
  bool clean_pages_leave = false;  ///< A page that was only read has to be written back too.
  std::function<std::unique_ptr<PagerUnderTest>(int64_t num_pages)> make;
};

class PagerConformance : public testing::TestWithParam<PagerCase> {
 protected:
  std::unique_ptr<PagerUnderTest> pager_ = GetParam().make(kPages);
};

TEST_P(PagerConformance, PagesStartAsZeros) {
  for (const int64_t page : {int64_t{7}, int64_t{0}, kPages - 1}) {
    ASSERT_TRUE(pager_->Acquire(page).ok());
    pager_->Expect(page, 0);
    EXPECT_TRUE(pager_->Release(page, false).ok());
  }
  pager_->Finish();
  EXPECT_EQ(pager_->counters().bytes_read, 0) << "zeros are not read";
  EXPECT_EQ(pager_->counters().bytes_written, 0) << "nor written";
}

TEST_P(PagerConformance, WalksKeepWhatWasWritten) {
  for (int64_t version = 1; version <= 6; ++version) {
    ASSERT_TRUE(pager_->BeginWalk().ok());
    for (int64_t page = 0; page < kPages; ++page) {
      ASSERT_TRUE(pager_->Acquire(page).ok());
      pager_->Expect(page, version - 1);
      pager_->Write(page, version);
      ASSERT_TRUE(pager_->Release(page, true).ok());
    }
    ASSERT_TRUE(pager_->EndWalk().ok());
  }
  pager_->Finish();
}

TEST_P(PagerConformance, AnyOrderInAndOutOfWalksKeepsWhatWasWritten) {
  std::vector<int64_t> version(kPages, 0);
  for (uint64_t i = 0; i < 400; ++i) {
    const core::Philox4 random = core::Philox(11, i, 0);
    if (random.word[2] % 64 == 0) {
      ASSERT_TRUE(pager_->BeginWalk().ok());
    } else if (random.word[2] % 64 == 1) {
      ASSERT_TRUE(pager_->EndWalk().ok());
    }
    const int64_t page = random.word[0] % kPages;
    ASSERT_TRUE(pager_->Acquire(page).ok());
    pager_->Expect(page, version[static_cast<size_t>(page)]);
    const bool dirty = random.word[1] % 3 == 0;
    if (dirty) pager_->Write(page, ++version[static_cast<size_t>(page)]);
    ASSERT_TRUE(pager_->Release(page, dirty).ok());
  }
  pager_->Finish();
  const PagingCounters counters = pager_->counters();
  EXPECT_EQ(counters.hits + counters.faults, 400);
}

TEST_P(PagerConformance, TwoPagesCanBeHeldAtATime) {
  for (int64_t page = 0; page + 1 < kPages; ++page) {
    ASSERT_TRUE(pager_->Acquire(page).ok());
    ASSERT_TRUE(pager_->Acquire(page + 1).ok());
    pager_->Write(page, 5);
    pager_->Write(page + 1, 6);
    pager_->Expect(page, 5);
    EXPECT_TRUE(pager_->Release(page + 1, true).ok());
    EXPECT_TRUE(pager_->Release(page, true).ok());
  }
  pager_->Finish();
}

TEST_P(PagerConformance, HoldsNoMoreThanItSays) {
  EXPECT_EQ(pager_->num_pages(), kPages);
  EXPECT_EQ(pager_->page_bytes(), kPageBytes);
  EXPECT_EQ(pager_->limit_bytes(), GetParam().limit_bytes);
}

TEST_P(PagerConformance, NoPagesAreFine) {
  const auto none = GetParam().make(0);
  EXPECT_TRUE(none->BeginWalk().ok());
  EXPECT_TRUE(none->EndWalk().ok());
  EXPECT_EQ(none->limit_bytes(), 0);
}

TEST_P(PagerConformance, WalksMoveOnlyWhatDoesNotFit) {
  for (int64_t walk = 0; walk < 5; ++walk) {
    EXPECT_TRUE(pager_->BeginWalk().ok());
    for (int64_t page = 0; page < kPages; ++page) {
      EXPECT_TRUE(pager_->Acquire(page).ok());
      pager_->Write(page, walk + 1);
      EXPECT_TRUE(pager_->Release(page, true).ok());
    }
    EXPECT_TRUE(pager_->EndWalk().ok());
  }
  pager_->Finish();
  const PagingCounters counters = pager_->counters();
  const int64_t stride = GetParam().stride_bytes;
  const int64_t streamed = kPages - GetParam().resident;
  EXPECT_EQ(counters.hits + counters.faults, 5 * kPages);
  if (streamed == 0) {
    EXPECT_EQ(counters.bytes_read, 0);
    EXPECT_EQ(counters.bytes_written, 0);
    return;
  }
  // Pages that stay from walk to walk are neither written nor read. One frame passes the others
  // through, up to two more hold what was read ahead.
  EXPECT_GE(counters.bytes_read, 4 * streamed * stride);
  EXPECT_LE(counters.bytes_read, 4 * (streamed + 2) * stride);
  EXPECT_GE(counters.bytes_written, counters.bytes_read);
  EXPECT_LE(counters.bytes_written, 5 * (streamed + 2) * stride);
}

TEST_P(PagerConformance, PagesThatWereOnlyReadAreNotWritten) {
  if (GetParam().clean_pages_leave) GTEST_SKIP() << "has one copy of a page, which moves";
  for (const bool dirty : {true, false, false}) {
    for (int64_t page = 0; page < kPages; ++page) {
      ASSERT_TRUE(pager_->Acquire(page).ok());
      if (dirty) pager_->Write(page, 1);
      pager_->Expect(page, 1);
      ASSERT_TRUE(pager_->Release(page, dirty).ok());
    }
  }
  pager_->Finish();
  EXPECT_LE(pager_->counters().bytes_written, kPages * GetParam().stride_bytes);
}

}  // namespace bitshard::paging

#endif  // BITSHARD_TESTS_PAGING_PAGER_CONFORMANCE_H_
