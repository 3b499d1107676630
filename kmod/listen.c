// SPDX-License-Identifier: GPL-2.0
/*
 * Listening sockets: the worker accepts from the endpoint and does the
 * handshakes; connections that are finished wait here for accept().
 *
 * The way of a connection:
 *
 *   ssa_sock_listen()        the program's context; NEW -> LISTENING once the
 *                            worker has agreed; from then on it accepts
 *   ssa_nl_accepted_doit()   the worker's context; brings the TCP connection
 *   ssa_listen_accepted()    makes a TLS socket of it, a clone of the listening
 *                            one, so that it inherits what accept() lets inherit
 *   ssa_listen_enqueue()     into the queue; wakes one that waits
 *   ssa_sock_accept()        the program's context; takes it
 *
 * Nothing finished is dropped: the worker is told how full the queue is, stops
 * accepting when it is full, and hears when it has room again.
 *
 * A listening socket outlives its worker, be it that this dies or leaves: the
 * endpoint goes on to listen, and its work (adopt) introduces the socket to
 * another worker, or to the next one that registers.
 */

#include <linux/slab.h>
#include <net/tcp_states.h>

#include "ssa.h"

#define ADOPT_RETRY	HZ

/* Takes the notice that is owed to a worker, with a reference to it. */
static struct ssa_notice *take_room(struct ssa_sock *ssk, struct ssa_worker **worker)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct ssa_notice *room = ssk->room;

	lockdep_assert_held(&ssk->lock);
	if (!room || sk_acceptq_is_full(sk))
		return NULL;
	ssk->room = NULL;
	refcount_inc(&ssk->worker->ref);
	*worker = ssk->worker;
	return room;
}

static void set_backlog(struct ssa_sock *ssk, int backlog)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct ssa_worker *worker;
	struct ssa_notice *room;

	ssa_lock(ssk);
	WRITE_ONCE(sk->sk_max_ack_backlog, backlog);
	room = take_room(ssk, &worker);
	ssa_unlock(ssk);
	if (room)
		ssa_worker_notify(worker, room);
}

/**
 * ssa_sock_listen - listen(2)
 * @sock: the socket
 * @backlog: how many finished connections may wait for accept(), and how many
 *	that TCP has made for the worker
 *
 * Called again it changes the backlog.
 *
 * Return: 0; TCP's error; the worker's verdict, -EINVAL without a certificate;
 * -EINVAL, -EOPNOTSUPP or -EBADFD in a wrong state; an error of
 * ssa_sock_introduce().
 */
int ssa_sock_listen(struct socket *sock, int backlog)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	char *text = NULL;
	int err;

	if (mutex_lock_interruptible(&ssk->control))
		return -ERESTARTSYS;
	if (ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING) {
		ssa_sockopt_mirror(ssk);
		err = kernel_listen(ssk->endpoint, backlog);
		if (!err)
			set_backlog(ssk, backlog);
		goto out_unlock;
	}
	err = ssa_state_errno(ssa_state(ssk), SSA_CALL_LISTEN);
	if (!err)
		err = ssa_sock_introduce(ssk, NULL);
	if (err)
		goto out_unlock;
	ssa_sockopt_mirror(ssk);
	set_backlog(ssk, backlog);
	err = ssa_request_listen(ssk, &text);
	ssa_sock_take_text(ssk, text);
	if (!err)
		ssa_event(ssk, SSA_EVENT_KIND_LISTENING);
out_unlock:
	mutex_unlock(&ssk->control);
	return err;
}

/**
 * ssa_sock_listening - the worker will serve a socket: let it listen
 * @ssk: whose listen request the caller has taken
 *
 * In the worker's context, before it hears that its completion was taken: what
 * it accepts from must listen by then.
 *
 * Return: 0; TCP's error; -ENOENT if the socket is closed.
 */
int ssa_sock_listening(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);
	int err = -ENOENT;

	ssa_lock(ssk);
	if (ssk->endpoint && !READ_ONCE(ssk->closing)) {
		err = kernel_listen(ssk->endpoint, READ_ONCE(sk->sk_max_ack_backlog));
		if (!err) {
			ssk->connect_reported = true;	/* there is none */
			ssa_sock_set_state(ssk, SSA_SOCKET_STATE_LISTENING);
			ssa_levels_free(ssk);
		}
	}
	ssa_unlock(ssk);
	return err;
}

