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
 * A listening socket outlives its worker: the endpoint goes on to listen, and
 * its work (adopt) introduces the socket to another worker, or to the next one
 * that registers.
 */

#include <linux/slab.h>
#include <net/tcp_states.h>

#include "ssa.h"

/* As in socket.c. */
static const int listen_errno[] = {
	[SSA_SOCKET_STATE_CONNECTING]	= -EINVAL,
	[SSA_SOCKET_STATE_CONNECTED]	= -EINVAL,
	[SSA_SOCKET_STATE_CLOSED]	= -EOPNOTSUPP,
	[SSA_SOCKET_STATE_FAILED]	= -EBADFD,
};

/* Takes the notice that is owed to a worker, with a reference to it. */
static struct ssa_notice *take_room(struct ssa_sock *ssk, struct ssa_worker **worker)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct ssa_notice *room = ssk->room;

	lockdep_assert(lockdep_sock_is_held(sk));
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

	lock_sock(sk);
	WRITE_ONCE(sk->sk_max_ack_backlog, backlog);
	room = take_room(ssk, &worker);
	release_sock(sk);
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
	struct sock *sk = sock->sk;
	char *text = NULL;
	int err;

	if (mutex_lock_interruptible(&ssk->control))
		return -ERESTARTSYS;
	if (ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING) {
		err = kernel_listen(ssk->endpoint, backlog);
		if (!err)
			set_backlog(ssk, backlog);
		goto out_unlock;
	}
	err = listen_errno[ssa_state(ssk)];
	if (!err)
		err = ssa_sock_introduce(ssk, NULL);
	if (err)
		goto out_unlock;
	ssa_sockopt_mirror(ssk);
	set_backlog(ssk, backlog);
	err = ssa_request_listen(ssk, &text);
	if (text) {
		lock_sock(sk);
		swap(ssk->error_text, text);
		release_sock(sk);
		kfree(text);
	}
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

	lock_sock(sk);
	if (ssk->endpoint && !READ_ONCE(ssk->closing)) {
		err = kernel_listen(ssk->endpoint, READ_ONCE(sk->sk_max_ack_backlog));
		if (!err) {
			ssk->connect_reported = true;	/* there is none */
			ssa_sock_set_state(ssk, SSA_SOCKET_STATE_LISTENING);
		}
	}
	release_sock(sk);
	return err;
}

/* A clone of a listening socket, with nothing of its own yet. */
static struct ssa_sock *child_new(struct ssa_sock *ssk)
{
	struct ssa_sock *child;
	struct sock *sk;
	int err;

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
	child = ssa_sk(sk);
	memset_after(child, 0, inet);
	child->pid = ssk->pid;
	child->uid = ssk->uid;
	child->gid = ssk->gid;
	memcpy(child->comm, ssk->comm, sizeof(child->comm));
	child->server = true;
	child->connect_reported = true;	/* there is none */
#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6)
		inet_sk(sk)->pinet6 = &container_of(child, struct ssa6_sock, ssa)->inet6;
#endif
	sk->sk_max_ack_backlog = 0;
	sk->sk_ack_backlog = 0;
	err = ssa_sock_setup(child);
	if (err) {
		sk_common_release(sk);
		return ERR_PTR(err);
	}
	return child;
}

/* Connects a child to what the worker brought. */
static int child_connect(struct ssa_sock *child, struct ssa_result *res,
			 struct ssa_worker *worker)
{
	struct sock *sk = ssa_to_sk(child), *esk;
	int err;

	lock_sock(sk);
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
	release_sock(sk);
	return err;
}

/**
 * ssa_listen_accepted - make a TLS socket of a connection that a worker brings
 * @ssk: the listening socket, referenced by the caller
 * @skb: the worker's message
 * @res: what it brings; what is used of it is taken out
 *
 * Return: the socket, for ssa_listen_enqueue(); or an ERR_PTR: -ENOENT if @ssk
 * does not listen; -EPERM if it is another worker's; -ENOMEM; -ECONNABORTED as
 * ssa_transport_attach().
 */
struct ssa_sock *ssa_listen_accepted(struct ssa_sock *ssk, struct sk_buff *skb,
				     struct ssa_result *res)
{
	struct ssa_worker *worker = NULL;
	struct sock *sk = ssa_to_sk(ssk);
	struct ssa_sock *child;
	int err;

	lock_sock(sk);
	if (ssa_state(ssk) != SSA_SOCKET_STATE_LISTENING) {
		child = ERR_PTR(-ENOENT);
	} else if (!ssa_worker_is(ssk->worker, skb)) {
		child = ERR_PTR(-EPERM);
	} else {
		child = child_new(ssk);
		worker = ssk->worker;
		refcount_inc(&worker->ref);
	}
	release_sock(sk);
	if (IS_ERR(child))
		goto out;

	err = child_connect(child, res, worker);
	if (err) {
		sk_common_release(ssa_to_sk(child));
		child = ERR_PTR(err);
		goto out;
	}
	ssa_sock_publish(child);
	ssa_event(child, SSA_EVENT_KIND_ACCEPTED);
out:
	ssa_worker_put(worker);
	return child;
}

/**
 * ssa_listen_enqueue - let accept() have a socket
 * @ssk: the listening socket, referenced by the caller
 * @child: of ssa_listen_accepted(); consumed
 * @queued: gets how many wait for accept()
 * @backlog: gets how many may; with more the worker is owed SSA_CMD_ROOM
 *
 * Return: 0; -ENOENT if @ssk was closed in the meantime; -ENOMEM.
 */
