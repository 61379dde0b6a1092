#!/bin/sh
# Installs what the tests and the build need, once: OS packages (Debian and
# Ubuntu, as root), Python tools into .cache/venv, staticcheck into .cache/bin.
# A second run only looks and takes a second.
#
#	tools/setup.sh            everything
#	tools/setup.sh --check    only tell what is missing
set -eu
cd "$(dirname "$0")/.."

STATICCHECK=v0.8.2

check_only=
[ "${1:-}" = --check ] && check_only=1

# --- OS packages: what has to be there, and the package that brings it -------

missing=
need() { # need PACKAGE COMMAND…: the command succeeds when the package is there
	package=$1
	shift
	if ! "$@" >/dev/null 2>&1; then
		missing="$missing $package"
	fi
}
# Tools of administrators lie in sbin, which is not in everyone's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

need git command -v git
need gcc command -v gcc
need pkg-config command -v pkg-config
need libseccomp-dev pkg-config --exists libseccomp
need iproute2 command -v ip
need nftables command -v nft
need iptables command -v iptables
need procps command -v sysctl
need util-linux command -v nsenter
need debootstrap command -v debootstrap
need xz-utils command -v xz
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
need python3 command -v python3
need python3-venv python3 -c 'import ensurepip, venv'

if ! command -v go >/dev/null 2>&1; then
	echo "error: no go in PATH" >&2
	echo "hint: install Go 1.26 or newer and put its bin folder into PATH" >&2
	exit 1
fi

if [ -n "$missing" ]; then
	if [ -n "$check_only" ] || ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
		echo "error: missing:$missing" >&2
		echo "hint: as root: apt-get install$missing" >&2
		exit 1
	fi
	echo "installing$missing"
	log=$(mktemp)
	if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing; } >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		echo "error: apt-get could not install$missing" >&2
		echo "hint: the last lines of its output stand above; all of them in $log" >&2
		exit 1
	fi
	rm -f "$log"
fi

[ -z "$check_only" ] || exit 0

# --- tools of our own, again only when their versions change ------------------

inputs="tools/setup.sh tools/requirements.txt"
[ -e sdk/python/pyproject.toml ] && inputs="$inputs sdk/python/pyproject.toml"
# The interpreter and the place are part of the key: neither survives a move.
key=$( (cat $inputs; python3 -c 'import sys; print(sys.version, sys.prefix)'; pwd; go version) | sha256sum | cut -d' ' -f1)
mkdir -p .cache/bin
if [ "$(cat .cache/setup.key 2>/dev/null)" = "$key" ] && [ -x .cache/venv/bin/pytest ] && [ -x .cache/bin/staticcheck ]; then
	exit 0
fi
rm -f .cache/setup.key

echo "installing Python tools into .cache/venv"
rm -rf .cache/venv
python3 -m venv .cache/venv
.cache/venv/bin/pip install -q --disable-pip-version-check -r tools/requirements.txt
if [ -e sdk/python/pyproject.toml ]; then
	.cache/venv/bin/pip install -q --disable-pip-version-check -e sdk/python
fi

echo "building staticcheck $STATICCHECK"
GOBIN=$PWD/.cache/bin GOFLAGS= go install "honnef.co/go/tools/cmd/staticcheck@$STATICCHECK"

echo "$key" >.cache/setup.key
