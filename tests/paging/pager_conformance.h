// What every pager must do, on the host and on a device: one suite, instantiated for each tier and
// budget by INSTANTIATE_TEST_SUITE_P(..., PagerConformance, ...).
#ifndef BITSHARD_TESTS_PAGING_PAGER_CONFORMANCE_H_
#define BITSHARD_TESTS_PAGING_PAGER_CONFORMANCE_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "core/rng.h"
#include "paging/paged_buffer.h"
#include "tests/paging/pager_under_test.h"

namespace bitshard::paging {

struct PagerCase {
  std::string name;
  int64_t limit_bytes = 0;    ///< What kPages pages may hold in fast memory.
  int64_t stride_bytes = 0;   ///< What moving a page moves.
  int64_t resident = kPages;  ///< Pages that fit.
  bool one_copy = false;      ///< A page moves: one that was only read has to go back too.
  /// nullptr where the machine has no such tier.
  std::function<std::unique_ptr<PagerUnderTest>(int64_t num_pages)> make;
};

inline void PrintTo(const PagerCase& c, std::ostream* out) { *out << c.name; }

class PagerConformance : public testing::TestWithParam<PagerCase> {
 protected:
  void SetUp() override {
    if (pager_ == nullptr) GTEST_SKIP() << "this machine has no such tier: another one took over";
  }
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

TEST_P(PagerConformance, PagesThatWereOnlyReadAreNotWrittenAgain) {
  for (const bool dirty : {true, false, false}) {
    for (int64_t page = 0; page < kPages; ++page) {
      ASSERT_TRUE(pager_->Acquire(page).ok());
      if (dirty) pager_->Write(page, 1);
      pager_->Expect(page, 1);
      ASSERT_TRUE(pager_->Release(page, dirty).ok());
    }
  }
  pager_->Finish();
  const int64_t times = GetParam().one_copy ? 3 : 1;
  EXPECT_LE(pager_->counters().bytes_written, times * kPages * GetParam().stride_bytes);
}

}  // namespace bitshard::paging

#endif  // BITSHARD_TESTS_PAGING_PAGER_CONFORMANCE_H_
