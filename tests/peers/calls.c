// SPDX-License-Identifier: BSD-3-Clause
/*
 * Random socket calls from several threads on TLS sockets that they share.
 *
 *	calls SEED SECONDS THREADS BOUND HOST CHAIN KEY PORT...
 *
 * A thread draws each call and its arguments from a sequence that depends on
 * SEED and its own number alone: the same seed gives the same calls. What they
 * meet depends on the order of the threads. PORTs are servers on 127.0.0.1, good
 * and bad, whose certificates are for HOST; CHAIN and KEY are for listening.
 *
 * Every socket has its time-outs, so that no call may take longer than BOUND
 * seconds: one that does ends the run with status 3 and where it hangs. Prints
 * "calls COUNT", how often each call succeeded and failed, and on a kernel with
 * KCOV "pc ADDRESS" for each place in the module that was reached.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "in_tls.h"

#ifndef SOL_TLS
#define SOL_TLS 282
#endif

/* <linux/kcov.h> */
#define KCOV_INIT_TRACE	_IOR('c', 1, unsigned long)
#define KCOV_ENABLE	_IO('c', 100)
#define KCOV_TRACE_PC	0
#define KCOV_WORDS	(64 << 10)

#define __unused __attribute__((unused))

#define SLOTS		24
#define LISTENERS	4
#define THREADS_MAX	64
#define PLACES		(1 << 16)	/* a power of two, more than the module has */
#define BUFFER		(64 << 10)

static const char *host, *chain, *key;
static int *ports, nr_ports;
static atomic_int slots[SLOTS];
static atomic_int listening[LISTENERS];	/* ports of our own, and where their sockets are */
static atomic_int listeners[LISTENERS];
static atomic_bool stop;
static atomic_int running;
static atomic_ulong places[PLACES];
static int epoll, memory, mail[2];

struct call;

struct thread {
	pthread_t thread;
	int number;
	atomic_int tid;
	uint64_t state;
	uint64_t drawn[6];	/* of the call that is made */
	int next;
	_Atomic(const struct call *) call;
	atomic_long since;	/* in seconds */
	unsigned long *cover;
	int pipe[2];
	char buffer[BUFFER];
	unsigned long good[64], bad[64];
};

struct call {
	const char *name;
	int weight;
	long (*make)(struct thread *t, int fd);
};

