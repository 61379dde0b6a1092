#!/bin/sh
# What `make demo` does: says what it is going to do, looks for everything that
# is missing, installs, builds, makes the base image, starts a mesh of three
# nodes on this machine and runs examples/square.py on it. The mesh stays up.
#
# Run it as yourself (sudo is asked for where root is needed), with sudo, or as
# root. What is built belongs to you; only nodes and containers run as root.
#
#	BEAM_DEMO_DIR=DIR BEAM_DEMO_NAME=NAME tools/demo.sh   # a mesh beside another
set -eu
cd "$(dirname "$0")/.."
repo=$PWD
began=$(date +%s)

NODES=3
GPUS=RTX4090:1 # simulated, at node 2
dir=${BEAM_DEMO_DIR:-/var/lib/beammesh-dev}
name=${BEAM_DEMO_NAME:-beamdev}
which=
[ "$dir" = /var/lib/beammesh-dev ] || which=" --dir $dir"
venv=$repo/.cache/venv
base=$repo/.cache/base
logs=$repo/.cache/demo

# --- who builds, and how root is reached --------------------------------------

# sudo resets PATH: look where Go usually lies, too.
for d in /usr/local/go/bin /usr/lib/go/bin /snap/bin "${HOME:-/}/go/bin" /usr/local/sbin /usr/sbin /sbin; do
	case :$PATH: in *":$d:"*) ;; *) [ -d "$d" ] && PATH=$PATH:$d ;; esac
done
export PATH

builder= # who builds, when it is not who runs this
sudo=    # how a command of root begins
if [ "$(id -u)" != 0 ]; then
	sudo=sudo
elif [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ] && sudo -u "$SUDO_USER" test -w . 2>/dev/null; then
	builder=$SUDO_USER
	theirs=$(sudo -u "$builder" -i sh -c 'command -v go' 2>/dev/null || true)
	[ -z "$theirs" ] || PATH=$(dirname "$theirs"):$PATH
fi
as_builder() {
	if [ -n "$builder" ]; then
		sudo -u "$builder" -H env "PATH=$PATH" "$@"
	else
		"$@"
	fi
}
say=$sudo # and how people type it
[ -z "$builder" ] || say=sudo
as_root() { $sudo "$@"; }

# --- 1. the plan, and what is missing ------------------------------------------

packages=$(tools/setup.sh --missing)
cold=
[ -e bin/beam ] || cold=1
expect="20 s: everything is there already"
if [ -n "$packages$cold" ] || [ ! -e "$venv/bin/python" ]; then
	expect="5 to 10 minutes on two cores the first time, 20 s later"
fi
cat <<EOF
BeamMesh demo: three nodes on this machine, one Python function.

  OS packages  ${packages:-nothing to install}
  build        bin/, build/out/, runtime/assets/embedded/, .cache/ here; Go's own caches
  base image   $base: about 200 MB of Debian packages
  mesh         $dir, namespaces and bridge $name, one nftables table, cgroups, /run/beam
  time         $expect
  undo         ${say:+$say }bin/beam dev down$which, then ${say:+$say }make clean${packages:+, then apt-get remove the packages above}

EOF

