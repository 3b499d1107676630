// SPDX-License-Identifier: GPL-2.0
/*
 * Life of a TLS socket: made, bound, connected, shut down, closed. Listening is
 * in listen.c.
 *
 * The way of a connect():
 *
 *   ssa_sock_connect()      the program's context; NEW -> CONNECTING; starts the
 *                           endpoint's TCP connection, sends CONNECT
 *   ssa_nl_endpoint_doit()  the daemon's context; a descriptor of the endpoint
 *   ssa_nl_complete_doit()  the daemon's context; takes the request
 *   ssa_sock_connected()    whoever took the request; CONNECTING -> CONNECTED or
 *                           FAILED; wakes the program
 *
 * A connect() that waits does so for the state, not for the request: it can be
 * interrupted or time out, and the attempt goes on, as TCP's does (connect(2)).
 */

#include <linux/slab.h>
#include <linux/tcp.h>
#include <net/tcp_states.h>

#include "ssa.h"

static DEFINE_XARRAY_FLAGS(sockets, XA_FLAGS_ALLOC1);
static u32 next_id;
static atomic_t nr_sockets = ATOMIC_INIT(0);

/*
 * Of our own, since the core takes a TLS socket's locks outside those of its
 * endpoint, which is a socket of the same family.
 */
static struct lock_class_key slock_key, sk_lock_key, wait_key;

/*
 * What a call does that finds the socket in a state in which it can't be made.
 * A state that is not named is one in which the call goes ahead.
 */
static const int connect_errno[] = {
	[SSA_SOCKET_STATE_CONNECTED]	= -EOPNOTSUPP,
	[SSA_SOCKET_STATE_LISTENING]	= -EOPNOTSUPP,
	[SSA_SOCKET_STATE_CLOSED]	= -EOPNOTSUPP,
	[SSA_SOCKET_STATE_FAILED]	= -EBADFD,
};

static const int bind_errno[] = {
	[SSA_SOCKET_STATE_CONNECTING]	= -EINVAL,
	[SSA_SOCKET_STATE_CONNECTED]	= -EINVAL,
	[SSA_SOCKET_STATE_LISTENING]	= -EINVAL,
	[SSA_SOCKET_STATE_CLOSED]	= -EOPNOTSUPP,
	[SSA_SOCKET_STATE_FAILED]	= -EBADFD,
};

static const int shutdown_errno[] = {
	[SSA_SOCKET_STATE_NEW]		= -ENOTCONN,
	[SSA_SOCKET_STATE_LISTENING]	= -ENOTCONN,
	[SSA_SOCKET_STATE_CLOSED]	= -ENOTCONN,
	[SSA_SOCKET_STATE_FAILED]	= -ENOTCONN,
};

/* The same state as others see it in struct sock and struct socket. */
static const struct {
	int tcp_state;
	socket_state syscall_state;
} seen_as[] = {
	[SSA_SOCKET_STATE_NEW]		= { TCP_CLOSE, SS_UNCONNECTED },
	[SSA_SOCKET_STATE_CONNECTING]	= { TCP_SYN_SENT, SS_CONNECTING },
	[SSA_SOCKET_STATE_CONNECTED]	= { TCP_ESTABLISHED, SS_CONNECTED },
	[SSA_SOCKET_STATE_LISTENING]	= { TCP_LISTEN, SS_UNCONNECTED },
	[SSA_SOCKET_STATE_CLOSED]	= { TCP_CLOSE, SS_UNCONNECTED },
	[SSA_SOCKET_STATE_FAILED]	= { TCP_CLOSE, SS_UNCONNECTED },
};

/**
 * ssa_sock_set_state - change the state
 * @ssk: locked
 * @state: of now on
 */
