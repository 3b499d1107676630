/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the machine has spent between two moments. It is measured as a whole,
 * server and all: on one CPU that is what an operation costs. Time in which the
 * CPU was idle is not counted.
 */
#ifndef BENCH_METER_H
#define BENCH_METER_H

#include <stdint.h>
#include <sys/types.h>

#define METER_WATCHED_MAX	4

struct moment {
	uint64_t arrived;	/* CLOCK_MONOTONIC before it settled */
	uint64_t left;		/* the same at the end */
	uint64_t busy;
	uint64_t watched[METER_WATCHED_MAX];
};

/* Everything here exits with a sentence when it fails. */

/* Watches the CPU time of a process as well. name must stay. */
void meter_watch(const char *name, pid_t pid);

/* The same for an argument NAME=PID, which it changes. */
void meter_watch_argument(char *argument);

/* Waits until everybody has finished what has been started, and reads. */
struct moment meter_read(void);

/*
 * Prints a line of JSON: the count of operations, the nanoseconds that the
 * machine was busy between two moments and those that have passed, and for
 * every watched process the CPU time that it took of them.
 */
void meter_print(uint64_t count, const struct moment *before, const struct moment *after);

#endif
