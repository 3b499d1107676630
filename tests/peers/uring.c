// SPDX-License-Identifier: BSD-3-Clause
/*
 * uring [sqpoll] - an io_uring, driven by lines on standard input
 *
 * Each line is one request, which is submitted at once, with a number of the
 * tester's own; descriptors are those that the process was given or has
 * accepted. A line "!..." has io_uring make the request in another thread,
 * "@MS ..." gives it a time limit, "%..." takes FD for the index of a
 * registered file.
 *
 *   connect NUMBER FD HEX         the struct sockaddr, in hexadecimal
 *   accept NUMBER FD [multi]
 *   send NUMBER FD TEXT
 *   sendzc NUMBER FD TEXT
 *   sendmsg NUMBER FD TEXT
 *   recv NUMBER FD SIZE           waits for all of them
 *   recvmsg NUMBER FD SIZE
 *   recvmany NUMBER FD            multishot, into buffers of 64 bytes
 *   poll NUMBER FD MASK [multi]
 *   cancel NUMBER OTHER           the request with that number
 *   register FD                   as file 0; answers 0 or the error
 *   wait                          answers "NUMBER RESULT MORE [TEXT]"
 *   close FD                      answers 0
 */
#include <err.h>
#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NUMBERS		64
#define TEXT_MAX	4096
#define GROUP		1
#define GROUP_BUFFERS	16
#define GROUP_SIZE	64
#define LIMIT		1000	/* what a time limit is numbered */

static struct io_uring ring;
static char texts[NUMBERS][TEXT_MAX];
static char group[GROUP_BUFFERS][GROUP_SIZE];
static struct sockaddr_storage address;
static struct iovec vectors[NUMBERS];
static struct msghdr messages[NUMBERS];

static struct io_uring_sqe *get_request(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	if (!sqe)
		errx(1, "the ring is full");
	return sqe;
}

static struct msghdr *message(unsigned int number, size_t size)
{
	vectors[number].iov_base = texts[number];
	vectors[number].iov_len = size;
	messages[number] = (struct msghdr){ .msg_iov = &vectors[number], .msg_iovlen = 1 };
	return &messages[number];
}

static socklen_t read_address(const char *hex)
{
	socklen_t length = 0;

	while (length < sizeof(address) &&
	       sscanf(hex + 2 * length, "%2hhx", (unsigned char *)&address + length) == 1)
		length++;
	return length;
}

static void prepare(struct io_uring_sqe *sqe, const char *verb, unsigned int number, int fd,
		    const char *rest)
{
	char *text = texts[number];
	int multi = !strcmp(rest, "multi");

	if (!strcmp(verb, "connect")) {
		io_uring_prep_connect(sqe, fd, (struct sockaddr *)&address, read_address(rest));
	} else if (!strcmp(verb, "accept") && multi) {
		io_uring_prep_multishot_accept(sqe, fd, NULL, NULL, 0);
	} else if (!strcmp(verb, "accept")) {
		io_uring_prep_accept(sqe, fd, NULL, NULL, 0);
	} else if (!strcmp(verb, "send")) {
		io_uring_prep_send(sqe, fd, strcpy(text, rest), strlen(rest), MSG_WAITALL);
	} else if (!strcmp(verb, "sendzc")) {
		io_uring_prep_send_zc(sqe, fd, strcpy(text, rest), strlen(rest), 0, 0);
	} else if (!strcmp(verb, "sendmsg")) {
		strcpy(text, rest);
		io_uring_prep_sendmsg(sqe, fd, message(number, strlen(rest)), 0);
	} else if (!strcmp(verb, "recv")) {
		io_uring_prep_recv(sqe, fd, text, atoi(rest), MSG_WAITALL);
	} else if (!strcmp(verb, "recvmsg")) {
		io_uring_prep_recvmsg(sqe, fd, message(number, atoi(rest)), MSG_WAITALL);
	} else if (!strcmp(verb, "recvmany")) {
		io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
		sqe->flags |= IOSQE_BUFFER_SELECT;
		sqe->buf_group = GROUP;
	} else if (!strcmp(verb, "poll")) {
		if (strstr(rest, "multi"))
			io_uring_prep_poll_multishot(sqe, fd, atoi(rest));
		else
			io_uring_prep_poll_add(sqe, fd, atoi(rest));
	} else if (!strcmp(verb, "cancel")) {
		io_uring_prep_cancel64(sqe, fd, 0);	/* the other's number */
	} else {
		errx(1, "what is '%s'?", verb);
	}
	io_uring_sqe_set_data64(sqe, number);
}

