// SPDX-License-Identifier: BSD-3-Clause
/*
 * Connects again and again, and sends what it has read from standard input.
 *
 *	barrage COUNT AT-ONCE SECONDS ADDRESS PORT
 *
 * Each of COUNT connections, AT-ONCE of them at the same time, waits until the
 * other side closes. Ends early after so many SECONDS. Prints how many were
 * closed by the other side.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char payload[65536];
static size_t size;
static struct sockaddr_in to = { .sin_family = AF_INET };

static int start(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		err(1, "socket");
	/* Waits while the listener's TCP queue is full; a refusal is an end. */
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
		err(1, "connect");
	if (send(fd, payload, size, MSG_NOSIGNAL) < 0 && errno != ECONNRESET && errno != EPIPE)
		err(1, "send");
	return fd;
}

/* Drops what the other side says; nonzero once it has ended. */
static int ended(int fd)
{
	char data[4096];
	ssize_t n = recv(fd, data, sizeof(data), MSG_DONTWAIT);

	return n == 0 || (n < 0 && errno != EAGAIN);
}

int main(int argc, char **argv)
{
	int left, at_once, done = 0;
	struct pollfd *fds;
	time_t end;
	ssize_t n;

	if (argc != 6 || inet_pton(AF_INET, argv[4], &to.sin_addr) != 1)
		errx(2, "usage: barrage COUNT AT-ONCE SECONDS ADDRESS PORT");
	left = atoi(argv[1]);
	at_once = atoi(argv[2]);
	end = time(NULL) + atoi(argv[3]);
	to.sin_port = htons(atoi(argv[5]));
	while ((n = read(STDIN_FILENO, payload + size, sizeof(payload) - size)) > 0)
		size += n;

	fds = calloc(at_once, sizeof(*fds));
	if (!fds)
		err(1, "calloc");
	for (int i = 0; i < at_once; i++) {
		fds[i].fd = left-- > 0 ? start() : -1;
		fds[i].events = POLLIN;
	}
	while (poll(fds, at_once, 1000) >= 0 && time(NULL) < end) {
		int open = 0;

		for (int i = 0; i < at_once; i++) {
			if (fds[i].fd >= 0 && fds[i].revents && ended(fds[i].fd)) {
				close(fds[i].fd);
				done++;
				fds[i].fd = left-- > 0 ? start() : -1;
			}
			open += fds[i].fd >= 0;
		}
		if (!open)
			break;
	}
	printf("%d\n", done);
	return 0;
}
