/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What load and peer say to each other over every connection, whatever
 * carries it: the client sends commands, the server obeys them in order.
 * Both run on one machine, so integers are in its own byte order.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum bench_op {
	BENCH_GREET = 1,	/* send one reply: the connection works */
	BENCH_SINK,		/* read total bytes, then send one reply */
	BENCH_SOURCE,		/* send total bytes in writes of size */
	BENCH_ECHO,		/* total times: read size bytes, send them back */
};

struct bench_command {
	uint32_t op;
	uint32_t size;
	uint64_t total;
	uint64_t checked;	/* SINK: 1 to sum up the bytes in the reply */
};

struct bench_reply {
	uint64_t count;
	uint64_t sum;
};

#define BENCH_BUFFER	65536	/* bytes in one read or write, at most */

/*
 * The bytes of every transfer: a buffer of BENCH_BUFFER bytes, sent over and
 * over. No two of its 64-bit words are alike, so lost, doubled or swapped
 * pieces change the sum.
 */
void bench_fill(unsigned char *buffer);

/* FNV-1a over length bytes; start with BENCH_SUM_START. */
#define BENCH_SUM_START	0xcbf29ce484222325u
uint64_t bench_sum(uint64_t sum, const unsigned char *data, size_t length);

#endif
