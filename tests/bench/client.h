/* SPDX-License-Identifier: BSD-3-Clause */
/* The client's side of a connection, one implementation for each column. */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum via {
	VIA_TCP,		/* plain TCP (or something else does the TLS) */
	VIA_KTLS,		/* OpenSSL shakes hands, the kernel does the rest */
	VIA_OPENSSL,		/* OpenSSL does everything */
	VIA_TLS_SOCKET,		/* socket(AF_INET, SOCK_STREAM, IPPROTO_TLS) */
};

struct client {
	enum via via;
	int fd;
	SSL *ssl;		/* VIA_OPENSSL, and VIA_KTLS in the handshake */
};

/* Says what via means, or exits. */
enum via client_via(const char *name);

/* Reads the roots; once, first of all. Servers must be verified as host. */
void client_prepare(enum via via, const char *roots, const char *host);

/*
 * Everything here exits with a sentence when it fails. A client is opened,
 * connected to a port of the loopback interface (with TLS: handshake done,
 * chain and host name verified) and closed.
 */
void client_open(struct client *client, enum via via);
void client_connect(struct client *client, uint16_t port);
void client_no_delay(struct client *client);
void client_close(struct client *client);

/* Sends all of length bytes. */
void client_send(struct client *client, const void *data, size_t length);

/* Sends length bytes of a file, from its beginning. */
void client_send_file(struct client *client, int file, size_t length);

/* Receives what there is, 1 to length bytes. */
size_t client_receive(struct client *client, void *data, size_t length);

/* Receives all of length bytes. */
void client_receive_all(struct client *client, void *data, size_t length);

#endif
