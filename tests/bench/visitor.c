// SPDX-License-Identifier: BSD-3-Clause
/*
 * The client of every server that is measured: OpenSSL in one process, TLS 1.3,
 * so that the columns of the table differ by the server's side alone.
 *
 *	visitor --row ROW --port PORT --roots FILE --host NAME --cipher SUITE
 *		--file FILE [--count N] [--warm N] [--plain] [--signal PID]
 *		[--watch NAME=PID ...]
 *
 * ROW is full or resumed (N connections: handshake, one request, its answer,
 * close), request (N requests on one connection) or idle. The first part
 * (--warm, at least one) is not measured. The request is for the last name of
 * FILE, and every answer is compared with it. It prints one line of JSON: see
 * meter.h; `client` is this process. --signal: what gets a SIGUSR1 when the
 * first part is over.
 *
 * The request of full and resumed is there because a TLS 1.3 client is done with
 * its handshake before the server is.
 *
 * idle does what its standard input says, a line each: `hold N` makes
 * connections until N are open, and answers `held`; `measure` is the row full
 * beside those, and answers as that does. With --plain it is without TLS.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdnoreturn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "meter.h"

#define HEADER_MAX	4096

struct visit {
	int fd;
	SSL *ssl;		/* NULL: plain TCP */
};

static struct {
	const char *row;
	uint16_t port;
	bool plain;
	const char *roots;
	const char *host;
	const char *cipher;
	const char *path;
	uint64_t count;
	uint64_t warm;
	pid_t signalled;	/* 0: none */
} run;

static SSL_CTX *context;
static bool verifies;		/* certificates; a signature of the handshake always */
static char request[512];
static char *wanted, *answer;	/* the file, and room for it with a header */
static size_t wanted_length;

static noreturn void fail_ssl(const char *what)
{
	ERR_print_errors_fp(stderr);
	err(1, "%s failed in OpenSSL", what);
}

static void read_file(void)
{
	const char *name = strrchr(run.path, '/');
	int fd = open(run.path, O_RDONLY);
	struct stat stat;

	if (fd < 0 || fstat(fd, &stat))
		err(1, "%s", run.path);
	wanted_length = stat.st_size;
	wanted = malloc(wanted_length);
	answer = malloc(wanted_length + HEADER_MAX);
	if (!wanted || !answer || read(fd, wanted, wanted_length) != stat.st_size)
		err(1, "%s", run.path);
	close(fd);
	snprintf(request, sizeof(request), "GET /%s HTTP/1.1\r\nHost: %s\r\n\r\n",
		 name ? name + 1 : run.path, run.host);
}

/*
 * Only the first connection's certificates are verified: it is the same work for
 * every server, and would only make their difference look smaller.
 */
static int verify(X509_STORE_CTX *store, void *unused)
{
	(void)unused;
	return verifies ? X509_verify_cert(store) : 1;
}

static void prepare(void)
{
	context = SSL_CTX_new(TLS_client_method());
	if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(context, run.cipher) ||
	    SSL_CTX_load_verify_locations(context, run.roots, NULL) != 1)
		fail_ssl("making a context");
	SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_cert_verify_callback(context, verify, NULL);
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
}

/* With a session: resumes it, and the server has to agree. */
static void visit_open(struct visit *visit, SSL_SESSION *session)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(run.port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};

	*visit = (struct visit) { .fd = socket(AF_INET, SOCK_STREAM, 0) };
	if (visit->fd < 0 || connect(visit->fd, (struct sockaddr *)&address, sizeof(address)))
		err(1, "connecting to port %d", run.port);
	if (run.plain)
		return;
	visit->ssl = SSL_new(context);
	if (!visit->ssl || !SSL_set_fd(visit->ssl, visit->fd) ||
	    !SSL_set1_host(visit->ssl, run.host) ||
	    !SSL_set_tlsext_host_name(visit->ssl, run.host) ||
	    (session && !SSL_set_session(visit->ssl, session)))
		fail_ssl("making a connection");
	if (SSL_connect(visit->ssl) != 1)
		fail_ssl("the handshake");
	if (SSL_session_reused(visit->ssl) != !!session)
		errx(1, "the server has %sresumed a session", session ? "not " : "");
}

static size_t visit_receive(struct visit *visit, void *data, size_t length)
{
	ssize_t n;

	if (visit->ssl) {
		n = SSL_read(visit->ssl, data, length);
		if (n <= 0)
			fail_ssl("SSL_read");
		return n;
	}
	n = recv(visit->fd, data, length, 0);
	if (n <= 0)
		err(1, "recv");
	return n;
}

static void visit_fetch(struct visit *visit)
{
	static const char good[] = "HTTP/1.1 200 ";
	size_t length = strlen(request), got = 0, whole = 0;
	char *end;

	if (visit->ssl ? SSL_write(visit->ssl, request, length) != (int)length :
	    send(visit->fd, request, length, 0) != (ssize_t)length)
		fail_ssl("sending a request");
	while (!whole || got < whole) {
		if (got == wanted_length + HEADER_MAX)
			errx(1, "an answer is longer than the file");
		got += visit_receive(visit, answer + got, wanted_length + HEADER_MAX - got);
		if (whole)
			continue;
		end = memmem(answer, got, "\r\n\r\n", 4);
		if (end)
			whole = end + 4 - answer + wanted_length;
	}
	if (got != whole || memcmp(answer, good, strlen(good)) ||
	    memcmp(answer + whole - wanted_length, wanted, wanted_length))
		errx(1, "the answer is another one: %.*s", (int)strcspn(answer, "\r"), answer);
}

