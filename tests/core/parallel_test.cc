#include "core/parallel.h"

#include <omp.h>

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace bitshard::core {
namespace {

class ParallelForTest : public testing::Test {
 protected:
  ~ParallelForTest() override { SetNumThreads(saved_); }
  int saved_ = NumThreads();
};

TEST_F(ParallelForTest, CoversEachIndexOnceInWholeGrains) {
  for (const int threads : {1, 2, 3, 5}) {
    SetNumThreads(threads);
    EXPECT_EQ(NumThreads(), threads);
    for (const int64_t n : {0, 1, 2, 7, 8, 9, 63, 64, 65, 1000}) {
      for (const int64_t grain : {1, 3, 8, 64, 5000}) {
        std::vector<int> visits(static_cast<size_t>(n), 0);
        std::mutex mutex;
        int runs = 0;
        ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
          const std::lock_guard lock(mutex);
          ++runs;
          EXPECT_LT(begin, end);
          EXPECT_EQ(begin % grain, 0);
          EXPECT_TRUE(end == n || end % grain == 0);
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        for (const int visit : visits) ASSERT_EQ(visit, 1) << n << " " << grain << " " << threads;
        EXPECT_LE(runs, threads);
        EXPECT_EQ(runs == 0, n == 0);
      }
    }
  }
}

TEST_F(ParallelForTest, TakesANonsensicalGrainForOne) {
  int64_t sum = 0;
  SetNumThreads(1);
  ParallelFor(5, 0, [&](int64_t begin, int64_t end) { sum += end - begin; });
  EXPECT_EQ(sum, 5);
}

TEST_F(ParallelForTest, RunsInlineInsideItself) {
  SetNumThreads(2);
  const int saved_levels = omp_get_max_active_levels();
  omp_set_max_active_levels(2);  // OpenMP alone would start threads for the inner loop.
  std::atomic<int> inner_runs = 0;
  std::atomic<int64_t> covered = 0;
  ParallelFor(2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ParallelFor(100, 1, [&](int64_t b, int64_t e) {
        ++inner_runs;
        covered += e - b;
      });
    }
  });
  omp_set_max_active_levels(saved_levels);
  EXPECT_EQ(inner_runs, 2);
  EXPECT_EQ(covered, 200);
}

TEST_F(ParallelForTest, AtLeastOneThreadIsUsed) {
  SetNumThreads(-3);
  EXPECT_EQ(NumThreads(), 1);
}

#if defined(__SSE__)
TEST_F(ParallelForTest, KeepsDenormalsWhateverTheCallerOrALibrarySet) {
  constexpr unsigned kFlushAndDenormalsAreZero = 0x8040;
  SetNumThreads(2);
  const unsigned saved = _mm_getcsr();
  // The pool's threads too, as a library would that shares them.
#pragma omp parallel num_threads(2)
  _mm_setcsr(_mm_getcsr() | kFlushAndDenormalsAreZero);
  for (const int64_t n : {1, 2}) {
    std::vector<float> halves(static_cast<size_t>(n));
    ParallelFor(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const volatile float smallest_normal = 1.17549435e-38f;
        halves[static_cast<size_t>(i)] = smallest_normal * 0.5f;
      }
    });
    const unsigned after = _mm_getcsr();
    _mm_setcsr(saved);
    EXPECT_EQ(after & kFlushAndDenormalsAreZero, kFlushAndDenormalsAreZero)
        << "the caller's setting is kept";
    for (const float half : halves) EXPECT_EQ(half, 5.87747175e-39f);
    _mm_setcsr(after);
  }
#pragma omp parallel num_threads(2)
  _mm_setcsr(saved);
}
#endif

}  // namespace
}  // namespace bitshard::core
