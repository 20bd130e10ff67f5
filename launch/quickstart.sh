#!/usr/bin/env bash
# From a fresh clone to a finetuned model: installs what is missing, builds, finetunes SmolLM2-135M-Instruct on the
# Jargon File with mpirun on two ranks, and shows the held-out loss and three answers before and after.
#
#   launch/quickstart.sh
#
# At most 20 minutes on 2 cores, of which training at most 5; no GPU needed. It can be stopped and run again at any
# point and goes on where it was: training from its newest checkpoint. Remove runs/quickstart to train anew.
set -euo pipefail
cd "$(dirname "$0")/.."

CONFIG=configs/quickstart.yaml
RUN=runs/quickstart
BITSHARD=build/cpu/trainer/bitshard
CMAKE=.deps/venv/bin/cmake

if (($#)); then
  sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
  [[ $1 == -h || $1 == --help ]]
  exit
fi

say() { printf '\n=== %s\n' "$*"; }

# on_ranks COMMAND...: bitshard on two ranks, which share the cores; if this script dies, they save and stop too.
on_ranks() { setpriv --pdeathsig TERM launch/mpirun.sh -n 2 "$BITSHARD" "$@"; }

stopped() {
  echo "quickstart: stopped; run launch/quickstart.sh again to go on" >&2
  exit 130
}
trap stopped INT

say "1/4 setup: what is missing (3 to 10 minutes on a fresh machine, nothing on the second run)"
launch/setup.sh

say "2/4 build: the program bitshard (about 3 minutes on 2 cores, nothing on the second run)"
CMAKE_BUILD_PARALLEL_LEVEL=$(launch/build_jobs.sh)
export CMAKE_BUILD_PARALLEL_LEVEL
mkdir -p build
"$CMAKE" --preset cpu > build/configure.log 2>&1 || {
  cat build/configure.log
  exit 1
}
"$CMAKE" --build build/cpu --target bitshard

say "3/4 the base model's held-out loss without quantisation, for comparison (about 1 minute)"
mkdir -p "$RUN"
if [[ ! -s $RUN/unquantised.txt ]]; then
  on_ranks evaluate --config "$CONFIG" --set adapter=lora --set load_in_4bit=false | tee "$RUN/unquantised.part"
  mv "$RUN/unquantised.part" "$RUN/unquantised.txt"
fi

say "4/4 finetuning: QLoRA on 2 ranks (about 4 minutes; ^C saves a checkpoint and stops)"
# A run that was complete before has nothing to train and prints no answers: they are shown from its files.
shown=()
[[ ! -e $RUN/summary.json ]] || shown=(--answers)
status=0
on_ranks train --config "$CONFIG" || status=$?
((status != 143)) || stopped
((status == 0)) || exit "$status"

say "the result: $RUN"
/usr/bin/python3 launch/show_run.py "${shown[@]}" "$RUN"
