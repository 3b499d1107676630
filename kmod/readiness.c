// SPDX-License-Identifier: GPL-2.0
/*
 * Readiness: poll, SO_RCVLOWAT, the signals of O_ASYNC, and ioctl's amounts.
 */

#include <asm/ioctls.h>
#include <linux/poll.h>
#include <linux/sockios.h>
#include <linux/uio.h>
#include <net/tcp.h>
#include <net/tls.h>

#include "ssa.h"

/*
 * A session ticket, alert or KeyUpdate that waits alone is shorter than this.
 * Only then does poll() look at the record's type, since the look costs a
 * copy of the record.
 */
#define CONTROL_RECORD_MAX 2048

/* As much as FIONREAD counts. */
#define INQ_MAX SZ_1M

/**
 * ssa_readiness_await_room - there was no room for a write, or poll() found none
 * @ssk: CONNECTED, with O_ASYNC, which wants to hear of it when there is
 *
 * Return: the transport's events, looked at after that was noted, so that room
 * made before is not missed.
 */
__poll_t ssa_readiness_await_room(struct ssa_sock *ssk)
{
	struct socket *transport = ssk->transport;

	sk_set_bit(SOCKWQ_ASYNC_NOSPACE, ssa_to_sk(ssk));
	smp_mb__after_atomic();	/* the core's sk_write_space sees it, or we see the room */
	return READ_ONCE(transport->ops)->poll(NULL, transport, NULL);
}

/**
 * ssa_readiness_peek - bytes that a read would get now
 * @ssk: CONNECTED; no lock is held
 * @len: at most
 *
 * Return: as a read that peeks and does not wait.
 */
int ssa_readiness_peek(struct ssa_sock *ssk, size_t len)
{
	struct msghdr msg = {};
	int ret;

	iov_iter_discard(&msg.msg_iter, ITER_DEST, len);
	ret = ssa_transport_recvmsg(ssk, &msg, len, MSG_PEEK | MSG_DONTWAIT);
	/* Kernel TLS tells once of what is no record, and that is for a read. */
	if (ssa_transport_broke(ssk, ret))
		cmpxchg(&ssk->transport->sk->sk_err, 0, -ret);
	return ret;
}

/**
 * ssa_readiness_of_ktls - is a whole record of data there?
 * @ssk: CONNECTED, its transport is ktls; no lock is held
 *
 * Deals with control records that stand before it.
 *
 * Return: EPOLLIN and EPOLLRDNORM, or 0.
 */
__poll_t ssa_readiness_of_ktls(struct ssa_sock *ssk)
{
	struct sock *tsk = ssk->transport->sk;
	int ret, idle = 0;

	while (sk_is_readable(tsk)) {
		if (tcp_inq(tsk) > CONTROL_RECORD_MAX)
			return EPOLLIN | EPOLLRDNORM;
		ret = ssa_readiness_peek(ssk, 1);
		/* An empty record; or another reader, which may leave some. */
		if (ret == -EAGAIN && !tls_sw_ctx_rx(tls_get_ctx(tsk))->reader_present)
			return 0;
		if (ret != -EIO)
			return EPOLLIN | EPOLLRDNORM;
		/* An error or an end is something to read. */
		if (ssa_receive_control(ssk, -EIO, &idle) || READ_ONCE(ssk->rx_end))
			return EPOLLIN | EPOLLRDNORM;
	}
	return 0;
}

/*
 * Whether a transport that is readable has as much as SO_RCVLOWAT wants. A
 * record that is ready when a peek has stopped is one of another type, or stands
 * behind one: for a read to deal with.
 */
static bool has_enough(struct ssa_sock *ssk, int least)
{
	struct sock *tsk = ssk->transport->sk;
	int ret;

	ret = ssa_readiness_peek(ssk, min_t(size_t, least, INQ_MAX));
	if (ret <= 0 || ret >= min_t(size_t, least, INQ_MAX))
		return true;
	return ssk->kind == SSA_TRANSPORT_KTLS && tls_sw_ctx_rx(tls_get_ctx(tsk))->strp.msg_ready;
}

