// SPDX-License-Identifier: GPL-2.0
/*
 * Options of SOL_SOCKET: the core keeps them on the TLS socket, and has checked
 * the caller's rights. What acts on TCP is copied to the endpoint before it is
 * used, and what TCP changes by itself is copied back.
 *
 * Both ways are cheap when nothing has changed. What both sides had after the
 * last copy is in ssa_sock.mirror: a side that differs from it has changed. If
 * both have, the program wins, but for the device that TCP is bound to.
 */

#include <linux/in.h>
#include <linux/tcp.h>
#include <net/tcp.h>

#include "ssa.h"

/* What is done with an option of SOL_SOCKET, besides what the core does. */
enum what {
	NONE = 1,	/* nothing: the core refuses it */
	KEPT,		/* nothing: it is the TLS socket's, or has no effect */
	COPIED,		/* copied to the endpoint */
	ANSWERED,	/* copied from the endpoint */
};

/*
 * One option a row: set, get, and why. For whom reads: the core never asks.
 * What is COPIED is in snapshot() and copy(), what is ANSWERED, in answer().
 */
static const struct row {
	u8 set;
	u8 get;
} socket_rows[] __maybe_unused = {
	[SO_DEBUG] = { KEPT, KEPT }, /* no effect, as in TCP */
	[SO_REUSEADDR] = { COPIED, KEPT }, /* what bind() takes */
	[SO_TYPE] = { NONE, KEPT }, /* SOCK_STREAM */
	[SO_ERROR] = { NONE, ANSWERED }, /* errors of the transport as well; each once */
	[SO_DONTROUTE] = { COPIED, KEPT }, /* which way packets go */
	[SO_BROADCAST] = { KEPT, KEPT }, /* no effect on a stream */
	[SO_SNDBUF] = { COPIED, ANSWERED }, /* TCP tunes it until it is set */
	[SO_RCVBUF] = { COPIED, ANSWERED }, /* TCP tunes it until it is set */
	[SO_KEEPALIVE] = { COPIED, KEPT }, /* TCP probes */
	[SO_OOBINLINE] = { KEPT, KEPT }, /* TLS has no urgent data */
	[SO_NO_CHECK] = { KEPT, KEPT }, /* no effect on a stream */
	[SO_PRIORITY] = { COPIED, ANSWERED }, /* IP_TOS sets it too */
	[SO_LINGER] = { COPIED, KEPT }, /* what close() does */
	[SO_BSDCOMPAT] = { KEPT, KEPT }, /* no effect in Linux */
	[SO_REUSEPORT] = { COPIED, KEPT }, /* what bind() takes */
	[SO_PASSCRED] = { KEPT, KEPT }, /* no effect: nothing but data comes in */
	[SO_PEERCRED] = { NONE, KEPT }, /* nobody, as in TCP */
	[SO_RCVLOWAT] = { KEPT, KEPT }, /* counted in bytes of the program's (receive.c) */
	[SO_SNDLOWAT] = { NONE, KEPT }, /* 1, as in TCP */
	[SO_RCVTIMEO_OLD] = { COPIED, KEPT }, /* to the transport, which waits */
	[SO_SNDTIMEO_OLD] = { COPIED, KEPT }, /* to the transport, which waits */
	[SO_SECURITY_AUTHENTICATION] = { NONE, NONE }, /* not in Linux */
	[SO_SECURITY_ENCRYPTION_TRANSPORT] = { NONE, NONE }, /* not in Linux */
	[SO_SECURITY_ENCRYPTION_NETWORK] = { NONE, NONE }, /* not in Linux */
	[SO_BINDTODEVICE] = { COPIED, ANSWERED }, /* a scope of IPv6 sets it too */
	[SO_ATTACH_FILTER] = { KEPT, KEPT }, /* no effect: the packets are encrypted */
	[SO_DETACH_FILTER] = { KEPT, NONE }, /* as SO_ATTACH_FILTER */
	[SO_PEERNAME] = { NONE, ANSWERED }, /* as getpeername() */
	[SO_TIMESTAMP_OLD] = { KEPT, KEPT }, /* no effect: kernel TLS tells no times */
	[SO_ACCEPTCONN] = { NONE, KEPT }, /* 1 if it listens */
	[SO_PEERSEC] = { NONE, KEPT }, /* nobody's */
	[SO_SNDBUFFORCE] = { COPIED, NONE }, /* as SO_SNDBUF; CAP_NET_ADMIN */
	[SO_RCVBUFFORCE] = { COPIED, NONE }, /* as SO_RCVBUF; CAP_NET_ADMIN */
	[SO_PASSSEC] = { KEPT, KEPT }, /* no effect: nothing but data comes in */
	[SO_TIMESTAMPNS_OLD] = { KEPT, KEPT }, /* as SO_TIMESTAMP_OLD */
	[SO_MARK] = { COPIED, KEPT }, /* of the packets; CAP_NET_ADMIN or _RAW */
	[SO_TIMESTAMPING_OLD] = { KEPT, KEPT }, /* as SO_TIMESTAMP_OLD */
	[SO_PROTOCOL] = { NONE, KEPT }, /* IPPROTO_TLS */
	[SO_DOMAIN] = { NONE, KEPT }, /* as given to socket() */
	[SO_RXQ_OVFL] = { KEPT, KEPT }, /* no effect on a stream */
	[SO_WIFI_STATUS] = { KEPT, KEPT }, /* no effect on a stream */
	[SO_PEEK_OFF] = { NONE, NONE }, /* kernel TLS has none: EOPNOTSUPP */
	[SO_NOFCS] = { KEPT, KEPT }, /* no effect on a stream */
	[SO_LOCK_FILTER] = { KEPT, KEPT }, /* as SO_ATTACH_FILTER */
	[SO_SELECT_ERR_QUEUE] = { KEPT, KEPT }, /* no effect: the queue is empty */
	[SO_BUSY_POLL] = { KEPT, KEPT }, /* poll() does it, on the TLS socket */
	[SO_MAX_PACING_RATE] = { COPIED, KEPT }, /* when segments leave */
	[SO_BPF_EXTENSIONS] = { NONE, KEPT }, /* the kernel's */
	[SO_INCOMING_CPU] = { COPIED, ANSWERED }, /* set before listen() */
	[SO_ATTACH_BPF] = { KEPT, NONE }, /* as SO_ATTACH_FILTER */
	[SO_ATTACH_REUSEPORT_CBPF] = { KEPT, NONE }, /* no effect: endpoints are the group */
	[SO_ATTACH_REUSEPORT_EBPF] = { KEPT, NONE }, /* as SO_ATTACH_REUSEPORT_CBPF */
	[SO_CNX_ADVICE] = { KEPT, NONE }, /* no effect: TCP changes routes itself */
	[SO_MEMINFO] = { NONE, KEPT }, /* of the TLS socket; ss -m tells TCP's */
	[SO_INCOMING_NAPI_ID] = { NONE, ANSWERED }, /* where packets come in */
	[SO_COOKIE] = { NONE, KEPT }, /* the TLS socket's */
	[SO_PEERGROUPS] = { NONE, KEPT }, /* nobody's */
	[SO_ZEROCOPY] = { NONE, KEPT }, /* kernel TLS has none: EOPNOTSUPP */
	[SO_TXTIME] = { KEPT, KEPT }, /* no effect on a stream */
	[SO_BINDTOIFINDEX] = { COPIED, ANSWERED }, /* as SO_BINDTODEVICE */
	[SO_TIMESTAMP_NEW] = { KEPT, KEPT }, /* as SO_TIMESTAMP_OLD */
	[SO_TIMESTAMPNS_NEW] = { KEPT, KEPT }, /* as SO_TIMESTAMP_OLD */
	[SO_TIMESTAMPING_NEW] = { KEPT, KEPT }, /* as SO_TIMESTAMP_OLD */
	[SO_RCVTIMEO_NEW] = { COPIED, KEPT }, /* as SO_RCVTIMEO_OLD */
	[SO_SNDTIMEO_NEW] = { COPIED, KEPT }, /* as SO_SNDTIMEO_OLD */
	[SO_DETACH_REUSEPORT_BPF] = { KEPT, NONE }, /* as SO_ATTACH_REUSEPORT_CBPF */
	[SO_PREFER_BUSY_POLL] = { KEPT, KEPT }, /* as SO_BUSY_POLL */
	[SO_BUSY_POLL_BUDGET] = { KEPT, NONE }, /* as SO_BUSY_POLL */
	[SO_NETNS_COOKIE] = { NONE, KEPT }, /* of the namespace that both are in */
	[SO_BUF_LOCK] = { COPIED, KEPT }, /* whether TCP tunes SO_SNDBUF and SO_RCVBUF */
	[SO_RESERVE_MEM] = { NONE, KEPT }, /* EOPNOTSUPP: it queues nothing */
	[SO_TXREHASH] = { COPIED, KEPT }, /* when TCP gets no answer */
	[SO_RCVMARK] = { KEPT, KEPT }, /* no effect on a stream */
	[SO_PASSPIDFD] = { KEPT, KEPT }, /* no effect: nothing but data comes in */
	[SO_PEERPIDFD] = { NONE, KEPT }, /* nobody's */
	[SO_DEVMEM_LINEAR] = { NONE, NONE }, /* control messages only */
	[SO_DEVMEM_DMABUF] = { NONE, NONE }, /* control messages only */
	[SO_DEVMEM_DONTNEED] = { NONE, NONE }, /* EBADF: would name records */
};

