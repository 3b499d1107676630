// SPDX-License-Identifier: BSD-3-Clause
/*
 * The server of every benchmark. One process, one connection at a time, with
 * or without TLS depending on the port. With TLS the handshake is OpenSSL's
 * and everything after it the kernel's, so that the columns of the table
 * differ by the client's side alone.
 *
 *	peer --cipher SUITE --plain PORT --tls PORT:CHAIN:KEY ...
 *
 * It prints "ready" when it listens, and goes on until it is killed.
 */
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ktls.h"
#include "wire.h"

#define PORTS_MAX	4

struct port {
	int listener;
	SSL_CTX *tls;		/* NULL: plain TCP */
};

static struct port ports[PORTS_MAX];
static struct pollfd polled[PORTS_MAX];
static unsigned int port_count;
static unsigned char source[BENCH_BUFFER];
static unsigned char buffer[BENCH_BUFFER];

static SSL_CTX *tls_context(const char *cipher, const char *chain, const char *key)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

	/*
	 * No tickets and no cache: every handshake is a full one, and no
	 * record follows it before the first command is answered.
	 */
	if (!ctx || !SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(ctx, cipher) || !SSL_CTX_set_num_tickets(ctx, 0) ||
	    SSL_CTX_use_certificate_chain_file(ctx, chain) != 1 ||
	    SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1) {
		ERR_print_errors_fp(stderr);
		errx(1, "%s and %s cannot be used for %s", chain, key, cipher);
	}
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	ktls_prepare(ctx);
	return ctx;
}

static void add_port(const char *number, SSL_CTX *tls)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(atoi(number)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int on = 1, fd;

	if (port_count == PORTS_MAX)
		errx(1, "no more than %d ports", PORTS_MAX);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 64))
		err(1, "port %s cannot be listened on", number);
	polled[port_count] = (struct pollfd) { .fd = fd, .events = POLLIN };
	ports[port_count++] = (struct port) { .listener = fd, .tls = tls };
}

/* Returns the bytes read: length, or less if the stream has ended. */
static size_t read_all(int fd, void *data, size_t length)
{
	size_t done = 0;
	ssize_t n;

	while (done < length) {
		n = recv(fd, (char *)data + done, length - done, 0);
		/* -EIO: an alert, so the client is going (see tls_sw_recvmsg) */
		if (n == 0 || (n < 0 && (errno == EIO || errno == ECONNRESET)))
			break;
		if (n < 0)
			err(1, "recv");
		done += n;
	}
	return done;
}

static bool write_all(int fd, const void *data, size_t length)
{
	size_t done = 0;
	ssize_t n;

	while (done < length) {
		n = send(fd, (const char *)data + done, length - done, MSG_NOSIGNAL);
		if (n < 0)
			return false;
		done += n;
	}
	return true;
}

static bool sink(int fd, const struct bench_command *command)
{
	struct bench_reply reply = { .sum = BENCH_SUM_START };
	size_t wanted;
	ssize_t n;

	while (reply.count < command->total) {
		wanted = command->total - reply.count;
		if (wanted > sizeof(buffer))
			wanted = sizeof(buffer);
		n = recv(fd, buffer, wanted, 0);
		if (n <= 0)
			return false;
		if (command->checked)
			reply.sum = bench_sum(reply.sum, buffer, n);
		reply.count += n;
	}
	return write_all(fd, &reply, sizeof(reply));
}

static bool serve_command(int fd, const struct bench_command *command)
{
	struct bench_reply reply = { 0 };
	uint64_t done;
	int on = 1;

	if (command->size > sizeof(buffer))
		return false;
	switch (command->op) {
	case BENCH_GREET:
		return write_all(fd, &reply, sizeof(reply));
	case BENCH_SINK:
		return sink(fd, command);
	case BENCH_SOURCE:
		for (done = 0; done < command->total; done += command->size)
			if (!write_all(fd, source + done % sizeof(source), command->size))
				return false;
		return true;
	case BENCH_ECHO:
		if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
			err(1, "TCP_NODELAY");
		for (done = 0; done < command->total; done++)
			if (read_all(fd, buffer, command->size) < command->size ||
			    !write_all(fd, buffer, command->size))
				return false;
		return true;
	default:
		return false;
	}
}

static bool shake_hands(int fd, SSL_CTX *ctx)
{
	SSL *ssl = SSL_new(ctx);
	bool done;

	if (!ssl || !SSL_set_fd(ssl, fd))
		errx(1, "no memory for a connection");
	done = SSL_accept(ssl) == 1;
	if (done)
		ktls_install(ssl, fd);
	else
		ERR_print_errors_fp(stderr);
	SSL_free(ssl);
	return done;
}

static void serve(const struct port *port)
{
	struct bench_command command;
	int fd;

	fd = accept(port->listener, NULL, NULL);
	if (fd < 0)
		err(1, "accept");
	if (!port->tls || shake_hands(fd, port->tls))
		while (read_all(fd, &command, sizeof(command)) == sizeof(command) &&
		       serve_command(fd, &command))
			;
	close(fd);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "cipher", required_argument, NULL, 'c' },
		{ "plain", required_argument, NULL, 'p' },
		{ "tls", required_argument, NULL, 't' },
		{ 0 }
	};
	const char *cipher = "TLS_AES_128_GCM_SHA256", *number, *chain, *key;
	unsigned int i;
	int option;

	bench_fill(source);
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'c':
			cipher = optarg;
			break;
		case 'p':
			add_port(optarg, NULL);
			break;
		case 't':
			number = strtok(optarg, ":");
			chain = strtok(NULL, ":");
			key = strtok(NULL, ":");
			if (!key)
				errx(2, "--tls wants PORT:CHAIN:KEY");
			add_port(number, tls_context(cipher, chain, key));
			break;
		default:
			errx(2, "see the comment at the top of peer.c");
		}
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		if (poll(polled, port_count, -1) < 0)
			err(1, "poll");
		for (i = 0; i < port_count; i++)
			if (polled[i].revents)
				serve(&ports[i]);
	}
}
