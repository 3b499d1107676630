// SPDX-License-Identifier: BSD-3-Clause
// Echoes over TLS: cc -I../kmod -o echo server.c; ./echo PORT CHAIN KEY
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "in_tls.h"

int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET };
	char data[4096] = "";
	int n, client, fd = socket(AF_INET, SOCK_STREAM, IPPROTO_TLS);
	socklen_t size = sizeof(data);

	if (argc != 4)
		return fprintf(stderr, "server PORT CHAIN KEY\n"), 2;
	at.sin_port = htons(atoi(argv[1]));
	if (setsockopt(fd, IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, argv[2], strlen(argv[2])) ||
	    setsockopt(fd, IPPROTO_TLS, TLS_PRIVATE_KEY, argv[3], strlen(argv[3])) ||
	    bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 128)) {
		perror("server");
		getsockopt(fd, IPPROTO_TLS, TLS_ERROR, data, &size);
		return fprintf(stderr, "%s\n", data), 1;
	}
	signal(SIGCHLD, SIG_IGN);
	while ((client = accept(fd, NULL, NULL)) >= 0) {
		if (!fork()) {
			while ((n = read(client, data, sizeof(data))) > 0)
				write(client, data, n);
			return n < 0;
		}
		close(client);
	}
	return perror("accept"), 1;
}
