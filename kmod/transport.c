// SPDX-License-Identifier: GPL-2.0
/*
 * The transport: the socket that carries the program's bytes once connected.
 *
 * ktls: the endpoint itself with kernel TLS on it. channel: one end of a
 * socket pair whose other end the daemon relays. Data calls are forwarded with
 * the program's own buffers, so they cost what they cost on the transport.
 *
 * A stream has ended in order only if close_notify came: on ktls as a record
 * (record.c), on a channel as a message of the daemon. An end without it is
 * ECONNRESET, since the last bytes may be missing (RFC 8446, 6.1).
 */

#include <asm/ioctls.h>
#include <linux/net.h>
#include <linux/poll.h>
#include <linux/sockios.h>
#include <linux/splice.h>
#include <linux/uio.h>
#include <net/inet_connection_sock.h>
#include <net/tcp.h>
#include <net/tls.h>

#include "ssa.h"

/*
 * A session ticket, alert or KeyUpdate that waits alone is shorter than this.
 * Only then does poll() look at the record's type, since the look costs a
 * copy of the record.
 */
#define CONTROL_RECORD_MAX 2048

/* Bytes that a write may give to kernel TLS at once: whole records. */
#define TX_PIECE SZ_512K

/* Room for such a piece and what kernel TLS holds back, encrypted. */
#define CLOSE_ROOM SZ_1M

/* Control records that other threads can take away before a read. */
#define CONTROL_RACES_MAX 16

/* Control records that close() passes over. */
#define TICKETS_MAX 16

/* As much as FIONREAD counts. */
#define INQ_MAX SZ_1M

/*
 * Wakes those that wait on the TLS socket when the transport wakes those that
 * wait on it. Called under the lock of the transport's wait queue, any context.
 */
static int transport_wake(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct ssa_sock *ssk = container_of(wait, struct ssa_sock, wait);
	struct sock *sk = ssa_to_sk(ssk);
	__poll_t events = key_to_poll(key);
	struct socket_wq *wq;

	/* The core answers SO_ERROR from the TLS socket. */
	if (events & EPOLLERR)
		WRITE_ONCE(sk->sk_err, READ_ONCE(ssk->transport->sk->sk_err));

	rcu_read_lock();
	wq = rcu_dereference(sk->sk_wq);
	if (skwq_has_sleeper(wq)) {
		if (!events)
			wake_up_interruptible_all(&wq->wait);
		else if (sync)
			wake_up_interruptible_sync_poll(&wq->wait, events);
		else
			wake_up_interruptible_poll(&wq->wait, events);
	}
	if (!events || events & EPOLLIN)
		sk_wake_async(sk, SOCK_WAKE_WAITD, POLL_IN);
	if (!events || events & EPOLLOUT)
		sk_wake_async(sk, SOCK_WAKE_IO, POLL_OUT);
	rcu_read_unlock();
	return 0;
}

/**
 * ssa_transport_ktls_ready - does kernel TLS encrypt and decrypt on a socket?
 * @sk: a TCP socket, locked
 */
bool ssa_transport_ktls_ready(struct sock *sk)
{
	const struct tcp_ulp_ops *ulp = inet_csk(sk)->icsk_ulp_ops;
	struct tls_context *ctx;

	if (!ulp || strcmp(ulp->name, "tls"))
		return false;
	ctx = tls_get_ctx(sk);
	return ctx && ctx->tx_conf != TLS_BASE && ctx->rx_conf != TLS_BASE;
}

/**
 * ssa_transport_attach - give a socket its transport
 * @ssk: connecting, locked
 * @res: the daemon's answer; a channel is taken out of it
 *
 * Return: 0; -ECONNABORTED if kernel TLS is not in place: no byte may leave
 * unencrypted, whatever the daemon believes.
 */
