// SPDX-License-Identifier: BSD-3-Clause
// Fetches a page over TLS: cc -I../kmod -o fetch client.c; ./fetch HOST PORT
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "in_tls.h"

int main(int argc, char **argv)
{
	struct addrinfo *to, hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM };
	char s[4096] = "client HOST PORT";
	int n = sizeof(s), fd = socket(AF_INET, SOCK_STREAM, IPPROTO_TLS);

	if (fd < 0 || argc != 3 || getaddrinfo(argv[1], argv[2], &hints, &to))
		return perror(s), 2;
	setsockopt(fd, IPPROTO_TLS, TLS_HOSTNAME, argv[1], strlen(argv[1]) + 1);
	if (connect(fd, to->ai_addr, to->ai_addrlen))
		return getsockopt(fd, IPPROTO_TLS, TLS_ERROR, s, (socklen_t *)&n), perror(s), 1;
	dprintf(fd, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", argv[1]);
	while ((n = read(fd, s, sizeof(s))) > 0)
		write(STDOUT_FILENO, s, n);
	return n < 0;
}
