// SPDX-License-Identifier: BSD-3-Clause
/*
 * The smallest server that speaks HTTP/1.1 on kept connections: what a program
 * behind TLS sockets, or behind a proxy, costs at least. One process, epoll.
 *
 *	httpd [--plain PORT] [--tls PORT:CHAIN:KEY ...] FILE ...
 *
 * It has the files in memory, by their last names. A request is expected in
 * one piece. It prints "ready" when it listens, and goes on until it is killed.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "in_tls.h"

#define FILES_MAX	4
#define FDS_MAX		65536	/* as vm/guest.sh allows */
#define EVENTS_MAX	64
#define REQUEST_MAX	4096

static struct {
	const char *name;
	char *answer;		/* the file with its header */
	size_t length;
} files[FILES_MAX];

static unsigned int file_count;
static bool listens[FDS_MAX];	/* else it is a connection */
static int poller;

static void load(const char *path)
{
	const char *name = strrchr(path, '/');
	int fd = open(path, O_RDONLY), head;
	struct stat stat;
	char *answer;

	if (fd < 0 || fstat(fd, &stat))
		err(1, "%s", path);
	if (file_count == FILES_MAX)
		errx(2, "no more than %d files", FILES_MAX);
	answer = malloc(stat.st_size + 128);
	if (!answer)
		err(1, "no memory for %s", path);
	head = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Length: %jd\r\n\r\n",
		       (intmax_t)stat.st_size);
	if (read(fd, answer + head, stat.st_size) != stat.st_size)
		err(1, "%s", path);
	close(fd);
	files[file_count].name = name ? name + 1 : path;
	files[file_count].answer = answer;
	files[file_count++].length = head + stat.st_size;
}

static void watch(int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (fd >= FDS_MAX || epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
		err(1, "epoll_ctl");
}

static void set_text(int fd, int option, const char *text)
{
	if (setsockopt(fd, IPPROTO_TLS, option, text, strlen(text)))
		err(1, "option %d of a TLS socket, %s", option, text);
}

/* Without a chain: plain TCP. */
static void add_port(const char *number, const char *chain, const char *key)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(atoi(number)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	char why[512] = "";
	socklen_t size = sizeof(why);
	int on = 1, fd;

	fd = socket(AF_INET, SOCK_STREAM, chain ? IPPROTO_TLS : 0);
	if (fd < 0)
		err(1, "socket");
	if (chain) {
		set_text(fd, TLS_CERTIFICATE_CHAIN, chain);
		set_text(fd, TLS_PRIVATE_KEY, key);
	}
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 511)) {
		on = errno;
		getsockopt(fd, IPPROTO_TLS, TLS_ERROR, why, &size);
		errno = on;
		err(1, "port %s cannot be listened on: %s", number, why);
	}
	listens[fd] = true;
	watch(fd);
}

static bool send_all(int fd, const char *data, size_t length)
{
	ssize_t n;

	for (; length; data += n, length -= n) {
		n = send(fd, data, length, MSG_NOSIGNAL);
		if (n < 0)
			return false;
	}
	return true;
}

/* False if the connection has come to its end. */
static bool serve(int fd)
{
	char request[REQUEST_MAX], *name, *end;
	ssize_t n = recv(fd, request, sizeof(request) - 1, 0);
	unsigned int i;

	if (n <= 0)
		return false;
	request[n] = '\0';
	if (strncmp(request, "GET /", 5) || n < 4 || memcmp(request + n - 4, "\r\n\r\n", 4))
		errx(1, "a request has a form that is not known here: %s", request);
	name = request + 5;
	end = strchr(name, ' ');
	for (i = 0; end && i < file_count; i++)
		if (!strncmp(name, files[i].name, end - name) && !files[i].name[end - name])
			return send_all(fd, files[i].answer, files[i].length);
	errx(1, "there is no such file: %s", request);
}

static void handle(int fd)
{
	int accepted;

	if (listens[fd]) {
		accepted = accept(fd, NULL, NULL);
		if (accepted < 0)
			err(1, "accept");
		watch(accepted);
	} else if (!serve(fd)) {
		close(fd);
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "plain", required_argument, NULL, 'p' },
		{ "tls", required_argument, NULL, 't' },
		{ 0 }
	};
	struct epoll_event events[EVENTS_MAX];
	const char *number, *chain, *key;
	int option, count, i;

	poller = epoll_create1(0);
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'p':
			add_port(optarg, NULL, NULL);
			break;
		case 't':
			number = strtok(optarg, ":");
			chain = strtok(NULL, ":");
			key = strtok(NULL, ":");
			if (!key)
				errx(2, "--tls wants PORT:CHAIN:KEY");
			add_port(number, chain, key);
			break;
		default:
			errx(2, "see the comment at the top of httpd.c");
		}
	}
	for (; optind < argc; optind++)
		load(argv[optind]);
	puts("ready");
	fflush(stdout);
	for (;;) {
		count = epoll_wait(poller, events, EVENTS_MAX, -1);
		if (count < 0)
			err(1, "epoll_wait");
		for (i = 0; i < count; i++)
			handle(events[i].data.fd);
	}
}