int ssa_transport_attach(struct ssa_sock *ssk, struct ssa_result *res)
{
	struct socket *transport = ssk->endpoint;
	struct file *file = res->channel;
	bool ready;

	if (res->kind == SSA_TRANSPORT_CHANNEL) {
		transport = sock_from_file(file);
		/* splice() looks at the flag of the transport's own file. */
		spin_lock(&file->f_lock);
		file->f_flags &= ~O_NONBLOCK;
		spin_unlock(&file->f_lock);
	} else {
		lock_sock(transport->sk);
		ready = ssa_transport_ktls_ready(transport->sk);
		release_sock(transport->sk);
		if (!ready) {
			kfree(res->text);
			res->text = kstrdup("The daemon's connection is without kernel TLS.",
					    GFP_KERNEL);
			return -ECONNABORTED;
		}
	}

	ssk->channel_file = file;
	res->channel = NULL;
	ssk->kind = res->kind;
	ssk->transport = transport;
	init_waitqueue_func_entry(&ssk->wait, transport_wake);
	add_wait_queue(sk_sleep(transport->sk), &ssk->wait);
	ssk->mirror.rcvlowat = -1;	/* a channel has none of it yet */
	ssa_sockopt_mirror(ssk);
	return 0;
}

/*
 * Sends close_notify as the last record. Waits, interruptible, for the piece of
 * a write that another thread is at (tx_pieces()).
 *
 * Return: 0 or -EINTR.
 */
static int send_close_notify(struct ssa_sock *ssk)
{
	struct sock *tsk = ssk->transport->sk;

	if (test_and_set_bit(SSA_CLOSE_NOTIFY_SENT, &ssk->flags))
		return 0;

	/*
	 * Records that kernel TLS has encrypted, but TCP had no room for, would
	 * be lost behind the FIN, and the alert with them. No data follows, so
	 * the limit need not hold any more.
	 */
	lock_sock(tsk);
	tsk->sk_userlocks |= SOCK_SNDBUF_LOCK;
	WRITE_ONCE(tsk->sk_sndbuf,
		   min_t(int, tsk->sk_wmem_queued, INT_MAX - CLOSE_ROOM) + CLOSE_ROOM);
	tsk->sk_write_space(tsk);
	release_sock(tsk);

	/* Other failures mean a broken connection, which the peer sees. */
	if (ssa_record_send_alert(ssk->transport, SSA_ALERT_WARNING,
				  SSA_ALERT_CLOSE_NOTIFY) == -EINTR) {
		clear_bit(SSA_CLOSE_NOTIFY_SENT, &ssk->flags);
		return -EINTR;
	}
	return 0;
}

/**
 * ssa_transport_shutdown - shut a connection down
 * @ssk: has a transport; no lock is held
 * @how: RCV_SHUTDOWN, SEND_SHUTDOWN or both
 *
 * Return: 0; -EINTR if it was interrupted while it waited for another thread's
 * write, and the connection is not shut down then; the error of the transport.
 */
int ssa_transport_shutdown(struct ssa_sock *ssk, int how)
{
	struct sock *sk = ssa_to_sk(ssk);

	/* First, so that no data is written behind the alert. */
	ssa_lock(ssk);
	WRITE_ONCE(sk->sk_shutdown, sk->sk_shutdown | how);
	ssa_unlock(ssk);
	if (how & SEND_SHUTDOWN && ssk->kind == SSA_TRANSPORT_KTLS && send_close_notify(ssk))
		return -EINTR;
	return kernel_sock_shutdown(ssk->transport, how - 1);
}

/* Waits until the daemon has delivered what was written, as SO_LINGER asks. */
static void channel_linger(struct ssa_sock *ssk, long timeout)
{
	struct sock *tsk = ssk->transport->sk;

	wait_event_interruptible_timeout(*sk_sleep(tsk),
					 READ_ONCE(tsk->sk_shutdown) == SHUTDOWN_MASK, timeout);
}

/* Before the daemon, which has it as well, can say goodbye in our stead. */
static void reset_endpoint(struct socket *endpoint)
{
	struct sockaddr nowhere = { .sa_family = AF_UNSPEC };

	kernel_connect(endpoint, &nowhere, sizeof(nowhere), 0);
}

/**
 * ssa_transport_close - close_notify and what TCP does at close()
 * @ssk: used by no call any more; no lock is held
 */