static void visit_close(struct visit *visit)
{
	if (visit->ssl)
		SSL_shutdown(visit->ssl);
	SSL_free(visit->ssl);
	close(visit->fd);
}

/* Keeps the connection open, though not OpenSSL's part of it. */
static void visit_hold(struct visit *visit)
{
	if (visit->ssl)
		/* or else OpenSSL thinks that the session has failed */
		SSL_set_shutdown(visit->ssl, SSL_SENT_SHUTDOWN);
	SSL_free(visit->ssl);
}

static void visits(uint64_t count, SSL_SESSION *session)
{
	struct visit visit;

	while (count--) {
		visit_open(&visit, session);
		visit_fetch(&visit);
		visit_close(&visit);
	}
}

/* The first connection; what is verified, is verified here. */
static SSL_SESSION *introduce(void)
{
	SSL_SESSION *session = NULL;
	struct visit visit;

	verifies = true;
	visit_open(&visit, NULL);
	/* the tickets come before the answer */
	visit_fetch(&visit);
	if (visit.ssl)
		session = SSL_get1_session(visit.ssl);
	visit_close(&visit);
	verifies = false;
	if (!run.plain && !SSL_SESSION_is_resumable(session))
		errx(1, "the server gave no ticket");
	return session;
}

static struct moment begin(void)
{
	if (run.signalled && kill(run.signalled, SIGUSR1))
		err(1, "a signal cannot be sent to process %d", run.signalled);
	return meter_read();
}

static void measure_visits(SSL_SESSION *session)
{
	struct moment before, after;

	before = begin();
	visits(run.count, session);
	after = meter_read();
	meter_print(run.count, &before, &after);
}

static void do_full(void)
{
	SSL_SESSION_free(introduce());
	visits(run.warm, NULL);
	measure_visits(NULL);
}

static void do_resumed(void)
{
	SSL_SESSION *session = introduce();

	visits(run.warm, session);
	measure_visits(session);
}

static void do_request(void)
{
	struct moment before, after;
	struct visit visit;
	uint64_t i;

	SSL_SESSION_free(introduce());
	visit_open(&visit, NULL);
	for (i = 0; i < run.warm; i++)
		visit_fetch(&visit);
	before = begin();
	for (i = 0; i < run.count; i++)
		visit_fetch(&visit);
	after = meter_read();
	visit_close(&visit);
	meter_print(run.count, &before, &after);
}

static void do_idle(void)
{
	SSL_SESSION *session = introduce();
	unsigned int held = 0, wanted_held;
	struct visit visit;
	char line[64];

	visits(run.warm, NULL);
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "measure\n")) {
			measure_visits(NULL);
			continue;
		}
		if (sscanf(line, "hold %u", &wanted_held) != 1)
			errx(2, "standard input wants hold or measure, not %s", line);
		for (; held < wanted_held; held++) {
			/* resumed, because that is quick */
			visit_open(&visit, session);
			visit_fetch(&visit);
			visit_hold(&visit);
		}
		puts("held");
		fflush(stdout);
	}
}

static const struct row {
	const char *name;
	void (*work)(void);
} rows[] = {
	{ "full", do_full },
	{ "resumed", do_resumed },
	{ "request", do_request },
	{ "idle", do_idle },
};

static const struct row *find_row(const char *name)
{
	size_t i;

	for (i = 0; name && i < sizeof(rows) / sizeof(rows[0]); i++)
		if (!strcmp(rows[i].name, name))
			return &rows[i];
	errx(2, "--row wants full, resumed, request or idle");
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "row", required_argument, NULL, 'r' },
		{ "port", required_argument, NULL, 'p' },
		{ "plain", no_argument, NULL, 'P' },
		{ "roots", required_argument, NULL, 'R' },
		{ "host", required_argument, NULL, 'h' },
		{ "cipher", required_argument, NULL, 'C' },
		{ "file", required_argument, NULL, 'f' },
		{ "count", required_argument, NULL, 'c' },
		{ "warm", required_argument, NULL, 'w' },
		{ "signal", required_argument, NULL, 's' },
		{ "watch", required_argument, NULL, 'W' },
		{ 0 }
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'r':
			run.row = optarg;
			break;
		case 'p':
			run.port = atoi(optarg);
			break;
		case 'P':
			run.plain = true;
			break;
		case 'R':
			run.roots = optarg;
			break;
		case 'h':
			run.host = optarg;
			break;
		case 'C':
			run.cipher = optarg;
			break;
		case 'f':
			run.path = optarg;
			break;
		case 'c':
			run.count = strtoull(optarg, NULL, 10);
			break;
		case 'w':
			run.warm = strtoull(optarg, NULL, 10);
			break;
		case 's':
			run.signalled = atoi(optarg);
			break;
		case 'W':
			meter_watch_argument(optarg);
			break;
		default:
			errx(2, "see the comment at the top of visitor.c");
		}
	}
	if (!run.roots || !run.host || !run.cipher || !run.path)
		errx(2, "--roots, --host, --cipher and --file are wanted");
}

int main(int argc, char **argv)
{
	const struct row *row;

	parse(argc, argv);
	row = find_row(run.row);
	meter_watch("client", getpid());
	signal(SIGPIPE, SIG_IGN);
	read_file();
	prepare();
	row->work();
	return 0;
}
