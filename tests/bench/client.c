// SPDX-License-Identifier: BSD-3-Clause
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdnoreturn.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "ktls.h"
#include "wire.h"

#define IPPROTO_TLS	205	/* in_tls.h */
#define TLS_HOSTNAME	85
#define TLS_ERROR	100

static SSL_CTX *context;
static const char *host_name;

enum via client_via(const char *name)
{
	static const char *const names[] = {
		[VIA_TCP] = "tcp",
		[VIA_KTLS] = "ktls",
		[VIA_OPENSSL] = "openssl",
		[VIA_TLS_SOCKET] = "tls-socket",
	};
	enum via via;

	for (via = VIA_TCP; via <= VIA_TLS_SOCKET; via++)
		if (!strcmp(name, names[via]))
			return via;
	errx(2, "--via wants tcp, ktls, openssl or tls-socket, not %s", name);
}

static noreturn void fail_ssl(const char *what)
{
	ERR_print_errors_fp(stderr);
	errx(1, "%s failed in OpenSSL", what);
}

static noreturn void fail_connect(const struct client *client)
{
	char text[512] = "";
	socklen_t length = sizeof(text);

	if (client->via == VIA_TLS_SOCKET)
		getsockopt(client->fd, IPPROTO_TLS, TLS_ERROR, text, &length);
	err(1, "connect: %s", text);
}

void client_prepare(enum via via, const char *roots, const char *host)
{
	host_name = host;
	if (via != VIA_KTLS && via != VIA_OPENSSL)
		return;
	context = SSL_CTX_new(TLS_client_method());
	if (!context || SSL_CTX_load_verify_locations(context, roots, NULL) != 1)
		fail_ssl("loading the roots");
	SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
	if (via == VIA_KTLS)
		ktls_prepare(context);
}

void client_open(struct client *client, enum via via)
{
	*client = (struct client) { .via = via };
	client->fd = socket(AF_INET, SOCK_STREAM, via == VIA_TLS_SOCKET ? IPPROTO_TLS : 0);
	if (client->fd < 0)
		err(1, "socket");
	if (via == VIA_TLS_SOCKET &&
	    setsockopt(client->fd, IPPROTO_TLS, TLS_HOSTNAME, host_name, strlen(host_name) + 1))
		err(1, "TLS_HOSTNAME");
	if (via == VIA_KTLS || via == VIA_OPENSSL) {
		client->ssl = SSL_new(context);
		if (!client->ssl || !SSL_set_fd(client->ssl, client->fd) ||
		    !SSL_set1_host(client->ssl, host_name) ||
		    !SSL_set_tlsext_host_name(client->ssl, host_name))
			fail_ssl("making a connection");
	}
}

void client_connect(struct client *client, uint16_t port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};

	if (connect(client->fd, (struct sockaddr *)&address, sizeof(address)))
		fail_connect(client);
	if (client->ssl && SSL_connect(client->ssl) != 1)
		fail_ssl("the handshake");
	if (client->via == VIA_KTLS) {
		ktls_install(client->ssl, client->fd);
		SSL_free(client->ssl);
		client->ssl = NULL;
	}
}

void client_no_delay(struct client *client)
{
	int on = 1;

	if (setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		err(1, "TCP_NODELAY");
}

void client_close(struct client *client)
{
	if (client->via == VIA_KTLS && !client->ssl)
		ktls_close_notify(client->fd);
	if (client->ssl) {
		if (SSL_is_init_finished(client->ssl))
			SSL_shutdown(client->ssl);
		SSL_free(client->ssl);
	}
	if (close(client->fd))
		err(1, "close");
}

void client_send(struct client *client, const void *data, size_t length)
{
	size_t done = 0;
	ssize_t n;

	if (client->ssl) {
		/* without SSL_MODE_ENABLE_PARTIAL_WRITE: all or nothing */
		if (SSL_write(client->ssl, data, length) != (int)length)
			fail_ssl("SSL_write");
		return;
	}
	while (done < length) {
		n = send(client->fd, (const char *)data + done, length - done, 0);
		if (n < 0)
			err(1, "send");
		done += n;
	}
}

void client_send_file(struct client *client, int file, size_t length)
{
	static unsigned char buffer[BENCH_BUFFER];
	off_t offset = 0;
	ssize_t n;

	while ((size_t)offset < length) {
		if (client->ssl) {
			/* what a program with a library has in place of it */
			n = pread(file, buffer, sizeof(buffer), offset);
			if (n <= 0)
				err(1, "the file cannot be read");
			client_send(client, buffer, n);
			offset += n;
			continue;
		}
		n = sendfile(client->fd, file, &offset, length - offset);
		if (n <= 0)
			err(1, "sendfile");
	}
}

size_t client_receive(struct client *client, void *data, size_t length)
{
	ssize_t n;

	if (client->ssl) {
		n = SSL_read(client->ssl, data, length);
		if (n <= 0)
			fail_ssl("SSL_read");
		return n;
	}
	n = recv(client->fd, data, length, 0);
	if (n < 0)
		err(1, "recv");
	if (n == 0)
		errx(1, "the server has ended the stream too early");
	return n;
}

void client_receive_all(struct client *client, void *data, size_t length)
{
	size_t done = 0;

	while (done < length)
		done += client_receive(client, (char *)data + done, length - done);
}