void ssa_transport_close(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);
	bool linger = sock_flag(sk, SOCK_LINGER);
	int tickets = TICKETS_MAX;

	if (!ssk->transport) {
		/* Aborts a handshake that the daemon is at. */
		if (ssa_state(ssk) == SSA_SOCKET_STATE_CONNECTING)
			kernel_sock_shutdown(ssk->endpoint, SHUT_RDWR);
		return;
	}
	remove_wait_queue(sk_sleep(ssk->transport->sk), &ssk->wait);
	ssa_sockopt_mirror(ssk);

	/* With a linger time of 0 the connection is reset, as tcp(7) does. */
	if (linger && !sk->sk_lingertime) {
		if (ssk->kind == SSA_TRANSPORT_CHANNEL)
			reset_endpoint(ssk->endpoint);
		return;
	}
	if (ssk->kind == SSA_TRANSPORT_KTLS) {
		/*
		 * TCP resets a connection that is closed with unread data, and
		 * the peer may then lose what we sent. A ticket that nobody was
		 * to read is no reason for that.
		 */
		while (tickets-- && !ssk->rx_end && tcp_inq(ssk->transport->sk) &&
		       ssa_record_handle(ssk) > 0)
			;
		send_close_notify(ssk);
	} else {
		kernel_sock_shutdown(ssk->transport, SHUT_WR);
		if (linger && !(current->flags & PF_EXITING))
			channel_linger(ssk, sk->sk_lingertime);
	}
}

/* The transport of a connected socket, or why there is none. */
static struct socket *transport_of(struct ssa_sock *ssk, int flags, long timeout, int *err)
{
	long left;

	switch (ssa_state(ssk)) {
	case SSA_SOCKET_STATE_CONNECTED:
		return ssk->transport;
	case SSA_SOCKET_STATE_CONNECTING:
		/* As TCP: data calls wait for the connection. */
		if (flags & MSG_DONTWAIT)
			timeout = 0;
		left = wait_event_interruptible_timeout(*sk_sleep(ssa_to_sk(ssk)),
							ssa_state(ssk) !=
							SSA_SOCKET_STATE_CONNECTING, timeout);
		if (left <= 0) {
			*err = left ? sock_intr_errno(timeout) : -EAGAIN;
			return NULL;
		}
		if (ssa_state(ssk) == SSA_SOCKET_STATE_CONNECTED)
			return ssk->transport;
		*err = sock_error(ssa_to_sk(ssk)) ?: -ENOTCONN;
		return NULL;
	case SSA_SOCKET_STATE_FAILED:
		*err = sock_error(ssa_to_sk(ssk)) ?: -EBADFD;
		return NULL;
	default:
		*err = -ENOTCONN;
		return NULL;
	}
}

static struct socket *tx_transport(struct ssa_sock *ssk, int flags, int *err)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct socket *transport;

	transport = transport_of(ssk, flags, sk->sk_sndtimeo, err);
	if (unlikely(!transport))
		return NULL;
	/*
	 * Before kernel TLS sees it: it would take the refusal of TCP for a
	 * broken connection, and end the other direction too; or take a record
	 * for sent that TCP refused.
	 */
	if (unlikely(READ_ONCE(sk->sk_shutdown) & SEND_SHUTDOWN ||
		     READ_ONCE(transport->sk->sk_state) == TCP_CLOSE)) {
		*err = sock_error(transport->sk) ?: -EPIPE;
		if (*err == -EPIPE && !(flags & MSG_NOSIGNAL))
			send_sig(SIGPIPE, current, 0);
		return NULL;
	}
	ssa_sockopt_mirror(ssk);
	return transport;
}

static struct socket *rx_transport(struct ssa_sock *ssk, int flags, int *err)
{
	struct socket *transport;

	transport = transport_of(ssk, flags, ssa_to_sk(ssk)->sk_rcvtimeo, err);
	if (unlikely(!transport))
		return NULL;
	if (unlikely(READ_ONCE(ssk->rx_end))) {
		*err = ssk->rx_end == SSA_RX_CLOSE_NOTIFY ? 0 : ssk->rx_end;
		return NULL;
	}
	ssa_sockopt_mirror(ssk);
	return transport;
}

/* An error that a call has returned is not to be had from SO_ERROR again. */
static void error_returned(struct sock *sk, int err)
{
	if (READ_ONCE(sk->sk_err))
		cmpxchg(&sk->sk_err, -err, 0);
}

/*
 * A long write, in pieces, so that shutdown() by another thread need not wait
 * until the peer has read all of it. Return: as sendmsg.
 */
