#!/usr/bin/env bash
# Breaks the CUDA and NCCL code on purpose, a copy of it, and shows which test notices.
#
#   tests/cudahost/mutate.sh                every mutation: at most 15 minutes on 2 cores
#   tests/cudahost/mutate.sh --random N     N of them, drawn anew each time
#   tests/cudahost/mutate.sh NAME...        those, by the names of their patches
#
# Each tests/cudahost/mutations/NAME.patch is one mistake in product code. Its first line says what it breaks, its
# second the test that should notice:
#
#   # What is wrong now.
#   # First: optim_step_cuda_test
#
# That test is built and run first, the others on the stand-in only if it passes. A line for each mutation says
# "caught by TEST" or "SURVIVED". The exit status is 0 only if all were caught: not if one survived, no longer applies
# or does not compile, nor if a test fails without any mutation. What was printed is in build/mutations/NAME.log.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

ROOT=$PWD
PATCHES=$ROOT/tests/cudahost/mutations
WORK=$ROOT/build/mutations
TREE=$WORK/tree
CMAKE=$ROOT/.deps/venv/bin/cmake
CTEST=$ROOT/.deps/venv/bin/ctest

fail() {
  echo "mutate.sh: $*" >&2
  exit 2
}

usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"; }

# A file that did not change keeps its time, so that only the others are compiled again. One that did gets a new time,
# also when it goes back to what it was before a mutation.
copy_tree() {
  local file
  git ls-files --cached --others --exclude-standard | while IFS= read -r file; do
    [[ -f $file ]] || continue
    cmp -s "$file" "$TREE/$file" || install -D -m "$(stat -c %a "$file")" "$file" "$TREE/$file" || exit 1
  done || fail "no copy in $TREE"
  ln -sfn "$ROOT/.deps" "$TREE/.deps"
}

configure() {
  "$CMAKE" -S "$TREE" -B "$WORK/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBITSHARD_BUILD_BENCH=OFF \
    -DBITSHARD_BUILD_EXAMPLES=OFF > "$WORK/configure.log" 2>&1 && return
  cat "$WORK/configure.log" >&2
  fail "no build folder"
}

# Of product code on the stand-in; the stand-in's own tests hold none. Some tests start a target of another name: with
# more ranks.
list_tests() {
  "$CTEST" --test-dir "$WORK/build" -N 2> /dev/null | sed -n 's/^ *Test *#[0-9]*: //p' > "$WORK/all_tests"
  "$CTEST" --test-dir "$WORK/build" -N -L '^cudahost$' 2> /dev/null |
    sed -n 's/^ *Test *#[0-9]*: //p' | grep -v '^cudahost_' > "$WORK/tests"
  local test
  while IFS= read -r test; do
    echo "$test"
    grep -E "^${test}_[0-9]+_ranks$" "$WORK/all_tests"
  done < "$WORK/tests"
}

target_of() { sed -E 's/_[0-9]+_ranks$//' <<< "$1"; }

# builds LOG TEST...
builds() {
  local log=$1 targets
  shift
  mapfile -t targets < <(for test in "$@"; do target_of "$test"; done | sort -u)
  "$CMAKE" --build "$WORK/build" -j "$(nproc)" --target "${targets[@]}" >> "$log" 2>&1
}

# passes LOG TEST: the first failure ends a test, but not one of several processes, where the others would wait.
passes() {
  local fail_fast=1
  [[ $2 =~ _ranks|^optim_nccl ]] && fail_fast=0
  GTEST_FAIL_FAST=$fail_fast "$CTEST" --test-dir "$WORK/build" --output-on-failure --no-tests=error \
    -R "^$2\$" >> "$1" 2>&1 < /dev/null
}

# The copy lies inside of a repository that git must not take it for a part of.
git_apply() { GIT_CEILING_DIRECTORIES=$WORK git -C "$TREE" apply --whitespace=nowarn "$@"; }

# Prints the test that fails, with the mutation in place; 1: none does, 2: it does not compile.
catching_test() {
  local log=$1 first=$2 test
  builds "$log" "$first" || return 2
  passes "$log" "$first" || { echo "$first"; return 0; }
  builds "$log" "${TESTS[@]}" || return 2
  for test in "${TESTS[@]}"; do
    [[ $test == "$first" ]] && continue
    passes "$log" "$test" || { echo "$test"; return 0; }
  done
  return 1
}

# Whether a test passes without a mutation; each is asked once.
declare -A SOUND
is_sound() {
  local test=$1
  if [[ -z ${SOUND[$test]:-} ]]; then
    SOUND[$test]=no
    builds "$WORK/$test.log" "$test" && passes "$WORK/$test.log" "$test" && SOUND[$test]=yes
  fi
  [[ ${SOUND[$test]} == yes ]]
}

# try_mutation NAME: prints its line; 1 unless it was caught.
try_mutation() {
  local name=$1 patch=$PATCHES/$1.patch log=$WORK/$1.log first test status start=$SECONDS
  first=$(first_test "$name")
  printf '%-28s ' "$name"
  if ! git_apply "$patch" > "$log" 2>&1; then
    echo "DOES NOT APPLY: write the patch anew"
    return 1
  fi
  test=$(catching_test "$log" "$first")
  status=$?
  git_apply -R "$patch" || fail "$name cannot be taken back: remove $TREE"
  case $status in
    0)
      if ! is_sound "$test"; then
        echo "NOT SHOWN: $test fails without it too, see $WORK/$test.log"
        return 1
      fi
      echo "caught by $test ($((SECONDS - start)) s)"
      ;;
    1) echo "SURVIVED: $(sed -n '1s/^# //p' "$patch") See $log" ;;
    *) echo "DOES NOT COMPILE: see $log" ;;
  esac
  return "$status"
}

first_test() { sed -n '2s/^# First: //p' "$PATCHES/$1.patch"; }

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

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  usage
  exit
fi
CHOSEN=$(choose "$@") || exit 2
mapfile -t CHOSEN <<< "$CHOSEN"
trap 'echo "mutate.sh: stopped" >&2; exit 130' INT TERM

mkdir -p "$TREE"
copy_tree
configure
mapfile -t TESTS < <(list_tests)

mapfile -t FIRST < <(for name in "${CHOSEN[@]}"; do first_test "$name"; done | sort -u)
for test in "${FIRST[@]}"; do
  [[ " ${TESTS[*]} " == *" $test "* ]] || fail "no test on the stand-in is called \"$test\""
done
echo "${#CHOSEN[@]} mutations; first ${#FIRST[@]} tests without any"
: > "$WORK/build.log"
builds "$WORK/build.log" "${FIRST[@]}" || fail "does not build without a mutation: see $WORK/build.log"
broken=0
for test in "${FIRST[@]}"; do
  is_sound "$test" || { echo "$test FAILS without a mutation: see $WORK/$test.log"; broken=1; }
done
((broken)) && exit 1

caught=0
for name in "${CHOSEN[@]}"; do
  try_mutation "$name" && ((++caught))
done
echo "$caught of ${#CHOSEN[@]} mutations caught in $((SECONDS / 60)) min $((SECONDS % 60)) s"
((caught == ${#CHOSEN[@]}))