/* splitmix64 */
static uint64_t draw(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

/* Of what was drawn for this call: other numbers, should it want more than that. */
static unsigned int below(struct thread *t, unsigned int count)
{
	uint64_t *number = &t->drawn[t->next++ % 6];
	unsigned int found = *number % count;

	*number = *number * 0x5851f42d4c957f2d + 1;
	return found;
}

static bool once_in(struct thread *t, unsigned int count)
{
	return !below(t, count);
}

#define PICK(t, array) ((array)[below(t, sizeof(array) / sizeof((array)[0]))])

static long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

/* Puts a descriptor where other threads find it; what was there is closed. Returns the slot. */
static int put(struct thread *t, int fd)
{
	int slot = below(t, SLOTS);
	int old = atomic_exchange(&slots[slot], fd);

	if (old >= 0)
		close(old);
	return slot;
}

/* A pointer that is bad at times. */
static void *memory_of(struct thread *t)
{
	return once_in(t, 50) ? (void *)0x10 : t->buffer;
}

static size_t size_of(struct thread *t)
{
	static const size_t sizes[] = { 0, 1, 2, 5, 100, 1000, 16384, 16385, 40000, BUFFER };

	return PICK(t, sizes);
}

static struct timeval timeout_of(struct thread *t)
{
	static const struct timeval times[] = { { 0, 1 }, { 0, 20000 }, { 0, 300000 }, { 2, 0 } };

	return PICK(t, times);
}

/* Whatever is set: no wait is longer than these. */
static void set_bounds(struct thread *t, int fd)
{
	struct timeval tv = timeout_of(t);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
}

static long make_socket(struct thread *t, __unused int fd)
{
	static const int families[] = { AF_INET, AF_INET, AF_INET, AF_INET6, AF_HOSTNAME };
	int flags = once_in(t, 2) ? SOCK_NONBLOCK : 0;

	fd = socket(PICK(t, families), SOCK_STREAM | flags, IPPROTO_TLS);
	if (fd < 0)
		return fd;
	set_bounds(t, fd);
	if (below(t, 8))
		setsockopt(fd, IPPROTO_TLS, TLS_HOSTNAME, host, strlen(host) + 1);
	put(t, fd);
	return 0;
}

static socklen_t address_of(struct thread *t, struct sockaddr_storage *to, int port)
{
	struct sockaddr_host *name = (void *)to;
	struct sockaddr_in6 *in6 = (void *)to;
	struct sockaddr_in *in = (void *)to;

	memset(to, 0, sizeof(*to));
	switch (below(t, 12)) {
	case 0:
		to->ss_family = AF_UNSPEC;
		return sizeof(*in);
	case 1:
		memcpy(to, t->drawn, sizeof(t->drawn));
		return below(t, sizeof(*to) + 1);
	case 2:
	case 3:
		name->sh_family = AF_HOSTNAME;
		name->sh_port = htons(port);
		strcpy((char *)name->sh_addr.name, once_in(t, 2) ? host : "localhost");
		return sizeof(*name);
	case 4:
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(port);
		in6->sin6_addr = in6addr_loopback;
		return sizeof(*in6);
	default:
		in->sin_family = AF_INET;
		in->sin_port = htons(port);
		in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		return sizeof(*in);
	}
}

static long make_bind(struct thread *t, int fd)
{
	struct sockaddr_storage at;
	socklen_t len = address_of(t, &at, once_in(t, 2) ? 0 : 40000 + below(t, 20));

	return bind(fd, (void *)&at, len);
}

static long make_connect(struct thread *t, int fd)
{
	int port = atomic_load(&listening[below(t, LISTENERS)]);
	struct sockaddr_storage to;
	socklen_t len;

	if (!port || below(t, 3))
		port = ports[below(t, nr_ports)];
	len = address_of(t, &to, once_in(t, 20) ? 1 : port);
	return connect(fd, (void *)&to, len);
}

/* One that is connected, if the server is a good one. */
static long make_client(struct thread *t, __unused int fd)
{
	int port = atomic_load(&listening[below(t, LISTENERS)]);
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct timeval patience = { .tv_sec = 20 };
	int error;

	if (!port || below(t, 3))
		port = ports[below(t, nr_ports)];
	fd = socket(AF_INET, SOCK_STREAM, IPPROTO_TLS);
	if (fd < 0)
		return fd;
	to.sin_port = htons(port);
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(fd, IPPROTO_TLS, TLS_HOSTNAME, host, strlen(host) + 1);
	error = connect(fd, (void *)&to, sizeof(to));
	set_bounds(t, fd);
	put(t, fd);
	return error;
}

static long make_disconnect(__unused struct thread *t, int fd)
{
	struct sockaddr to = { .sa_family = AF_UNSPEC };

	return connect(fd, &to, sizeof(to));
}

static long make_listen(struct thread *t, int fd)
{
	return listen(fd, (int)below(t, 6) - 1);
}

/* A socket that clients can be served on. */
static long make_server(struct thread *t, __unused int fd)
{
	struct sockaddr_in at = { .sin_family = AF_INET };
	socklen_t len = sizeof(at);
	int number = below(t, LISTENERS);

	fd = socket(AF_INET, SOCK_STREAM | (once_in(t, 2) ? SOCK_NONBLOCK : 0), IPPROTO_TLS);
	if (fd < 0)
		return fd;
	set_bounds(t, fd);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (setsockopt(fd, IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, chain, strlen(chain) + 1) ||
	    setsockopt(fd, IPPROTO_TLS, TLS_PRIVATE_KEY, key, strlen(key) + 1) ||
	    bind(fd, (void *)&at, len) || listen(fd, 8) ||
	    getsockname(fd, (void *)&at, &len)) {
		close(fd);
		return -1;
	}
	listening[number] = ntohs(at.sin_port);
	listeners[number] = put(t, fd);
	return 0;
}

static long make_accept(struct thread *t, int fd)
{
	static const int flags[] = { 0, SOCK_NONBLOCK, SOCK_CLOEXEC, 1 };
	int found;

	if (below(t, 4))
		fd = slots[listeners[below(t, LISTENERS)]];
	found = accept4(fd, NULL, NULL, PICK(t, flags));
	if (found < 0)
		return found;
	set_bounds(t, found);
	put(t, found);
	return 0;
}

static int flags_of(struct thread *t)
{
	static const int flags[] = { 0, 0, MSG_DONTWAIT, MSG_PEEK, MSG_WAITALL, MSG_TRUNC, MSG_OOB,
		MSG_ERRQUEUE, MSG_MORE, MSG_EOR, MSG_ZEROCOPY, MSG_FASTOPEN, MSG_CONFIRM,
		MSG_DONTROUTE, MSG_CTRUNC, MSG_CMSG_CLOEXEC, MSG_PEEK | MSG_WAITALL,
		MSG_PEEK | MSG_TRUNC, MSG_DONTWAIT | MSG_MORE, MSG_BATCH, 0x40000000 };

	return PICK(t, flags);
}

static int pieces(struct thread *t, struct iovec *iov)
{
	int count = below(t, 4);

	for (int i = 0; i < count; i++) {
		iov[i].iov_base = memory_of(t);
		iov[i].iov_len = size_of(t);
	}
	return count;
}

/* A message, with something to control it at times. */
static void message_of(struct thread *t, struct msghdr *msg, struct iovec *iov, char *control)
{
	static const int levels[] = { SOL_SOCKET, SOL_TLS, IPPROTO_TLS, IPPROTO_IP, IPPROTO_TCP };
	struct cmsghdr *cmsg;

	memset(msg, 0, sizeof(*msg));
	msg->msg_iov = iov;
	msg->msg_iovlen = pieces(t, iov);
	if (below(t, 3))
		return;
	msg->msg_control = control;
	msg->msg_controllen = CMSG_SPACE(sizeof(int));
	cmsg = CMSG_FIRSTHDR(msg);
	cmsg->cmsg_level = PICK(t, levels);
	cmsg->cmsg_type = 1 + below(t, 4);	/* SCM_RIGHTS, TLS_SET_RECORD_TYPE … */
	cmsg->cmsg_len = CMSG_LEN(once_in(t, 2) ? 1 : sizeof(int));
	memset(CMSG_DATA(cmsg), below(t, 30), sizeof(int));
}

static long make_send(struct thread *t, int fd)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct mmsghdr many[2] = {};
	struct sockaddr_storage to;
	struct iovec iov[2][4];
	int flags = flags_of(t);

	switch (below(t, 4)) {
	case 0:
		return send(fd, memory_of(t), size_of(t), flags);
	case 1:
		return sendto(fd, memory_of(t), size_of(t), flags, (void *)&to,
			      address_of(t, &to, ports[0]));
	case 2:
		message_of(t, &many[0].msg_hdr, iov[0], control);
		return sendmsg(fd, &many[0].msg_hdr, flags);
	default:
		message_of(t, &many[0].msg_hdr, iov[0], control);
		message_of(t, &many[1].msg_hdr, iov[1], control);
		return sendmmsg(fd, many, 2, flags);
	}
}

