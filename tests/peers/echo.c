// SPDX-License-Identifier: BSD-3-Clause
/*
 * A plain TCP echo server, for what stands in front of it.
 *
 *	echo PORT
 *
 * Listens on 127.0.0.1; a thread for every connection sends back each byte and,
 * after the last one, ends its side.
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void *serve(void *connection)
{
	int fd = (intptr_t)connection;
	ssize_t length, sent, part;
	char data[65536];

	while ((length = read(fd, data, sizeof(data))) > 0) {
		for (sent = 0; sent < length; sent += part) {
			part = write(fd, data + sent, length - sent);
			if (part < 0)
				goto out;
		}
	}
out:
	close(fd);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	pthread_attr_t detached;
	pthread_t thread;
	int listener, fd;

	if (argc != 2)
		errx(2, "usage: echo PORT");
	signal(SIGPIPE, SIG_IGN);
	address.sin_port = htons(atoi(argv[1]));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, 1024))
		err(1, "port %s", argv[1]);
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&detached, 256 * 1024);
	for (;;) {
		fd = accept(listener, NULL, NULL);
		if (fd < 0)
			err(1, "accept");
		if (pthread_create(&thread, &detached, serve, (void *)(intptr_t)fd))
			errx(1, "no thread for a connection");
	}
}