static int tx_pieces(struct ssa_sock *ssk, struct socket *transport, struct msghdr *msg,
		     size_t len)
{
	const struct proto_ops *ops = READ_ONCE(transport->ops);
	size_t done = 0, piece, rest;
	int ret;

	while (done < len) {
		piece = min_t(size_t, len - done, TX_PIECE);
		rest = iov_iter_count(&msg->msg_iter) - piece;
		iov_iter_truncate(&msg->msg_iter, piece);
		ret = ops->sendmsg(transport, msg, piece);
		iov_iter_reexpand(&msg->msg_iter, iov_iter_count(&msg->msg_iter) + rest);
		if (ret < 0)
			return done ?: ret;
		done += ret;
		if (ret < piece || READ_ONCE(ssa_to_sk(ssk)->sk_shutdown) & SEND_SHUTDOWN)
			break;
		/* What was taken is returned, and no signal says otherwise. */
		msg->msg_flags |= MSG_NOSIGNAL;
	}
	return done;
}

/**
 * ssa_sendmsg - send(2) and the like
 * @sock: the socket
 * @msg: the program's buffers, forwarded as they are
 * @len: bytes in them
 *
 * Return: bytes taken; -EPIPE after shutdown(); the transport's errors;
 * -ENOTCONN or -EBADFD in a wrong state.
 */
int ssa_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	struct socket *transport;
	int ret;

	if (unlikely(msg->msg_flags & MSG_OOB))
		return -EOPNOTSUPP;	/* TLS has no urgent data */
	transport = tx_transport(ssk, msg->msg_flags, &ret);
	if (unlikely(!transport))
		return ret;
	/*
	 * A control message could forge a record type on ktls and pass
	 * descriptors to the daemon on a channel; an address means nothing here.
	 */
	msg->msg_name = NULL;
	msg->msg_namelen = 0;
	msg->msg_control = NULL;
	msg->msg_controllen = 0;

	if (likely(len <= TX_PIECE))
		ret = READ_ONCE(transport->ops)->sendmsg(transport, msg, len);
	else
		ret = tx_pieces(ssk, transport, msg, len);
	if (likely(ret > 0))
		atomic64_add(ret, &ssk->sent);
	else if (ret < 0)
		error_returned(sock->sk, ret);
	return ret;
}

#ifdef SSA_HAVE_SENDPAGE
ssize_t ssa_sendpage(struct socket *sock, struct page *page, int offset, size_t size, int flags)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	struct socket *transport;
	ssize_t ret;
	int err;

	transport = tx_transport(ssk, flags, &err);
	if (!transport)
		return err;
	ret = kernel_sendpage(transport, page, offset, size, flags);
	if (ret > 0)
		atomic64_add(ret, &ssk->sent);
	else if (ret < 0)
		error_returned(sock->sk, ret);
	return ret;
}
#endif

/**
 * ssa_splice_eof - the end of what sendfile() or splice() had to say
 * @sock: the socket
 *
 * Sends what MSG_MORE has held back.
 */
void ssa_splice_eof(struct socket *sock)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	const struct proto_ops *ops;

	if (ssa_state(ssk) != SSA_SOCKET_STATE_CONNECTED)
		return;
	ops = READ_ONCE(ssk->transport->ops);
	if (ops->splice_eof)
		ops->splice_eof(ssk->transport);
}

/*
 * The transport returned 0 to a read of at least one byte: what is it to the
 * program? Return: 0 for end of file, or a negative errno.
 */
static int rx_ended(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);
	int end;

	/* Another thread may hold the close_notify that came before the FIN. */
	if (mutex_lock_interruptible(&ssk->rx_lock))
		return -ERESTARTSYS;
	end = ssk->rx_end;
	if (!end && ssk->kind == SSA_TRANSPORT_CHANNEL)
		end = READ_ONCE(ssk->channel_end);
	if (!end && READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN) {
		mutex_unlock(&ssk->rx_lock);
		return 0;	/* the program asked for it */
	}
	if (!end) {
		ssa_lock(ssk);
		ssa_sock_set_text(ssk,
				  "The peer's stream ended without close_notify; data may be missing.");
		ssa_unlock(ssk);
		end = -ECONNRESET;
	}
	WRITE_ONCE(ssk->rx_end, end);
	mutex_unlock(&ssk->rx_lock);
	return end == SSA_RX_CLOSE_NOTIFY ? 0 : end;
}

