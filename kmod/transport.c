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

#include <linux/net.h>
#include <net/inet_connection_sock.h>
#include <net/tcp.h>
#include <net/tls.h>

#include "ssa.h"

/* Room for a piece of a write (send.c) and what kernel TLS holds back, encrypted. */
#define CLOSE_ROOM SZ_1M

/* Ticks that TCP may take to get memory for what is encrypted. */
#define FLUSH_TRIES 100

/* Control records that close() passes over. */
#define TICKETS_MAX 16

/*
 * The signal of O_ASYNC (fcntl(2)) for a change of state: the peer's end, if the
 * program did not ask for it.
 */
static void signal_end(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk), *tsk = ssk->transport->sk;
	int ended;

	ended = READ_ONCE(tsk->sk_shutdown);
	if (ended & ~READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN)
		sk_wake_async(sk, SOCK_WAKE_WAITD, ended == SHUTDOWN_MASK ? POLL_HUP : POLL_IN);
}

/*
 * Wakes those that wait on the TLS socket when the transport wakes those that
 * wait on it. Called under the lock of the transport's wait queue, any context.
 */
static int transport_wake(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct ssa_sock *ssk = container_of(wait, struct ssa_sock, wait);
	__poll_t events = key_to_poll(key);
	int err;

	/* The core answers SO_ERROR, and recvmmsg(2), from the TLS socket. */
	err = !events || events & EPOLLERR ? READ_ONCE(ssk->transport->sk->sk_err) : 0;
	/* What comes when we have ended the connection does not replace the reason. */
	if (err && READ_ONCE(ssk->rx_end) != -EPROTO) {
		WRITE_ONCE(ssa_to_sk(ssk)->sk_err, ssa_transport_broke(ssk, -err) ? EPROTO : err);
		/* Pairs with ssa_transport_forget_error(): not seen before the error itself. */
		smp_store_release(&ssk->error_shown, err);
	}
	ssa_upcall_wake(ssk, events);
	if (unlikely(sock_flag(ssa_to_sk(ssk), SOCK_FASYNC)) && !events)
		signal_end(ssk);
	return 0;
}

/* By the CPU, or record by record by a device; a whole TLS of a device's is not ours. */
static bool in_kernel(u8 conf)
{
	return conf == TLS_SW || conf == TLS_HW;
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
	return ctx && in_kernel(ctx->tx_conf) && in_kernel(ctx->rx_conf);
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
	ssk->mirror.rcvtimeo = -1;	/* a channel has none of it yet */
	ssa_sockopt_mirror(ssk);
	return 0;
}

/**
 * ssa_transport_has_input - could there be something to read?
 * @ssk: connected, locked
 *
 * Does not sleep. True as well for a record that is not application data.
 */
bool ssa_transport_has_input(struct ssa_sock *ssk)
{
	struct socket *transport = ssk->transport;

	return READ_ONCE(transport->ops)->poll(NULL, transport, NULL) & EPOLLIN;
}

/* What kernel TLS knows of writing; NULL if a device encrypts. */
static struct tls_sw_context_tx *tx_context(const struct sock *tsk)
{
	struct tls_context *ctx = tls_get_ctx(tsk);

	return ctx->tx_conf == TLS_SW ? tls_sw_ctx_tx(ctx) : NULL;
}

/**
 * ssa_transport_lost - has kernel TLS perhaps lost something that was written?
 * @ssk: has a transport
 *
 * It takes a lack of memory for a broken connection. If that was in a write, what
 * MSG_MORE had held back is gone, and its error stays: a stream with a gap must
 * not go on. Kernel TLS remembers such a write as if it had been encrypted
 * asynchronously.
 */
bool ssa_transport_lost(const struct ssa_sock *ssk)
{
	struct tls_sw_context_tx *ctx;

	if (ssk->kind != SSA_TRANSPORT_KTLS)
		return false;
	ctx = tx_context(ssk->transport->sk);
	return ctx && ctx->async_capable;
}

/* Return: was there an error that stood for a bad record, or a lack of memory? */
static bool clear_error(struct ssa_sock *ssk)
{
	if (cmpxchg(&ssk->transport->sk->sk_err, EBADMSG, 0) != EBADMSG)
		return false;
	cmpxchg(&ssk->error_shown, EBADMSG, 0);
	cmpxchg(&ssa_to_sk(ssk)->sk_err, EPROTO, 0);	/* the copy of it */
	return true;
}

/*
 * As if it had not been, unless a write has met it: one that it cut short has
 * left a record behind, and told the program that it took less. The transport is
 * locked.
 */
static void clear_unmet_error(struct ssa_sock *ssk)
{
	struct tls_sw_context_tx *ctx = tx_context(ssk->transport->sk);

	if (!ctx || (!ctx->async_capable && list_empty(&ctx->tx_list)))
		clear_error(ssk);
}