problems=
lacks() { problems="$problems
  - $1
      $2"; }
[ "$(uname -s)" = Linux ] || lacks "this is $(uname -s); nodes with containers need Linux" "use a Linux machine or virtual machine"
command -v git >/dev/null || lacks "git" "apt-get install git"
command -v python3 >/dev/null || lacks "Python 3" "apt-get install python3 python3-venv"
if ! command -v go >/dev/null; then
	lacks "Go 1.26" "download Go 1.26, unpack it to /usr/local/go, put /usr/local/go/bin into PATH"
elif ! gofail=$(as_builder go env GOVERSION 2>&1); then
	lacks "Go 1.26; there is: $(echo "$gofail" | tail -n 1)" "download Go 1.26, unpack it to /usr/local/go, put /usr/local/go/bin into PATH"
fi
[ -z "$sudo" ] || command -v sudo >/dev/null || lacks "root, or sudo" "run it as root: su -c 'make demo'"
[ -z "$packages" ] || command -v apt-get >/dev/null ||
	lacks "apt-get, to install: $packages" "install the same programs with your system's package manager; the base image needs mmdebstrap"
as_builder test -w . || lacks "the right to write to $repo" "clone it as yourself, or run this as its owner"
overlay() { grep -qw overlay /proc/filesystems || as_root modprobe overlay 2>/dev/null; }
overlay || lacks "overlayfs in the kernel" "modprobe overlay"
[ "$(cat /proc/sys/user/max_user_namespaces 2>/dev/null || echo 0)" -gt 0 ] ||
	lacks "user namespaces" "sysctl -w user.max_user_namespaces=15000"
room() { # room FOLDER MIB FOR
	at=$1
	while [ ! -d "$at" ]; do at=$(dirname "$at"); done
	free=$(df -Pm "$at" | awk 'NR==2 { print $4 }')
	[ "$free" -ge "$2" ] || lacks "$2 MiB of free disk below $at for $3 (there are $free)" "make room, or clone to another disk"
}
room "$repo" $((cold ? 4000 : 500)) "the build"
room "$dir" 3000 "the nodes"
[ "$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)" -ge 1800 ] ||
	lacks "2 GiB of memory" "use a larger machine"
if [ -n "$problems" ]; then
	echo "error: this is missing:$problems" >&2
	exit 1
fi
[ -z "$sudo" ] || sudo -v || { echo "error: root is needed for nodes and containers" >&2; exit 1; }

# --- 2. install, build, base image ----------------------------------------------

tty=
[ -t 1 ] && tty=1
bar() { # bar DONE TOTAL WIDTH
	awk -v d="$1" -v t="$2" -v w="$3" 'BEGIN { n = t > 0 ? int(d * w / t) : 0; if (n > w) n = w
		for (i = 0; i < w; i++) printf "%s", (i < n ? "#" : "."); printf " %3d %%", (t > 0 ? (d > t ? 100 : int(100 * d / t)) : 0) }'
}
passed() { echo $(($(date +%s) - began)); }

if [ -n "$packages" ]; then
	as_root tools/setup.sh --os
fi
as_builder mkdir -p .cache/bin "$logs"

# Packages that a build from nothing compiles, to draw the bar: those of beam
# say when they are done, the helpers after them do not.
ALL=1250
finish() { # finish NAME STATUS: shows the end of a job's log when it failed
	[ "$2" = 0 ] && return 0
	printf '\n' >&2
	tail -n 20 "$logs/$1.log" >&2
	echo "error: $1 failed" >&2
	echo "hint: all of its output is in $logs/$1.log; 'make demo' goes on where it ended" >&2
	exit 1
}
end_tree() { # a shell's background jobs do not hear Ctrl-C
	for child in $(ps -o pid= --ppid "$1" 2>/dev/null); do end_tree "$child"; done
	kill "$1" 2>/dev/null || true
}
jobs_end() { for p in ${pids:-}; do end_tree "$p"; done; }
trap jobs_end EXIT
trap 'exit 130' INT TERM