/* What a clone must not share with the socket that it was made of. */
static void unshare(struct sock *sk)
{
	struct inet_sock *inet = inet_sk(sk);
#if IS_ENABLED(CONFIG_IPV6)
	struct ipv6_pinfo *np;
#endif

	WRITE_ONCE(sk->sk_state, TCP_CLOSE);
	WRITE_ONCE(sk->sk_ack_backlog, 0);
	WRITE_ONCE(sk->sk_max_ack_backlog, 0);
	spin_lock_init(&sk->sk_peer_lock);
	atomic64_set(&sk->sk_cookie, 0);
	/* A label of a security module; TCP makes it anew for a connection. */
	RCU_INIT_POINTER(inet->inet_opt, NULL);
	inet->mc_list = NULL;
#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family != AF_INET6)
		return;
	/* Of no use to a TLS socket but for what inet6_cleanup_sock() frees. */
	np = &container_of(ssa_sk(sk), struct ssa6_sock, ssa)->inet6;
	memset(np, 0, sizeof(*np));
	inet->pinet6 = np;
#endif
}

/* A clone of a listening socket, which is locked; with nothing of its own yet. */
static struct ssa_sock *child_new(struct ssa_sock *ssk)
{
	struct ssa_sock *child;
	struct sock *sk;

	/* It takes the clone's spinlock as a softirq would. */
	local_bh_disable();
	sk = sk_clone_lock(ssa_to_sk(ssk), GFP_ATOMIC);
	if (sk) {
		__acquire(&sk->sk_lock.slock);	/* which it does not tell sparse */
		bh_unlock_sock(sk);
	}
	local_bh_enable();
	if (!sk)
		return ERR_PTR(-ENOMEM);
	__sock_put(sk);		/* for a hash table, which we have none of */
	unshare(sk);
	child = ssa_sk(sk);
	memset_after(child, 0, inet);
	child->pid = ssk->pid;
	child->uid = ssk->uid;
	child->gid = ssk->gid;
	memcpy(child->comm, ssk->comm, sizeof(child->comm));
	child->switches = READ_ONCE(ssk->switches);
	child->server = true;
	child->connect_reported = true;	/* there is none */
	return child;
}

/* Connects a child to what the worker brought. */
static int child_connect(struct ssa_sock *child, struct ssa_result *res,
			 struct ssa_worker *worker, const struct cred *counted)
{
	struct sock *sk = ssa_to_sk(child), *esk;
	int err;

	ssa_lock(child);
	child->endpoint_file = res->endpoint;
	res->endpoint = NULL;
	child->endpoint = sock_from_file(child->endpoint_file);
	esk = child->endpoint->sk;
	/* What TCP makes of these for a connection depends on its packets. */
	WRITE_ONCE(sk->sk_mark, READ_ONCE(esk->sk_mark));
	WRITE_ONCE(sk->sk_priority, READ_ONCE(esk->sk_priority));
	WRITE_ONCE(sk->sk_bound_dev_if, READ_ONCE(esk->sk_bound_dev_if));
	/* The worker has accepted it, for the program. */
	WRITE_ONCE(esk->sk_uid, sk->sk_uid);
	ssa_mirror_init(child);

	err = res->kind == SSA_TRANSPORT_CHANNEL ? ssa_user_count(child, counted) : 0;
	if (!err)
		err = ssa_transport_attach(child, res);
	if (err)
		goto out;
	swap(child->facts, res->facts);
	swap(child->host_name, res->host_name);
	if (child->kind == SSA_TRANSPORT_CHANNEL) {
		refcount_inc(&worker->ref);
		atomic_inc(&worker->sockets);
		child->worker = worker;
	}
	ssa_sock_set_state(child, SSA_SOCKET_STATE_CONNECTED);
out:
	ssa_unlock(child);
	return err;
}

/**
 * ssa_listen_worker - the worker that brings something for a listening socket
 * @ssk: the socket, referenced by the caller; not locked
 * @skb: the worker's message
 *
 * One that leaves brings what it has accepted, while another serves the socket.
 *
 * Return: a reference, or NULL if it is not for the sender to do so.
 */
struct ssa_worker *ssa_listen_worker(struct ssa_sock *ssk, struct sk_buff *skb)
{
	struct ssa_worker *worker = ssa_worker_of(skb);
	bool its;

	if (!worker)
		return NULL;
	ssa_lock(ssk);
	its = ssk->worker == worker || READ_ONCE(worker->leaving);
	ssa_unlock(ssk);
	if (its)
		return worker;
	ssa_worker_put(worker);
	return NULL;
}

