// SPDX-License-Identifier: GPL-2.0
/*
 * TLS from inside the kernel: fetches a page, or serves one. What is done here,
 * and in which order, is what a user of TCP sockets does as well.
 *
 *   modprobe tls_example get=192.0.2.1 host=www.example.org
 *   cat /sys/kernel/debug/tls_example/page
 *
 *   modprobe tls_example serve=4433 chain=/etc/ssl/server.pem key=/etc/ssl/server.key
 *   curl https://server.example.org:4433/
 *
 * What to know, besides what socket(9) says of every socket:
 *
 * - Options are set by sock->ops->setsockopt(). Helpers such as
 *   tcp_sock_set_nodelay() are for TCP's own sockets, and would damage this one.
 * - sk_state_change, sk_data_ready, sk_write_space and sk_error_report can be
 *   replaced. They are called in a softirq, so must not sleep, and may be called
 *   when nothing has happened. After sock_release() none of them runs.
 * - To create, connect, accept, set an option and release can sleep.
 */

#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/inet.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/nsproxy.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include <net/sock.h>
#include <net/tcp_states.h>

#include "in_tls.h"

#define PATIENCE (30 * HZ)
#define PAGE_MAX SZ_1M
#define REQUEST_MAX 1024

static char *get;
module_param(get, charp, 0444);
MODULE_PARM_DESC(get, "IPv4 address of a server to fetch a page from");

static ushort port = 443;
module_param(port, ushort, 0444);
MODULE_PARM_DESC(port, "Its port");

static char *host = "localhost";
module_param(host, charp, 0444);
MODULE_PARM_DESC(host, "Its name, which its certificate must have");

static char *path = "/";
module_param(path, charp, 0444);
MODULE_PARM_DESC(path, "The page");

static uint put;
module_param(put, uint, 0444);
MODULE_PARM_DESC(put, "Store a page of so many zeros there, instead of fetching it");

static ushort serve;
module_param(serve, ushort, 0444);
MODULE_PARM_DESC(serve, "Port to serve a page on");

static char *chain;
module_param(chain, charp, 0444);
MODULE_PARM_DESC(chain, "The server's certificate chain: path of a PEM file");

static char *key;
module_param(key, charp, 0444);
MODULE_PARM_DESC(key, "Its private key: path of a PEM file");

static int set_option(struct socket *sock, int option, char *value)
{
	if (!value)
		return -EINVAL;
	return sock->ops->setsockopt(sock, IPPROTO_TLS, option, KERNEL_SOCKPTR(value),
				     strlen(value));
}

/* In the network namespace of who loads the module. */
static int create(struct socket **sock)
{
	return sock_create_kern(current->nsproxy->net_ns, AF_INET, SOCK_STREAM, IPPROTO_TLS,
				sock);
}

static void hear(struct sock *sk, void *data, void (*data_ready)(struct sock *sk))
{
	write_lock_bh(&sk->sk_callback_lock);
	sk->sk_user_data = data;
	sk->sk_data_ready = data_ready;
	write_unlock_bh(&sk->sk_callback_lock);
}

/*
 * The client: nothing blocks in the socket. Whatever would is tried again when
 * an upcall says that something has happened.
 */

static struct debugfs_blob_wrapper page;
static struct dentry *directory;

static void happened(struct sock *sk)
{
	struct completion *event;

	read_lock_bh(&sk->sk_callback_lock);
	event = sk->sk_user_data;
	if (event)
		complete(event);
	read_unlock_bh(&sk->sk_callback_lock);
}

static int await(struct completion *event)
{
	long left = wait_for_completion_interruptible_timeout(event, PATIENCE);

	return left > 0 ? 0 : left ?: -ETIMEDOUT;
}

static int connect_to(struct socket *sock, struct completion *event)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int err;

	if (!in4_pton(get, -1, (u8 *)&to.sin_addr, -1, NULL))
		return -EINVAL;
	for (;;) {
		err = kernel_connect(sock, (struct sockaddr *)&to, sizeof(to), O_NONBLOCK);
		if (err != -EINPROGRESS && err != -EALREADY)
			return err;
		err = await(event);
		if (err)
			return err;
	}
}

static int send_all(struct socket *sock, struct completion *event, char *data, size_t len)
{
	while (len) {
		struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };
		struct kvec vec = { data, len };
		int ret = kernel_sendmsg(sock, &msg, &vec, 1, len);

		if (ret == -EAGAIN)
			ret = await(event);
		if (ret < 0)
			return ret;
		data += ret;
		len -= ret;
	}
	return 0;
}