static long make_recv(struct thread *t, int fd)
{
	struct timespec timeout = { .tv_nsec = 50000000 };
	char control[CMSG_SPACE(sizeof(int))];
	struct sockaddr_storage from;
	struct mmsghdr many[2] = {};
	struct iovec iov[2][4];
	int flags = flags_of(t);
	socklen_t len = sizeof(from);

	switch (below(t, 4)) {
	case 0:
		return recv(fd, memory_of(t), size_of(t), flags);
	case 1:
		return recvfrom(fd, memory_of(t), size_of(t), flags, (void *)&from, &len);
	case 2:
		message_of(t, &many[0].msg_hdr, iov[0], control);
		return recvmsg(fd, &many[0].msg_hdr, flags);
	default:
		message_of(t, &many[0].msg_hdr, iov[0], control);
		message_of(t, &many[1].msg_hdr, iov[1], control);
		return recvmmsg(fd, many, 2, flags, &timeout);
	}
}

static long make_read(struct thread *t, int fd)
{
	struct iovec iov[4];
	int count;

	if (once_in(t, 2))
		return read(fd, memory_of(t), size_of(t));
	count = pieces(t, iov);
	return readv(fd, iov, count);
}

static long make_write(struct thread *t, int fd)
{
	struct iovec iov[4];
	int count;

	if (once_in(t, 2))
		return write(fd, memory_of(t), size_of(t));
	count = pieces(t, iov);
	return writev(fd, iov, count);
}

