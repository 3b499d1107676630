#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Makes a Debian 12 machine ready for every verb of the Makefile: the packages with apt (as root
# or through sudo) and the virtual environment .venv. Does only what is missing, so that it costs
# next to nothing when all is there.
set -eu

# One line per purpose: kernels and machine to run them; compiler and checkers; what the debug
# kernel is built from and with; peers of the tests and of the demo; languages of the examples; tools that the guest uses.
packages="
linux-image-amd64 linux-headers-amd64 linux-image-6.12-amd64 linux-headers-6.12-amd64
qemu-system-x86 busybox-static file
gcc g++ make libc6-dev libssl-dev liburing-dev linux-libc-dev sparse shellcheck perl mandoc
linux-source-6.12 xz-utils flex bison bc libelf-dev
python3 python3-venv
nginx-light openssl gnutls-bin socat stunnel4 curl wget nodejs ca-certificates
golang-go rustc librust-libc-dev ruby
iproute2 kmod procps strace util-linux zstd
"

say() {
	echo "setup: $*"
}

die() {
	echo "setup: $*" >&2
	exit 1
}

as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	else
		command -v sudo >/dev/null || die "packages are missing; run this as root or install sudo"
		sudo "$@"
	fi
}

missing_packages() {
	for package in $packages; do
		state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || state=
		[ "$state" = installed ] || echo "$package"
	done
}

# nginx and stunnel are peers for the tests: no service is to be started on this machine. An
# existing policy is the administrator's and stays.
install_packages() {
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		trap 'as_root rm -f $policy' EXIT
		printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
		as_root chmod 755 $policy
	fi
	as_root apt-get update -qq
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
		-o Dpkg::Use-Pty=0 "$@"
}

[ -r /etc/debian_version ] || die "this is not Debian; install the packages named in $0 by hand"
cd "$(dirname "$0")/.."
log=build/setup.log
mkdir -p build

missing=$(missing_packages)
if [ -n "$missing" ]; then
	# shellcheck disable=SC2086 # a list of words
	say "installing with apt:" $missing
	# shellcheck disable=SC2086
	(install_packages $missing) >$log 2>&1 || {
		tail -n 30 $log >&2
		die "apt failed; all of its output is in $log"
	}
fi

# Debian's own Python, whatever else is first on PATH.
python=/usr/bin/python3
$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "Python 3.11 is needed"
wanted=$(cksum pyproject.toml && $python --version && pwd)
if [ "$(cat .venv/made-for 2>/dev/null)" != "$wanted" ]; then
	say "making the virtual environment .venv"
	$python -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check --editable '.[dev]' >$log 2>&1 || {
		tail -n 30 $log >&2
		die "pip failed; all of its output is in $log"
	}
	echo "$wanted" >.venv/made-for
fi
