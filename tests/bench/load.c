// SPDX-License-Identifier: BSD-3-Clause
/*
 * The load generator: one cell of the table in one run.
 *
 *	load --via tcp|ktls|openssl|tls-socket --row ROW --port PORT
 *	     --roots FILE --host NAME --size BYTES --count N --warm N [--watch NAME=PID ...]
 *
 * ROW is send, receive, sendfile (N bytes in pieces of BYTES), pingpong
 * (N round trips of BYTES), connect or socket (N operations). The first part
 * (--warm) is not measured. It prints one line of JSON: see meter.h.
 *
 * Before and after, outside of what is measured, the same path carries 256 KiB
 * both ways with a checksum; a wrong byte or count ends the run with an error.
 */
#include <err.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client.h"
#include "meter.h"
#include "wire.h"

#define CHECK_BYTES	(4 * BENCH_BUFFER)

static struct {
	enum via via;
	uint16_t port;
	size_t size;
	uint64_t count;
	uint64_t warm;
	const char *roots;
	const char *host;
	const char *row;
} run;

static unsigned char pattern[BENCH_BUFFER];
static unsigned char buffer[BENCH_BUFFER];
static int file = -1;		/* CHECK_BYTES or more of pattern, in memory */

static void command(struct client *client, enum bench_op op, uint64_t total, bool checked)
{
	const struct bench_command message = {
		.op = op, .size = run.size, .total = total, .checked = checked,
	};

	client_send(client, &message, sizeof(message));
}

static void expect_reply(struct client *client, uint64_t count, uint64_t sum)
{
	struct bench_reply reply;

	client_receive_all(client, &reply, sizeof(reply));
	if (reply.count != count || reply.sum != sum)
		errx(1, "the server got %" PRIu64 " bytes with sum %" PRIx64
		     ", but was sent %" PRIu64 " with sum %" PRIx64,
		     reply.count, reply.sum, count, sum);
}

static void send_bytes(struct client *client, uint64_t total)
{
	uint64_t done;

	if (!strcmp(run.row, "sendfile")) {
		client_send_file(client, file, total);
		return;
	}
	for (done = 0; done < total; done += run.size)
		client_send(client, pattern + done % sizeof(pattern), run.size);
}

static uint64_t receive_bytes(struct client *client, uint64_t total, bool checked)
{
	uint64_t done, sum = BENCH_SUM_START;
	size_t n, wanted;

	for (done = 0; done < total; done += n) {
		wanted = total - done < run.size ? total - done : run.size;
		n = client_receive(client, buffer, wanted);
		if (checked)
			sum = bench_sum(sum, buffer, n);
	}
	return sum;
}

static void do_send(struct client *client, uint64_t total)
{
	command(client, BENCH_SINK, total, false);
	send_bytes(client, total);
	expect_reply(client, total, BENCH_SUM_START);
}

static void do_receive(struct client *client, uint64_t total)
{
	command(client, BENCH_SOURCE, total, false);
	receive_bytes(client, total, false);
}

static void do_pingpong(struct client *client, uint64_t total)
{
	uint64_t i;

	command(client, BENCH_ECHO, total, false);
	for (i = 0; i < total; i++) {
		memcpy(pattern, &i, sizeof(i));
		client_send(client, pattern, run.size);
		client_receive_all(client, buffer, run.size);
		if (memcmp(pattern, buffer, run.size))
			errx(1, "round trip %" PRIu64 " brought back other bytes", i);
	}
}

/*
 * The greeting is part of it because connect() to a proxy such as stunnel is
 * done before the proxy's own handshake has begun.
 */
static void do_connect(struct client *unused, uint64_t total)
{
	struct client client;

	(void)unused;
	while (total--) {
		client_open(&client, run.via);
		client_connect(&client, run.port);
		command(&client, BENCH_GREET, 0, false);
		expect_reply(&client, 0, 0);
		client_close(&client);
	}
}

static void do_socket(struct client *unused, uint64_t total)
{
	struct client client;

	(void)unused;
	while (total--) {
		client_open(&client, run.via);
		client_close(&client);
	}
}

