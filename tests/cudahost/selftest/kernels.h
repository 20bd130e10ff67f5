// The kernels of the selftests, launched as the product launches its own.
#ifndef BITSHARD_TESTS_CUDAHOST_SELFTEST_KERNELS_H_
#define BITSHARD_TESTS_CUDAHOST_SELFTEST_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"

namespace cudahost::selftest {

// What every kernel gets: device memory of `n` elements each.
struct Buffers {
  const float* in = nullptr;
  float* out = nullptr;
  uint32_t* words = nullptr;
  uint8_t* bytes = nullptr;
  int64_t n = 0;
};

struct Shape {
  dim3 grid;
  dim3 block;
  size_t dynamic_shared_bytes = 0;
};

// Enqueues the kernel of that name; kNotFound where there is none.
absl::Status LaunchPrimitive(std::string_view name, const Shape& shape, const Buffers& buffers,
                             cudaStream_t stream);
absl::Status LaunchFault(std::string_view name, const Shape& shape, const Buffers& buffers,
                         cudaStream_t stream);

// Host code of an instrumented file: what it may do with pinned memory, and not with device memory.
float ReadOnHost(const float* p);

}  // namespace cudahost::selftest

#endif  // BITSHARD_TESTS_CUDAHOST_SELFTEST_KERNELS_H_