/**
 * ssa_transport_forgive - what has kept kernel TLS from decrypting may be no bad record
 * @ssk: CONNECTED; no lock is held
 * @ret: what a read from the transport returned
 *
 * Kernel TLS takes a lack of memory for a bad record, and a bad pointer where it
 * decrypts into the program's memory (TLS 1.2), and leaves an error that would
 * end the connection, writing too. It has consumed none. What really is bad is so
 * again at the next read; what was bad where it decrypts asynchronously has ended
 * reading for good; and so has what is no record's header (ssa_receive_gave_up()).
 */
void ssa_transport_forgive(struct ssa_sock *ssk, ssize_t ret)
{
	struct sock *tsk = ssk->transport->sk;

	if (likely(READ_ONCE(tsk->sk_err) != EBADMSG) || ssk->kind != SSA_TRANSPORT_KTLS)
		return;
	if (ret <= 0 && ret != -ENOMEM && ret != -EFAULT)
		return;
	lock_sock(tsk);
	clear_unmet_error(ssk);
	release_sock(tsk);
}

/*
 * Waits until TCP has all that kernel TLS has encrypted. What TCP had no memory
 * for, kernel TLS keeps, and a FIN would overtake it.
 *
 * Return: 0, also on a broken connection; -EINTR; -ENOBUFS.
 */
static int flush_records(struct ssa_sock *ssk)
{
	struct sock *tsk = ssk->transport->sk;
	struct tls_sw_context_tx *ctx = tx_context(tsk);
	int tries = FLUSH_TRIES;
	bool done;

	if (!ctx)
		return 0;
	for (;;) {
		lock_sock(tsk);
		/* Nobody writes any more; what a read has met is no reason to stop. */
		if (!ctx->async_capable)
			clear_error(ssk);
		done = list_empty(&ctx->tx_list) || tsk->sk_err || tsk->sk_state == TCP_CLOSE;
		if (!done)
			tsk->sk_write_space(tsk);	/* has kernel TLS try again */
		release_sock(tsk);
		if (done)
			return 0;
		if (!tries--)
			return -ENOBUFS;
		if (signal_pending(current))
			return -EINTR;
		schedule_timeout_interruptible(1);
	}
}

/*
 * Sends close_notify as the last record. Waits, interruptible, for the piece of
 * a write that another thread is at (tx_pieces()).
 *
 * Return: 0; -EINTR; -ENOBUFS if there is no memory for it; -ECONNABORTED if there
 * was none for what was written before, and the peer is to see that it was cut.
 */
static int send_close_notify(struct ssa_sock *ssk)
{
	struct sock *tsk = ssk->transport->sk;
	struct tls_sw_context_tx *ctx = tx_context(tsk);
	bool alone;
	int err = 0;

	/* Another thread may be at it, and our FIN is not to overtake its alert. */
	if (wait_on_bit_lock(&ssk->flags, SSA_CLOSE_NOTIFY_LOCK, TASK_INTERRUPTIBLE))
		return -EINTR;
	if (test_and_set_bit(SSA_CLOSE_NOTIFY_SENT, &ssk->flags))
		goto flush;
	ssa_window(SSA_WINDOW_NOTIFYING);

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
	/* A bad record is found again by who reads; meanwhile nothing could be sent. */
	clear_unmet_error(ssk);
	/* Nothing is held back that would be lost with the alert. */
	alone = ctx && !ctx->async_capable && !ctx->open_rec;
	release_sock(tsk);

	err = ssa_record_send_alert(ssk->transport, SSA_ALERT_WARNING, SSA_ALERT_CLOSE_NOTIFY);
	if (err == -EBADMSG && alone) {
		lock_sock(tsk);
		ctx->async_capable = 0;
		clear_error(ssk);
		release_sock(tsk);
		err = -ENOMEM;
	}
	switch (err) {
	case -EAGAIN:	/* there is room, so it is memory that TCP has none of */
	case -ENOMEM:
		err = -ENOBUFS;
		fallthrough;
	case -EINTR:
		clear_bit(SSA_CLOSE_NOTIFY_SENT, &ssk->flags);
		goto out;
	case -EBADMSG:
		if (ssa_transport_lost(ssk)) {
			err = -ECONNABORTED;
			goto out;
		}
		break;
	default:	/* or a broken connection, which the peer sees */
		break;
	}
flush:
	err = flush_records(ssk);
out:
	clear_and_wake_up_bit(SSA_CLOSE_NOTIFY_LOCK, &ssk->flags);
	return err;
}

/**
 * ssa_transport_shutdown - shut a connection down
 * @ssk: has a transport; no lock is held
 * @how: RCV_SHUTDOWN, SEND_SHUTDOWN or both
 *
 * Return: 0; -EINTR if it was interrupted while it waited for another thread's
 * write, -ENOBUFS if there was no memory for close_notify, and the connection is
 * not shut down then; -ECONNABORTED if there was none for what was written before;
 * the error of the transport.
 */
