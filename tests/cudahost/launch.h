// From a launch to the stream: the joint between the shim and the stand-in runtime.
#ifndef BITSHARD_TESTS_CUDAHOST_LAUNCH_H_
#define BITSHARD_TESTS_CUDAHOST_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "tests/cudahost/sched.h"

namespace cudahost {

// What cudaLaunchKernelEx returns. `checked`: the kernel was compiled for the memory checker.
cudaError_t EnqueueGrid(cudaStream_t stream, bool checked, Grid grid);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_LAUNCH_H_
