#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: about 40 minutes on 2 cores from a fresh clone.
#
#   tests/run.sh           what CI runs
#   tests/run.sh --all     also what takes longer (200 kills at random moments, all mutations of the CUDA code: about an
#                          hour more). The same as BITSHARD_TEST_ALL=1 in the environment.
#
# Five parts: the tests of the CPU build (the checks of the source tree and the CUDA code on its stand-in among them);
# six random mutations of the CUDA code, which these tests must notice; the readers of files under AddressSanitizer with
# mutated inputs; the CUDA sources compiled and linked; a summary. The last line is
#   N passed, N failed, N skipped
# and the exit status is 0 only if nothing failed. It can be stopped and run again at any point.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

CMAKE=.deps/venv/bin/cmake
CTEST=.deps/venv/bin/ctest
RESULTS=build/test-results

if [[ ${1:-} == --all ]]; then
  export BITSHARD_TEST_ALL=1
  shift
fi
if (($#)); then
  sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
  [[ $1 == -h || $1 == --help ]]
  exit
fi
# So that tests/cudahost/mutate.sh, which builds copies of this tree, has from ccache what it did not break.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
trap 'echo "tests/run.sh: stopped; run it again to go on" >&2; exit 130' INT TERM

say() { echo "=== $* ($((SECONDS / 60)) min $((SECONDS % 60)) s so far)"; }

# build PRESET ARGS...: what can be built is built, so that its tests run even if something else is broken.
build() {
  local preset=$1
  shift
  "$CMAKE" --build "build/$preset" "$@" -- -k 0 || echo "$preset" >> "$RESULTS/failed-builds"
}

configure() {
  "$CMAKE" --preset "$1" "${@:2}" > "$RESULTS/$1-configure.log" 2>&1 && return
  cat "$RESULTS/$1-configure.log"
  echo "$1" >> "$RESULTS/failed-builds"
  return 1
}

# run_tests PRESET CTEST-ARGS...
run_tests() {
  local preset=$1
  shift
  "$CTEST" --test-dir "build/$preset" --output-on-failure --no-tests=error -j "$CMAKE_BUILD_PARALLEL_LEVEL" "$@" \
    --test-output-size-passed 4000000 --test-output-size-failed 4000000 \
    --output-junit "$PWD/$RESULTS/$preset.xml" < /dev/null
}

# build_and_run_labelled PRESET LABEL CMAKE-ARGS...: of this preset only the tests with a label that matches. A test
# is called as its target.
build_and_run_labelled() {
  local preset=$1 label="^($2)\$" targets
  shift 2
  configure "$preset" "$@" || return
  mapfile -t targets < <("$CTEST" --test-dir "build/$preset" -N -L "$label" | sed -n 's/^ *Test *#[0-9]*: //p')
  build "$preset" --target "${targets[@]}"
  run_tests "$preset" -L "$label"
}

say "setup"
if ! launch/setup.sh --tests; then
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
fi
rm -rf "$RESULTS"
mkdir -p "$RESULTS"
CMAKE_BUILD_PARALLEL_LEVEL=$(launch/build_jobs.sh)
export CMAKE_BUILD_PARALLEL_LEVEL

say "CPU build: about 20 minutes on 2 cores, seconds if nothing changed"
if configure cpu; then
  build cpu
  say "tests of the CPU build: about 15 minutes"
  left_out='fuzz'  # Those run under AddressSanitizer.
  [[ ${BITSHARD_TEST_ALL:-} == 1 ]] || left_out+='|long'
  run_tests cpu -LE "^($left_out)\$"
fi
say "readers under AddressSanitizer: about 10 minutes"
build_and_run_labelled asan 'fuzz|asan' -DBITSHARD_BUILD_BENCH=OFF -DBITSHARD_BUILD_EXAMPLES=OFF
say "CUDA sources, compiled and linked: about 10 minutes"
build_and_run_labelled cuda cuda -DBITSHARD_BUILD_BENCH=OFF -DBITSHARD_BUILD_EXAMPLES=OFF
say "summary"
.deps/venv/bin/python tests/summarize.py "$RESULTS"