/* Flags of struct sock that mean something on TCP too. */
#define MIRRORED_FLAGS (BIT(SOCK_KEEPOPEN) | BIT(SOCK_LINGER) | BIT(SOCK_LOCALROUTE))

/* Bits of sk_userlocks that SO_SNDBUF, SO_RCVBUF and SO_BUF_LOCK set. */
#define MIRRORED_LOCKS SOCK_BUF_LOCK_MASK

static bool changed(struct ssa_sock *ssk)
{
	const struct ssa_mirror *old = &ssk->mirror;
	const struct sock *sk = ssa_to_sk(ssk);

	return old->rcvtimeo != READ_ONCE(sk->sk_rcvtimeo) ||
	       old->sndtimeo != READ_ONCE(sk->sk_sndtimeo) ||
	       old->flags != (READ_ONCE(sk->sk_flags) & MIRRORED_FLAGS) ||
	       old->lingertime != READ_ONCE(sk->sk_lingertime) ||
	       old->userlocks != (sk->sk_userlocks & MIRRORED_LOCKS) ||
	       old->sndbuf != READ_ONCE(sk->sk_sndbuf) ||
	       old->rcvbuf != READ_ONCE(sk->sk_rcvbuf) ||
	       old->mark != READ_ONCE(sk->sk_mark) ||
	       old->priority != READ_ONCE(sk->sk_priority) ||
	       old->bound_dev_if != READ_ONCE(sk->sk_bound_dev_if) ||
	       old->max_pacing_rate != READ_ONCE(sk->sk_max_pacing_rate) ||
	       old->txrehash != READ_ONCE(sk->sk_txrehash) ||
	       old->reuse != sk->sk_reuse || old->reuseport != sk->sk_reuseport ||
	       (!ssk->transport && old->incoming_cpu != READ_ONCE(sk->sk_incoming_cpu));
}