static long make_splice(struct thread *t, int fd)
{
	unsigned int flags = once_in(t, 2) ? SPLICE_F_NONBLOCK : SPLICE_F_MORE;
	off_t offset = 0;

	switch (below(t, 4)) {
	case 0:
		return splice(fd, NULL, t->pipe[1], NULL, size_of(t), flags);
	case 1:
		if (write(t->pipe[1], t->buffer, 1 + below(t, 4096)) < 0)
			return -1;
		return splice(t->pipe[0], NULL, fd, NULL, size_of(t), flags);
	case 2:
		while (read(t->pipe[0], t->buffer, BUFFER) > 0)
			;
		return splice(fd, NULL, t->pipe[1], NULL, size_of(t), flags);
	default:
		return sendfile(fd, memory, &offset, size_of(t));
	}
}

static const int tls_options[] = {
	TLS_HOSTNAME, TLS_TRUSTED_PEER_CERTIFICATES, TLS_CERTIFICATE_CHAIN, TLS_PRIVATE_KEY,
	TLS_ALPN, TLS_SESSION_TTL, TLS_DISABLE_CIPHER, TLS_PEER_IDENTITY, TLS_REQUEST_PEER_AUTH,
	TLS_PEER_CERTIFICATE_CHAIN, TLS_ID, TLS_TRUSTED_CIPHERS, TLS_CHOSEN_CIPHER, TLS_ERROR,
	TLS_REVOCATION_CHECKS, TLS_OCSP_STAPLED_CHECKS, TLS_OCSP_CHECKS, TLS_CRL_CHECKS,
	TLS_CACHED_REV_CHECKS, TLS_CONTEXT, TLS_SESSION_REUSE, TLS_RESUMED_SESSION,
	TLS_ENABLE_CIPHER, TLS_VERSION_MIN, TLS_VERSION_MAX, TLS_VERSION_CONN,
	TLS_SERVER_OCSP_STAPLING, TLS_TRANSPORT, 0, 99, 131,
};

static long make_set_tls(struct thread *t, int fd)
{
	static const int numbers[] = { 0, 1, 2, -1, 3600, 0x0303, 0x0304 };
	const struct {
		int option;
		const char *text;
	} texts[] = {
		{ TLS_HOSTNAME, host }, { TLS_HOSTNAME, "localhost" },
		{ TLS_CERTIFICATE_CHAIN, chain }, { TLS_PRIVATE_KEY, key },
		{ TLS_TRUSTED_PEER_CERTIFICATES, chain },
		{ TLS_ALPN, "h2,http/1.1" }, { TLS_TRUSTED_CIPHERS, "TLS_AES_128_GCM_SHA256" },
		{ TLS_DISABLE_CIPHER, "TLS_AES_256_GCM_SHA384" }, { TLS_ALPN, "" },
		{ TLS_TRUSTED_PEER_CERTIFICATES, "/dev/zero" }, { TLS_PRIVATE_KEY, "/" },
		{ TLS_TRUSTED_PEER_CERTIFICATES, "-----BEGIN CERTIFICATE-----" },
	};
	int number = PICK(t, numbers), which;
	uint64_t id = 1 + below(t, 200);

	switch (below(t, 5)) {
	case 0:
		return setsockopt(fd, IPPROTO_TLS, PICK(t, tls_options), memory_of(t), size_of(t));
	case 1:
	case 2:
		which = below(t, sizeof(texts) / sizeof(texts[0]));
		return setsockopt(fd, IPPROTO_TLS, texts[which].option, texts[which].text,
				  strlen(texts[which].text) + 1);
	case 3:
		return setsockopt(fd, IPPROTO_TLS, TLS_CONTEXT, &id, sizeof(id));
	default:
		return setsockopt(fd, IPPROTO_TLS, PICK(t, tls_options), &number, sizeof(number));
	}
}

static long make_get_tls(struct thread *t, int fd)
{
	socklen_t len = size_of(t);

	return getsockopt(fd, IPPROTO_TLS, PICK(t, tls_options), memory_of(t), &len);
}

static const int levels[] = {
	SOL_SOCKET, SOL_SOCKET, IPPROTO_TCP, IPPROTO_IP, IPPROTO_IPV6, SOL_TLS,
};

