#include "tests/cudahost/launch.h"

#include <utility>

#include "tests/cudahost/check.h"
#include "tests/cudahost/heap.h"
#include "tests/cudahost/runtime.h"
#include "tests/cudahost/stream.h"
#include "tests/cudahost/symbols.h"

namespace cudahost {

cudaError_t EnqueueGrid(cudaStream_t stream, bool checked, Grid grid) {
  const cudaError_t error =
      CheckLaunch(grid.kernel, grid.grid, grid.block, grid.dynamic_shared_bytes);
  if (error != cudaSuccess) return error;
  SetManagedHooks(OnKernelAccess, OnHostAccess);
  if (!checked) HeapStopTrackingInitialised();
  const std::string what = "kernel " + grid.name;
  return Enqueue(stream, {.what = what, .ready = {}, .run = [grid = std::move(grid)] {
                            RunGrid(grid);
                            return cudaSuccess;
                          }});
}

}  // namespace cudahost