int ssa_transport_shutdown(struct ssa_sock *ssk, int how)
{
	struct sock *sk = ssa_to_sk(ssk);
	int err = 0, ret;

	/* First, so that no data is written behind the alert. */
	ssa_lock(ssk);
	WRITE_ONCE(sk->sk_shutdown, sk->sk_shutdown | how);
	ssa_unlock(ssk);
	ssa_window(SSA_WINDOW_SHUTTING);
	if (how & SEND_SHUTDOWN && ssk->kind == SSA_TRANSPORT_KTLS) {
		err = send_close_notify(ssk);
		if (err && err != -ECONNABORTED)
			return err;
	}
	ret = kernel_sock_shutdown(ssk->transport, how - 1);
	return err ?: ret;
}

/* Waits until the daemon has delivered what was written, as SO_LINGER asks. */
static void channel_linger(struct ssa_sock *ssk, long timeout)
{
	struct sock *tsk = ssk->transport->sk;

	wait_event_interruptible_timeout(*sk_sleep(tsk),
					 READ_ONCE(tsk->sk_shutdown) == SHUTDOWN_MASK, timeout);
}

/* Waits until the peer has acknowledged what was written, as TCP's close() does. */
static void ktls_linger(struct ssa_sock *ssk, long timeout)
{
	struct sock *tsk = ssk->transport->sk;

	kernel_sock_shutdown(ssk->transport, SHUT_WR);
	lock_sock(tsk);
	sk_stream_wait_close(tsk, timeout);
	release_sock(tsk);
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

	if (!ssk->transport)
		return;
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
		/* What could not be sent is tried once more by the kernel, if no FIN went out. */
		if (!send_close_notify(ssk) && linger && !(current->flags & PF_EXITING))
			ktls_linger(ssk, sk->sk_lingertime);
	} else {
		kernel_sock_shutdown(ssk->transport, SHUT_WR);
		if (linger && !(current->flags & PF_EXITING))
			channel_linger(ssk, sk->sk_lingertime);
	}
}

/**
 * ssa_transport_broke - has kernel TLS given up at what the peer sent?
 * @ssk: has a transport
 * @err: a negative errno of the transport's
 *
 * Its errno tells where in kernel TLS; TCP has none of these. To the program all
 * of it is -EPROTO.
 */
bool ssa_transport_broke(const struct ssa_sock *ssk, int err)
{
	return ssk->kind == SSA_TRANSPORT_KTLS &&
	       (err == -EBADMSG || err == -EMSGSIZE || err == -EINVAL);
}

/**
 * ssa_transport_recvmsg - read from the transport
 * @ssk: CONNECTED
 * @msg: where to
 * @len: room in it
 * @flags: MSG_*
 *
 * Return: as the transport's recvmsg.
 */
int ssa_transport_recvmsg(struct ssa_sock *ssk, struct msghdr *msg, size_t len, int flags)
{
	struct socket *transport = ssk->transport;
	int ret;

	ret = READ_ONCE(transport->ops)->recvmsg(transport, msg, len, flags);
	ssa_transport_forgive(ssk, ret);
	return ret;
}

/**
 * ssa_transport_forget_error - let SO_ERROR have been the only one to tell
 * @ssk: CONNECTED
 *
 * SO_ERROR clears what it has returned on the TLS socket; what it was a copy of
 * must not be returned a second time.
 */
void ssa_transport_forget_error(struct ssa_sock *ssk)
{
	int err = smp_load_acquire(&ssk->error_shown);	/* see transport_wake() */

	if (likely(!err) || READ_ONCE(ssa_to_sk(ssk)->sk_err))
		return;
	if (cmpxchg(&ssk->error_shown, err, 0) == err &&
	    !(err == EBADMSG && ssa_transport_lost(ssk)))
		cmpxchg(&ssk->transport->sk->sk_err, err, 0);
}

/**
 * ssa_transport_of - the transport of a connected socket
 * @ssk: a call on it runs
 * @call: SSA_CALL_SEND or SSA_CALL_RECV
 * @flags: MSG_DONTWAIT
 * @timeout: of the call, in jiffies: while it connects, the call waits
 * @err: gets the reason if there is none: -EAGAIN, -EINTR, -ERESTARTSYS, the
 *	error that is pending or that of the call in this state
 *
 * Return: the transport, or NULL.
 */
struct socket *ssa_transport_of(struct ssa_sock *ssk, enum ssa_call call, int flags,
				long timeout, int *err)
{
	enum ssa_socket_state state = ssa_state(ssk);
	long left;

	if (unlikely(state == SSA_SOCKET_STATE_CONNECTING)) {
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
		state = ssa_state(ssk);
	}
	if (likely(state == SSA_SOCKET_STATE_CONNECTED))
		return ssk->transport;
	/* What still comes of a connection that was torn down is no error of a call. */
	*err = state == SSA_SOCKET_STATE_CLOSED ? 0 : sock_error(ssa_to_sk(ssk));
	if (!*err)
		*err = ssa_state_errno(state, call);
	return NULL;
}

/**
 * ssa_transport_error_returned - a call has returned an error
 * @sk: the TLS socket
 * @err: the negative errno; it is not to be had from SO_ERROR again
 */
void ssa_transport_error_returned(struct sock *sk, int err)
{
	if (READ_ONCE(sk->sk_err))
		cmpxchg(&sk->sk_err, -err, 0);
}