static long make_set_other(struct thread *t, int fd)
{
	static const int numbers[] = { 0, 1, 2, 3, 10, 64, 1000, 65536, -1 };
	int level = PICK(t, levels), option = below(t, 84), value[4];
	static const socklen_t lengths[] = { 4, 4, 4, 0, 1, 8, 12, 16 };
	struct timeval tv = timeout_of(t);
	struct linger linger = { .l_onoff = below(t, 2), .l_linger = below(t, 2) };

	for (int i = 0; i < 4; i++)
		value[i] = PICK(t, numbers);
	if (level == SOL_SOCKET) {
		switch (option) {
		case SO_RCVTIMEO_OLD:
		case SO_SNDTIMEO_OLD:
		case SO_RCVTIMEO_NEW:
		case SO_SNDTIMEO_NEW:
			return setsockopt(fd, level, option, &tv, sizeof(tv));
		case SO_LINGER:
			return setsockopt(fd, level, option, &linger, sizeof(linger));
		}
	}
	return setsockopt(fd, level, option, once_in(t, 50) ? (void *)0x10 : value,
			  PICK(t, lengths));
}

static long make_get_other(struct thread *t, int fd)
{
	static const socklen_t lengths[] = { 4, 4, 8, 0, 1, 16, 256, 1024 };
	socklen_t len = PICK(t, lengths);

	return getsockopt(fd, PICK(t, levels), below(t, 84), memory_of(t), &len);
}

static long make_poll(struct thread *t, int fd)
{
	struct pollfd fds[SLOTS];

	if (once_in(t, 2)) {
		fds[0].fd = fd;
		fds[0].events = below(t, 1 << 14);
		return poll(fds, 1, below(t, 30));
	}
	for (int i = 0; i < SLOTS; i++) {
		fds[i].fd = slots[i];
		fds[i].events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP;
	}
	return poll(fds, SLOTS, below(t, 30));
}

static long make_epoll(struct thread *t, int fd)
{
	struct epoll_event events[8] = { { .data.fd = fd } };

	switch (below(t, 5)) {
	case 0:
	case 1:
		events[0].events = EPOLLIN | EPOLLOUT | (once_in(t, 2) ? EPOLLET : 0) |
				   (once_in(t, 3) ? EPOLLONESHOT : 0);
		return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &events[0]);
	case 2:
		events[0].events = EPOLLIN | EPOLLRDHUP;
		return epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &events[0]);
	case 3:
		return epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
	default:
		return epoll_wait(epoll, events, 8, below(t, 30));
	}
}

static long make_ioctl(struct thread *t, int fd)
{
	static const unsigned long requests[] = { FIONREAD, TIOCOUTQ, FIONBIO, FIOASYNC, 0x8905,
		0x8902, 0x8901, 0x8903, 0x8904, 0x8906, 0x8907, 0x894b, 0x8912, 0x5451, 0x12345 };
	int value = below(t, 2);

	return ioctl(fd, PICK(t, requests), once_in(t, 30) ? (void *)0x10 : (void *)&value);
}

static long make_fcntl(struct thread *t, int fd)
{
	static const int flags[] = { 0, O_NONBLOCK, O_ASYNC, O_ASYNC | O_NONBLOCK, O_DIRECT };

	if (once_in(t, 3))
		return fcntl(fd, F_SETOWN, getpid());
	if (once_in(t, 5))
		return fcntl(fd, F_SETSIG, SIGUSR1);
	return fcntl(fd, F_SETFL, PICK(t, flags));
}

static long make_dup(struct thread *t, int fd)
{
	int other = fcntl(fd, F_DUPFD_CLOEXEC, 3);

	if (other < 0)
		return other;
	put(t, other);
	return 0;
}

static long make_close(struct thread *t, __unused int fd)
{
	put(t, -1);
	return 0;
}

static long make_shutdown(struct thread *t, int fd)
{
	return shutdown(fd, below(t, 4));
}

static long make_name(struct thread *t, int fd)
{
	struct sockaddr_storage name;
	socklen_t len = below(t, sizeof(name) + 1);

	if (once_in(t, 2))
		return getsockname(fd, (void *)&name, &len);
	return getpeername(fd, (void *)&name, &len);
}

/* Sends a descriptor to ourselves, or receives one. */
static long make_mail(struct thread *t, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, byte = 0;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	int found;

	if (once_in(t, 2)) {
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
		return sendmsg(mail[0], &msg, 0);
	}
	if (recvmsg(mail[1], &msg, 0) < 0)
		return -1;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (!cmsg)
		return -1;
	memcpy(&found, CMSG_DATA(cmsg), sizeof(found));
	put(t, found);
	return 0;
}

static long make_signal(struct thread *t, int fd);