void ssa_sock_set_state(struct ssa_sock *ssk, enum ssa_socket_state state)
{
	struct sock *sk = ssa_to_sk(ssk);

	lockdep_assert_held(&ssk->lock);
	WRITE_ONCE(sk->sk_state, seen_as[state].tcp_state);
	if (sk->sk_socket)
		sk->sk_socket->state = seen_as[state].syscall_state;
	/* Pairs with ssa_state(). */
	smp_store_release(&ssk->state, state);
}

/**
 * ssa_facts_free - free what is known of a connection
 * @facts: may be NULL
 */
void ssa_facts_free(struct ssa_facts *facts)
{
	if (!facts)
		return;
	kfree(facts->cipher);
	kfree(facts->alpn);
	kfree(facts->peer_identity);
	kvfree(facts->peer_chain);
	kfree(facts);
}

/**
 * ssa_sock_set_text - set the sentence of TLS_ERROR
 * @ssk: locked
 * @text: copied
 */
void ssa_sock_set_text(struct ssa_sock *ssk, const char *text)
{
	char *copy = kstrdup(text, GFP_KERNEL);

	/* Without memory the old sentence would mislead: none is better. */
	kfree(ssk->error_text);
	ssk->error_text = copy;
}

/**
 * ssa_sock_get - find a TLS socket
 * @id: as TLS_ID gives it
 *
 * Return: a reference (sock_put), or NULL.
 */
struct ssa_sock *ssa_sock_get(u64 id)
{
	struct ssa_sock *ssk;

	if (id > U32_MAX)
		return NULL;
	xa_lock(&sockets);
	ssk = xa_load(&sockets, id);
	if (ssk)
		sock_hold(ssa_to_sk(ssk));
	xa_unlock(&sockets);
	return ssk;
}

/**
 * ssa_sock_next - walk all TLS sockets
 * @id: where to begin; set to the id of the one that was found
 *
 * Return: a reference (sock_put), or NULL at the end.
 */
struct ssa_sock *ssa_sock_next(unsigned long *id)
{
	struct ssa_sock *ssk;

	xa_lock(&sockets);
	ssk = xa_find(&sockets, id, ULONG_MAX, XA_PRESENT);
	if (ssk)
		sock_hold(ssa_to_sk(ssk));
	xa_unlock(&sockets);
	return ssk;
}

/**
 * ssa_sock_count - how many TLS sockets there are
 */
u32 ssa_sock_count(void)
{
	return atomic_read(&nr_sockets);
}

static void set_text_locked(struct ssa_sock *ssk, const char *text)
{
	ssa_lock(ssk);
	ssa_sock_set_text(ssk, text);
	ssa_unlock(ssk);
}

/* Changes the worker of a socket that no worker is asked about now. */
static int choose_worker(struct ssa_sock *ssk)
{
	struct ssa_worker *worker, *old;

	worker = ssa_worker_get();
	if (!worker)
		return -ECANCELED;
	atomic_inc(&worker->sockets);
	ssa_lock(ssk);
	old = ssk->worker;
	ssk->worker = worker;
	ssa_unlock(ssk);
	if (old) {
		atomic_dec(&old->sockets);
		ssa_worker_put(old);
	}
	return 0;
}

static int introduce_all(struct ssa_sock *ssk, char **text)
{
	struct ssa_setting *set;
	int err;

	err = ssa_request_socket(ssk);
	if (err)
		return err;
	list_for_each_entry(set, &ssk->settings, list) {
		err = ssa_request_setting(ssk, set, text);
		if (err)
			return err;
	}
	if (ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING)
		return ssa_request_listen(ssk, text);
	return 0;
}

/**
 * ssa_sock_introduce - make sure that a worker knows the socket
 * @ssk: its control lock is held, or nobody else can have it yet
 * @text: gets the sentence of a worker that refused it, or NULL; to be freed
 *
 * Tells a worker about the socket, what was set so far and that it listens.
 *
 * Return: 0; -ECANCELED without a worker; as ssa_request_socket().
 */
