// SPDX-License-Identifier: GPL-2.0
/*
 * Endpoints: the TCP sockets that face the network.
 *
 * A TLS socket has one, of its own family. A connect() to a host name tries
 * several addresses at once (RFC 8305), so its request has spare ones; the one
 * that the worker has connected becomes the socket's. A socket of AF_HOSTNAME
 * begins with an IPv6 endpoint and gets an IPv4 one by bind() or connect().
 *
 * So the endpoint can change until the state is CONNECTED or LISTENING: by bind(),
 * which has the control lock, and when the worker completes a connect, which has
 * been sent by then. Whoever uses it before these, or beside them, needs a
 * reference (ssa_endpoint_get()). It is changed under lock and mirror_lock.
 */

#include <linux/slab.h>

#include "ssa.h"

/* The file is the one that the daemon's descriptors will refer to as well. */
static struct file *endpoint_new(struct ssa_sock *ssk, int family)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct socket *endpoint;
	int err;

	err = __sock_create(sock_net(sk), family, SOCK_STREAM, IPPROTO_TCP, &endpoint,
			    !sk->sk_net_refcnt);
	if (err)
		return ERR_PTR(err);
	/*
	 * A kernel socket does not hold its network namespace, since its user
	 * closes it in time. The daemon's descriptor may be closed later.
	 */
	err = ssa_hold_netns(endpoint->sk);
	if (err) {
		sock_release(endpoint);
		return ERR_PTR(err);
	}
	return sock_alloc_file(endpoint, O_NONBLOCK, "TLS");	/* releases it on failure */
}

/**
 * ssa_endpoint_init - give a fresh TLS socket its endpoint
 * @ssk: seen by nobody else
 *
 * Return: 0, or the error of making a TCP socket.
 */
int ssa_endpoint_init(struct ssa_sock *ssk)
{
	int family = ssa_to_sk(ssk)->sk_family;
	bool any = family == ssa_hostname_family;
	struct file *file;

	file = endpoint_new(ssk, any ? AF_INET6 : family);
	if (any && file == ERR_PTR(-EAFNOSUPPORT))
		file = endpoint_new(ssk, AF_INET);
	if (IS_ERR(file))
		return PTR_ERR(file);
	ssk->endpoint = sock_from_file(file);
	ssk->endpoint_file = file;
	return 0;
}

/**
 * ssa_endpoint_get - the endpoint of a socket that may be connecting
 * @ssk: a call on it runs
 *
 * Return: its file, with a reference.
 */
struct file *ssa_endpoint_get(struct ssa_sock *ssk)
{
	struct file *file;

	ssa_lock(ssk);
	file = get_file(ssk->endpoint_file);
	ssa_unlock(ssk);
	return file;
}

/* A further endpoint with all that was set so far. */
static struct file *endpoint_like(struct ssa_sock *ssk, int family)
{
	struct file *file = endpoint_new(ssk, family);
	int err;

	if (IS_ERR(file))
		return file;
	err = ssa_levels_replay(ssk, sock_from_file(file));
	if (err) {
		fput(file);
		return ERR_PTR(err);
	}
	return file;
}

/* The socket is locked. Options that are set from now on are set on the new one. */
static void exchange(struct ssa_sock *ssk, struct file **file)
{
	mutex_lock(&ssk->mirror_lock);
	ssa_levels_catch_up(ssk, sock_from_file(*file));
	swap(ssk->endpoint_file, *file);
	ssk->endpoint = sock_from_file(ssk->endpoint_file);
	mutex_unlock(&ssk->mirror_lock);
}

/* Binds another endpoint in place of the first, which is then none. */
static int bind_other(struct ssa_sock *ssk, struct sockaddr *addr, int len)
{
	struct file *file;
	int err;

	file = endpoint_like(ssk, addr->sa_family);
	if (IS_ERR(file))
		return PTR_ERR(file);
	err = kernel_bind(sock_from_file(file), addr, len);
	if (!err) {
		ssa_lock(ssk);
		exchange(ssk, &file);
		ssa_unlock(ssk);
	}
	fput(file);
	return err;
}

