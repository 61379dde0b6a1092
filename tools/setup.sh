#!/bin/sh
# Installs what the tests and the build need, once: OS packages (Debian and
# Ubuntu, as root or with sudo), Python tools and the SDK into .cache/venv,
# staticcheck into .cache/bin. A second run only looks and takes a second.
#
#	tools/setup.sh            everything
#	tools/setup.sh --check    only tell what is missing, all of it at once
#	tools/setup.sh --missing  the names of the missing OS packages, nothing else
#	tools/setup.sh --os       OS packages only
#	tools/setup.sh --python   .cache/venv only
set -eu
cd "$(dirname "$0")/.."

STATICCHECK=v0.8.2

mode=${1:-all}
case $mode in
all | --check | --missing | --os | --python) ;;
*)
	echo "error: $mode is none of --check, --missing, --os, --python" >&2
	exit 2
	;;
esac

# Tools of administrators lie in sbin, which is not in everyone's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# --- OS packages: what has to be there, and the package that brings it -------

missing=
need() { # need PACKAGE COMMAND…: the command succeeds when the package is there
	package=$1
	shift
	if ! "$@" >/dev/null 2>&1; then
		missing="$missing $package"
	fi
}

find_missing() {
	missing=
	need git command -v git
	need make command -v make
	need gcc command -v gcc
	need libc6-dev test -e /usr/include/stdio.h
	need pkg-config command -v pkg-config
	need libseccomp-dev pkg-config --exists libseccomp
	need iproute2 command -v ip
	need nftables command -v nft
	need iptables command -v iptables
	need procps command -v sysctl
	need util-linux command -v nsenter
	need e2fsprogs test -x /usr/sbin/mkfs.ext4 -o -x /sbin/mkfs.ext4
	need mmdebstrap command -v mmdebstrap
	need xz-utils command -v xz
	need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
	need python3 command -v python3
	need python3-venv python3 -c 'import ensurepip, venv'
}

install_packages() {
	find_missing
	[ -n "$missing" ] || return 0
	root=
	if [ "$(id -u)" != 0 ] && command -v sudo >/dev/null 2>&1; then
		root=sudo
	fi
	if ! command -v apt-get >/dev/null 2>&1 || { [ "$(id -u)" != 0 ] && [ -z "$root" ]; }; then
		echo "error: missing:$missing" >&2
		echo "hint: as root: apt-get install$missing" >&2
		exit 1
	fi
	echo "installing$missing"
	log=$(mktemp)
	# shellcheck disable=SC2086 # a list of names
	if ! { $root apt-get update -q && $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing; } >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		echo "error: apt-get could not install$missing" >&2
		echo "hint: the last lines of its output stand above; all of them in $log" >&2
		exit 1
	fi
	rm -f "$log"
}

need_go() {
	# The go command fetches the version that go.mod names if its own is older.
	if ! command -v go >/dev/null 2>&1; then
		echo "error: no go in PATH" >&2
		echo "hint: install Go 1.26 or newer and put its bin folder into PATH" >&2
		return 1
	elif ! go env GOVERSION >/dev/null 2>&1; then
		echo "error: $(go version 2>&1 | tail -n 1)" >&2
		echo "hint: install Go 1.26 or newer" >&2
		return 1
	fi
}

# --- tools of our own, again only when their versions change ------------------

# key_of FILE…: changes when one of the files or the interpreter does.
key_of() {
	# The interpreter and the place are part of it: neither survives a move.
	(cat "$@"; python3 -c 'import sys; print(sys.version, sys.prefix)'; pwd) | sha256sum | cut -d' ' -f1
}

python_tools() {
	key=$(key_of tools/requirements.txt sdk/python/pyproject.toml)
	if [ "$(cat .cache/python.key 2>/dev/null)" = "$key" ] && [ -x .cache/venv/bin/pytest ]; then
		return 0
	fi
	rm -f .cache/python.key
	mkdir -p .cache
	echo "installing Python tools into .cache/venv"
	rm -rf .cache/venv
	python3 -m venv .cache/venv
	.cache/venv/bin/pip install -q --disable-pip-version-check -r tools/requirements.txt -e sdk/python
	echo "$key" >.cache/python.key
}

staticcheck() {
	key="$STATICCHECK $(go version)"
	if [ "$(cat .cache/staticcheck.key 2>/dev/null)" = "$key" ] && [ -x .cache/bin/staticcheck ]; then
		return 0
	fi
	rm -f .cache/staticcheck.key
	mkdir -p .cache/bin
	echo "building staticcheck $STATICCHECK"
	GOBIN=$PWD/.cache/bin GOFLAGS= go install "honnef.co/go/tools/cmd/staticcheck@$STATICCHECK"
	echo "$key" >.cache/staticcheck.key
}

case $mode in
--missing)
	find_missing
	echo "${missing# }"
	;;
--check)
	find_missing
	bad=0
	need_go || bad=1
	if [ -n "$missing" ]; then
		echo "error: missing:$missing" >&2
		echo "hint: as root: apt-get install$missing" >&2
		bad=1
	fi
	exit $bad
	;;
--os) install_packages ;;
--python) python_tools ;;
all)
	need_go
	install_packages
	python_tools
	staticcheck
	;;
esac