/* Until the server has ended the connection, in order. */
static int receive_all(struct socket *sock, struct completion *event)
{
	for (;;) {
		struct msghdr msg = {};
		struct kvec vec = { page.data + page.size, PAGE_MAX - page.size };
		int ret;

		if (!vec.iov_len)
			return -EMSGSIZE;
		ret = kernel_recvmsg(sock, &msg, &vec, 1, vec.iov_len, MSG_DONTWAIT);
		if (!ret)
			return 0;
		if (ret == -EAGAIN)
			ret = await(event);
		if (ret < 0)
			return ret;
		page.size += ret;
	}
}

static int fetch(void)
{
	struct completion event;
	struct socket *sock;
	char *request;
	int err;

	if (put > PAGE_MAX)
		return -EMSGSIZE;
	request = kasprintf(GFP_KERNEL, "%s %s HTTP/1.0\r\nHost: %s\r\nContent-Length: %u\r\n\r\n",
			    put ? "PUT" : "GET", path, host, put);
	if (!request)
		return -ENOMEM;
	err = create(&sock);
	if (err)
		goto out;

	init_completion(&event);
	sock->sk->sk_state_change = happened;
	sock->sk->sk_write_space = happened;
	hear(sock->sk, &event, happened);
	err = set_option(sock, TLS_HOSTNAME, host) ?: connect_to(sock, &event) ?:
	      send_all(sock, &event, request, strlen(request)) ?:
	      send_all(sock, &event, page.data, put) ?: receive_all(sock, &event);
	sock_release(sock);
out:
	kfree(request);
	return err;
}

/*
 * The server: accepts in a work, which sk_data_ready queues, and uses what it
 * has accepted with calls that wait, one client after the other.
 */

static struct socket *listener;
static void (*wake)(struct sock *sk);

static void connection_ready(struct sock *sk)
{
	/* Not those that wait to be accepted: they have inherited this. */
	read_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_user_data && sk->sk_state == TCP_LISTEN)
		queue_work(system_unbound_wq, sk->sk_user_data);
	read_unlock_bh(&sk->sk_callback_lock);
}

static void answer(struct socket *client)
{
	static const char reply[] = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n"
				    "This page was served by the kernel.\n";
	struct kvec vec = { (void *)reply, strlen(reply) };
	struct msghdr msg = { .msg_flags = MSG_NOSIGNAL };
	char request[REQUEST_MAX];
	size_t size = 0;
	int ret;

	client->sk->sk_rcvtimeo = PATIENCE;
	client->sk->sk_sndtimeo = PATIENCE;
	do {
		struct kvec room = { request + size, sizeof(request) - size };
		struct msghdr from = {};

		ret = kernel_recvmsg(client, &from, &room, 1, room.iov_len, 0);
		if (ret <= 0)
			return;
		size += ret;
	} while (!strnstr(request, "\r\n\r\n", size));
	if (kernel_sendmsg(client, &msg, &vec, 1, vec.iov_len) == vec.iov_len)
		kernel_sock_shutdown(client, SHUT_WR);
}

static void accept_work(struct work_struct *work)
{
	struct socket *client;

	while (READ_ONCE(listener->sk->sk_user_data) &&
	       !kernel_accept(listener, &client, O_NONBLOCK)) {
		hear(client->sk, NULL, wake);
		answer(client);
		sock_release(client);
	}
}

static DECLARE_WORK(accepting, accept_work);

static void stop_serving(void)
{
	hear(listener->sk, NULL, wake);
	cancel_work_sync(&accepting);
	sock_release(listener);
}

static int start_serving(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(serve) };
	int err;

	err = create(&listener);
	if (err)
		return err;
	wake = listener->sk->sk_data_ready;
	hear(listener->sk, &accepting, connection_ready);
	err = set_option(listener, TLS_CERTIFICATE_CHAIN, chain) ?:
	      set_option(listener, TLS_PRIVATE_KEY, key) ?:
	      kernel_bind(listener, (struct sockaddr *)&at, sizeof(at)) ?:
	      kernel_listen(listener, SOMAXCONN);
	if (err)
		stop_serving();
	return err;
}

static int __init tls_example_init(void)
{
	int err = 0;

	page.data = kvzalloc(PAGE_MAX, GFP_KERNEL);
	if (!page.data)
		return -ENOMEM;
	if (get)
		err = fetch();
	if (!err && serve)
		err = start_serving();
	if (err) {
		kvfree(page.data);
		return err;
	}
	directory = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_blob("page", 0400, directory, &page);
	return 0;
}

static void __exit tls_example_exit(void)
{
	debugfs_remove(directory);
	if (serve)
		stop_serving();
	kvfree(page.data);
}

module_init(tls_example_init);
module_exit(tls_example_exit);

MODULE_DESCRIPTION("TLS from inside the kernel");
MODULE_AUTHOR("The ssad authors");
MODULE_LICENSE("GPL");