static __poll_t connected_poll(struct ssa_sock *ssk, struct file *file)
{
	int least = READ_ONCE(ssa_to_sk(ssk)->sk_rcvlowat);
	struct socket *transport = ssk->transport;
	struct sock *tsk = transport->sk;
	__poll_t mask;

	ssa_transport_forget_error(ssk);
	/*
	 * No table: those that wait do so on the TLS socket, which
	 * transport_wake() wakes.
	 */
	mask = READ_ONCE(transport->ops)->poll(file, transport, NULL);
	if (ssk->kind == SSA_TRANSPORT_KTLS && mask & EPOLLIN &&
	    !(READ_ONCE(tsk->sk_shutdown) & RCV_SHUTDOWN) && !READ_ONCE(tsk->sk_err)) {
		mask &= ~(EPOLLIN | EPOLLRDNORM);
		mask |= ssa_readiness_of_ktls(ssk);
	}
	if (unlikely(least > 1) && mask & EPOLLIN &&
	    !(mask & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) && !has_enough(ssk, least))
		mask &= ~(EPOLLIN | EPOLLRDNORM);
	if (unlikely(sock_flag(ssa_to_sk(ssk), SOCK_FASYNC)) && !(mask & EPOLLOUT))
		mask |= ssa_readiness_await_room(ssk) & (EPOLLOUT | EPOLLWRNORM);
	if (READ_ONCE(ssk->rx_end))
		mask |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	else if (ssa_receive_gave_up(ssk))
		mask |= EPOLLIN | EPOLLRDNORM;
	return mask;
}

/**
 * ssa_set_rcvlowat - SO_RCVLOWAT
 * @sk: locked
 * @val: bytes of the program's that make it readable
 *
 * TCP itself does not hear of it: it would not wake kernel TLS for the rest of
 * a record, and counts what is encrypted. The limit is TCP's.
 *
 * Return: 0.
 */
int ssa_set_rcvlowat(struct sock *sk, int val)
{
	int cap = sk->sk_userlocks & SOCK_RCVBUF_LOCK ?
		  READ_ONCE(sk->sk_rcvbuf) : READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_rmem[2]);

	WRITE_ONCE(sk->sk_rcvlowat, min(val, cap >> 1) ?: 1);
	/* Who waits for more than that waits no more. */
	ssa_upcall(ssa_sk(sk), SSA_UPCALL_DATA_READY);
	return 0;
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
	enum ssa_socket_state state = ssa_state(ssk);
	const struct proto_ops *ops;
	int ret, idle = 0;

	ret = ssa_state_errno(state, SSA_CALL_FIONREAD);
	if (ret)
		return ret;
	if (state != SSA_SOCKET_STATE_CONNECTED)
		return put_user(0, (int __user *)arg);
	if (ssk->kind == SSA_TRANSPORT_CHANNEL) {
		ops = READ_ONCE(ssk->transport->ops);
		return ops->ioctl(ssk->transport, SIOCINQ, arg);
	}
	do {
		/* An error is for a read to return. */
		ret = READ_ONCE(ssk->rx_end) || READ_ONCE(ssk->transport->sk->sk_err) ?
		      0 : ssa_readiness_peek(ssk, INQ_MAX);
	} while (ret == -EIO && !ssa_receive_control(ssk, -EIO, &idle));
	if (ret == -ENOMEM)
		return ret;
	return put_user(max(ret, 0), (int __user *)arg);
}

/*
 * Bytes that TCP has not sent (SIOCOUTQNSD) or the peer not acknowledged:
 * encrypted ones. On a channel also what the daemon has not read, with the
 * memory around it; what is under its hands is not counted.
 */
static int outq(struct ssa_sock *ssk, unsigned int cmd, unsigned long arg)
{
	struct tcp_sock *tp;
	u32 count = 0;

	switch (ssa_state(ssk)) {
	case SSA_SOCKET_STATE_CONNECTED:
		tp = tcp_sk(ssk->endpoint->sk);
		count = READ_ONCE(tp->write_seq) -
			(cmd == SIOCOUTQ ? READ_ONCE(tp->snd_una) : READ_ONCE(tp->snd_nxt));
		if (ssk->kind == SSA_TRANSPORT_CHANNEL)
			count += sk_wmem_alloc_get(ssk->transport->sk);
		break;
	case SSA_SOCKET_STATE_LISTENING:
		return -EINVAL;
	default:
		break;	/* what the handshake sends is not the program's */
	}
	return put_user(count, (int __user *)arg);
}

/**
 * ssa_ioctl - ioctl(2) of a TLS socket
 * @sock: the socket
 * @cmd: FIONREAD counts bytes of data, never of records; the rest is TCP's
 * @arg: as usual
 *
 * Return: 0; -EINVAL for amounts on a listening socket, as TCP; -EFAULT; -ENOMEM;
 * -ENOIOCTLCMD for what is unknown, which the core makes -ENOTTY.
 */
int ssa_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	struct socket *endpoint;
	struct file *file;
	int ret;

	switch (cmd) {
	case SIOCINQ:
		return inq(ssk, arg);
	case SIOCATMARK:
		/* TLS has no urgent data. */
		return put_user(0, (int __user *)arg);
	case SIOCOUTQ:
	case SIOCOUTQNSD:
		return outq(ssk, cmd, arg);
	default:
		file = ssa_endpoint_get(ssk);
		endpoint = sock_from_file(file);
		ret = READ_ONCE(endpoint->ops)->ioctl(endpoint, cmd, arg);
		fput(file);
		return ret;
	}
}
