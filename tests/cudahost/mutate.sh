#!/usr/bin/env bash
# Breaks the CUDA and NCCL code on purpose, a copy of it, and shows which test notices.
#
#   tests/cudahost/mutate.sh                every mutation: each takes about 10 s of a processor
#   tests/cudahost/mutate.sh --random N     N of them, drawn anew each time
#   tests/cudahost/mutate.sh NAME...        those, by the names of their patches
#
# Each tests/cudahost/mutations/NAME.patch is one mistake in product code. Its first line says what it breaks, its
# second the test that should notice, and where the whole test is long which of its cases (a filter of GoogleTest):
#
#   # What is wrong now.
#   # First: optim_step_cuda_test StepCuda.RoundsStochasticallyAsTheCpu
#
# Those cases are built and run first; only if they pass the whole test, then all others on the stand-in. A line for
# each mutation says "caught by TEST" or "SURVIVED". The exit status is 0 only if all were caught: not if one survived,
# no longer applies or does not compile, nor if a test fails without any mutation. What was printed is in
# build/mutations/NAME.log.
#
# With ccache several mutations are tried at a time, each in a copy of its own (a slot). A copy is built as the preset
# cpu is: ccache has what is not broken, of the other copies and, where that was built with the same CCACHE_BASEDIR and
# CCACHE_NOHASHDIR (as tests/run.sh does), of build/cpu.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

ROOT=$PWD
PATCHES=$ROOT/tests/cudahost/mutations
WORK=$ROOT/build/mutations
CMAKE=$ROOT/.deps/venv/bin/cmake
CTEST=$ROOT/.deps/venv/bin/ctest
MUTATIONS_OF_SLOT=8  # Fewer are tried sooner than another copy is built.

fail() {
  echo "mutate.sh: $*" >&2
  exit 2
}

usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"; }

# The copy that everything below works on.
use_slot() {
  TREE=$WORK/tree$1
  BUILD=$TREE/build/cpu
  export CCACHE_BASEDIR=$TREE CCACHE_NOHASHDIR=1
}

# A file that did not change keeps its time, so that only the others are compiled again. One that did gets a new time,
# also when it goes back to what it was before a mutation.
copy_tree() {
  local file
  mkdir -p "$TREE"
  git ls-files --cached --others --exclude-standard | while IFS= read -r file; do
    [[ -f $file ]] || continue
    cmp -s "$file" "$TREE/$file" || install -D -m "$(stat -c %a "$file")" "$file" "$TREE/$file" || exit 1
  done || fail "no copy in $TREE"
  ln -sfn "$ROOT/.deps" "$TREE/.deps"
}

configure() {
  (cd "$TREE" && "$CMAKE" --preset cpu -DBITSHARD_BUILD_BENCH=OFF -DBITSHARD_BUILD_EXAMPLES=OFF) \
    > "$WORK/configure.log" 2>&1 && return
  cat "$WORK/configure.log" >&2
  fail "no build folder"
}

# Of product code on the stand-in; the stand-in's own tests hold none.
list_tests() {
  "$CTEST" --test-dir "$BUILD" -N -L '^cudahost$' 2> /dev/null |
    sed -n 's/^ *Test *#[0-9]*: //p' | grep -v '^cudahost_' > "$WORK/tests"
}

target_of() {
  case $1 in
    run_device_test) echo bitshard_on_cudahost ;;
    *) sed -E 's/_[0-9]+_ranks$//' <<< "$1" ;;
  esac
}

# builds LOG TEST...
builds() {
  local log=$1 targets
  shift
  mapfile -t targets < <(for test in "$@"; do target_of "$test"; done | sort -u)
  "$CMAKE" --build "$BUILD" -j "$JOBS" --target "${targets[@]}" >> "$log" 2>&1
}

# passes LOG TEST [CASES]: the first failure ends a test, but not one of several processes, where the others would wait.
passes() {
  local fail_fast=1
  [[ $2 =~ _ranks|^optim_nccl|^comm_device ]] && fail_fast=0
  GTEST_FILTER=${3:-*} GTEST_FAIL_FAST=$fail_fast "$CTEST" --test-dir "$BUILD" -V --no-tests=error -R "^$2\$" \
    >> "$1" 2>&1 < /dev/null
}

# The copy lies inside of a repository that git must not take it for a part of.
git_apply() { GIT_CEILING_DIRECTORIES=$WORK git -C "$TREE" apply --whitespace=nowarn "$@"; }

# Prints the test that fails, with the mutation in place; 1: none does, 2: it does not compile.
catching_test() {
  local log=$1 first=$2 cases=$3 test
  builds "$log" "$first" || return 2
  passes "$log" "$first" "$cases" || { echo "$first${cases:+ $cases}"; return 0; }
  [[ -z $cases ]] || passes "$log" "$first" || { echo "$first"; return 0; }
  builds "$log" "${TESTS[@]}" || return 2
  for test in "${TESTS[@]}"; do
    [[ $test == "$first" ]] || passes "$log" "$test" || { echo "$test"; return 0; }
  done
  return 1
}