/*
 * A read from kernel TLS gave @err, its way to say that the next record is not
 * application data. Return: 0 to read again, or the error of the read.
 *
 * @idle counts the times in a row that there was no such record: other threads
 * can be faster, but not for ever; then @err is what it says.
 */
static int rx_control(struct ssa_sock *ssk, int err, int *idle)
{
	int ret;

	ret = ssa_record_handle(ssk);
	if (ret < 0)
		return ret;
	if (ret)
		*idle = 0;
	else if (++*idle > CONTROL_RACES_MAX)
		return err;
	return 0;
}

/*
 * Kernel TLS could not make sense of what the peer sent. Its errno tells where
 * in kernel TLS; to the program all of it is one.
 */
static int rx_broken(struct ssa_sock *ssk, int err)
{
	struct sock *sk = ssa_to_sk(ssk), *tsk = ssk->transport->sk;

	if (mutex_lock_interruptible(&ssk->rx_lock))
		return -ERESTARTSYS;
	ssa_lock(ssk);
	ssa_sock_set_text(ssk, "The peer sent a TLS record that is malformed or forged.");
	ssa_unlock(ssk);
	/* Kernel TLS sends nothing, and so no alert, while an error stands. */
	cmpxchg(&tsk->sk_err, -err, 0);
	ssa_record_fail(ssk, err == -EMSGSIZE ? SSA_ALERT_RECORD_OVERFLOW
					      : SSA_ALERT_BAD_RECORD_MAC);
	cmpxchg(&sk->sk_err, -err, 0);
	mutex_unlock(&ssk->rx_lock);
	return -EPROTO;
}

/*
 * Kernel TLS returns 0 at the end of the stream, and also when an empty record
 * stands before one of another type.
 */
static bool ktls_at_end(struct sock *tsk)
{
	return READ_ONCE(tsk->sk_shutdown) & RCV_SHUTDOWN && !sk_is_readable(tsk);
}

/* One read; like the transport's, but control records never show. */
static int rx_once(struct ssa_sock *ssk, struct socket *transport, struct msghdr *msg,
		   size_t len, int flags)
{
	int ret, idle = 0;

	for (;;) {
		ret = READ_ONCE(transport->ops)->recvmsg(transport, msg, len, flags);
		if (likely(ret > 0))
			return ret;
		/*
		 * After shutdown() both ways TCP resets at whatever the peer
		 * still says, be it close_notify. To who asked for the end it
		 * is the end.
		 */
		if (ret == -ECONNRESET &&
		    READ_ONCE(ssa_to_sk(ssk)->sk_shutdown) == SHUTDOWN_MASK)
			return 0;
		if (ret == -EIO && ssk->kind == SSA_TRANSPORT_KTLS) {
			ret = rx_control(ssk, -EIO, &idle);
			if (ret)
				return ret;
			if (!READ_ONCE(ssk->rx_end))
				continue;
			ret = 0;
		}
		if (!ret && len) {
			if (ssk->kind == SSA_TRANSPORT_KTLS && !READ_ONCE(ssk->rx_end) &&
			    !ktls_at_end(transport->sk))
				continue;
			return rx_ended(ssk);
		}
		if (ssk->kind == SSA_TRANSPORT_KTLS &&
		    (ret == -EBADMSG || ret == -EMSGSIZE || ret == -EINVAL))
			return rx_broken(ssk, ret);
		/*
		 * A write that was under way when another thread shut down
		 * writing leaves this behind; reading goes on.
		 */
		if (ret == -EPIPE && READ_ONCE(ssa_to_sk(ssk)->sk_shutdown) & SEND_SHUTDOWN)
			continue;
		return ret;
	}
}

/* MSG_WAITALL: goes on where a control record cut the read short. */
static int rx_rest(struct ssa_sock *ssk, struct socket *transport, struct msghdr *msg,
		   size_t len, int flags, int done)
{
	int ret;

	/* No such record: a time-out, a signal or the end was it. */
	while (done < len && ssa_record_handle(ssk) > 0 && !READ_ONCE(ssk->rx_end)) {
		ret = rx_once(ssk, transport, msg, len - done, flags);
		if (ret <= 0)
			break;
		done += ret;
	}
	return done;
}

