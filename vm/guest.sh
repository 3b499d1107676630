#!/bin/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=dash
#
# What a guest does: guest.sh RESULTS MODULES SECONDS
#
# Runs as root, started by virtme-ng's init. Lays a layer in memory over the host's root, loads the
# module from the trees MODULES (divided by colons, the upper first), and runs RESULTS/command, for
# SECONDS at most (0: as long as it likes). What the runner reads afterwards are files in RESULTS:
# `up` when the command is started, `late` if it was stopped at the deadline, `in-use` if it left
# something behind that holds the module, and at last `status`. If anything else fails there is no
# status. On a debug kernel, memory that has leaked is told in the kernel's log, and what was run of
# the module is left in RESULTS/coverage.
#
# Busybox does most of it without starting programs, which come slowly from virtme-ng's root.
set -eu
exec 2>&1

results=$1 modules=$2 seconds=$3
share=version=9p2000.L,trans=virtio,access=any,msize=512000

# virtme-ng's root has no cache, so that importing Python's modules takes twice as long as it needs
# to. Nothing on the host changes under a guest: cache it.
mkdir /run/host /run/layer
mount -t 9p -o "ro,cache=loose,$share" host /run/host
mount -t tmpfs layer /run/layer
mkdir /run/layer/upper /run/layer/work
mount -t overlay -o lowerdir=/run/host,upperdir=/run/layer/upper,workdir=/run/layer/work \
	root /mnt
# Busybox finds itself through /proc, so there has to be one in either root.
mount -t proc proc /mnt/proc
for dir in dev sys run; do
	mount -o move /$dir /mnt/$dir
done
cd /mnt
pivot_root . mnt
umount -l /mnt
cd /

# The daemon's user has to find the program, wherever it is. It is the layer that is changed.
dir=$0
while [ "$dir" != / ]; do
	dir=$(dirname "$dir")
	chmod o+x "$dir"
done

mount -t 9p -o "rw,$share" results "$results"
mkdir -p "/lib/modules/$(uname -r)"
mount -t overlay -o "lowerdir=$modules" modules "/lib/modules/$(uname -r)"

# A file system in memory for temporary files; /tmp itself may hold the files of the host's user.
export TMPDIR=/dev/shm
export RESULTS="$results"
ip link set dev lo up
prlimit --pid $$ --nofile=65536
/sbin/modprobe ssa
debug=/sys/kernel/debug
if [ -e $debug/kmemleak ]; then
	echo clear >$debug/kmemleak
fi

touch "$results/up"
status=0
/usr/bin/timeout --foreground --kill-after=10 "$seconds" "$results/command" || status=$?
if [ "$status" -eq 124 ] && [ "$seconds" -gt 0 ]; then
	# Into the kernel log: which tasks are blocked, and what each CPU is doing.
	echo w >/proc/sysrq-trigger
	echo l >/proc/sysrq-trigger
	touch "$results/late"
fi
if [ -d $debug/gcov ]; then
	mkdir "$results/coverage"
	find $debug/gcov -name '*.gcda' | while read -r counts; do
		cat "$counts" >"$results/coverage/${counts##*/}"
	done
fi
if [ "$status" -eq 0 ]; then
	# A command that leaves a socket behind holds the module.
	/sbin/modprobe -r ssa || touch "$results/in-use"
fi
if [ -e $debug/kmemleak ]; then
	# It leaves out what is younger than five seconds, and may take what moves meanwhile for leaked
	# until the next scan.
	sleep 6
	echo scan >$debug/kmemleak
	echo scan >$debug/kmemleak
	while read -r line; do
		echo "$line"
	done <$debug/kmemleak >/dev/kmsg
fi
sync
echo "$status" >"$results/status.new"
mv "$results/status.new" "$results/status"