static void snapshot(const struct sock *sk, struct ssa_mirror *to)
{
	to->rcvtimeo = READ_ONCE(sk->sk_rcvtimeo);
	to->sndtimeo = READ_ONCE(sk->sk_sndtimeo);
	to->flags = READ_ONCE(sk->sk_flags) & MIRRORED_FLAGS;
	to->lingertime = READ_ONCE(sk->sk_lingertime);
	to->userlocks = sk->sk_userlocks & MIRRORED_LOCKS;
	to->sndbuf = READ_ONCE(sk->sk_sndbuf);
	to->rcvbuf = READ_ONCE(sk->sk_rcvbuf);
	to->mark = READ_ONCE(sk->sk_mark);
	to->priority = READ_ONCE(sk->sk_priority);
	to->bound_dev_if = READ_ONCE(sk->sk_bound_dev_if);
	to->max_pacing_rate = READ_ONCE(sk->sk_max_pacing_rate);
	to->txrehash = READ_ONCE(sk->sk_txrehash);
	to->reuse = sk->sk_reuse;
	to->reuseport = sk->sk_reuseport;
	to->incoming_cpu = READ_ONCE(sk->sk_incoming_cpu);
}

static void copy_route(struct sock *to, const struct ssa_mirror *old,
		       const struct ssa_mirror *new)
{
	bool localroute = new->flags & BIT(SOCK_LOCALROUTE);

	if (new->mark != old->mark) {
		WRITE_ONCE(to->sk_mark, new->mark);
		sk_dst_reset(to);
	}
	/*
	 * TCP has bound itself since: the core did not know when it let the
	 * program change it, for which it would have wanted CAP_NET_RAW.
	 */
	if (new->bound_dev_if != old->bound_dev_if && to->sk_bound_dev_if == old->bound_dev_if) {
		WRITE_ONCE(to->sk_bound_dev_if, new->bound_dev_if);
		sk_dst_reset(to);
	}
	if (localroute != sock_flag(to, SOCK_LOCALROUTE)) {
		sock_valbool_flag(to, SOCK_LOCALROUTE, localroute);
		sk_dst_reset(to);
	}
}