int ssa_sock_introduce(struct ssa_sock *ssk, char **text)
{
	int err;

	if (ssk->worker && !ssa_worker_is_gone(ssk->worker)) {
		if (ssk->introduced)
			return 0;
	} else if (choose_worker(ssk)) {
		set_text_locked(ssk, "The TLS daemon is not running; 'ssad start' starts it.");
		return -ECANCELED;
	}

	ssk->introduced = false;
	err = introduce_all(ssk, text);
	if (err)
		goto err_text;
	ssk->introduced = true;
	return 0;

err_text:
	/* Known in part: to be introduced anew before the next use. */
	set_text_locked(ssk, "The TLS daemon did not take the socket on; see its log.");
	return err;
}

static int endpoint_create(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct socket *endpoint;
	struct file *file;
	int err;

	/* A kernel socket does not hold its network namespace; nor does this. */
	err = __sock_create(sock_net(sk), sk->sk_family, SOCK_STREAM, IPPROTO_TCP,
			    &endpoint, !sk->sk_net_refcnt);
	if (err)
		return err;
	/* The file that the daemon's descriptors will refer to as well. */
	file = sock_alloc_file(endpoint, O_NONBLOCK, "TLS");
	if (IS_ERR(file))
		return PTR_ERR(file);	/* and the socket is released */
	ssk->endpoint = endpoint;
	ssk->endpoint_file = file;
	return 0;
}

/**
 * ssa_sock_set_wait_class - before anybody can wait on a socket
 * @sock: of a TLS socket
 */
void ssa_sock_set_wait_class(struct socket *sock)
{
	lockdep_set_class(&sock->wq.wait.lock, &wait_key);
}

/**
 * ssa_sock_set_owner - the socket is the current process's
 * @ssk: seen by nobody else, or locked
 */
void ssa_sock_set_owner(struct ssa_sock *ssk)
{
	ssk->pid = task_tgid_nr(current);
	ssk->uid = current_euid();
	ssk->gid = current_egid();
	get_task_comm(ssk->comm, current);
}

/**
 * ssa_sock_setup - what every TLS socket begins with, its id reserved included
 * @ssk: zeroed behind its struct inet_sock, seen by nobody else
 *
 * Return: 0 or -ENOMEM; ssa_sock_destroy() undoes it however far it came.
 */
int ssa_sock_setup(struct ssa_sock *ssk)
{
	u32 id;
	int err;

	sock_lock_init_class_and_name(ssa_to_sk(ssk), "slock-AF_INET-TLS", &slock_key,
				      "sk_lock-AF_INET-TLS", &sk_lock_key);
	mutex_init(&ssk->control);
	mutex_init(&ssk->lock);
	mutex_init(&ssk->rx_lock);
	mutex_init(&ssk->mirror_lock);
	INIT_LIST_HEAD(&ssk->settings);
	INIT_LIST_HEAD(&ssk->queue);
	INIT_LIST_HEAD(&ssk->queued);
	INIT_DELAYED_WORK(&ssk->adopt, ssa_listen_adopt);
	atomic64_set(&ssk->sent, 0);
	atomic64_set(&ssk->received, 0);

	/* Reserved: nobody finds the socket before it is whole. */
	err = xa_alloc_cyclic(&sockets, &id, NULL, xa_limit_32b, &next_id, GFP_KERNEL);
	if (err < 0)
		return err;
	ssk->id = id;
	atomic_inc(&nr_sockets);
	ssk->close = ssa_notice_new(ssk, SSA_CMD_CLOSE);
	return ssk->close ? 0 : -ENOMEM;
}

/**
 * ssa_sock_publish - from now on a socket is found by its id
 * @ssk: whole
 */
void ssa_sock_publish(struct ssa_sock *ssk)
{
	xa_lock(&sockets);
	/* The entry is reserved: no memory is needed, and this can't fail. */
	__xa_store(&sockets, ssk->id, ssk, 0);
	xa_unlock(&sockets);
}