static long make_stat(struct thread *t, int fd)
{
	struct stat st;
	char path[64];
	void *at;

	switch (below(t, 5)) {
	case 0:
		return fstat(fd, &st);
	case 1:
		return lseek(fd, 0, SEEK_CUR);
	case 2:
		return fsync(fd);
	case 3:
		at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
		if (at == MAP_FAILED)
			return -1;
		return munmap(at, 4096);
	default:
		snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return fd;
		if (read(fd, t->buffer, 4096) < 0)
			warn("%s", path);
		return close(fd);
	}
}

static long make_fork(struct thread *t, int fd);

static const struct call calls[] = {
	{ "socket", 5, make_socket },	{ "bind", 3, make_bind },
	{ "client", 6, make_client },
	{ "connect", 6, make_connect }, { "disconnect", 1, make_disconnect },
	{ "listen", 2, make_listen },	{ "server", 2, make_server },
	{ "accept", 5, make_accept },	{ "send", 16, make_send },
	{ "recv", 16, make_recv },	{ "read", 4, make_read },
	{ "write", 4, make_write },	{ "splice", 8, make_splice },
	{ "set-tls", 10, make_set_tls }, { "get-tls", 6, make_get_tls },
	{ "set-other", 8, make_set_other }, { "get-other", 4, make_get_other },
	{ "poll", 4, make_poll },	{ "epoll", 4, make_epoll },
	{ "ioctl", 3, make_ioctl },	{ "fcntl", 3, make_fcntl },
	{ "dup", 2, make_dup },		{ "close", 3, make_close },
	{ "shutdown", 3, make_shutdown }, { "name", 3, make_name },
	{ "mail", 3, make_mail },	{ "signal", 2, make_signal },
	{ "stat", 1, make_stat },	{ "fork", 1, make_fork },
};
#define CALLS ((int)(sizeof(calls) / sizeof(calls[0])))

static struct thread *threads;
static int nr_threads;

static long make_signal(struct thread *t, __unused int fd)
{
	pid_t to = threads[below(t, nr_threads)].tid;

	/* The thread's number, not its handle: it may have ended. */
	return tgkill(getpid(), to, once_in(t, 2) ? SIGUSR1 : SIGUSR2);
}

static const struct call *draw_call(struct thread *t)
{
	int sum = 0, at;

	for (int i = 0; i < CALLS; i++)
		sum += calls[i].weight;
	for (int i = 0; i < 6; i++)
		t->drawn[i] = draw(&t->state);
	t->next = 0;
	at = draw(&t->state) % sum;
	for (int i = 0;; i++) {
		at -= calls[i].weight;
		if (at < 0)
			return &calls[i];
	}
}

/* A child makes some calls on what it has inherited, and exits with it. */
static long make_fork(struct thread *t, __unused int fd)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		return child;
	if (!child) {
		const struct call *call;

		for (int i = 0; i < 5; i++) {
			call = draw_call(t);
			if (call->make != make_fork && call->make != make_signal)
				call->make(t, slots[below(t, SLOTS)]);
		}
		_exit(0);
	}
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	if (status)
		errx(1, "a child ended with status %#x", status);
	return 0;
}

static void note(unsigned long place)
{
	unsigned long at = place * 0x9e3779b97f4a7c15 >> 48 & (PLACES - 1), found;

	for (;; at = (at + 1) & (PLACES - 1)) {
		found = 0;
		if (atomic_compare_exchange_strong(&places[at], &found, place) || found == place)
			return;
	}
}

