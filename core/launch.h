// How every CUDA kernel is launched and how it declares shared memory. Only `.cu` files include
// this.
//
//   BITSHARD_RETURN_IF_ERROR(
//       core::Launch("quantize", QuantizeKernel<float>, grid, block, smem, stream, x, n));
//
// Kernels are never started with <<<>>> and never declare bare __shared__ variables: a host
// compiler can then compile the same file, and a stand-in runtime can execute it.
#ifndef BITSHARD_CORE_LAUNCH_H_
#define BITSHARD_CORE_LAUNCH_H_

#include <cuda_runtime.h>

#include <cstddef>

#include "absl/status/status.h"
#include "core/cuda_status.h"

#ifndef BITSHARD_SHARED
/// Declares a block-shared variable. `type` is one name (alias an array struct), so that a host
/// compiler can replace the declaration.
#define BITSHARD_SHARED(type, name) __shared__ type name
#endif

#ifndef BITSHARD_DYN_SHARED
/// Declares `name`, a pointer to the block's dynamic shared memory, 16-byte aligned. Its size is
/// the launch's.
#define BITSHARD_DYN_SHARED(type, name)                                    \
  extern __shared__ __align__(16) unsigned char bitshard_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(bitshard_dynamic_shared)
#endif

#ifndef BITSHARD_LAUNCH_KERNEL
/// The launch itself; a stand-in takes the name for its reports.
#define BITSHARD_LAUNCH_KERNEL(name, config, kernel, ...) \
  cudaLaunchKernelEx(config, kernel, __VA_ARGS__)
#endif

namespace bitshard::core {

/// A fixed array for BITSHARD_SHARED:
///   using Table = SharedArray<float, 256>;
///   BITSHARD_SHARED(Table, table);
template <class T, size_t N>
struct SharedArray {
  T at[N];
};

/// Enqueues `kernel` on `stream`; returns before it has run. Errors: kInternal with the kernel's
/// name when the launch is refused; what fails while the kernel runs surfaces where the stream is
/// synchronised.
template <class... P, class... A>
absl::Status Launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block,
                    size_t shared_bytes, cudaStream_t stream, A&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return CudaStatus(BITSHARD_LAUNCH_KERNEL(name, &config, kernel, static_cast<P>(args)...), name,
                    __FILE__, __LINE__);
}

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_LAUNCH_H_