/**
 * ssa_listen_accepted - make a TLS socket of a connection that a worker brings
 * @ssk: the listening socket, referenced by the caller
 * @worker: of ssa_listen_worker()
 * @res: what it brings; what is used of it is taken out
 *
 * Return: the socket, for ssa_listen_enqueue(); or an ERR_PTR: -ENOENT if @ssk
 * does not listen; -EINVAL if the connection is not to it; -EMFILE if the
 * daemon is to relay it and the user of @ssk has too many; -ENOMEM;
 * -ECONNABORTED as ssa_transport_attach().
 */
struct ssa_sock *ssa_listen_accepted(struct ssa_sock *ssk, struct ssa_worker *worker,
				     struct ssa_result *res)
{
	struct sock *connection = sock_from_file(res->endpoint)->sk;
	const struct cred *counted = NULL;
	struct ssa_sock *child;
	int err;

	ssa_lock(ssk);
	if (ssa_state(ssk) != SSA_SOCKET_STATE_LISTENING) {
		child = ERR_PTR(-ENOENT);
	} else if (connection->sk_family != ssk->endpoint->sk->sk_family ||
		   inet_sk(connection)->inet_num != inet_sk(ssk->endpoint->sk)->inet_num) {
		child = ERR_PTR(-EINVAL);
	} else {
		child = child_new(ssk);
		if (!IS_ERR(child))
			counted = get_cred(ssk->counted.cred);
	}
	ssa_unlock(ssk);
	if (IS_ERR(child))
		return child;

	err = ssa_sock_setup(child);
	if (!err)
		err = child_connect(child, res, worker, counted);
	if (err) {
		sk_common_release(ssa_to_sk(child));
		child = ERR_PTR(err);
		goto out;
	}
	ssa_sock_publish(child);
	ssa_event(child, SSA_EVENT_KIND_ACCEPTED);
out:
	put_cred(counted);
	return child;
}

/* Makes sure that a notice can be sent when there is room again. */
static int owe_room(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);

	lockdep_assert_held(&ssk->lock);
	if (ssk->room || sk->sk_ack_backlog < sk->sk_max_ack_backlog)
		return 0;
	ssk->room = ssa_notice_new(ssk, SSA_CMD_ROOM);
	return ssk->room ? 0 : -ENOMEM;
}

/* Consumes the reply. */
static int reply_accepted(struct ssa_sock *ssk, struct ssa_sock *child, struct sk_buff *reply,
			  void *hdr, struct genl_info *info)
{
	struct sock *sk = ssa_to_sk(ssk);

	if (ssa_nl_put_u64(reply, SSA_A_SOCKET, child->id) ||
	    nla_put_u32(reply, SSA_A_QUEUED, sk->sk_ack_backlog + 1) ||
	    nla_put_u32(reply, SSA_A_BACKLOG, sk->sk_max_ack_backlog)) {
		nlmsg_free(reply);
		return -EMSGSIZE;
	}
	genlmsg_end(reply, hdr);
	return genlmsg_reply(reply, info);
}

/**
 * ssa_listen_enqueue - let accept() have a socket
 * @ssk: the listening socket, referenced by the caller
 * @child: of ssa_listen_accepted(); consumed
 * @reply: begun; gets the number of @child, and how many wait for accept() and
 *	may: above that the worker is owed SSA_CMD_ROOM; consumed
 * @hdr: of @reply
 * @info: of the worker's message
 *
 * Return: 0; -ENOENT if @ssk was closed in the meantime; -ENOMEM; the error of
 * sending the reply.
 */
int ssa_listen_enqueue(struct ssa_sock *ssk, struct ssa_sock *child, struct sk_buff *reply,
		       void *hdr, struct genl_info *info)
{
	struct sock *sk = ssa_to_sk(ssk);
	int err;

	ssa_window(SSA_WINDOW_BRINGING);
	ssa_lock(ssk);
	err = ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING ? owe_room(ssk) : -ENOENT;
	/*
	 * Before accept() can take the child: a worker that has no reply lets
	 * go of the connection, and hears of no room before it was full.
	 */
	if (err)
		nlmsg_free(reply);
	else
		err = reply_accepted(ssk, child, reply, hdr, info);
	if (!err) {
		list_add_tail(&child->queued, &ssk->queue);
		sk_acceptq_added(sk);
	}
	if (!sk_acceptq_is_full(sk)) {
		kfree(ssk->room);
		ssk->room = NULL;
	}
	/* Under the lock, so that it comes before the end of the socket. */
	if (!err)
		ssa_upcall(ssk, SSA_UPCALL_DATA_READY);
	ssa_unlock(ssk);
	if (err) {
		/* This is the worker, which is not to wait for the client. */
		sock_reset_flag(ssa_to_sk(child), SOCK_LINGER);
		sk_common_release(ssa_to_sk(child));
	}
	return err;
}

