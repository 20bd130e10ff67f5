#!/usr/bin/env bash
# Starts a program on N ranks with Open MPI, with the settings that bitshard needs.
#
#   mpirun.sh -n N [--threads T] [--dry-run] PROGRAM [ARGS...]
#   mpirun.sh -n N [--threads T] [--dry-run] MPIRUN-OPTIONS... -- PROGRAM [ARGS...]
#
#   mpirun.sh -n 2 bitshard train --config run.yaml
#   mpirun.sh -n 8 --threads 4 --hostfile hosts -- bitshard train --config run.yaml
#
# -n N         number of ranks
# --threads T  CPU threads of each rank; default: OMP_NUM_THREADS if set, else cores / N, at least 1.
#              Must be given (or OMP_NUM_THREADS set) when ranks are spread over hosts: by an option, by
#              OMPI_MCA_orte_default_hostfile, or by the allocation of Slurm, PBS, LSF or Grid Engine.
# --dry-run    print the command and its environment, start nothing
#
# Signals: the first TERM, INT or HUP that this script gets is passed on as SIGUSR1, which ranks take as "finish
# the step, save a checkpoint, exit with 143". The second one, half a second or more after it (`timeout` sends two at
# once), is passed on as TERM: ranks end within 2 s.
# (mpirun itself turns TERM and INT into TERM, then KILL, which leaves no time to save.)
# Exit status: mpirun's, which is that of the first rank that failed; 2 for wrong arguments; 143 also where the first
# signal came before the ranks took it (or they never do), and so ended them.
set -euo pipefail

NAME=${0##*/} # bitshard-mpirun where it is installed

fail() {
  echo "$NAME: $*" >&2
  exit 2
}

usage() { sed -n "2,/^set -/{s/mpirun\.sh/$NAME/;/^#/s/^# \{0,1\}//p}" "$0"; }

# A whole number of at least 1, without leading zeros.
is_count() { [[ $1 =~ ^[1-9][0-9]{0,5}$ ]]; }

ranks=
threads=${OMP_NUM_THREADS:-}
dry_run=0
while (($#)); do
  case $1 in
    -n | -np)
      is_count "${2:-}" || fail "$1: want a number of ranks, got '${2:-}'"
      ranks=$2
      shift 2
      ;;
    --threads)
      is_count "${2:-}" || fail "--threads: want a number of threads, got '${2:-}'"
      threads=$2
      shift 2
      ;;
    --dry-run)
      dry_run=1
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) break ;;
  esac
done
[[ -n $ranks ]] || fail "-n N is missing (the number of ranks); see --help"

# Whether the job was given several hosts without an option saying so: mpirun asks for them by itself.
has_allocated_hosts() {
  [[ -z ${OMPI_MCA_orte_default_hostfile:-} ]] || return 0
  ((${SLURM_JOB_NUM_NODES:-1} <= 1)) || return 0
  local file
  for file in "${PBS_NODEFILE:-}" "${LSB_DJOB_HOSTFILE:-}" "${PE_HOSTFILE:-}"; do
    [[ -r $file ]] || continue
    (($(cut -d ' ' -f 1 "$file" | sort -u | wc -l) <= 1)) || return 0
  done
  return 1
}

# What is left starts with the program, or with options for mpirun that end at "--".
options=()
hosts_given=0
if [[ ${1:-} == -* ]]; then
  while (($#)) && [[ $1 != -- ]]; do
    case $1 in
      -H | -host | --host | -hostfile | --hostfile | -machinefile | --machinefile) hosts_given=1 ;;
    esac
    options+=("$1")
    shift
  done
  (($#)) || fail "put '--' between mpirun's options and the program"
  shift
fi
(($#)) || fail "the program to run is missing; see --help"
if has_allocated_hosts; then hosts_given=1; fi

# odls_base_sigkill_timeout stays at its default of 1 s: it also delays the end of a job in which a rank has died
# (TERM after one timeout, KILL after two), and saving on request needs no longer one thanks to SIGUSR1.
command=(mpirun -n "$ranks" --bind-to none)
# Without OMP_NUM_THREADS, which nproc would take for the number of cores.
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
if ((hosts_given)); then
  [[ -n $threads ]] || fail "ranks on several hosts: give --threads T (or set OMP_NUM_THREADS)"
  command+=(-x OMP_NUM_THREADS)
elif ((ranks > cores)); then
  command+=(--oversubscribe)
else
  command+=(--use-hwthread-cpus)  # nproc counts hardware threads; mpirun by itself takes one rank a core.
fi
if [[ -z $threads ]]; then
  threads=$((cores / ranks > 0 ? cores / ranks : 1))
fi
command+=("${options[@]}" "$@")

# mpirun gives every rank a pseudo terminal, so ranks can't see for themselves whether anybody is watching.
terminal=0
[[ -t 1 ]] && terminal=1
settings=(OMP_NUM_THREADS="$threads" BITSHARD_TERMINAL="$terminal")
if ((EUID == 0)); then
  settings+=(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
fi

if ((dry_run)); then
  printf '%q ' "${settings[@]}" "${command[@]}"
  echo
  exit 0
fi
command -v mpirun > /dev/null || fail "mpirun not found: apt-get install openmpi-bin libopenmpi-dev"

signals=0
first_ms=0
interrupted=0
mpirun_pid=
# Called by the traps.
# shellcheck disable=SC2317
pass_on() {
  local now_ms=$((${EPOCHREALTIME//[^0-9]/} / 1000))
  interrupted=1
  ((signals == 0 || now_ms - first_ms >= 500)) || return 0
  signals=$((signals + 1))
  ((signals > 1)) || first_ms=$now_ms
  mpirun_pid=${mpirun_pid:-${!:-}}  # A signal may come between the start and the line that keeps the number.
  [[ -n $mpirun_pid ]] || exit 143
  if ((signals == 1)); then
    echo "$NAME: asking the ranks to save and stop (a second signal stops them at once)" >&2
    kill -USR1 "$mpirun_pid" 2> /dev/null || true
  else
    kill -TERM "$mpirun_pid" 2> /dev/null || true
  fi
}
trap pass_on TERM INT HUP

# setsid: a terminal's ^C goes to this script only. pdeathsig: if this script is killed, mpirun and its ranks go too.
exec 3<&0
setsid setpriv --pdeathsig TERM -- env "${settings[@]}" "${command[@]}" <&3 3<&- &
mpirun_pid=$!
exec 3<&-

# A trap ends `wait` early; bash keeps the status of a child that has ended meanwhile.
while :; do
  interrupted=0
  status=0
  wait "$mpirun_pid" || status=$?
  ((interrupted)) || break
done
if ((signals == 1 && status == 128 + $(kill -l USR1))); then
  echo "$NAME: the signal came before the ranks could save: it has ended them" >&2
  status=143
fi
exit "$status"
