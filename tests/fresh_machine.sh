#!/usr/bin/env bash
# Runs commands in a fresh clone on a fresh Debian 12: a minimal system made by debootstrap, entered by chroot.
#
#   tests/fresh_machine.sh [--dir DIR] [COMMAND...]
#
# Each COMMAND is one shell command, run in the clone of this tree's HEAD; without one: launch/quickstart.sh twice (the
# second time without a network), then tests/run.sh. Prints each one's wall time and exit status at the end. Needs root
# and debootstrap.
# DIR (default /tmp/bitshard-fresh-machine) is kept, so that a later call goes on with the same system and clone
# (brought to HEAD): remove it for a new machine. Network settings are copied from this machine: the package mirror,
# name servers, certificates, and pip's settings.
set -euo pipefail

# This machine's certificates; beside Debian's file, which the package ca-certificates writes anew.
CERTIFICATES=/etc/fresh-machine-certificates.crt

fail() {
  echo "fresh_machine.sh: $*" >&2
  exit 2
}

# Runs inside the new system: each argument is a command.
run_commands() {
  local command start status failed=0 report=""
  cd /srv/bitshard
  for command in "$@"; do
    echo "=== $command"
    start=$SECONDS
    status=0
    bash -c "$command" < /dev/null || status=$?
    report+="$((SECONDS - start)) s, exit status $status: $command"$'\n'
    ((status == 0)) || failed=1
  done
  printf '=== a fresh Debian 12, %s cores\n%s' "$(nproc)" "$report"
  return "$failed"
}

# The second half, in its own mount and process namespaces: the mounts go with them.
enter() {
  local root=$1
  shift
  mount --bind "$root" "$root"  # Tests that mount want / to be a mount point, as it is on any machine.
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount --make-rslave "$root/dev"
  mount -t sysfs -o ro sysfs "$root/sys"
  local settings=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8) name
  [[ ! -e $root$CERTIFICATES ]] || settings+=("PIP_CERT=$CERTIFICATES")
  while IFS= read -r name; do
    settings+=("$name=${!name}")
  done < <(compgen -e | grep -E '^(PIP_(EXTRA_)?INDEX_URL|PIP_TRUSTED_HOST|[a-zA-Z]+_(proxy|PROXY))$' || true)
  exec chroot "$root" /usr/bin/env -i "${settings[@]}" \
    /bin/bash -c "$(declare -f run_commands); run_commands \"\$@\"" bash "$@"
}

if [[ ${1:-} == --enter ]]; then
  shift
  enter "$@"
fi

dir=/tmp/bitshard-fresh-machine
case ${1:-} in
  --dir)
    dir=${2:?--dir: want a folder}
    shift 2
    ;;
  -h | --help)
    sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
esac
((EUID == 0)) || fail "chroot needs root"
command -v debootstrap > /dev/null || fail "debootstrap not found: apt-get install debootstrap"
# A second run needs no network, so it gets none but the loopback device, which Open MPI wants and which starts down
# (SIOCSIFFLAGS; a minimal system has no `ip`).
lo_up='import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 1))'
(($#)) || set -- launch/quickstart.sh "unshare --net bash -c 'python3 -c \"\$1\" && launch/quickstart.sh' bash '$lo_up'" \
  tests/run.sh
tree=$(cd "$(dirname "$0")/.." && pwd)
root=$dir/root

if [[ ! -e $dir/made ]]; then
  rm -rf "$root"
  mkdir -p "$root"
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | head -n 1)
  debootstrap --variant=minbase bookworm "$root" "${mirror:-http://deb.debian.org/debian}" > "$dir/debootstrap.log" ||
    fail "debootstrap failed; see $dir/debootstrap.log"
  rm -f "$root/etc/apt/sources.list"
  [[ ! -e /etc/ssl/certs/ca-certificates.crt ]] || cp /etc/ssl/certs/ca-certificates.crt "$root$CERTIFICATES"
  for path in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/apt.conf.d \
    /etc/resolv.conf /etc/hosts /etc/pip.conf; do
    if [[ -e $path ]]; then
      mkdir -p "$root$(dirname "$path")"
      cp -aL --no-target-directory "$path" "$root$path"
    fi
  done
  # Hooks of this machine that need its programs.
  rm -f "$root"/etc/apt/apt.conf.d/{20packagekit,50appstream,70debconf,20listchanges}
  touch "$dir/made"
fi
if [[ ! -e $root/srv/bitshard ]]; then
  git clone -q --no-hardlinks "$tree" "$root/srv/bitshard"
else
  git -C "$root/srv/bitshard" fetch -q "$tree" HEAD
  git -C "$root/srv/bitshard" checkout -q --detach FETCH_HEAD
fi

exec unshare --mount --pid --fork --kill-child "$0" --enter "$root" "$@"
