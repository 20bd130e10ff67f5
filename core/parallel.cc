#include "core/parallel.h"

#include <omp.h>

#include <algorithm>

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace bitshard::core {
namespace {

// Clears flush-to-zero and denormals-are-zero for its scope: a library that set them in a shared
// worker thread would change the results of ours.
class DenormalsOn {
 public:
#if defined(__SSE__)
  DenormalsOn() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }
  ~DenormalsOn() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  DenormalsOn() {}
#endif
};

}  // namespace

void SetNumThreads(int threads) { omp_set_num_threads(std::max(threads, 1)); }

int NumThreads() { return omp_get_max_threads(); }

void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t grains = (n + grain - 1) / grain;
  const int64_t workers = omp_in_parallel() ? 1 : std::min<int64_t>(omp_get_max_threads(), grains);
  if (workers == 1) {
    const DenormalsOn scope;
    body(0, n);
    return;
  }
  const int threads = static_cast<int>(workers);
#pragma omp parallel num_threads(threads)
  {
    const DenormalsOn scope;
    const int64_t worker = omp_get_thread_num();
    const int64_t count = omp_get_num_threads();
    const int64_t begin = grains * worker / count * grain;
    const int64_t end = std::min(n, grains * (worker + 1) / count * grain);
    if (begin < end) body(begin, end);
  }
}

}  // namespace bitshard::core