int ssa_listen_enqueue(struct ssa_sock *ssk, struct ssa_sock *child, u32 *queued, u32 *backlog)
{
	struct sock *sk = ssa_to_sk(ssk);
	int err = 0;

	lock_sock(sk);
	if (ssa_state(ssk) != SSA_SOCKET_STATE_LISTENING) {
		err = -ENOENT;
	} else if (!ssk->room && sk->sk_ack_backlog >= READ_ONCE(sk->sk_max_ack_backlog)) {
		/* Now, so that nothing can fail when there is room again. */
		ssk->room = ssa_notice_new(ssk, SSA_CMD_ROOM);
		if (!ssk->room)
			err = -ENOMEM;
	}
	if (!err) {
		list_add_tail(&child->queued, &ssk->queue);
		sk_acceptq_added(sk);
		*queued = sk->sk_ack_backlog;
		*backlog = READ_ONCE(sk->sk_max_ack_backlog);
		if (*queued <= *backlog) {
			kfree(ssk->room);
			ssk->room = NULL;
		}
	}
	release_sock(sk);
	if (err)
		sk_common_release(ssa_to_sk(child));
	else
		sk->sk_data_ready(sk);
	return err;
}

static void queue_adopt(struct ssa_sock *ssk)
{
	lockdep_assert(lockdep_sock_is_held(ssa_to_sk(ssk)));
	if (queue_work(ssa_wq, &ssk->adopt))
		sock_hold(ssa_to_sk(ssk));
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
		err = sock_error(sk);
		if (err)
			break;
		err = -EINVAL;
		if (ssa_state(ssk) != SSA_SOCKET_STATE_LISTENING)
			break;
		if (!READ_ONCE(ssk->introduced))
			queue_adopt(ssk);	/* a try has failed */
		err = -EAGAIN;
		if (!timeout)
			break;
		err = sock_intr_errno(timeout);
		if (signal_pending(current))
			break;
		release_sock(sk);
		timeout = schedule_timeout(timeout);
		/* A mutex in lock_sock() may sleep: awake first. */
		__set_current_state(TASK_RUNNING);
		lock_sock(sk);
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
 * not listen; -ECANCELED, once, if the daemon has refused to serve it any more.
 */
int ssa_sock_accept(struct socket *sock, struct socket *newsock, int flags)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk), *child;
	struct sock *sk = sock->sk, *csk;
	struct ssa_notice *room;
	struct ssa_worker *worker;
	int err;

	lock_sock(sk);
	err = wait_for_connection(ssk, sock_rcvtimeo(sk, flags & O_NONBLOCK));
	if (err) {
		release_sock(sk);
		return err;
	}
	child = list_first_entry(&ssk->queue, struct ssa_sock, queued);
	list_del_init(&child->queued);
	sk_acceptq_removed(sk);
	room = take_room(ssk, &worker);
	release_sock(sk);
	if (room)
		ssa_worker_notify(worker, room);

	csk = ssa_to_sk(child);
	ssa_sock_set_wait_class(newsock);
	lock_sock(csk);
	ssa_sock_set_owner(child);
	sock_graft(csk, newsock);
	newsock->state = SS_CONNECTED;
	release_sock(csk);
	return 0;
}

/**
 * ssa_listen_adopt - find a worker for a listening socket that has none
 * @work: the socket's; owns a reference to it
 *
 * The worker of now can die at any time: its death queues this work again.
 */
void ssa_listen_adopt(struct work_struct *work)
{
	struct ssa_sock *ssk = container_of(work, struct ssa_sock, adopt);
	struct sock *sk = ssa_to_sk(ssk);
	char *text = NULL;
	int err;

	mutex_lock(&ssk->control);
	if (ssa_state(ssk) != SSA_SOCKET_STATE_LISTENING ||
	    (ssk->introduced && !ssa_worker_is_gone(ssk->worker)))
		goto out;

	/* The new one does not know that the queue is full, if it is. */
	lock_sock(sk);
	kfree(ssk->room);
	ssk->room = NULL;
	release_sock(sk);
	do {
		err = ssa_sock_introduce(ssk, &text);
		/*
		 * Chosen while it died, perhaps after its death had queued
		 * what is running here: then nothing else would try again.
		 */
	} while (err && ssa_worker_is_gone(ssk->worker) && ssa_worker_any());
	if (err && !ssa_worker_is_gone(ssk->worker) && !READ_ONCE(ssk->closing)) {
		/* Nobody serves it: the program is to know. */
		lock_sock(sk);
		swap(ssk->error_text, text);
		WRITE_ONCE(sk->sk_err, ECANCELED);
		release_sock(sk);
		sk_error_report(sk);
	}
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
		/*
		 * Under the lock, so that ssa_listen_close() either finds the
		 * work queued, or has closed the socket before.
		 */
		lock_sock(ssa_to_sk(ssk));
		if (ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING)
			queue_adopt(ssk);
		release_sock(ssa_to_sk(ssk));
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
 * @ssk: used by no call any more; no lock is held
 */
void ssa_listen_close(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct ssa_sock *child, *next;
	LIST_HEAD(queue);

	lock_sock(sk);
	/* request_add() looks at it under the lock of its table. */
	WRITE_ONCE(ssk->closing, true);
	ssa_sock_set_state(ssk, SSA_SOCKET_STATE_CLOSED);
	list_splice_init(&ssk->queue, &queue);
	kfree(ssk->room);
	ssk->room = NULL;
	release_sock(sk);

	/* So that the work does not make us wait for a worker. */
	ssa_request_fail_socket(ssk);
	if (cancel_work_sync(&ssk->adopt))
		sock_put(sk);
	stop_endpoint(ssk->endpoint);
	list_for_each_entry_safe(child, next, &queue, queued)
		sk_common_release(ssa_to_sk(child));
}