rm -f "$logs"/*.rc "$logs"/*.log "$logs"/*.out # perhaps of another user
as_builder touch "$logs/build.log" "$logs/base.log" "$logs/python.log"
: >"$logs/build.log" >"$logs/base.log" >"$logs/python.log"
job() { # job NAME COMMAND…: in the background, output and status below $logs
	job_name=$1
	shift
	( set +e; "$@" >"$logs/$job_name.log" 2>&1; echo $? >"$logs/$job_name.new"; mv "$logs/$job_name.new" "$logs/$job_name.rc" ) &
	pids="${pids:-} $!"
}
# The program that makes the base image is small and comes first: the download
# goes on while the processor compiles.
make_base() {
	as_builder go build -buildvcs=false -o .cache/bin/base ./build/base || return
	as_root env "PATH=$PATH" .cache/bin/base -cache "$base"
}
job base make_base
job python as_builder tools/setup.sh --python
make_build() {
	as_builder env CGO_ENABLED=0 go build -v -trimpath -buildvcs=false ./node ./cli/... || return
	as_builder make build
}
job build make_build

compiled() { n=$(wc -l <"$logs/build.log"); [ "$n" -lt $((ALL * 9 / 10)) ] && echo "$n" || echo $((ALL * 9 / 10)); }
draw() {
	printf '  build       %s   ' "$(bar "$([ -e "$logs/build.rc" ] && echo $ALL || compiled)" $ALL 10)"
	line=$(grep -E '^[a-z]+ [0-9]+ [0-9]+$' "$logs/base.log" | tail -n 1 || true)
	if [ -e "$logs/base.rc" ]; then
		printf 'base image  %s %-8s' "$(bar 1 1 10)" done
	else
		# shellcheck disable=SC2086
		set -- ${line:-waiting 0 0}
		printf 'base image  %s %-8s' "$(bar "$2" "$3" 10)" "$1"
	fi
	printf '  %4d s' "$(passed)"
}
told=0
while :; do
	for j in base python build; do
		[ ! -e "$logs/$j.rc" ] || finish $j "$(cat "$logs/$j.rc")"
	done
	[ -e "$logs/base.rc" ] && [ -e "$logs/python.rc" ] && [ -e "$logs/build.rc" ] && break
	if [ -n "$tty" ]; then
		printf '\r%s' "$(draw)"
	elif [ "$(passed)" -ge "$told" ]; then
		draw
		echo
		told=$(($(passed) + 20))
	fi
	sleep 0.2 # redraws; the jobs themselves are not waited for in steps
done
wait
pids=
[ -z "$tty" ] || printf '\r'
draw
printf '\n\n'

# --- 3. the mesh, and the function ------------------------------------------------

beam=$repo/bin/beam
sum=$(sha256sum "$beam" | cut -d' ' -f1)
if [ "$(cat "$logs/running.sum" 2>/dev/null)" != "$sum" ]; then
	# What runs, if anything, is an earlier build.
	as_root "$beam" dev down --dir "$dir" >"$logs/down.log" 2>&1 || { cat "$logs/down.log" >&2; exit 1; }
fi
as_root env BEAM_BASE_CACHE="$base" "$beam" dev up --nodes $NODES --gpus $GPUS --dir "$dir" --name "$name"
rm -f "$logs/running.sum"
echo "$sum" >"$logs/running.sum"

env_of() { as_root "$beam" dev env --dir "$dir" --node "$1"; }
eval "$(env_of 1)"
echo
echo "\$ cd examples && GPU=any python square.py      # asked of node1, which has no GPU"
echo
cd examples
out=$logs/square.out
BEAM_PHASES=1 GPU=any "$venv/bin/python" square.py >"$out" || { echo "error: the function failed" >&2; echo "hint: logs of the nodes: $dir/node1.log and so on" >&2; exit 1; }
cat "$out"
[ "$(cat "$out")" = 144 ] || { echo "error: 12 squared is 144" >&2; exit 1; }
task=$("$beam" task list -o name | head -n 1)
cd ..

# --- 4. what to try next -------------------------------------------------------------

subnet=$(ip -4 -o route show dev "$name" proto kernel 2>/dev/null | awk '{ print $1; exit }')
here=$(hostname -I 2>/dev/null | tr ' ' '\n' | grep -v "^${subnet%.*}\." | head -n 1)
ticket=$("$beam" node invite 2>/dev/null || echo "\$(beam node invite)")
cat <<EOF

That took $(passed) s. The mesh stays up; the GPU of node2 is simulated. Try next:

  eval "\$(${say:+$say }bin/beam dev env$which)"      # clients in this shell ask node1
  export PATH=$venv/bin:$repo/bin:\$PATH
  cd examples
  GPU=any python square.py            # the same again
  beam run square.py:square 12        # without a GPU: may well run on node1
  beam node ls
  beam explain $task

Another Linux machine in your network joins with two lines, once bin/beam is copied there. The
nodes of this demo have addresses inside this machine: the first line sends packets for them here.

  sudo ip route add ${subnet:-SUBNET} via ${here:-ADDRESS OF THIS MACHINE}
  sudo ./beam node join $ticket

End of it:

  ${say:+$say }bin/beam dev down$which
EOF
