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

#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/nsproxy.h>
#include <linux/sched/task.h>
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
 * ssa_sock_take_text - set the sentence of TLS_ERROR, if there is a new one
 * @ssk: not locked
 * @text: consumed; or NULL, and the old one stays
 */
void ssa_sock_take_text(struct ssa_sock *ssk, char *text)
{
	if (!text)
		return;
	ssa_lock(ssk);
	swap(ssk->error_text, text);
	ssa_unlock(ssk);
	kfree(text);
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

/**
 * ssa_sock_count_busy - on how many sockets may a worker be asked something new?
 * @worker: which is leaving
 *
 * Those that listen, until they are moved; and those that are in a call that
 * chose this worker before it was leaving. A call that takes the control lock
 * after this has looked at it sees that it is.
 */
u32 ssa_sock_count_busy(struct ssa_worker *worker)
{
	struct ssa_sock *ssk;
	unsigned long id;
	u32 count = 0;
	bool its;

	for (id = 0; (ssk = ssa_sock_next(&id)); id++) {
		ssa_lock(ssk);
		its = ssk->worker == worker;
		ssa_unlock(ssk);
		if (its && ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING)
			count++;
		else if (its && !mutex_trylock(&ssk->control))
			count++;
		else if (its)
			mutex_unlock(&ssk->control);
		sock_put(ssa_to_sk(ssk));
	}
	return count;
}

static void set_text_locked(struct ssa_sock *ssk, const char *text)
{
	ssa_lock(ssk);
	ssa_sock_set_text(ssk, text);
	ssa_unlock(ssk);
}

/*
 * Changes the worker of a socket that no worker is asked about now; the caller's
 * reference to the new one is consumed.
 */
static void change_worker(struct ssa_sock *ssk, struct ssa_worker *worker)
{
	struct ssa_worker *old;

	atomic_inc(&worker->sockets);
	ssa_lock(ssk);
	old = ssk->worker;
	ssk->worker = worker;
	ssa_unlock(ssk);
	ssk->introduced = false;
	if (old) {
		atomic_dec(&old->sockets);
		ssa_worker_put(old);
	}
}

static int introduce_all(struct ssa_sock *ssk, char **text)
{
	u32 i, nr = ssk->settings ? ssk->settings->nr : 0;
	int err;

	err = ssa_request_socket(ssk);
	if (err)
		return err;
	for (i = 0; i < nr; i++) {
		err = ssa_request_setting(ssk, ssk->settings->set[i], text);
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
 * @text: gets the sentence of a worker that refused it, to be freed; or NULL:
 *	then it becomes that of TLS_ERROR
 *
 * Tells a worker about the socket, what was set so far and that it listens.
 *
 * Return: 0; -ECANCELED without a worker; as ssa_request_socket().
 */
int ssa_sock_introduce(struct ssa_sock *ssk, char **text)
{
	struct ssa_worker *worker;
	char *why = NULL;
	int err;

	do {
		if (!ssk->worker || ssa_worker_is_leaving(ssk->worker)) {
			worker = ssa_worker_get();
			if (!worker) {
				err = -ECANCELED;
				set_text_locked(ssk,
						"The TLS daemon is not running; 'ssad start' starts it.");
				goto out_free;
			}
			change_worker(ssk, worker);
		}
		if (ssk->introduced)
			return 0;
		err = introduce_all(ssk, text ?: &why);
		/* One that leaves meanwhile fails nobody, unlike one that dies. */
	} while ((!err || err == -ECANCELED) && READ_ONCE(ssk->worker->leaving) &&
		 !READ_ONCE(ssk->closing));
	/* On an error it is known in part: to be introduced anew before the next use. */
	ssk->introduced = !err;
	if (err)
		set_text_locked(ssk, why ?:
				"The TLS daemon did not take the socket on; see its log.");

out_free:
	kfree(why);
	return err;
}

/**
 * ssa_sock_follow - have a socket served by the worker of another one
 * @ssk: NEW, its control lock is held
 * @worker: of the other one, referenced by the caller; or NULL
 *
 * So that it finds the sessions that the other one has left there. If that can't
 * be, it stays where it is, and does without them.
 */
void ssa_sock_follow(struct ssa_sock *ssk, struct ssa_worker *worker)
{
	if (!worker || worker == ssk->worker || ssa_worker_is_leaving(worker))
		return;
	/* Now or not at all: should it come back, CLOSE must not come after that. */
	if (ssa_worker_close(ssk->worker, ssk))
		return;
	refcount_inc(&worker->ref);
	change_worker(ssk, worker);
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

/*
 * The file that the current process executes, as the administrator knows it.
 * Who has a mount or user namespace of his own can give any file that name, and
 * a thread of the kernel executes none: then there is no name.
 */
static int set_executable(struct ssa_sock *ssk)
{
	struct file *file;
	char *buf, *path;
	int err = 0;

	if (current_user_ns() != &init_user_ns || !current->nsproxy ||
	    current->nsproxy->mnt_ns != init_task.nsproxy->mnt_ns)
		return 0;
	file = ssa_exe_file();
	if (!file)
		return 0;
	buf = kmalloc(PATH_MAX, GFP_KERNEL);
	if (!buf) {
		fput(file);
		return -ENOMEM;
	}
	path = d_path(&file->f_path, buf, PATH_MAX);
	if (!IS_ERR(path)) {
		ssk->executable = kstrdup(path, GFP_KERNEL_ACCOUNT);
		if (!ssk->executable)
			err = -ENOMEM;
	}
	kfree(buf);
	fput(file);
	return err;
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
	ssa_upcall_init(ssk);
	mutex_init(&ssk->control);
	mutex_init(&ssk->lock);
	mutex_init(&ssk->rx_lock);
	mutex_init(&ssk->mirror_lock);
	INIT_LIST_HEAD(&ssk->records);
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
 * Return: 0; -ECANCELED if there is no daemon or it failed; -EMFILE if the user
 * has too many; -ENOMEM; -ENONET in a network namespace that is going away; an
 * error of making a TCP socket.
 */
int ssa_sock_init(struct sock *sk)
{
	struct ssa_sock *ssk = ssa_sk(sk);
	int err;

	ssa_sock_set_wait_class(sk->sk_socket);
	ssa_upcall_learn(sk);
	ssa_sock_set_owner(ssk);
	err = ssa_sock_setup(ssk);
	if (err)
		return err;
	err = ssa_user_count(ssk, current_cred());
	if (err)
		return err;
	err = set_executable(ssk);
	if (err)
		return err;
	err = ssa_endpoint_init(ssk);
	if (err)
		return err;
	ssa_mirror_init(ssk);
	ssa_window(SSA_WINDOW_OPENING);
	err = ssa_sock_introduce(ssk, NULL);
	if (err)
		return err;
	ssa_sock_publish(ssk);
	ssa_event(ssk, SSA_EVENT_KIND_OPENED);
	return 0;
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
	struct ssa_settings *settings;
	struct ssa_worker *worker;
	struct ssa_count counted;
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
		/* Ends a handshake that the daemon is at. */
		ssa_endpoint_abort(ssk, req);
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
	counted = ssk->counted;
	facts = ssk->facts;
	text = ssk->error_text;
	host_name = ssk->host_name;
	ssk->endpoint_file = NULL;
	ssk->endpoint = NULL;
	ssk->channel_file = NULL;
	ssk->transport = NULL;
	ssk->worker = NULL;
	ssk->counted = (struct ssa_count){};
	ssk->facts = NULL;
	ssk->error_text = NULL;
	ssk->host_name = NULL;
	settings = ssk->settings;
	ssk->settings = NULL;
	ssa_levels_free(ssk);
	ssa_unlock(ssk);
	ssa_upcall_stop(ssk);

	ssa_worker_forget(worker, ssk->close);
	ssa_user_uncount(counted);
	ssk->close = NULL;
	if (channel_file)
		fput(channel_file);
	if (endpoint_file)
		fput(endpoint_file);
	ssa_settings_put(settings);
	ssa_record_forget(ssk);
	ssa_facts_free(facts);
	kfree(text);
	kfree(host_name);
	kfree(ssk->executable);
	ssa_window(SSA_WINDOW_CLOSING);
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
	struct socket *endpoint;
	struct file *file;
	int err;

	/* Programs ask for the peer to see whether a connect() succeeded. */
	err = ssa_state_errno(ssa_state(ssk), peer ? SSA_CALL_GETPEERNAME : SSA_CALL_GETSOCKNAME);
	if (err)
		return err;
	file = ssa_endpoint_get(ssk);
	endpoint = sock_from_file(file);
	err = READ_ONCE(endpoint->ops)->getname(endpoint, addr, peer);
	fput(file);
	return err;
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
	err = ssa_state_errno(ssa_state(ssk), SSA_CALL_BIND);
	if (err)
		goto out;
	err = ssa_sock_introduce(ssk, NULL);
	if (err)
		goto out;
	ssa_sockopt_mirror(ssk);
	err = ssa_endpoint_bind(ssk, addr, len);
	/* A scope of IPv6 has bound it to a device as well. */
	ssa_sockopt_mirror(ssk);
	if (err)
		goto out;
	err = ssa_request_bind(ssk);
	/* It is bound, and CONNECT and LISTEN tell the worker of it again. */
	if (err == -ENOMEM)
		err = 0;
out:
	mutex_unlock(&ssk->control);
	return err;
}

/* connect(AF_UNSPEC), and shutdown() of a socket that is connecting */
static int disconnect(struct ssa_sock *ssk)
{
	enum ssa_socket_state state;
	struct ssa_request *req;

	if (ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING) {
		ssa_listen_stop(ssk);
		return 0;
	}

	ssa_lock(ssk);
	state = ssa_state(ssk);
	req = ssk->connect;
	ssk->connect = NULL;
	if (state == SSA_SOCKET_STATE_CONNECTING || state == SSA_SOCKET_STATE_CONNECTED)
		ssa_sock_set_state(ssk, SSA_SOCKET_STATE_CLOSED);
	ssa_unlock(ssk);

	if (req) {
		ssa_request_cancel(req);
		ssa_endpoint_abort(ssk, req);
		ssa_request_put(req);
	}
	/* Without memory for close_notify the peer sees that the stream was cut. */
	if (state == SSA_SOCKET_STATE_CONNECTED && ssa_transport_shutdown(ssk, SHUTDOWN_MASK))
		kernel_sock_shutdown(ssk->transport, SHUT_RDWR);
	ssa_upcall(ssk, SSA_UPCALL_STATE_CHANGE);
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
		err = ssa_state_errno(ssa_state(ssk), SSA_CALL_CONNECT);
		/*
		 * io_uring calls again after -ECONNABORTED, and when it then
		 * hears -EBADFD, as from Bluetooth, takes SO_ERROR for the
		 * result: without it a connection that failed would be one.
		 */
		if (err == -EBADFD && ssk->connect_error == -ECONNABORTED)
			sk->sk_err = ECONNABORTED;
	} else {
		ssk->connect_reported = true;
		err = ssa_state(ssk) == SSA_SOCKET_STATE_CLOSED ? -ECONNABORTED
								: ssk->connect_error;
		if (err)
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

/* Checks an address. Return: 0; -EINVAL or -EAFNOSUPPORT. */
static int check_remote(struct ssa_sock *ssk, const struct sockaddr *addr, int len)
{
	int family = ssa_to_sk(ssk)->sk_family;

	if (len > (int)sizeof(struct sockaddr_storage))
		return -EINVAL;
	if (addr->sa_family == ssa_hostname_family)
		return PTR_ERR_OR_ZERO(ssa_hostname_parse(addr, len));
	if (addr->sa_family != family)
		return -EAFNOSUPPORT;
	if (len < (int)(family == AF_INET6 ? SIN6_LEN_RFC2133 : sizeof(struct sockaddr_in)))
		return -EINVAL;
	return 0;
}

/*
 * Makes the request of an attempt. Both under the lock: once the request is
 * made the worker's death completes it, and ssa_sock_connected() must find it
 * in the socket. Return: a reference of the caller's, or an ERR_PTR.
 */
static struct ssa_request *attempt_new(struct ssa_sock *ssk, const struct sockaddr *addr)
{
	struct ssa_request *req;
	int err;

	req = ssa_request_connect(ssk);
	if (IS_ERR(req))
		return req;
	if (addr->sa_family == ssa_hostname_family) {
		err = ssa_endpoint_spare(ssk, req);
		if (err)
			goto err_put;
	}
	ssa_lock(ssk);
	err = ssa_request_add(req, ssk);
	if (!err) {
		refcount_inc(&req->ref);
		ssk->connect = req;
		ssa_sock_set_state(ssk, SSA_SOCKET_STATE_CONNECTING);
	}
	ssa_unlock(ssk);
	if (!err)
		return req;
err_put:
	ssa_request_put(req);
	return ERR_PTR(err);
}

/* Begins an attempt. The control lock is held and the state is NEW. */
static int connect_begin(struct ssa_sock *ssk, struct sockaddr *addr, int len)
{
	struct sockaddr_storage remote = {};
	struct ssa_result res = {};
	struct ssa_request *req;
	int err;

	err = check_remote(ssk, addr, len);
	if (err)
		return err;
	memcpy(&remote, addr, len);

	err = ssa_sock_introduce(ssk, NULL);
	if (err)
		return err;
	ssa_sockopt_mirror(ssk);

	req = attempt_new(ssk, addr);
	if (req == ERR_PTR(-ECANCELED))
		set_text_locked(ssk, "The TLS daemon stopped just now; see its log.");
	if (IS_ERR(req))
		return PTR_ERR(req);

	/* As the caller, so that its rights and its namespace decide. */
	if (addr->sa_family != ssa_hostname_family)
		err = kernel_connect(ssk->endpoint, (struct sockaddr *)&remote, len, O_NONBLOCK);
	ssa_sockopt_mirror(ssk);
	if (!ssa_request_is_pending(req)) {
		/* Given up by connect(AF_UNSPEC) before there was a connection. */
		kernel_sock_shutdown(ssk->endpoint, SHUT_RDWR);
		err = 0;
	} else if (!err || err == -EINPROGRESS) {
		err = ssa_request_send_connect(req, (struct sockaddr *)&remote);
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
 * @addr: address of the socket's family, a struct sockaddr_host, or AF_UNSPEC
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
	struct ssa_count counted = {};
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

	if (!err) {
		ssa_endpoint_choose(ssk, req, res->chosen);
		err = ssa_transport_attach(ssk, res);
	}
	kfree(ssk->error_text);
	ssk->error_text = res->text;
	res->text = NULL;
	ssk->connect_error = err;
	if (res->from_worker && ssk->kind != SSA_TRANSPORT_CHANNEL) {
		/* Before the state: who waits for that may need the room at once. */
		swap(counted, ssk->counted);
		ssa_user_uncount(counted);
	}
	if (err) {
		ssa_endpoint_abort(ssk, req);
		sk->sk_err = -err;
		ssa_sock_set_state(ssk, SSA_SOCKET_STATE_FAILED);
	} else {
		swap(ssk->facts, res->facts);
		if (ssk->kind == SSA_TRANSPORT_KTLS)
			ssk->tickets = res->tickets;
		if (res->host_name) {
			kfree(ssk->host_name);
			ssk->host_name = res->host_name;
			res->host_name = NULL;
		}
		ssa_sock_set_state(ssk, SSA_SOCKET_STATE_CONNECTED);
	}
	ssa_levels_free(ssk);
	if (res->from_worker && ssk->kind != SSA_TRANSPORT_CHANNEL) {
		/*
		 * One that wants to see tickets is to hear of the end as well;
		 * one that has the session is known to those who want it, too.
		 */
		if (err || (!ssk->tickets &&
			    !ssa_settings_u32(ssk->settings, TLS_SESSION_REUSE)))
			swap(forgotten, ssk->worker);
	}
	ssa_unlock(ssk);
	if (forgotten)
		atomic_dec(&forgotten->sockets);
	ssa_worker_put(forgotten);

	ssa_event(ssk, err ? SSA_EVENT_KIND_REFUSED : SSA_EVENT_KIND_CONNECTED);
	/*
	 * After the state, so that a poll() that this wakes sees it; under the
	 * lock and not when it is closed, so that ssa_upcall_stop() comes later.
	 */
	ssa_lock(ssk);
	if (ssk->endpoint) {
		if (err)
			ssa_upcall(ssk, SSA_UPCALL_ERROR_REPORT);
		ssa_upcall(ssk, SSA_UPCALL_STATE_CHANGE);
		if (!err)
			sk_wake_async(sk, SOCK_WAKE_IO, POLL_OUT);
		/* What came before the transport was attached told nobody. */
		if (!err && ssa_transport_has_input(ssk))
			ssa_upcall(ssk, SSA_UPCALL_DATA_READY);
	}
	ssa_unlock(ssk);
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
	if (ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING) {
		/* As TCP: a listener has nothing to write. */
		if (how & RCV_SHUTDOWN)
			ssa_listen_stop(ssk);
		return 0;
	}
	err = ssa_state_errno(ssa_state(ssk), SSA_CALL_SHUTDOWN);
	if (err)
		return err;
	return ssa_transport_shutdown(ssk, how);
}
