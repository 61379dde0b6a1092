#!/bin/sh
# Measures this build beside Ray and Dask on this machine and writes
# docs/benchmarks.md. Needs root for the mesh, and some 10 minutes; the other
# systems go into .cache/bench-venv.
#
#	tools/bench.sh                     everything
#	tools/bench.sh --only compare      one section (also cold, idle, joining, replay)
#	tools/bench.sh --rounds 9          more rounds
set -eu
cd "$(dirname "$0")/.."

PINS="ray==2.60.0 dask==2026.8.0 distributed==2026.8.0 cloudpickle==3.1.2 pathspec==0.12.1"

[ -x bin/beam ] || { echo "error: no bin/beam" >&2; echo "hint: run make build" >&2; exit 1; }

venv=.cache/bench-venv
if [ "$(cat "$venv/pins" 2>/dev/null)" != "$PINS" ]; then
	echo "installing $PINS" >&2
	python3 -m venv "$venv"
	# shellcheck disable=SC2086
	"$venv/bin/pip" install -q --disable-pip-version-check $PINS
	echo "$PINS" >"$venv/pins"
fi

as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -E"
exec $as_root "$venv/bin/python" bench/run.py "$@"
