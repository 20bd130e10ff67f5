#!/usr/bin/env bash
# Prints how many compilers a build should run at once: CMAKE_BUILD_PARALLEL_LEVEL where that is set, else as many as
# there are cores and 2 GB of memory for each (a unit with torch/torch.h takes 1.5 GB).
set -euo pipefail

jobs=${CMAKE_BUILD_PARALLEL_LEVEL:-}
if [[ -z $jobs ]]; then
  # Without OMP_NUM_THREADS, which nproc would take for the number of cores.
  jobs=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
  by_memory=$(awk '/^MemAvailable/ {print int($2 / 2097152)}' /proc/meminfo)
  if ((by_memory < jobs)); then jobs=$((by_memory > 1 ? by_memory : 1)); fi
fi
echo "$jobs"