static void submit(const char *line)
{
	static struct __kernel_timespec limit;
	struct io_uring_sqe *sqe, *timeout;
	unsigned int number, flags = 0;
	int fd, used = 0, ms = 0;
	char verb[16];

	for (; strchr("!%", *line); line++)
		flags |= *line == '!' ? IOSQE_ASYNC : IOSQE_FIXED_FILE;
	if (sscanf(line, "@%d %n", &ms, &used) == 1) {
		flags |= IOSQE_IO_LINK;
		line += used;
	}
	if (sscanf(line, "%15s %u %d %n", verb, &number, &fd, &used) != 3 || number >= NUMBERS)
		errx(1, "what is '%s'?", line);
	sqe = get_request();
	prepare(sqe, verb, number, fd, line + used);
	sqe->flags |= flags;
	if (ms) {
		limit.tv_sec = ms / 1000;
		limit.tv_nsec = ms % 1000 * 1000000L;
		timeout = get_request();
		io_uring_prep_link_timeout(timeout, &limit, 0);
		io_uring_sqe_set_data64(timeout, LIMIT);
	}
	if (io_uring_submit(&ring) < 0)
		errx(1, "the request was not taken");
}

static void give_buffer(unsigned int id)
{
	struct io_uring_sqe *sqe = get_request();

	io_uring_prep_provide_buffers(sqe, group[id], GROUP_SIZE, 1, GROUP, id);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	io_uring_submit(&ring);
}

static void answer_completion(void)
{
	struct io_uring_cqe *cqe;
	unsigned int id;
	int error;

	do {
		error = io_uring_wait_cqe(&ring, &cqe);
	} while (error == -EINTR);
	if (error)
		errx(1, "no completion: %s", strerror(-error));
	printf("%llu %d %d", (unsigned long long)cqe->user_data, cqe->res,
	       !!(cqe->flags & IORING_CQE_F_MORE));
	id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
	if (cqe->res > 0 && cqe->flags & IORING_CQE_F_BUFFER) {
		printf(" %.*s", cqe->res, group[id]);
		give_buffer(id);
	} else if (cqe->res > 0 && cqe->user_data < NUMBERS) {
		printf(" %.*s", cqe->res, texts[cqe->user_data]);
	}
	printf("\n");
	io_uring_cqe_seen(&ring, cqe);
}

int main(int argc, char **argv)
{
	struct io_uring_params params = {};
	char *line = NULL;
	size_t room = 0;
	int error, fd;

	if (argc > 1 && !strcmp(argv[1], "sqpoll"))
		params.flags = IORING_SETUP_SQPOLL;
	error = io_uring_queue_init_params(NUMBERS, &ring, &params);
	if (error)
		errx(1, "no ring: %s", strerror(-error));
	for (int id = 0; id < GROUP_BUFFERS; id++)
		give_buffer(id);
	setlinebuf(stdout);

	while (getline(&line, &room, stdin) > 0) {
		line[strcspn(line, "\n")] = 0;
		if (!strcmp(line, "wait")) {
			answer_completion();
		} else if (sscanf(line, "register %d", &fd) == 1) {
			printf("%d\n", io_uring_register_files(&ring, &fd, 1));
		} else if (sscanf(line, "close %d", &fd) == 1) {
			printf("%d\n", close(fd));
		} else {
			submit(line);
		}
	}
	return 0;
}
