// Threads for CPU loops: OpenMP's pool, which LibTorch uses too, so the two never oversubscribe the
// cores.
#ifndef BITSHARD_CORE_PARALLEL_H_
#define BITSHARD_CORE_PARALLEL_H_

#include <cstdint>

#include "absl/functional/function_ref.h"

namespace bitshard::core {

/// Threads that ParallelFor uses from the calling thread. Set once at start (the trainer's
/// threads_per_rank).
void SetNumThreads(int threads);
int NumThreads();

/// Calls body(begin, end) for runs that cover [0, n), each a multiple of `grain` long but the last;
/// at most NumThreads() runs at a time, the caller's among them. Runs the body inline when n <=
/// grain or when already inside a parallel region. Every worker has denormals enabled (MXCSR FTZ
/// and DAZ off) while it runs the body. Which run a thread gets depends on the number of threads,
/// so a body must not depend on where runs are cut.
void ParallelFor(int64_t n, int64_t grain,
                 absl::FunctionRef<void(int64_t begin, int64_t end)> body);

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_PARALLEL_H_
