// SPDX-License-Identifier: BSD-3-Clause
#include <err.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "meter.h"

static struct {
	const char *name;
	clockid_t clock;
} watched[METER_WATCHED_MAX];

static unsigned int watched_count;

void meter_watch(const char *name, pid_t pid)
{
	if (watched_count == METER_WATCHED_MAX)
		errx(2, "no more than %d processes can be watched", METER_WATCHED_MAX);
	if (clock_getcpuclockid(pid, &watched[watched_count].clock))
		errx(1, "there is no process %d to watch", pid);
	watched[watched_count++].name = name;
}

void meter_watch_argument(char *argument)
{
	char *pid = strchr(argument, '=');

	if (!pid)
		errx(2, "--watch wants NAME=PID");
	*pid++ = '\0';
	meter_watch(argument, atoi(pid));
}

static uint64_t read_clock(clockid_t clock)
{
	struct timespec now;

	if (clock_gettime(clock, &now))
		err(1, "the clock of a process that is watched cannot be read");
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/*
 * Nanoseconds that CPU 0 has spent in tasks other than the idle one, up to
 * the last switch: the seventh figure of its line (see sched-stats.rst).
 */
static uint64_t read_busy(void)
{
	uint64_t busy;
	FILE *stats = fopen("/proc/schedstat", "r");

	if (!stats)
		err(1, "/proc/schedstat cannot be read");
	if (fscanf(stats, "version %*u timestamp %*u cpu0 %*u %*u %*u %*u %*u %*u %" SCNu64,
		   &busy) != 1)
		errx(1, "/proc/schedstat has a form that is not known here");
	fclose(stats);
	return busy;
}

/*
 * The sleep lets everybody finish what has been started (a daemon its
 * clean-up after a close, for example), makes the figures current, and costs
 * nothing, because an idle CPU is not counted.
 */
struct moment meter_read(void)
{
	const struct timespec settle = { .tv_nsec = 200000000 };
	struct moment moment = { 0 };
	unsigned int i;

	moment.arrived = read_clock(CLOCK_MONOTONIC);
	nanosleep(&settle, NULL);
	moment.busy = read_busy();
	for (i = 0; i < watched_count; i++)
		moment.watched[i] = read_clock(watched[i].clock);
	moment.left = read_clock(CLOCK_MONOTONIC);
	return moment;
}

void meter_print(uint64_t count, const struct moment *before, const struct moment *after)
{
	unsigned int i;

	printf("{\"count\": %" PRIu64 ", \"busy\": %" PRIu64 ", \"passed\": %" PRIu64,
	       count, after->busy - before->busy, after->arrived - before->left);
	for (i = 0; i < watched_count; i++)
		printf(", \"%s\": %" PRIu64, watched[i].name,
		       after->watched[i] - before->watched[i]);
	puts("}");
	fflush(stdout);
}