/*
 * The work owns a reference while it is queued. The caller has one of its own.
 * Under the lock, so that ssa_listen_close() either finds the work queued, or has
 * closed the socket before.
 */
static void queue_adopt(struct ssa_sock *ssk, unsigned long delay)
{
	lockdep_assert_held(&ssk->lock);
	if (ssa_state(ssk) != SSA_SOCKET_STATE_LISTENING)
		return;
	sock_hold(ssa_to_sk(ssk));
	if (mod_delayed_work(ssa_adopt_wq, &ssk->adopt, delay))
		__sock_put(ssa_to_sk(ssk));	/* queued already */
}

/* Waits, the lock is held, until there is a connection in the queue. */
static int wait_for_connection(struct ssa_sock *ssk, long timeout)
{
	struct sock *sk = ssa_to_sk(ssk);
	DEFINE_WAIT(wait);
	int err;

	for (;;) {
		/* Exclusive: a connection wakes one that waits, not all. */
		prepare_to_wait_exclusive(sk_sleep(sk), &wait, TASK_INTERRUPTIBLE);
		err = 0;
		if (!list_empty(&ssk->queue))
			break;
		err = ssa_state_errno(ssa_state(ssk), SSA_CALL_ACCEPT);
		if (err)
			break;
		if (!READ_ONCE(ssk->introduced))
			queue_adopt(ssk, 0);	/* a try has failed */
		err = sock_error(sk);
		if (err)
			break;
		err = -EAGAIN;
		if (!timeout)
			break;
		err = sock_intr_errno(timeout);
		if (signal_pending(current))
			break;
		ssa_unlock(ssk);
		timeout = schedule_timeout(timeout);
		/* Locking may sleep: awake first. */
		__set_current_state(TASK_RUNNING);
		ssa_lock(ssk);
	}
	finish_wait(sk_sleep(sk), &wait);
	return err;
}

/**
 * ssa_sock_accept - accept(2), accept4(2)
 * @sock: the listening socket
 * @newsock: gets the connection
 * @flags: with O_NONBLOCK if the listening socket's file has it
 *
 * Return: 0; -EAGAIN, -EINTR as TCP's accept(); -EINVAL for a socket that does
 * not listen; once for each try, the error with which a worker that took the place
 * of another one has refused to serve it.
 */
int ssa_sock_accept(struct socket *sock, struct socket *newsock, int flags)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk), *child;
	struct sock *sk = sock->sk, *csk;
	struct ssa_notice *room;
	struct ssa_worker *worker;
	int err;

	ssa_sockopt_mirror(ssk);
	ssa_lock(ssk);
	err = wait_for_connection(ssk, sock_rcvtimeo(sk, flags & O_NONBLOCK));
	if (err) {
		ssa_unlock(ssk);
		return err;
	}
	child = list_first_entry(&ssk->queue, struct ssa_sock, queued);
	list_del_init(&child->queued);
	sk_acceptq_removed(sk);
	room = take_room(ssk, &worker);
	ssa_unlock(ssk);
	if (room)
		ssa_worker_notify(worker, room);
	ssa_window(SSA_WINDOW_ACCEPTING);

	csk = ssa_to_sk(child);
	ssa_sock_set_wait_class(newsock);
	ssa_lock(child);
	ssa_sock_set_owner(child);
	sock_graft(csk, newsock);
	WRITE_ONCE(child->endpoint->sk->sk_uid, csk->sk_uid);	/* as TCP's accept() */
	newsock->state = SS_CONNECTED;
	ssa_unlock(child);
	return 0;
}

/**
 * ssa_listen_adopt - find a worker for a listening socket that has none that stays
 * @work: the socket's; owns a reference to it
 *
 * The worker of now can die or leave at any time: that queues this work again.
 */