/**
 * ssa_sock_init - make a TLS socket; proto.init of both families
 * @sk: fresh, seen by nobody else
 *
 * In the context of socket(2). Sleeps until the daemon has answered, killable
 * and bounded. On failure the caller destroys the socket.
 *
 * Return: 0; -ECANCELED if there is no daemon or it failed; -ENOMEM; an error
 * of making a TCP socket.
 */
int ssa_sock_init(struct sock *sk)
{
	struct ssa_sock *ssk = ssa_sk(sk);
	int err;

	ssa_sock_set_wait_class(sk->sk_socket);
	ssa_sock_set_owner(ssk);
	err = ssa_sock_setup(ssk);
	if (err)
		return err;
	err = endpoint_create(ssk);
	if (err)
		return err;
	err = ssa_sock_introduce(ssk, NULL);
	if (err)
		return err;
	ssa_sock_publish(ssk);
	ssa_event(ssk, SSA_EVENT_KIND_OPENED);
	return 0;
}

/**
 * ssa_sock_get_endpoint - the file of a socket's endpoint
 * @ssk: referenced by the caller
 * @req: its connect or listen request
 *
 * Return: a reference; NULL if the socket is closed or @req is over.
 */
struct file *ssa_sock_get_endpoint(struct ssa_sock *ssk, struct ssa_request *req)
{
	struct file *file = NULL;

	ssa_lock(ssk);
	if (ssk->endpoint_file && (req->cmd == SSA_CMD_LISTEN || ssk->connect == req))
		file = get_file(ssk->endpoint_file);
	ssa_unlock(ssk);
	return file;
}

/* Takes a socket that is being destroyed out of the tables. */
static bool unlist(struct ssa_sock *ssk)
{
	bool whole;

	if (!ssk->id)
		return false;
	xa_lock(&sockets);
	whole = __xa_erase(&sockets, ssk->id);
	xa_unlock(&sockets);
	atomic_dec(&nr_sockets);
	return whole;
}

/**
 * ssa_sock_destroy - undo ssa_sock_init(), however far it came; proto.destroy
 * @sk: no call runs on it, and none will
 */
void ssa_sock_destroy(struct sock *sk)
{
	struct file *endpoint_file, *channel_file;
	struct ssa_sock *ssk = ssa_sk(sk);
	struct ssa_worker *worker;
	struct ssa_facts *facts;
	char *text, *host_name;
	struct ssa_request *req;
	bool whole;

	whole = unlist(ssk);
	if (ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING)
		ssa_listen_close(ssk);

	/*
	 * A completion that has taken the connect request, but not the lock,
	 * finds that it is not ours any more and gives up what it brought.
	 */
	ssa_lock(ssk);
	req = ssk->connect;
	ssk->connect = NULL;
	ssa_unlock(ssk);
	if (req) {
		ssa_request_cancel(req);
		ssa_request_put(req);
	}

	if (whole) {
		ssa_transport_close(ssk);
		ssa_lock(ssk);
		ssa_sock_set_state(ssk, SSA_SOCKET_STATE_CLOSED);
		ssa_unlock(ssk);
		ssa_event(ssk, SSA_EVENT_KIND_CLOSED);
	}

	/* Who found the socket before it was unlisted can still look at it. */
	ssa_lock(ssk);
	endpoint_file = ssk->endpoint_file;
	channel_file = ssk->channel_file;
	worker = ssk->worker;
	facts = ssk->facts;
	text = ssk->error_text;
	host_name = ssk->host_name;
	ssk->endpoint_file = NULL;
	ssk->endpoint = NULL;
	ssk->channel_file = NULL;
	ssk->transport = NULL;
	ssk->worker = NULL;
	ssk->facts = NULL;
	ssk->error_text = NULL;
	ssk->host_name = NULL;
	ssa_settings_free(ssk);
	ssa_unlock(ssk);

	if (worker) {
		atomic_dec(&worker->sockets);
		ssa_worker_notify(worker, ssk->close);
	} else {
		kfree(ssk->close);
	}
	ssk->close = NULL;
	if (channel_file)
		fput(channel_file);
	if (endpoint_file)
		fput(endpoint_file);
	ssa_facts_free(facts);
	kfree(text);
	kfree(host_name);
}

