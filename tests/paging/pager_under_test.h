// A pager with the means to look into its pages, for the suite of all pagers and for the tests of
// single ones.
#ifndef BITSHARD_TESTS_PAGING_PAGER_UNDER_TEST_H_
#define BITSHARD_TESTS_PAGING_PAGER_UNDER_TEST_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
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

}  // namespace bitshard::paging

#endif  // BITSHARD_TESTS_PAGING_PAGER_UNDER_TEST_H_
