#!/usr/bin/env bash
# Runs a benchmark.
#
#   bench/run.sh NAME [ARGS...]
#
# NAME is a folder of bench/: one with a run.py is started with Python (peers and ratios, such as qlora and optim); one
# of google-benchmark is built and run. ARGS go to it. Without NAME: lists what there is.
# Installs what is missing first, as tests/run.sh does.
set -euo pipefail
cd "$(dirname "$0")/.."

list() {
  local folder
  for folder in bench/*/; do
    basename "$folder"
  done
}

if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
  sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
  echo "Benchmarks: $(list | paste -sd ' ')"
  exit 0
fi
name=$1
shift
[[ $name != */* && -d bench/$name ]] || {
  echo "bench/run.sh: no benchmark '$name'; there are: $(list | paste -sd ' ')" >&2
  exit 2
}

launch/setup.sh --tests
CMAKE_BUILD_PARALLEL_LEVEL=$(launch/build_jobs.sh)
export CMAKE_BUILD_PARALLEL_LEVEL
.deps/venv/bin/cmake --preset cpu > /dev/null
if [[ -e bench/$name/run.py ]]; then
  target=bitshard
  [[ ! -e bench/$name/CMakeLists.txt ]] || target="${name}_bench"
  .deps/venv/bin/cmake --build build/cpu --target "$target"
  exec .deps/venv/bin/python "bench/$name/run.py" "$@"
fi
.deps/venv/bin/cmake --build build/cpu --target "${name}_bench"
exec "build/cpu/bench/$name/${name}_bench" "$@"
