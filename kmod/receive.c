// SPDX-License-Identifier: GPL-2.0
/*
 * Receiving: recvmsg and splice from a TLS socket, forwarded to its transport
 * with the program's own buffers. What is not application data never shows.
 */

#include <linux/net.h>
#include <linux/splice.h>
#include <linux/uio.h>
#include <net/strparser.h>
#include <net/tcp.h>
#include <net/tls.h>

#include "ssa.h"

/* Control records that other threads can take away before a read. */
#define CONTROL_RACES_MAX 16

/* Bytes that MSG_TRUNC drops at once: a record's. */
#define DROP_PIECE SZ_16K

static struct socket *rx_transport(struct ssa_sock *ssk, int flags, int *err)
{
	struct socket *transport;

	transport = ssa_transport_of(ssk, SSA_CALL_RECV, flags, ssa_to_sk(ssk)->sk_rcvtimeo,
				     err);
	if (unlikely(!transport))
		return NULL;
	if (unlikely(READ_ONCE(ssk->rx_end))) {
		*err = ssk->rx_end == SSA_RX_CLOSE_NOTIFY ? 0 : ssk->rx_end;
		return NULL;
	}
	ssa_transport_forget_error(ssk);
	ssa_sockopt_mirror(ssk);
	return transport;
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

/**
 * ssa_receive_control - deal with a record that is not application data
 * @ssk: its transport is ktls; no lock is held
 * @err: what a read from kernel TLS gave, its way to say that there is one
 * @idle: counts the times in a row that there was none: other threads can be
 *	faster, but not for ever; then @err is what it says
 *
 * Return: 0 to read again, or the error of the read.
 */
int ssa_receive_control(struct ssa_sock *ssk, int err, int *idle)
{
	int ret;

	ret = ssa_record_handle(ssk);
	if (ssa_transport_broke(ssk, ret))
		return 0;	/* which reading again finds */
	if (ret < 0)
		return ret;
	if (ret)
		*idle = 0;
	else if (++*idle > CONTROL_RACES_MAX)
		return err;
	return 0;
}

/* Why kernel TLS does not go on. */
static const char *reason(const struct ssa_sock *ssk)
{
	return ssa_transport_lost(ssk) ?
	       "There was no memory to encrypt; what was written may be lost." :
	       "The peer sent a TLS record that is malformed or forged.";
}

/**
 * ssa_receive_explain - give a bad record its sentence where no read of ours could
 * @ssk: not locked
 *
 * The core tells of it by SO_ERROR and by recvmmsg(2), without asking the module.
 */
void ssa_receive_explain(struct ssa_sock *ssk)
{
	/* Shown only once there is a transport. */
	if (!ssa_transport_broke(ssk, -smp_load_acquire(&ssk->error_shown)))
		return;
	ssa_lock(ssk);
	ssa_sock_set_text(ssk, reason(ssk));
	ssa_unlock(ssk);
}

/* Kernel TLS could not make sense of what the peer sent: see ssa_transport_broke(). */
static int rx_broken(struct ssa_sock *ssk, int err)
{
	struct sock *sk = ssa_to_sk(ssk), *tsk = ssk->transport->sk;
	int pending, end;

	if (mutex_lock_interruptible(&ssk->rx_lock)) {
		cmpxchg(&tsk->sk_err, 0, -err);	/* for the next read */
		return -ERESTARTSYS;
	}
	/* Another thread has found the end before it. */
	end = ssk->rx_end;
	if (end) {
		mutex_unlock(&ssk->rx_lock);
		return end == SSA_RX_CLOSE_NOTIFY ? 0 : end;
	}
	ssa_lock(ssk);
	ssa_sock_set_text(ssk, reason(ssk));
	ssa_unlock(ssk);
	/* Kernel TLS sends nothing, and so no alert, while an error stands. */
	pending = READ_ONCE(tsk->sk_err);
	if (ssa_transport_broke(ssk, -pending)) {
		cmpxchg(&tsk->sk_err, pending, 0);
		err = -pending;
	}
	ssa_record_fail(ssk, err == -EMSGSIZE ? SSA_ALERT_RECORD_OVERFLOW
					      : SSA_ALERT_BAD_RECORD_MAC);
	cmpxchg(&sk->sk_err, EPROTO, 0);
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

/**
 * ssa_receive_gave_up - has kernel TLS found what is no record's header?
 * @ssk: CONNECTED
 *
 * It tells so once, by an error of the socket that poll(), SO_ERROR or another
 * thread may take away; then its reads wait for ever, or for the end of TCP's
 * stream, and its poll() says nothing. What came before can still be read.
 */
bool ssa_receive_gave_up(const struct ssa_sock *ssk)
{
	return ssk->kind == SSA_TRANSPORT_KTLS &&
	       tls_sw_ctx_rx(tls_get_ctx(ssk->transport->sk))->strp.stopped;
}

/*
 * Empty records that a peek has left decrypted at the head, and that hide what is
 * behind them: every other peek returns 0. Nobody misses them.
 *
 * Return: was there one?
 */
static bool ktls_drop_empty(struct sock *tsk)
{
	struct tls_sw_context_rx *ctx = tls_sw_ctx_rx(tls_get_ctx(tsk));
	struct sk_buff *skb;
	bool any = false;

	lock_sock(tsk);
	/* A reader has the list for itself, though it lets go of the lock to wait. */
	while (!ctx->reader_present) {
		skb = skb_peek(&ctx->rx_list);
		if (!skb || strp_msg(skb)->full_len ||
		    ((struct sk_skb_cb *)skb->cb)->tls.control != SSA_RECORD_DATA)
			break;
		__skb_unlink(skb, &ctx->rx_list);
		consume_skb(skb);
		any = true;
	}
	release_sock(tsk);
	return any;
}

/*
 * Kernel TLS has given up, and then a read of at least one byte returned @ret. It
 * returns 0 as well where an empty record stands before one of another type.
 */
static bool ktls_has_no_more(struct sock *tsk, int ret)
{
	return ret == -EAGAIN || (!ret && !sk_is_readable(tsk));
}

/* One read; like the transport's, but control records never show. */
static int rx_once(struct ssa_sock *ssk, struct socket *transport, struct msghdr *msg,
		   size_t len, int flags)
{
	int ret, idle = 0;
	bool gave_up;

	for (;;) {
		gave_up = ssa_receive_gave_up(ssk);
		ret = ssa_transport_recvmsg(ssk, msg, len, gave_up ? flags | MSG_DONTWAIT : flags);
		if (likely(ret > 0))
			return ret;
		if (!ret && flags & MSG_PEEK && len && ssk->kind == SSA_TRANSPORT_KTLS &&
		    ktls_drop_empty(transport->sk)) {
			if (signal_pending(current))
				return -ERESTARTSYS;
			continue;
		}
		if (unlikely(gave_up) && len && ktls_has_no_more(transport->sk, ret))
			return rx_broken(ssk, -EBADMSG);
		/*
		 * After shutdown() both ways TCP resets at whatever the peer
		 * still says, be it close_notify. To who asked for the end it
		 * is the end.
		 */
		if (ret == -ECONNRESET &&
		    READ_ONCE(ssa_to_sk(ssk)->sk_shutdown) == SHUTDOWN_MASK)
			return 0;
		if (ret == -EIO && ssk->kind == SSA_TRANSPORT_KTLS) {
			ret = ssa_receive_control(ssk, -EIO, &idle);
			if (ret)
				return ret;
			if (!READ_ONCE(ssk->rx_end))
				continue;
			ret = 0;
		}
		if (!ret && len) {
			if (ssk->kind == SSA_TRANSPORT_KTLS && !READ_ONCE(ssk->rx_end) &&
			    !ktls_at_end(transport->sk)) {
				/* There may be any number of such. */
				if (signal_pending(current))
					return -ERESTARTSYS;
				continue;
			}
			return rx_ended(ssk);
		}
		if (ssa_transport_broke(ssk, ret))
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

/* A read of data, all of it with MSG_WAITALL. */
static int rx_all(struct ssa_sock *ssk, struct socket *transport, struct msghdr *msg,
		  size_t len, int flags)
{
	int ret;

	ret = rx_once(ssk, transport, msg, len, flags);
	if (unlikely(flags & MSG_WAITALL) && ret > 0 && ret < len && !(flags & MSG_PEEK) &&
	    ssk->kind == SSA_TRANSPORT_KTLS)
		ret = rx_rest(ssk, transport, msg, len, flags, ret);
	return ret;
}

/* SO_RCVLOWAT: a read that waits for @least bytes, and takes what else is there. */
static int rx_least(struct ssa_sock *ssk, struct socket *transport, struct msghdr *msg,
		    size_t len, size_t least, int flags)
{
	size_t rest = iov_iter_count(&msg->msg_iter) - least;
	int ret, more;

	iov_iter_truncate(&msg->msg_iter, least);
	ret = rx_all(ssk, transport, msg, least, flags | MSG_WAITALL);
	iov_iter_reexpand(&msg->msg_iter, iov_iter_count(&msg->msg_iter) + rest);
	/* An error that stands is for the next read to return. */
	if (ret < (int)least || ret == len || READ_ONCE(transport->sk->sk_err) ||
	    READ_ONCE(ssk->rx_end))
		return ret;
	more = rx_once(ssk, transport, msg, len - ret, flags | MSG_DONTWAIT);
	return ret + max(more, 0);
}

/*
 * MSG_TRUNC (tcp(7)): data is dropped, and the program's memory not touched.
 * Into memory of ours, since kernel TLS pins what else it decrypts into.
 */
static int rx_drop(struct ssa_sock *ssk, struct socket *transport, struct msghdr *msg,
		   size_t len, int flags)
{
	struct iov_iter iter = msg->msg_iter;
	struct kvec piece = {};
	int ret, done = 0;

	if (flags & MSG_PEEK) {
		iov_iter_discard(&msg->msg_iter, ITER_DEST, len);
		ret = rx_all(ssk, transport, msg, len, flags);
		msg->msg_iter = iter;
		return ret;
	}
	piece.iov_base = kvmalloc(DROP_PIECE, GFP_KERNEL | __GFP_NOWARN);
	if (!piece.iov_base)
		return -ENOMEM;
	do {
		piece.iov_len = min_t(size_t, len - done, DROP_PIECE);
		iov_iter_kvec(&msg->msg_iter, ITER_DEST, &piece, 1, piece.iov_len);
		ret = rx_all(ssk, transport, msg, piece.iov_len, flags);
		if (ret > 0)
			done += ret;
		if (!(flags & MSG_WAITALL))
			flags |= MSG_DONTWAIT;
	} while (ret > 0 && ret == piece.iov_len && done < len);
	msg->msg_iter = iter;
	kvfree(piece.iov_base);
	return done ?: ret;
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
 * a wrong state; -EOPNOTSUPP for MSG_OOB.
 */
int ssa_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	struct socket *transport;
	void *control = msg->msg_control;
	size_t controllen = msg->msg_controllen;
	void *name = msg->msg_name;
	size_t least = sock_rcvlowat(sock->sk, flags & MSG_WAITALL, len);
	int ret;

	if (unlikely(flags & (MSG_OOB | MSG_ERRQUEUE)))
		return flags & MSG_OOB ? -EOPNOTSUPP : -EAGAIN;	/* there is none */
	transport = rx_transport(ssk, flags, &ret);
	if (unlikely(!transport))
		return ret;
	ssa_window(SSA_WINDOW_RECEIVING);
	/*
	 * With room for a control message kernel TLS would hand out records of
	 * every type. Without, it tells of the lack by MSG_CTRUNC, and ends
	 * records by MSG_EOR: both mean nothing on a stream.
	 */
	msg->msg_control = NULL;
	msg->msg_controllen = 0;
	msg->msg_name = NULL;

	if (unlikely(flags & MSG_TRUNC))
		ret = rx_drop(ssk, transport, msg, len, flags & ~MSG_TRUNC);
	else if (likely(least <= 1) || flags & MSG_PEEK ||
		 (flags & (MSG_DONTWAIT | MSG_WAITALL)) == MSG_DONTWAIT)
		ret = rx_all(ssk, transport, msg, len, flags);
	else
		ret = rx_least(ssk, transport, msg, len, least, flags);

	msg->msg_control = control;
	msg->msg_controllen = controllen;
	msg->msg_name = name;
	msg->msg_namelen = 0;
	msg->msg_flags &= ~(MSG_CTRUNC | MSG_EOR);
	if (likely(ret > 0) && !(flags & MSG_PEEK)) {
		atomic64_add(ret, &ssk->received);
		ssa_record_data(ssk);
	} else if (ret < 0) {
		ssa_transport_error_returned(sock->sk, ret);
	}
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
	bool gave_up;
	ssize_t ret;

	/* A transport knows nothing of O_NONBLOCK on the program's file. */
	if (sock->file && sock->file->f_flags & O_NONBLOCK)
		flags |= SPLICE_F_NONBLOCK;
	transport = rx_transport(ssk, flags & SPLICE_F_NONBLOCK ? MSG_DONTWAIT : 0, &err);
	if (!transport)
		return err;
	for (;;) {
		gave_up = ssa_receive_gave_up(ssk);
		ret = READ_ONCE(transport->ops)->splice_read(transport, ppos, pipe, len,
							     gave_up ? flags | SPLICE_F_NONBLOCK :
								       flags);
		ssa_transport_forgive(ssk, ret);
		if (ret > 0) {
			atomic64_add(ret, &ssk->received);
			ssa_record_data(ssk);
			return ret;
		}
		if (unlikely(gave_up) && len && ktls_has_no_more(transport->sk, ret))
			return rx_broken(ssk, -EBADMSG);
		/* Kernel TLS says -EINVAL here for a record of another type. */
		if (ret == -EINVAL && ssk->kind == SSA_TRANSPORT_KTLS) {
			ret = ssa_receive_control(ssk, -EINVAL, &idle);
			if (ret)
				return ret;
			if (!READ_ONCE(ssk->rx_end))
				continue;
		}
		if (!ret && len) {
			/*
			 * Or the record was empty, and what TCP has behind it is
			 * not looked at yet, other than in a read.
			 */
			if (ssk->kind == SSA_TRANSPORT_KTLS && !READ_ONCE(ssk->rx_end) &&
			    (!ktls_at_end(transport->sk) || ssa_readiness_peek(ssk, 1) ||
			     !ktls_at_end(transport->sk))) {
				/* Or there is no memory. */
				if (signal_pending(current))
					return -ERESTARTSYS;
				cond_resched();
				continue;
			}
			return rx_ended(ssk);
		}
		if (ret == -EBADMSG || ret == -EMSGSIZE)
			return rx_broken(ssk, ret);
		return ret;
	}
}
