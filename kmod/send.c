// SPDX-License-Identifier: GPL-2.0
/*
 * Sending: sendmsg, sendfile and splice to a TLS socket, forwarded to its
 * transport with the program's own buffers.
 */

#include <linux/net.h>
#include <linux/splice.h>
#include <linux/uio.h>
#include <net/inet_connection_sock.h>
#include <net/tcp.h>

#include "ssa.h"

/* Bytes that a write may give to kernel TLS at once: whole records. */
#define TX_PIECE SZ_512K

/*
 * What a write may pass on. TCP passes over the others; kernel TLS would refuse
 * the write for them.
 */
#define TX_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE | MSG_CMSG_COMPAT | SSA_MSG_SPLICE)

static struct socket *tx_transport(struct ssa_sock *ssk, int flags, int *err)
{
	struct sock *sk = ssa_to_sk(ssk);
	struct socket *transport;

	transport = ssa_transport_of(ssk, SSA_CALL_SEND, flags, sk->sk_sndtimeo, err);
	if (unlikely(!transport))
		return NULL;
	ssa_transport_forget_error(ssk);
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

/* What follows from a write of @len bytes that returned @ret. Return: what the program gets. */
static ssize_t tx_done(struct ssa_sock *ssk, ssize_t ret, size_t len)
{
	struct sock *sk = ssa_to_sk(ssk);

	/*
	 * Kernel TLS does not write while it has a bad record to tell of, nor
	 * when it had no memory for what was written before.
	 */
	if (unlikely(ret < 0) && ssa_transport_broke(ssk, ret) &&
	    ret == -READ_ONCE(ssk->transport->sk->sk_err))
		ret = ssa_transport_lost(ssk) ? -ECONNABORTED : -EPROTO;
	if (likely(ret > 0))
		atomic64_add(ret, &ssk->sent);
	else if (ret < 0)
		ssa_transport_error_returned(sk, ret);
	if (likely(!sock_flag(sk, SOCK_FASYNC)))
		return ret;
	if ((ret == -EAGAIN || (ret >= 0 && ret < len)) &&
	    ssa_readiness_await_room(ssk) & EPOLLOUT)
		sk_wake_async(sk, SOCK_WAKE_SPACE, POLL_OUT);
	/*
	 * Kernel TLS tells of one record until that is read: a ticket that came
	 * before O_ASYNC was set would hide the answer to this write.
	 */
	if (ssk->kind == SSA_TRANSPORT_KTLS)
		ssa_readiness_of_ktls(ssk);
	return ret;
}

/*
 * Control messages are TCP's, which passes over most. What would forge the type
 * of a record, or pass descriptors to the daemon, is refused.
 */
static int tx_control(struct sock *sk, struct msghdr *msg)
{
	struct sockcm_cookie cookie = {};
	struct cmsghdr *cmsg;

	for_each_cmsghdr(cmsg, msg) {
		if (!CMSG_OK(msg, cmsg) || cmsg->cmsg_level == SOL_TLS ||
		    (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS))
			return -EINVAL;
	}
	return sock_cmsg_send(sk, msg, &cookie);
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
 * Return: bytes taken; -EPIPE after shutdown(); -EPROTO after a bad record of the
 * peer's; -ECONNABORTED after a lack of memory; the transport's errors;
 * -ENOTCONN or -EBADFD in a wrong state; -EOPNOTSUPP for MSG_OOB, MSG_ZEROCOPY
 * and MSG_FASTOPEN; -EINVAL for a control message that is of no use here.
 */
int ssa_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	struct socket *transport;
	int ret;

	/*
	 * TLS has no urgent data; what is encrypted is a copy, and nobody would
	 * tell when it is done; and nothing leaves before the handshake.
	 */
	if (unlikely(msg->msg_flags & (MSG_OOB | MSG_ZEROCOPY | MSG_FASTOPEN)))
		return -EOPNOTSUPP;
	if (unlikely(msg->msg_controllen)) {
		ret = tx_control(sock->sk, msg);
		if (ret)
			return ret;
	}
	transport = tx_transport(ssk, msg->msg_flags, &ret);
	if (unlikely(!transport))
		return ret;
	msg->msg_flags &= TX_FLAGS;
	msg->msg_name = NULL;	/* means nothing here */
	msg->msg_namelen = 0;
	msg->msg_control = NULL;
	msg->msg_controllen = 0;

	if (likely(len <= TX_PIECE))
		ret = READ_ONCE(transport->ops)->sendmsg(transport, msg, len);
	else
		ret = tx_pieces(ssk, transport, msg, len);
	return tx_done(ssk, ret, len);
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
	return tx_done(ssk, ret, size);
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
