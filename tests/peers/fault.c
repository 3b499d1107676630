// SPDX-License-Identifier: BSD-3-Clause
/*
 * libfault.so: a system call in which the n-th thing that can fail does, and
 * perhaps each allocation after it.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * Makes a system call. fd: /proc/thread-self/fail-nth, opened by this thread;
 * the count runs only while the call does, so that it is of the call alone.
 * all: /proc/thread-self/make-it-fail, or -1 for one fault only.
 * Returns what the call did, and sets what became of it: its errno or 0, and
 * whether it had the fault.
 */
long fault_call(int fd, int all, unsigned int nth, long number, const long args[6], int *error,
		bool *injected)
{
	char count[16];
	int length = snprintf(count, sizeof(count), "%u", nth);
	long result;

	*error = EIO;
	*injected = false;
	/* Of no effect while the count runs, in which this write must not be. */
	if (all >= 0 && pwrite(all, "1", 1, 0) != 1)
		return -1;
	if (pwrite(fd, count, length, 0) != length)
		return -1;
	result = syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]);
	*error = result < 0 ? errno : 0;
	/*
	 * What is left is read before it is copied here, which can have the
	 * fault instead; so can the write that ends the count, which is at 0 then.
	 */
	*injected = pread(fd, count, sizeof(count), 0) > 0 && count[0] == '0';
	if (pwrite(fd, "0", 1, 0) != 1 && errno != EFAULT)
		*error = EIO;
	if (all >= 0 && pwrite(all, "0", 1, 0) != 1)
		*error = EIO;
	return result;
}