/* Unless the program has set a size, TCP tunes its own. */
static void copy_buffers(struct sock *to, const struct ssa_mirror *old,
			 const struct ssa_mirror *new)
{
	bool locked = new->userlocks != old->userlocks;

	if (locked)
		to->sk_userlocks = new->userlocks | (to->sk_userlocks & ~MIRRORED_LOCKS);
	if (new->userlocks & SOCK_SNDBUF_LOCK && (locked || new->sndbuf != old->sndbuf)) {
		WRITE_ONCE(to->sk_sndbuf, new->sndbuf);
		to->sk_write_space(to);
	}
	if (new->userlocks & SOCK_RCVBUF_LOCK && (locked || new->rcvbuf != old->rcvbuf))
		WRITE_ONCE(to->sk_rcvbuf, new->rcvbuf);
}

/* The endpoint faces the network: all that has to do with TCP is its. */
static void copy(struct ssa_sock *ssk, struct sock *to, const struct ssa_mirror *old,
		 const struct ssa_mirror *new)
{
	bool keepalive = new->flags & BIT(SOCK_KEEPOPEN);
	bool linger = new->flags & BIT(SOCK_LINGER);

	/*
	 * But the daemon may be the last to close it, and must not wait:
	 * ssa_transport_close() does. A reset needs no waiting.
	 */
	if (new->lingertime)
		linger = false;

	lock_sock(to);
	copy_route(to, old, new);
	copy_buffers(to, old, new);
	to->sk_reuse = new->reuse;
	to->sk_reuseport = new->reuseport;
	/* Only when set: IP_TOS sets it on the endpoint as well. */
	if (new->priority != old->priority)
		WRITE_ONCE(to->sk_priority, new->priority);
	sock_valbool_flag(to, SOCK_LINGER, linger);
	WRITE_ONCE(to->sk_lingertime, new->lingertime);
	if (keepalive != sock_flag(to, SOCK_KEEPOPEN)) {
		if (to->sk_prot->keepalive)
			to->sk_prot->keepalive(to, keepalive);
		sock_valbool_flag(to, SOCK_KEEPOPEN, keepalive);
	}
	if (new->max_pacing_rate != old->max_pacing_rate) {
		if (new->max_pacing_rate != ~0UL)
			cmpxchg(&to->sk_pacing_status, SK_PACING_NONE, SK_PACING_NEEDED);
		WRITE_ONCE(to->sk_max_pacing_rate, new->max_pacing_rate);
		if (new->max_pacing_rate < READ_ONCE(to->sk_pacing_rate))
			WRITE_ONCE(to->sk_pacing_rate, new->max_pacing_rate);
	}
	if (new->txrehash != old->txrehash)
		WRITE_ONCE(to->sk_txrehash, new->txrehash);
	/* A group of listeners has counted those that have one. */
	if (!ssk->transport && new->incoming_cpu != old->incoming_cpu &&
	    !rcu_access_pointer(to->sk_reuseport_cb))
		WRITE_ONCE(to->sk_incoming_cpu, new->incoming_cpu);
	release_sock(to);
}

static void copy_changes(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk), *to;
	struct ssa_mirror new = {};

	mutex_lock(&ssk->mirror_lock);
	snapshot(sk, &new);
	copy(ssk, ssk->endpoint->sk, &ssk->mirror, &new);
	if (ssk->transport) {
		to = ssk->transport->sk;
		WRITE_ONCE(to->sk_rcvtimeo, new.rcvtimeo);
		WRITE_ONCE(to->sk_sndtimeo, new.sndtimeo);
	}
	ssk->mirror = new;
	mutex_unlock(&ssk->mirror_lock);
}

/* Whether TCP has changed what the core answers from the TLS socket. */
static bool changed_by_tcp(const struct sock *sk, const struct sock *from)
{
	return (READ_ONCE(sk->sk_sndbuf) != READ_ONCE(from->sk_sndbuf) &&
		!(from->sk_userlocks & SOCK_SNDBUF_LOCK)) ||
	       (READ_ONCE(sk->sk_rcvbuf) != READ_ONCE(from->sk_rcvbuf) &&
		!(from->sk_userlocks & SOCK_RCVBUF_LOCK)) ||
	       READ_ONCE(sk->sk_priority) != READ_ONCE(from->sk_priority) ||
	       READ_ONCE(sk->sk_bound_dev_if) != READ_ONCE(from->sk_bound_dev_if);
}

