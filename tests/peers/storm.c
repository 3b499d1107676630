// SPDX-License-Identifier: BSD-3-Clause
/*
 * Connects from many processes and threads at the same time.
 *
 *	storm PROCESSES THREADS ADDRESS PORT HOST
 *
 * Every thread waits until all others are ready, connects to an echo server,
 * sends a line of its own and wants it back. Prints the number of connections
 * that were all right; status 0 if all were.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "in_tls.h"

struct shared {
	pthread_barrier_t start;
	atomic_int good;
};

static struct shared *shared;
static struct sockaddr_in to = { .sin_family = AF_INET };
static const char *host;

static void complain(int fd, const char *call)
{
	int error = errno;
	char text[512] = "";
	socklen_t size = sizeof(text);

	getsockopt(fd, IPPROTO_TLS, TLS_ERROR, text, &size);
	warnx("%s: %d (%s): %s", call, error, strerror(error), text);
}

static int exchange(int fd)
{
	char line[64], answer[64];
	int size = snprintf(line, sizeof(line), "%d %p\n", getpid(), (void *)pthread_self());

	if (setsockopt(fd, IPPROTO_TLS, TLS_HOSTNAME, host, strlen(host) + 1)) {
		complain(fd, "setsockopt");
		return -1;
	}
	if (connect(fd, (struct sockaddr *)&to, sizeof(to))) {
		complain(fd, "connect");
		return -1;
	}
	if (send(fd, line, size, 0) != size) {
		complain(fd, "send");
		return -1;
	}
	if (recv(fd, answer, size, MSG_WAITALL) != size) {
		complain(fd, "recv");
		return -1;
	}
	if (memcmp(line, answer, size)) {
		warnx("sent %.*s, got back %.*s", size - 1, line, size - 1, answer);
		return -1;
	}
	return 0;
}

static void *client(void *unused)
{
	int fd;

	pthread_barrier_wait(&shared->start);
	fd = socket(AF_INET, SOCK_STREAM, IPPROTO_TLS);
	if (fd < 0) {
		warn("socket");
		return unused;
	}
	if (!exchange(fd))
		shared->good++;
	close(fd);
	return unused;
}

static void run_threads(int count)
{
	pthread_t threads[count];

	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, client, NULL))
			errx(1, "no more threads can be started");
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	int processes = argc == 6 ? atoi(argv[1]) : 0;
	int threads = argc == 6 ? atoi(argv[2]) : 0;
	pthread_barrierattr_t attributes;

	if (processes < 1 || threads < 1 || inet_pton(AF_INET, argv[3], &to.sin_addr) != 1)
		errx(2, "usage: storm PROCESSES THREADS ADDRESS PORT HOST");
	to.sin_port = htons(atoi(argv[4]));
	host = argv[5];

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	pthread_barrierattr_init(&attributes);
	pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->start, &attributes, processes * threads);

	for (int i = 0; i < processes; i++) {
		pid_t child = fork();

		if (child < 0)
			err(1, "fork");
		if (!child) {
			run_threads(threads);
			_exit(0);
		}
	}
	while (wait(NULL) > 0)
		;
	printf("%d\n", shared->good);
	return shared->good != processes * threads;
}
