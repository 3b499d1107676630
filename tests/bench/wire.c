// SPDX-License-Identifier: BSD-3-Clause
#include <string.h>

#include "wire.h"

void bench_fill(unsigned char *buffer)
{
	uint64_t word = 0x9e3779b97f4a7c15u;	/* xorshift64: any seed but 0 */
	size_t at;

	for (at = 0; at < BENCH_BUFFER; at += sizeof(word)) {
		word ^= word << 13;
		word ^= word >> 7;
		word ^= word << 17;
		memcpy(buffer + at, &word, sizeof(word));
	}
}

uint64_t bench_sum(uint64_t sum, const unsigned char *data, size_t length)
{
	while (length--)
		sum = (sum ^ *data++) * 0x100000001b3u;
	return sum;
}