# is_sound TEST [CASES]: whether they are there and pass without a mutation.
is_sound() {
  local log=$TREE/build/$1.log
  : > "$log"
  if ! { builds "$log" "$1" && passes "$log" "$@"; }; then
    echo "$* FAILS without a mutation: see $log"
  elif grep -q 'Running 0 tests' "$log"; then
    echo "$*: there are no such cases"
  else
    return 0
  fi
  return 1
}

# try_mutation NAME: prints its line; 1 unless it was caught.
try_mutation() {
  local patch=$PATCHES/$1.patch log=$WORK/$1.log first cases test result status start=$SECONDS
  read -r first cases <<< "$(first_of "$1")"
  git_apply "$patch" > "$log" 2>&1 || fail "$1 does not apply: $(< "$log")"
  test=$(catching_test "$log" "$first" "$cases")
  status=$?
  git_apply -R "$patch" || fail "$1 cannot be taken back: remove $TREE"
  case $status in
    0)
      result="caught by $test ($((SECONDS - start)) s)"
      if [[ $test != "$(first_of "$1")" ]]; then  # Those were tried before.
        result=$(is_sound "$test") && result="caught by $test: name it first" || status=1
      fi
      ;;
    1) result="SURVIVED: $(sed -n '1s/^# //p' "$patch") See $log" ;;
    *) result="DOES NOT COMPILE: see $log" ;;
  esac
  printf '%-28s %s\n' "$1" "$result"
  return "$status"
}

# "TEST" or "TEST CASES".
first_of() { sed -n '2s/^# First: //p' "$PATCHES/$1.patch"; }

# Names of the mutations to try.
choose() {
  local all name
  all=$(find "$PATCHES" -name '*.patch' -printf '%f\n' | sed 's/\.patch$//' | sort)
  if (($# == 0)); then
    echo "$all"
  elif [[ $1 == --random ]]; then
    [[ $# == 2 && $2 =~ ^[1-9][0-9]{0,3}$ ]] || fail "--random wants a whole number"
    shuf -n "$2" <<< "$all"
  else
    for name in "$@"; do
      [[ -f $PATCHES/$name.patch ]] || fail "no mutation $name in $PATCHES"
      echo "$name"
    done
  fi
}

# How many copies there are.
count_slots() {
  local slots=$(((${#CHOSEN[@]} + MUTATIONS_OF_SLOT - 1) / MUTATIONS_OF_SLOT))
  command -v ccache > /dev/null || slots=1
  ((slots <= $(nproc))) || slots=$(nproc)
  echo "$slots"
}

# in_slots FUNCTION < LINES: this script, once for each line, in whichever slot is free; 0 if it was 0 for all. In a
# process group of its own, which ends with this one.
in_slots() {
  set -m
  JOBS=$(($(nproc) / SLOTS)) xargs -d '\n' -n 1 -P "$SLOTS" --process-slot-var=MUTATE_SLOT \
    "$ROOT/tests/cudahost/mutate.sh" --in-slot "$1" &
  RUNNING=$!
  set +m
  wait "$RUNNING"
}

stop() {
  [[ -z ${RUNNING:-} ]] || kill -TERM -- "-$RUNNING" 2> /dev/null
  echo "mutate.sh: stopped" >&2
  exit 130
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  usage
  exit
fi
if [[ ${1:-} == --in-slot ]]; then
  use_slot "$MUTATE_SLOT"
  mapfile -t TESTS < "$WORK/tests"
  read -ra arguments <<< "$3"
  "$2" "${arguments[@]}"
  exit
fi
CHOSEN=$(choose "$@") || exit 2
mapfile -t CHOSEN <<< "$CHOSEN"
trap stop INT TERM

JOBS=$(nproc)
SLOTS=$(count_slots)
for ((slot = 0; slot < SLOTS; ++slot)); do
  use_slot "$slot"
  copy_tree
  configure
done
list_tests
FIRST=$(for name in "${CHOSEN[@]}"; do first_of "$name"; done | sort -u)
mapfile -t FIRST_TESTS < <(cut -d ' ' -f 1 <<< "$FIRST" | sort -u)
for test in "${FIRST_TESTS[@]}"; do
  grep -qx "$test" "$WORK/tests" || fail "no test on the stand-in is called \"$test\""
done
for name in "${CHOSEN[@]}"; do
  git_apply --check "$PATCHES/$name.patch" > "$WORK/$name.log" 2>&1 ||
    fail "$name no longer applies, write it anew: $(< "$WORK/$name.log")"
done
echo "${#CHOSEN[@]} mutations in $SLOTS copies; first ${#FIRST_TESTS[@]} tests without any"
for ((slot = 0; slot < SLOTS; ++slot)); do
  use_slot "$slot"
  log=$TREE/build/build.log
  : > "$log"
  builds "$log" "${FIRST_TESTS[@]}" || fail "does not build without a mutation: see $log"
done
in_slots is_sound <<< "$FIRST" || exit 1
in_slots try_mutation < <(printf '%s\n' "${CHOSEN[@]}") && all_caught=1
echo "${#CHOSEN[@]} mutations, $([[ -n ${all_caught:-} ]] && echo "all caught" || echo "NOT all caught")," \
  "in $((SECONDS / 60)) min $((SECONDS % 60)) s"
[[ -n ${all_caught:-} ]]