/**
 * ssa_sock_release - close(2) of the last descriptor
 * @sock: the socket
 */
int ssa_sock_release(struct socket *sock)
{
	if (sock->sk)
		sk_common_release(sock->sk);
	return 0;
}

/**
 * ssa_getname - getsockname(2) and getpeername(2): the endpoint's
 * @sock: the socket
 * @addr: gets the address
 * @peer: whose address
 *
 * Return: length of the address; -ENOTCONN for a peer that is not verified.
 */
int ssa_getname(struct socket *sock, struct sockaddr *addr, int peer)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);

	/* Programs ask for the peer to see whether a connect() succeeded. */
	if (peer && ssa_state(ssk) != SSA_SOCKET_STATE_CONNECTED)
		return -ENOTCONN;
	return READ_ONCE(ssk->endpoint->ops)->getname(ssk->endpoint, addr, peer);
}

/**
 * ssa_sock_bind - bind(2) the endpoint, with the rights of the caller
 * @sock: the socket
 * @addr: the address
 * @len: its length
 *
 * Return: 0; TCP's error; -EOPNOTSUPP, -EINVAL or -EBADFD in a wrong state;
 * an error of ssa_sock_introduce().
 */
int ssa_sock_bind(struct socket *sock, struct sockaddr *addr, int len)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	int err;

	if (mutex_lock_interruptible(&ssk->control))
		return -ERESTARTSYS;
	err = bind_errno[ssa_state(ssk)];
	if (err)
		goto out;
	err = ssa_sock_introduce(ssk, NULL);
	if (err)
		goto out;
	ssa_sockopt_mirror(ssk);
	err = kernel_bind(ssk->endpoint, addr, len);
	if (!err)
		err = ssa_request_bind(ssk);
out:
	mutex_unlock(&ssk->control);
	return err;
}

/* connect(AF_UNSPEC), and shutdown() of a socket that is connecting */
static int disconnect(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);
	enum ssa_socket_state state;
	struct ssa_request *req;

	ssa_lock(ssk);
	state = ssa_state(ssk);
	req = ssk->connect;
	ssk->connect = NULL;
	if (state == SSA_SOCKET_STATE_CONNECTING || state == SSA_SOCKET_STATE_CONNECTED)
		ssa_sock_set_state(ssk, SSA_SOCKET_STATE_CLOSED);
	ssa_unlock(ssk);

	if (req) {
		ssa_request_cancel(req);
		ssa_request_put(req);
	}
	if (state == SSA_SOCKET_STATE_CONNECTED)
		ssa_transport_shutdown(ssk, SHUTDOWN_MASK);
	else if (state == SSA_SOCKET_STATE_CONNECTING)
		kernel_sock_shutdown(ssk->endpoint, SHUT_RDWR);
	sk->sk_state_change(sk);
	return 0;
}

/*
 * What a connect() returns for an attempt that has ended, once. Afterwards the
 * state speaks.
 */
static int connect_result(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);
	int err;

	ssa_lock(ssk);
	if (ssk->connect_reported) {
		err = connect_errno[ssa_state(ssk)];
	} else {
		ssk->connect_reported = true;
		err = ssa_state(ssk) == SSA_SOCKET_STATE_CLOSED ? -ECONNABORTED
								: ssk->connect_error;
		sk->sk_err = 0;	/* returned now, so not to SO_ERROR again */
	}
	ssa_unlock(ssk);
	return err;
}