/**
 * ssa_recvmsg - recv(2) and the like
 * @sock: the socket
 * @msg: the program's buffers
 * @len: room in them
 * @flags: MSG_*
 *
 * Return: bytes; 0 after close_notify; -ECONNRESET at an end without it;
 * -EPROTO after a fatal alert; the transport's errors; -ENOTCONN or -EBADFD in
 * a wrong state.
 */
int ssa_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	struct socket *transport;
	void *control = msg->msg_control;
	size_t controllen = msg->msg_controllen;
	void *name = msg->msg_name;
	int ret;

	if (unlikely(flags & (MSG_OOB | MSG_ERRQUEUE)))
		return flags & MSG_OOB ? -EINVAL : -EAGAIN;	/* there is none */
	transport = rx_transport(ssk, flags, &ret);
	if (unlikely(!transport))
		return ret;
	/*
	 * With room for a control message kernel TLS would hand out records of
	 * every type. Without, it tells of the lack by MSG_CTRUNC, and ends
	 * records by MSG_EOR: both mean nothing on a stream.
	 */
	msg->msg_control = NULL;
	msg->msg_controllen = 0;
	msg->msg_name = NULL;

	ret = rx_once(ssk, transport, msg, len, flags);
	if (unlikely(flags & MSG_WAITALL) && ret > 0 && ret < len && !(flags & MSG_PEEK) &&
	    ssk->kind == SSA_TRANSPORT_KTLS)
		ret = rx_rest(ssk, transport, msg, len, flags, ret);

	msg->msg_control = control;
	msg->msg_controllen = controllen;
	msg->msg_name = name;
	msg->msg_namelen = 0;
	msg->msg_flags &= ~(MSG_CTRUNC | MSG_EOR);
	if (likely(ret > 0) && !(flags & MSG_PEEK))
		atomic64_add(ret, &ssk->received);
	else if (ret < 0)
		error_returned(sock->sk, ret);
	return ret;
}

/**
 * ssa_splice_read - splice(2) out of the socket
 * @sock: the socket
 * @ppos: as the transport's
 * @pipe: where to
 * @len: at most
 * @flags: SPLICE_F_*
 *
 * Return: as ssa_recvmsg().
 */
ssize_t ssa_splice_read(struct socket *sock, loff_t *ppos, struct pipe_inode_info *pipe,
			size_t len, unsigned int flags)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	struct socket *transport;
	int err, idle = 0;
	ssize_t ret;

	/* A transport knows nothing of O_NONBLOCK on the program's file. */
	if (sock->file && sock->file->f_flags & O_NONBLOCK)
		flags |= SPLICE_F_NONBLOCK;
	transport = rx_transport(ssk, flags & SPLICE_F_NONBLOCK ? MSG_DONTWAIT : 0, &err);
	if (!transport)
		return err;
	for (;;) {
		ret = READ_ONCE(transport->ops)->splice_read(transport, ppos, pipe, len, flags);
		if (ret > 0) {
			atomic64_add(ret, &ssk->received);
			return ret;
		}
		/* Kernel TLS says -EINVAL here for a record of another type. */
		if (ret == -EINVAL && ssk->kind == SSA_TRANSPORT_KTLS) {
			ret = rx_control(ssk, -EINVAL, &idle);
			if (ret)
				return ret;
			if (!READ_ONCE(ssk->rx_end))
				continue;
		}
		if (!ret && len) {
			if (ssk->kind == SSA_TRANSPORT_KTLS && !READ_ONCE(ssk->rx_end) &&
			    !ktls_at_end(transport->sk))
				continue;
			return rx_ended(ssk);
		}
		if (ret == -EBADMSG || ret == -EMSGSIZE)
			return rx_broken(ssk, ret);
		return ret;
	}
}

/* Bytes that a read would get now: what a peek finds, into nowhere. */
static int peek(struct ssa_sock *ssk, size_t len)
{
	struct socket *transport = ssk->transport;
	struct msghdr msg = {};

	iov_iter_discard(&msg.msg_iter, ITER_DEST, len);
	return READ_ONCE(transport->ops)->recvmsg(transport, &msg, len, MSG_PEEK | MSG_DONTWAIT);
}