/**
 * ssa_endpoint_bind - bind the endpoint, with the rights of the caller
 * @ssk: a NEW socket whose control lock is held
 * @addr: the address; decides the family of a socket of AF_HOSTNAME
 * @len: its length
 *
 * Return: 0; TCP's error; an error of making a TCP socket or of setting its
 * options.
 */
int ssa_endpoint_bind(struct ssa_sock *ssk, struct sockaddr *addr, int len)
{
	bool other = ssa_to_sk(ssk)->sk_family == ssa_hostname_family && !ssk->bound &&
		     len >= (int)sizeof(addr->sa_family) &&
		     (addr->sa_family == AF_INET || addr->sa_family == AF_INET6) &&
		     addr->sa_family != ssk->endpoint->sk->sk_family;
	int err;

	err = other ? bind_other(ssk, addr, len) : kernel_bind(ssk->endpoint, addr, len);
	if (!err)
		ssk->bound = true;
	return err;
}

static int add_spare(struct ssa_sock *ssk, struct ssa_request *req, int family)
{
	struct file *file = endpoint_like(ssk, family);

	if (IS_ERR(file))
		return PTR_ERR(file);
	req->spare[req->nr_spare++] = file;
	return 0;
}

/**
 * ssa_endpoint_spare - the further endpoints of a connect() to a host name
 * @ssk: NEW, its control lock is held
 * @req: its connect request, not sent yet
 *
 * A bound socket has none, since the address is taken. Others can try two
 * addresses of a family at once; AF_HOSTNAME has both families.
 *
 * Return: 0, or an error of making a TCP socket or of setting its options.
 */
int ssa_endpoint_spare(struct ssa_sock *ssk, struct ssa_request *req)
{
	int family = ssk->endpoint->sk->sk_family;
	int err;

	if (ssk->bound)
		return 0;
	err = add_spare(ssk, req, family);
	if (err || ssa_to_sk(ssk)->sk_family != ssa_hostname_family || family == AF_INET)
		return err;
	return add_spare(ssk, req, AF_INET) ?: add_spare(ssk, req, AF_INET);
}

/**
 * ssa_endpoint_of - an endpoint of a request
 * @ssk: referenced by the caller
 * @req: its connect or listen request
 * @index: 0 for the socket's own, above for the spare ones
 *
 * Return: a reference; NULL if there is none, the socket is closed or @req is
 * over.
 */
struct file *ssa_endpoint_of(struct ssa_sock *ssk, struct ssa_request *req, u32 index)
{
	struct file *file = NULL;

	ssa_lock(ssk);
	if (req->cmd != SSA_CMD_LISTEN && ssk->connect != req)
		goto out;
	if (!index)
		file = ssk->endpoint_file;
	else if (index <= req->nr_spare)
		file = req->spare[index - 1];
	if (file)
		get_file(file);
out:
	ssa_unlock(ssk);
	return file;
}

/**
 * ssa_endpoint_choose - the endpoint that the worker has connected
 * @ssk: locked, CONNECTING
 * @req: its connect request
 * @index: which one; exists
 *
 * The others are closed with the request.
 */
void ssa_endpoint_choose(struct ssa_sock *ssk, struct ssa_request *req, u32 index)
{
	lockdep_assert_held(&ssk->lock);
	if (!index)
		return;
	exchange(ssk, &req->spare[index - 1]);
}

/**
 * ssa_endpoint_abort - end the connecting of all endpoints
 * @ssk: whose endpoint does not change any more
 * @req: its connect request, which is over
 *
 * The peer is to notice now, and the worker too, which may hold descriptors.
 */
void ssa_endpoint_abort(struct ssa_sock *ssk, struct ssa_request *req)
{
	u32 i;

	kernel_sock_shutdown(ssk->endpoint, SHUT_RDWR);
	for (i = 0; i < req->nr_spare; i++)
		kernel_sock_shutdown(sock_from_file(req->spare[i]), SHUT_RDWR);
}