static void check_bytes(struct client *client)
{
	uint64_t done, sum = BENCH_SUM_START;

	for (done = 0; done < CHECK_BYTES; done += sizeof(pattern))
		sum = bench_sum(sum, pattern, sizeof(pattern));
	command(client, BENCH_SINK, CHECK_BYTES, true);
	send_bytes(client, CHECK_BYTES);
	expect_reply(client, CHECK_BYTES, sum);
	command(client, BENCH_SOURCE, CHECK_BYTES, false);
	if (receive_bytes(client, CHECK_BYTES, true) != sum)
		errx(1, "%d bytes were received, but not the ones that were sent", CHECK_BYTES);
}

static const struct row {
	const char *name;
	void (*work)(struct client *client, uint64_t total);
	bool connected;		/* one connection for all of it */
} rows[] = {
	{ "send", do_send, true },
	{ "sendfile", do_send, true },
	{ "receive", do_receive, true },
	{ "pingpong", do_pingpong, true },
	{ "connect", do_connect, false },
	{ "socket", do_socket, false },
};

static const struct row *find_row(const char *name)
{
	size_t i;

	for (i = 0; name && i < sizeof(rows) / sizeof(rows[0]); i++)
		if (!strcmp(rows[i].name, name))
			return &rows[i];
	errx(2, "--row wants send, sendfile, receive, pingpong, connect or socket");
}

static void make_file(uint64_t length)
{
	uint64_t done;

	file = memfd_create("bench", 0);
	if (file < 0)
		err(1, "memfd_create");
	for (done = 0; done < length; done += sizeof(pattern))
		if (write(file, pattern, sizeof(pattern)) != sizeof(pattern))
			err(1, "the file cannot be written");
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "via", required_argument, NULL, 'v' },
		{ "row", required_argument, NULL, 'r' },
		{ "port", required_argument, NULL, 'p' },
		{ "roots", required_argument, NULL, 'R' },
		{ "host", required_argument, NULL, 'h' },
		{ "size", required_argument, NULL, 's' },
		{ "count", required_argument, NULL, 'c' },
		{ "warm", required_argument, NULL, 'w' },
		{ "watch", required_argument, NULL, 'W' },
		{ 0 }
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'v':
			run.via = client_via(optarg);
			break;
		case 'r':
			run.row = optarg;
			break;
		case 'p':
			run.port = atoi(optarg);
			break;
		case 'R':
			run.roots = optarg;
			break;
		case 'h':
			run.host = optarg;
			break;
		case 's':
			run.size = atoi(optarg);
			break;
		case 'c':
			run.count = strtoull(optarg, NULL, 10);
			break;
		case 'w':
			run.warm = strtoull(optarg, NULL, 10);
			break;
		case 'W':
			meter_watch_argument(optarg);
			break;
		default:
			errx(2, "see the comment at the top of load.c");
		}
	}
	if (!run.roots || !run.host)
		errx(2, "--roots and --host are wanted");
	if (run.size < sizeof(uint64_t) || run.size > sizeof(buffer) ||
	    sizeof(buffer) % run.size)
		errx(2, "--size wants a power of two from 8 to %zu", sizeof(buffer));
}

int main(int argc, char **argv)
{
	struct moment before, after;
	const struct row *row;
	struct client client;

	parse(argc, argv);
	row = find_row(run.row);
	signal(SIGPIPE, SIG_IGN);
	bench_fill(pattern);
	if (!strcmp(run.row, "sendfile"))
		make_file(run.count > CHECK_BYTES ? run.count : CHECK_BYTES);
	client_prepare(run.via, run.roots, run.host);

	if (row->connected) {
		client_open(&client, run.via);
		client_connect(&client, run.port);
		check_bytes(&client);
		if (row->work == do_pingpong)
			client_no_delay(&client);
	}
	row->work(&client, run.warm);
	before = meter_read();
	row->work(&client, run.count);
	after = meter_read();
	if (row->connected) {
		bench_fill(pattern);
		check_bytes(&client);
		client_close(&client);
	}

	meter_print(run.count, &before, &after);
	return 0;
}