static int connect_wait(struct ssa_sock *ssk, long timeout)
{
	long left;

	left = wait_event_interruptible_timeout(*sk_sleep(ssa_to_sk(ssk)),
						ssa_state(ssk) != SSA_SOCKET_STATE_CONNECTING,
						timeout);
	if (left < 0)
		return sock_intr_errno(timeout);
	if (!left)
		return -EINPROGRESS;
	return connect_result(ssk);
}

/* Begins an attempt. The control lock is held and the state is NEW. */
static int connect_begin(struct ssa_sock *ssk, struct sockaddr *addr, int len)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct sockaddr_storage remote = {};
	struct ssa_result res = {};
	struct ssa_request *req;
	int err;

	if (len < (int)sizeof(sa_family_t) || len > (int)sizeof(remote))
		return -EINVAL;
	if (addr->sa_family != sk->sk_family)
		return -EAFNOSUPPORT;
	if (len < (int)(sk->sk_family == AF_INET6 ? SIN6_LEN_RFC2133
						  : sizeof(struct sockaddr_in)))
		return -EINVAL;
	memcpy(&remote, addr, len);

	err = ssa_sock_introduce(ssk, NULL);
	if (err)
		return err;
	ssa_sockopt_mirror(ssk);

	/*
	 * Both under the lock: once the request is made the worker's death
	 * completes it, and ssa_sock_connected() must find it in the socket.
	 */
	ssa_lock(ssk);
	req = ssa_request_connect(ssk);
	if (IS_ERR(req)) {
		ssa_unlock(ssk);
		return PTR_ERR(req);
	}
	ssk->connect = req;	/* the reference that we were given */
	refcount_inc(&req->ref);
	ssa_sock_set_state(ssk, SSA_SOCKET_STATE_CONNECTING);
	ssa_unlock(ssk);

	/* As the caller, so that its rights and its namespace decide. */
	err = kernel_connect(ssk->endpoint, (struct sockaddr *)&remote, len, O_NONBLOCK);
	if (!ssa_request_is_pending(req)) {
		/* Given up by connect(AF_UNSPEC) before there was a connection. */
		kernel_sock_shutdown(ssk->endpoint, SHUT_RDWR);
		err = 0;
	} else if (!err || err == -EINPROGRESS) {
		err = ssa_request_send_connect(req, &remote);
		if (err)
			res.text = kasprintf(GFP_KERNEL,
					     "The TLS daemon could not be asked (%pe); see 'ssad status'.",
					     ERR_PTR(err));
	} else {
		res.text = kasprintf(GFP_KERNEL, "TCP could not connect (%pe).", ERR_PTR(err));
	}
	if (err) {
		/* Lost: completed by the worker's death, with the same effect. */
		res.error = err;
		ssa_request_finish(req, &res);
	}
	ssa_request_put(req);
	return 0;
}

/**
 * ssa_sock_connect - connect(2)
 * @sock: the socket
 * @addr: address of the socket's family, or AF_UNSPEC
 * @len: its length
 * @flags: O_NONBLOCK
 *
 * Return: 0; -EINPROGRESS, -EALREADY, -EINTR as TCP's connect(); TCP's own
 * errors; -EPROTO, -ECONNABORTED, -ECANCELED as the daemon says; -EOPNOTSUPP
 * or -EBADFD in a wrong state; -EINVAL or -EAFNOSUPPORT for a wrong address.
 */