void ssa_listen_adopt(struct work_struct *work)
{
	struct ssa_sock *ssk = container_of(to_delayed_work(work), struct ssa_sock, adopt);
	struct sock *sk = ssa_to_sk(ssk);
	char *text = NULL;
	int err;

	mutex_lock(&ssk->control);
	if (ssa_state(ssk) != SSA_SOCKET_STATE_LISTENING ||
	    (ssk->introduced && !ssa_worker_is_leaving(ssk->worker)))
		goto out;

	/* The new one does not know that the queue is full, if it is. */
	ssa_lock(ssk);
	kfree(ssk->room);
	ssk->room = NULL;
	ssa_unlock(ssk);
	do {
		err = ssa_sock_introduce(ssk, &text);
		/*
		 * Chosen while it died, perhaps after its death had queued
		 * what is running here: then nothing else would try again.
		 */
	} while (err && ssa_worker_is_leaving(ssk->worker) && ssa_worker_any());
	if (!err || ssa_worker_is_gone(ssk->worker) || READ_ONCE(ssk->closing))
		goto out_text;
	if (err == -ECANCELED || err == -ENOBUFS || err == -ENOMEM || err == -EINTR) {
		/* No answer, or from a worker that is stopping: again, later. */
		ssa_lock(ssk);
		queue_adopt(ssk, ADOPT_RETRY);
		ssa_unlock(ssk);
	} else {
		/* Nobody will serve it: the program is to know. */
		ssa_lock(ssk);
		if (text)
			swap(ssk->error_text, text);
		WRITE_ONCE(sk->sk_err, -err);
		ssa_unlock(ssk);
		ssa_upcall(ssk, SSA_UPCALL_ERROR_REPORT);
	}
out_text:
	kfree(text);
out:
	mutex_unlock(&ssk->control);
	sock_put(sk);
}

/**
 * ssa_listen_adopt_all - let all listening sockets without a worker find one
 */
void ssa_listen_adopt_all(void)
{
	struct ssa_sock *ssk;
	unsigned long id;

	for (id = 0; (ssk = ssa_sock_next(&id)); id++) {
		ssa_lock(ssk);
		queue_adopt(ssk, 0);
		ssa_unlock(ssk);
		sock_put(ssa_to_sk(ssk));
	}
}

/*
 * Stops TCP from listening now, and frees the port, though the worker still
 * has a descriptor of the endpoint.
 */
static void stop_endpoint(struct socket *endpoint)
{
	lock_sock(endpoint->sk);
	endpoint->sk->sk_userlocks &= ~SOCK_BINDPORT_LOCK;
	release_sock(endpoint->sk);
	kernel_sock_shutdown(endpoint, SHUT_RDWR);
}

/**
 * ssa_listen_close - close a listening socket, and what nobody accepted
 * @ssk: no lock is held
 */
void ssa_listen_close(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct ssa_sock *child, *next;
	LIST_HEAD(queue);

	ssa_lock(ssk);
	/* ssa_request_add() looks at it under the lock of its table. */
	WRITE_ONCE(ssk->closing, true);
	ssa_sock_set_state(ssk, SSA_SOCKET_STATE_CLOSED);
	list_splice_init(&ssk->queue, &queue);
	kfree(ssk->room);
	ssk->room = NULL;
	ssa_unlock(ssk);

	/* So that the work does not make us wait for a worker. */
	ssa_request_fail_socket(ssk);
	if (cancel_delayed_work_sync(&ssk->adopt))
		sock_put(sk);
	stop_endpoint(ssk->endpoint);
	list_for_each_entry_safe(child, next, &queue, queued) {
		/* Nobody is to wait for what nobody has accepted. */
		sock_reset_flag(ssa_to_sk(child), SOCK_LINGER);
		sk_common_release(ssa_to_sk(child));
	}
}

/**
 * ssa_listen_stop - shutdown(2) or connect(AF_UNSPEC) of a listening socket
 * @ssk: calls may be at it; no lock is held
 *
 * It does not listen any more, then, and the port is free. What nobody has
 * accepted is closed, and an accept() that waits returns -EINVAL. Unlike one of
 * TCP the socket does not listen again: the worker has forgotten it.
 */
void ssa_listen_stop(struct ssa_sock *ssk)
{
	struct ssa_worker *worker;
	struct ssa_notice *notice;
	struct ssa_count counted;

	/* A second thread at this finds nothing left to do. */
	ssa_listen_close(ssk);
	ssa_upcall(ssk, SSA_UPCALL_STATE_CHANGE);

	mutex_lock(&ssk->control);
	/* A listen() that was to change the backlog may have undone it. */
	stop_endpoint(ssk->endpoint);
	ssa_lock(ssk);
	worker = ssk->worker;
	notice = ssk->close;
	counted = ssk->counted;
	ssk->worker = NULL;
	ssk->close = NULL;
	ssk->counted = (struct ssa_count){};
	ssa_unlock(ssk);
	mutex_unlock(&ssk->control);
	ssa_worker_forget(worker, notice);
	ssa_user_uncount(counted);
}