static void cover_begin(struct thread *t)
{
	int fd = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return;	/* not this kernel */
	if (ioctl(fd, KCOV_INIT_TRACE, KCOV_WORDS))
		err(1, "KCOV_INIT_TRACE");
	t->cover = mmap(NULL, KCOV_WORDS * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (t->cover == MAP_FAILED || ioctl(fd, KCOV_ENABLE, KCOV_TRACE_PC))
		err(1, "kcov");
}

static void *run(void *argument)
{
	struct thread *t = argument;
	const struct call *call;
	unsigned long count;

	t->tid = gettid();
	cover_begin(t);
	while (!stop) {
		call = draw_call(t);
		if (t->cover)
			__atomic_store_n(&t->cover[0], 0, __ATOMIC_RELAXED);
		t->since = now();
		t->call = call;
		if (call->make(t, slots[below(t, SLOTS)]) < 0)
			t->bad[call - calls]++;
		else
			t->good[call - calls]++;
		t->call = NULL;
		count = t->cover ? __atomic_load_n(&t->cover[0], __ATOMIC_RELAXED) : 0;
		for (unsigned long i = 1; i <= count; i++)
			note(t->cover[i]);
	}
	running--;
	return NULL;
}

/* Says where each thread is, and ends the process. */
static void complain(const struct thread *late, const struct call *call)
{
	char path[64], line[256];
	FILE *stack;

	warnx("thread %d: %s takes too long", late->number, call->name);
	for (int i = 0; i < nr_threads; i++) {
		call = threads[i].call;
		warnx("thread %d is in %s", i, call ? call->name : "no call");
		snprintf(path, sizeof(path), "/proc/self/task/%d/stack", threads[i].tid);
		stack = fopen(path, "r");
		while (stack && fgets(line, sizeof(line), stack))
			fputs(line, stderr);
		if (stack)
			fclose(stack);
	}
	_exit(3);
}

static void watch(long seconds, long bound)
{
	long end = now() + seconds;
	struct timespec tick = { .tv_nsec = 100000000 };
	const struct call *call;
	long since;

	while (running) {
		nanosleep(&tick, NULL);
		if (now() >= end)
			stop = true;
		for (int i = 0; i < nr_threads; i++) {
			since = threads[i].since;
			call = threads[i].call;
			if (call && since == threads[i].since && now() - since > bound)
				complain(&threads[i], call);
		}
	}
}

static void nothing(__unused int number)
{
}

static void report(void)
{
	unsigned long good, bad, sum = 0;

	for (int i = 0; i < CALLS; i++)
		for (int n = 0; n < nr_threads; n++)
			sum += threads[n].good[i] + threads[n].bad[i];
	printf("calls %lu\n", sum);
	for (int i = 0; i < CALLS; i++) {
		good = bad = 0;
		for (int n = 0; n < nr_threads; n++) {
			good += threads[n].good[i];
			bad += threads[n].bad[i];
		}
		printf("%s %lu %lu\n", calls[i].name, good, bad);
	}
	for (int i = 0; i < PLACES; i++)
		if (places[i])
			printf("pc %lx\n", places[i]);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = nothing };
	uint64_t seed;
	long seconds, bound;

	if (argc < 9)
		errx(2, "usage: calls SEED SECONDS THREADS BOUND HOST CHAIN KEY PORT...");
	seed = strtoull(argv[1], NULL, 0);
	seconds = atol(argv[2]);
	nr_threads = atoi(argv[3]);
	bound = atol(argv[4]);
	host = argv[5];
	chain = argv[6];
	key = argv[7];
	nr_ports = argc - 8;
	if (nr_threads < 1 || nr_threads > THREADS_MAX)
		errx(2, "THREADS is 1 to %d", THREADS_MAX);
	ports = calloc(nr_ports, sizeof(*ports));
	threads = calloc(nr_threads, sizeof(*threads));
	if (!ports || !threads)
		err(1, "calloc");
	for (int i = 0; i < nr_ports; i++)
		ports[i] = atoi(argv[8 + i]);

	signal(SIGPIPE, SIG_IGN);
	signal(SIGIO, SIG_IGN);
	signal(SIGURG, SIG_IGN);
	sigaction(SIGUSR1, &action, NULL);
	action.sa_flags = SA_RESTART;
	sigaction(SIGUSR2, &action, NULL);

	for (int i = 0; i < SLOTS; i++)
		slots[i] = -1;
	epoll = epoll_create1(EPOLL_CLOEXEC);
	memory = memfd_create("calls", MFD_CLOEXEC);
	if (epoll < 0 || memory < 0 || ftruncate(memory, BUFFER) ||
	    socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, mail))
		err(1, "setup");

	running = nr_threads;
	for (int i = 0; i < nr_threads; i++) {
		threads[i].number = i;
		threads[i].state = seed * THREADS_MAX + i;
		if (pipe2(threads[i].pipe, O_NONBLOCK | O_CLOEXEC))
			err(1, "pipe");
	}
	for (int i = 0; i < nr_threads; i++)
		if (pthread_create(&threads[i].thread, NULL, run, &threads[i]))
			errx(1, "no more threads can be started");
	watch(seconds, bound);
	for (int i = 0; i < nr_threads; i++)
		pthread_join(threads[i].thread, NULL);
	report();
	return 0;
}