/* A ktls transport is readable only if a whole record of data is there. */
static __poll_t ktls_readable(struct ssa_sock *ssk)
{
	struct sock *tsk = ssk->transport->sk;
	int ret, idle = 0;

	while (sk_is_readable(tsk)) {
		if (tcp_inq(tsk) > CONTROL_RECORD_MAX)
			return EPOLLIN | EPOLLRDNORM;
		ret = peek(ssk, 1);
		/* An empty record; or another reader, which may leave some. */
		if (ret == -EAGAIN && !tls_sw_ctx_rx(tls_get_ctx(tsk))->reader_present)
			return 0;
		if (ret != -EIO)
			return EPOLLIN | EPOLLRDNORM;
		/* An error or an end is something to read. */
		if (rx_control(ssk, -EIO, &idle) || READ_ONCE(ssk->rx_end))
			return EPOLLIN | EPOLLRDNORM;
	}
	return 0;
}

static __poll_t connected_poll(struct ssa_sock *ssk, struct file *file)
{
	struct socket *transport = ssk->transport;
	struct sock *tsk = transport->sk;
	__poll_t mask;

	/*
	 * No table: those that wait do so on the TLS socket, which
	 * transport_wake() wakes.
	 */
	mask = READ_ONCE(transport->ops)->poll(file, transport, NULL);
	if (ssk->kind == SSA_TRANSPORT_KTLS && mask & EPOLLIN &&
	    !(READ_ONCE(tsk->sk_shutdown) & RCV_SHUTDOWN) && !READ_ONCE(tsk->sk_err)) {
		mask &= ~(EPOLLIN | EPOLLRDNORM);
		mask |= ktls_readable(ssk);
	}
	if (READ_ONCE(ssk->rx_end))
		mask |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	return mask;
}

/**
 * ssa_poll - poll(2), select(2), epoll(7)
 * @file: the program's
 * @sock: the socket
 * @wait: as usual
 */
__poll_t ssa_poll(struct file *file, struct socket *sock, struct poll_table_struct *wait)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *ssk = ssa_sk(sk);
	__poll_t mask;

	/* Its barrier makes a state that is set after this wake us. */
	sock_poll_wait(file, sock, wait);

	switch (ssa_state(ssk)) {
	case SSA_SOCKET_STATE_CONNECTED:
		mask = connected_poll(ssk, file);
		break;
	case SSA_SOCKET_STATE_CONNECTING:
		mask = 0;
		break;
	case SSA_SOCKET_STATE_LISTENING:
		mask = READ_ONCE(sk->sk_ack_backlog) ? EPOLLIN | EPOLLRDNORM : 0;
		break;
	case SSA_SOCKET_STATE_NEW:
		mask = EPOLLOUT | EPOLLWRNORM | EPOLLHUP;
		break;
	default:
		mask = EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM | EPOLLRDHUP | EPOLLHUP;
		break;
	}
	if (READ_ONCE(sk->sk_err))
		mask |= EPOLLERR;
	return mask;
}

static int inq(struct ssa_sock *ssk, unsigned long arg)
{
	const struct proto_ops *ops;
	int ret, idle = 0;

	switch (ssa_state(ssk)) {
	case SSA_SOCKET_STATE_CONNECTED:
		break;
	case SSA_SOCKET_STATE_LISTENING:
		return -EINVAL;
	default:
		return put_user(0, (int __user *)arg);
	}
	if (ssk->kind == SSA_TRANSPORT_CHANNEL) {
		ops = READ_ONCE(ssk->transport->ops);
		return ops->ioctl(ssk->transport, SIOCINQ, arg);
	}
	do {
		/* An error is for a read to return. */
		ret = READ_ONCE(ssk->rx_end) || READ_ONCE(ssk->transport->sk->sk_err) ?
		      0 : peek(ssk, INQ_MAX);
	} while (ret == -EIO && !rx_control(ssk, -EIO, &idle));
	return put_user(max(ret, 0), (int __user *)arg);
}

/**
 * ssa_ioctl - ioctl(2) of a TLS socket
 * @sock: the socket
 * @cmd: FIONREAD counts bytes of data, never of records; the rest is TCP's
 * @arg: as usual
 */
int ssa_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);

	switch (cmd) {
	case SIOCINQ:
		return inq(ssk, arg);
	case SIOCATMARK:
		/* TLS has no urgent data. */
		return put_user(0, (int __user *)arg);
	default:
		return READ_ONCE(ssk->endpoint->ops)->ioctl(ssk->endpoint, cmd, arg);
	}
}