/* Unless the program has changed the value since @known. */
static void answer(int *value, int *known, int now)
{
	if (cmpxchg(value, *known, now) == *known)
		*known = now;
}

static void answer_changes(struct ssa_sock *ssk)
{
	struct ssa_mirror *known = &ssk->mirror;
	struct sock *sk = ssa_to_sk(ssk), *from;

	mutex_lock(&ssk->mirror_lock);
	from = ssk->endpoint->sk;
	if (!(from->sk_userlocks & SOCK_SNDBUF_LOCK))
		answer(&sk->sk_sndbuf, &known->sndbuf, READ_ONCE(from->sk_sndbuf));
	if (!(from->sk_userlocks & SOCK_RCVBUF_LOCK))
		answer(&sk->sk_rcvbuf, &known->rcvbuf, READ_ONCE(from->sk_rcvbuf));
	answer((int *)&sk->sk_priority, (int *)&known->priority, READ_ONCE(from->sk_priority));
	answer(&sk->sk_bound_dev_if, &known->bound_dev_if, READ_ONCE(from->sk_bound_dev_if));
	mutex_unlock(&ssk->mirror_lock);
}

/* Where packets come in. Changes often, and is nothing that a program sets. */
static void answer_where(struct sock *sk, const struct sock *from)
{
	if (READ_ONCE(sk->sk_incoming_cpu) != READ_ONCE(from->sk_incoming_cpu))
		WRITE_ONCE(sk->sk_incoming_cpu, READ_ONCE(from->sk_incoming_cpu));
#ifdef CONFIG_NET_RX_BUSY_POLL
	if (READ_ONCE(sk->sk_napi_id) != READ_ONCE(from->sk_napi_id))
		WRITE_ONCE(sk->sk_napi_id, READ_ONCE(from->sk_napi_id));
#endif
}

/**
 * ssa_sockopt_mirror - bring what SOL_SOCKET sets and tells up to date
 * @ssk: no lock of its endpoint is held
 *
 * Called before each use of the endpoint or the transport, and after those that
 * change what a program may ask for.
 */
void ssa_sockopt_mirror(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk), *endpoint;

	if (unlikely(changed(ssk)))
		copy_changes(ssk);
	if (unlikely(!ssa_endpoint_is_final(ssk))) {
		/* Another one may take its place meanwhile. */
		answer_changes(ssk);
		return;
	}
	endpoint = ssk->endpoint->sk;
	if (unlikely(changed_by_tcp(sk, endpoint)))
		answer_changes(ssk);
	if (ssk->transport)
		answer_where(sk, endpoint);
}

/**
 * ssa_mirror_init - begin with what the endpoint has
 * @ssk: has an endpoint; seen by nobody else, or locked
 *
 * What a program has set on the TLS socket, or on the one that it is a clone
 * of, is then a change.
 */
void ssa_mirror_init(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk), *from = ssk->endpoint->sk;

	if (!(sk->sk_userlocks & SOCK_SNDBUF_LOCK))
		WRITE_ONCE(sk->sk_sndbuf, READ_ONCE(from->sk_sndbuf));
	if (!(sk->sk_userlocks & SOCK_RCVBUF_LOCK))
		WRITE_ONCE(sk->sk_rcvbuf, READ_ONCE(from->sk_rcvbuf));
	snapshot(from, &ssk->mirror);
}

/**
 * ssa_mirror_copy - copy to another endpoint what was set at SOL_SOCKET
 * @ssk: its mirror_lock is held
 * @endpoint: a TCP socket other than that of @ssk
 */
void ssa_mirror_copy(struct ssa_sock *ssk, struct socket *endpoint)
{
	struct ssa_mirror old, new;

	lockdep_assert_held(&ssk->mirror_lock);
	snapshot(endpoint->sk, &old);
	snapshot(ssa_to_sk(ssk), &new);
	/* A scope of IPv6 may have bound it to one, by bind() or connect(). */
	if (!new.bound_dev_if)
		new.bound_dev_if = old.bound_dev_if;
	copy(ssk, endpoint->sk, &old, &new);
}