int ssa_sock_connect(struct socket *sock, struct sockaddr *addr, int len, int flags)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	long timeout;
	int err;

	if (len < (int)sizeof(addr->sa_family))
		return -EINVAL;
	if (addr->sa_family == AF_UNSPEC)
		return disconnect(ssk);

	if (mutex_lock_interruptible(&ssk->control))
		return -ERESTARTSYS;
	switch (ssa_state(ssk)) {
	case SSA_SOCKET_STATE_NEW:
		err = connect_begin(ssk, addr, len);
		if (!err && flags & O_NONBLOCK && ssa_state(ssk) == SSA_SOCKET_STATE_CONNECTING)
			err = -EINPROGRESS;
		break;
	case SSA_SOCKET_STATE_CONNECTING:
		err = flags & O_NONBLOCK ? -EALREADY : 0;
		break;
	default:
		err = 0;
		break;
	}
	mutex_unlock(&ssk->control);
	if (err)
		return err;

	/* Zero without O_NONBLOCK is the longest wait: SO_SNDTIMEO is unset. */
	timeout = sock_sndtimeo(ssa_to_sk(ssk), flags & O_NONBLOCK);
	return connect_wait(ssk, timeout);
}

/**
 * ssa_sock_connected - a connect() is over
 * @ssk: its socket
 * @req: its request, taken by the caller
 * @res: how it ended; what is used of it is taken out
 *
 * Sleeps for the socket's lock. Wakes all that wait.
 */
void ssa_sock_connected(struct ssa_sock *ssk, struct ssa_request *req, struct ssa_result *res)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct ssa_worker *forgotten = NULL;
	int err = res->error;

	ssa_lock(ssk);
	/*
	 * Closed or torn down since: close(), connect(AF_UNSPEC) or shutdown()
	 * took the request out of the socket. What the daemon brought is freed
	 * by the caller.
	 */
	if (ssk->connect != req) {
		ssa_unlock(ssk);
		return;
	}
	ssk->connect = NULL;

	if (!err)
		err = ssa_transport_attach(ssk, res);
	kfree(ssk->error_text);
	ssk->error_text = res->text;
	res->text = NULL;
	ssk->connect_error = err;
	if (err) {
		/* The peer is to notice now, not when the program closes. */
		kernel_sock_shutdown(ssk->endpoint, SHUT_RDWR);
		sk->sk_err = -err;
		ssa_sock_set_state(ssk, SSA_SOCKET_STATE_FAILED);
	} else {
		swap(ssk->facts, res->facts);
		if (res->host_name) {
			kfree(ssk->host_name);
			ssk->host_name = res->host_name;
			res->host_name = NULL;
		}
		ssa_sock_set_state(ssk, SSA_SOCKET_STATE_CONNECTED);
	}
	/*
	 * Nothing is replayed from here on. Only calls on a NEW socket look at
	 * the settings, so no lock but this is needed to drop them.
	 */
	ssa_settings_free(ssk);
	if (res->from_worker && ssk->kind != SSA_TRANSPORT_CHANNEL)
		swap(forgotten, ssk->worker);
	ssa_unlock(ssk);
	if (forgotten)
		atomic_dec(&forgotten->sockets);
	ssa_worker_put(forgotten);

	ssa_event(ssk, err ? SSA_EVENT_KIND_REFUSED : SSA_EVENT_KIND_CONNECTED);

	/* After the state, so that a poll() that this wakes sees it. */
	sk->sk_state_change(sk);
	sk_wake_async(sk, SOCK_WAKE_IO, POLL_OUT);
	ssa_request_put(req);	/* the socket's */
}

/**
 * ssa_sock_shutdown - shutdown(2)
 * @sock: the socket
 * @how: SHUT_RD, SHUT_WR or SHUT_RDWR
 *
 * Return: 0; -EINVAL for another @how; -ENOTCONN.
 */
int ssa_sock_shutdown(struct socket *sock, int how)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	int err;

	how++;	/* SHUT_* to RCV_SHUTDOWN, SEND_SHUTDOWN */
	if (!how || how & ~SHUTDOWN_MASK)
		return -EINVAL;

	if (ssa_state(ssk) == SSA_SOCKET_STATE_CONNECTING)
		return disconnect(ssk);
	err = shutdown_errno[ssa_state(ssk)];
	if (err)
		return err;
	return ssa_transport_shutdown(ssk, how);
}
