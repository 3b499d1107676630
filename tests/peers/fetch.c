// SPDX-License-Identifier: BSD-3-Clause
/*
 * Fetches a page over TLS with nothing but a socket.
 *
 *	fetch ADDRESS PORT HOST PATH
 *
 * Prints what the server sent. Ends with status 1 if a call failed; the last
 * line of standard error then names the call, its errno as a number, and
 * TLS_ERROR.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "in_tls.h"

static void die(int fd, const char *call)
{
	int error = errno;
	char text[512] = "";
	socklen_t size = sizeof(text);

	if (fd >= 0)
		getsockopt(fd, IPPROTO_TLS, TLS_ERROR, text, &size);
	errx(1, "%s: %d (%s): %s", call, error, strerror(error), text);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	char buffer[16384];
	ssize_t n;
	int fd;

	if (argc != 5 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		errx(2, "usage: fetch ADDRESS PORT HOST PATH");
	to.sin_port = htons(atoi(argv[2]));

	fd = socket(AF_INET, SOCK_STREAM, IPPROTO_TLS);
	if (fd < 0)
		die(fd, "socket");
	if (setsockopt(fd, IPPROTO_TLS, TLS_HOSTNAME, argv[3], strlen(argv[3]) + 1))
		die(fd, "setsockopt");
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
		die(fd, "connect");

	n = snprintf(buffer, sizeof(buffer), "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", argv[4], argv[3]);
	if (send(fd, buffer, n, 0) != n)
		die(fd, "send");
	while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0)
		fwrite(buffer, 1, n, stdout);
	if (n < 0)
		die(fd, "recv");
	if (close(fd))
		die(-1, "close");
	return 0;
}
