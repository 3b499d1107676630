#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Runs the kernel's own style checker over the C sources: checkpatch.sh FILE... It is in no package
# but linux-source, from which it is taken once for each version, into the user's cache.
set -eu

source=/usr/src/linux-source-6.12.tar.xz
version=$(dpkg-query -W -f '${Version}' linux-source-6.12) || {
	echo "checkpatch.pl is missing: run \`make setup\`." >&2
	exit 1
}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ssa/checkpatch-$version

if [ ! -x "$cache/checkpatch.pl" ]; then
	scratch=$(mktemp -d)
	trap 'rm -rf "$scratch"' EXIT
	tar -xJf "$source" -C "$scratch" --strip-components=2 --occurrence=1 \
		linux-source-6.12/scripts/checkpatch.pl \
		linux-source-6.12/scripts/spelling.txt \
		linux-source-6.12/scripts/const_structs.checkpatch
	mkdir -p "$cache"
	# The program last: it says that the rest is there.
	mv "$scratch/spelling.txt" "$scratch/const_structs.checkpatch" "$cache"
	mv "$scratch/checkpatch.pl" "$cache"
fi
# What is built outside the kernel has to ask which kernel it is built for: kmod/compat.h does.
exec perl "$cache/checkpatch.pl" --no-tree --strict --terse --show-types --quiet \
	--ignore LINUX_VERSION_CODE,CONSTANT_COMPARISON -f "$@"
