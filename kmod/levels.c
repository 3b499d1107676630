// SPDX-License-Identifier: GPL-2.0
/*
 * Options of TCP and IP: every one that Linux has, and what is done with it.
 *
 * Most are done on the endpoint, by the kernel itself and as the caller, so
 * that it gets what a TCP socket would give it, and the errno. What is refused
 * would take the endpoint away from under TLS, show its bytes, or promise what
 * kernel TLS has not. What is not in a table, of other levels too, does not
 * exist for a TLS socket.
 *
 * What was done is recorded while the socket is new, so that it can be done to
 * another endpoint as well, with the rights that the caller had.
 */

#include <linux/cred.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <linux/slab.h>
#include <linux/tcp.h>

#include "ssa.h"

enum what {
	NONE,		/* ENOPROTOOPT: a stream has nothing of the kind */
	REFUSED,	/* EOPNOTSUPP: TCP has it, a TLS socket must not */
	ENDPOINT,	/* done on the endpoint */
	/*
	 * As ENDPOINT, but TCP touches the program's memory with the endpoint
	 * locked, which a program could make last for ever: EOPNOTSUPP unless it
	 * is connected by kernel TLS, and nobody else uses the endpoint any more.
	 */
	APART,
};

/* What of the value is recorded: so many bytes at most. */
enum record {
	NOT	= 0,	/* it belongs to one endpoint */
	INT	= 4,
	NAME	= 16,
	ADDRESS	= 20,
	KEY	= 32,
	OPTIONS	= 40,
	HEADER	= 2048,
	EACH	= 512,	/* a second one adds to the first */
};

/* Of the options that are recorded as EACH, together. */
#define RECORDS_MAX 64

struct row {
	u8 set;
	u8 get;
	u16 record;
};

struct ssa_record {
	struct list_head list;
	const struct cred *cred;
	int level;
	int name;
	bool late;		/* other endpoints have been made since */
	u32 len;		/* as the program said; TCP may read less of it */
	u32 room;
	u8 value[] __counted_by(room);
};

/* One option a row: set, get, record, and why. */
static const struct row tcp_rows[] = {
	[TCP_NODELAY] = { ENDPOINT, ENDPOINT, INT }, /* when segments leave */
	[TCP_MAXSEG] = { ENDPOINT, ENDPOINT, INT }, /* size of segments */
	[TCP_CORK] = { ENDPOINT, ENDPOINT, INT }, /* when segments leave */
	[TCP_KEEPIDLE] = { ENDPOINT, ENDPOINT, INT }, /* when probes begin */
	[TCP_KEEPINTVL] = { ENDPOINT, ENDPOINT, INT }, /* time between probes */
	[TCP_KEEPCNT] = { ENDPOINT, ENDPOINT, INT }, /* probes before the end */
	[TCP_SYNCNT] = { ENDPOINT, ENDPOINT, INT }, /* tries of connect() */
	[TCP_LINGER2] = { ENDPOINT, ENDPOINT, INT }, /* time in FIN-WAIT-2 */
	[TCP_DEFER_ACCEPT] = { ENDPOINT, ENDPOINT, INT }, /* as the daemon does */
	[TCP_WINDOW_CLAMP] = { ENDPOINT, ENDPOINT, INT }, /* limit of the window */
	[TCP_INFO] = { NONE, ENDPOINT, NOT }, /* state and figures of the endpoint */
	[TCP_QUICKACK] = { ENDPOINT, ENDPOINT, INT }, /* when acknowledgements leave */
	[TCP_CONGESTION] = { ENDPOINT, ENDPOINT, NAME }, /* algorithm; which, the kernel allows */
	[TCP_MD5SIG] = { ENDPOINT, NONE, EACH }, /* signs segments, below TLS */
	[TCP_THIN_LINEAR_TIMEOUTS] = { ENDPOINT, ENDPOINT, INT }, /* retransmission */
	[TCP_THIN_DUPACK] = { ENDPOINT, ENDPOINT, INT }, /* of no effect in TCP either */
	[TCP_USER_TIMEOUT] = { ENDPOINT, ENDPOINT, INT }, /* when TCP gives up */
	[TCP_REPAIR] = { REFUSED, REFUSED, NOT }, /* would write past kernel TLS */
	[TCP_REPAIR_QUEUE] = { REFUSED, REFUSED, NOT }, /* as TCP_REPAIR */
	[TCP_QUEUE_SEQ] = { REFUSED, REFUSED, NOT }, /* as TCP_REPAIR */
	[TCP_REPAIR_OPTIONS] = { REFUSED, NONE, NOT }, /* as TCP_REPAIR */
	[TCP_FASTOPEN] = { ENDPOINT, ENDPOINT, INT }, /* a ClientHello may come with the SYN */
	[TCP_TIMESTAMP] = { REFUSED, ENDPOINT, NOT }, /* to set it is TCP_REPAIR's */
	[TCP_NOTSENT_LOWAT] = { ENDPOINT, ENDPOINT, INT }, /* when it is writable */
	[TCP_CC_INFO] = { NONE, ENDPOINT, NOT }, /* figures of the algorithm */
	[TCP_SAVE_SYN] = { ENDPOINT, ENDPOINT, INT }, /* keeps headers of clients */
	[TCP_SAVED_SYN] = { NONE, APART, NOT }, /* headers of the client's SYN */
	[TCP_REPAIR_WINDOW] = { REFUSED, REFUSED, NOT }, /* as TCP_REPAIR */
	[TCP_FASTOPEN_CONNECT] = { REFUSED, REFUSED, NOT }, /* connect() would do nothing */
	[TCP_ULP] = { REFUSED, REFUSED, NOT }, /* kernel TLS has the only place for one */
	[TCP_MD5SIG_EXT] = { ENDPOINT, NONE, EACH }, /* as TCP_MD5SIG */
	[TCP_FASTOPEN_KEY] = { ENDPOINT, ENDPOINT, KEY }, /* as TCP_FASTOPEN */
	[TCP_FASTOPEN_NO_COOKIE] = { ENDPOINT, ENDPOINT, INT }, /* as TCP_FASTOPEN */
	[TCP_ZEROCOPY_RECEIVE] = { NONE, REFUSED, NOT }, /* would map records, encrypted */
	[TCP_INQ] = { REFUSED, REFUSED, NOT }, /* kernel TLS does not tell; FIONREAD does */
	[TCP_TX_DELAY] = { ENDPOINT, ENDPOINT, INT }, /* when segments leave */
	[TCP_AO_ADD_KEY] = { ENDPOINT, NONE, EACH }, /* signs segments, below TLS */
	[TCP_AO_DEL_KEY] = { ENDPOINT, NONE, EACH }, /* as TCP_AO_ADD_KEY */
	[TCP_AO_INFO] = { ENDPOINT, APART, EACH }, /* as TCP_AO_ADD_KEY */
	[TCP_AO_GET_KEYS] = { NONE, APART, NOT }, /* as TCP_AO_ADD_KEY */
	[TCP_AO_REPAIR] = { REFUSED, REFUSED, NOT }, /* as TCP_REPAIR */
	[TCP_IS_MPTCP] = { NONE, ENDPOINT, NOT }, /* the endpoint is none: 0 */
};

static const struct row ip_rows[] = {
	[IP_TOS] = { ENDPOINT, ENDPOINT, INT }, /* field of the packets */
	[IP_TTL] = { ENDPOINT, ENDPOINT, INT }, /* field of the packets */
	[IP_HDRINCL] = { NONE, NONE, NOT }, /* raw sockets only */
	[IP_OPTIONS] = { ENDPOINT, ENDPOINT, OPTIONS }, /* field of the packets */
	[IP_ROUTER_ALERT] = { NONE, NONE, NOT }, /* raw sockets only */
	[IP_RECVOPTS] = { ENDPOINT, ENDPOINT, INT }, /* of no effect in TCP either */
	[IP_RETOPTS] = { ENDPOINT, ENDPOINT, INT }, /* of no effect in TCP either */
	[IP_PKTINFO] = { ENDPOINT, ENDPOINT, INT }, /* what IP_PKTOPTIONS tells */
	[IP_PKTOPTIONS] = { NONE, ENDPOINT, NOT }, /* what came in the packets' headers */
	[IP_MTU_DISCOVER] = { ENDPOINT, ENDPOINT, INT }, /* size of packets */
	[IP_RECVERR] = { REFUSED, REFUSED, NOT }, /* errors come by errno */
	[IP_RECVTTL] = { ENDPOINT, ENDPOINT, INT }, /* what IP_PKTOPTIONS tells */
	[IP_RECVTOS] = { ENDPOINT, ENDPOINT, INT }, /* what IP_PKTOPTIONS tells */
	[IP_MTU] = { NONE, ENDPOINT, NOT }, /* of the route */
	[IP_FREEBIND] = { ENDPOINT, ENDPOINT, INT }, /* what bind() takes */
	[IP_IPSEC_POLICY] = { REFUSED, REFUSED, NOT }, /* as IP_XFRM_POLICY */
	[IP_XFRM_POLICY] = { REFUSED, REFUSED, NOT }, /* for IPsec's daemons */
	[IP_PASSSEC] = { ENDPOINT, ENDPOINT, INT }, /* of no effect in TCP either */
	[IP_TRANSPARENT] = { ENDPOINT, ENDPOINT, INT }, /* what bind() takes */
	[IP_RECVORIGDSTADDR] = { ENDPOINT, ENDPOINT, INT }, /* of no effect in TCP either */
	[IP_MINTTL] = { ENDPOINT, ENDPOINT, INT }, /* which packets are taken */
	[IP_NODEFRAG] = { NONE, NONE, NOT }, /* raw sockets only */
	[IP_CHECKSUM] = { NONE, NONE, NOT }, /* datagrams only */
	[IP_BIND_ADDRESS_NO_PORT] = { ENDPOINT, ENDPOINT, INT }, /* when bind() chooses the port */
	[IP_RECVFRAGSIZE] = { NONE, NONE, NOT }, /* datagrams only */
	[IP_RECVERR_RFC4884] = { REFUSED, REFUSED, NOT }, /* as IP_RECVERR */
	[IP_MULTICAST_IF] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_MULTICAST_TTL] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_MULTICAST_LOOP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_ADD_MEMBERSHIP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_DROP_MEMBERSHIP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_UNBLOCK_SOURCE] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_BLOCK_SOURCE] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_ADD_SOURCE_MEMBERSHIP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_DROP_SOURCE_MEMBERSHIP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_MSFILTER] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_JOIN_GROUP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_BLOCK_SOURCE] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_UNBLOCK_SOURCE] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_LEAVE_GROUP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_JOIN_SOURCE_GROUP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_LEAVE_SOURCE_GROUP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_MSFILTER] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_MULTICAST_ALL] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IP_UNICAST_IF] = { ENDPOINT, ENDPOINT, INT }, /* which way packets go */
	[IP_LOCAL_PORT_RANGE] = { ENDPOINT, ENDPOINT, INT }, /* which port bind() chooses */
	[IP_PROTOCOL] = { NONE, NONE, NOT }, /* raw sockets only */
	[SO_ORIGINAL_DST] = { NONE, ENDPOINT, NOT }, /* before a redirection */
};

static const struct row ipv6_rows[] = {
	[IPV6_ADDRFORM] = { REFUSED, REFUSED, NOT }, /* would change the endpoint's protocol */
	[IPV6_2292PKTINFO] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_2292HOPOPTS] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_2292DSTOPTS] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_2292RTHDR] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_2292PKTOPTIONS] = { REFUSED, APART, NOT }, /* IPV6_RTHDR sets */
	[IPV6_CHECKSUM] = { NONE, NONE, NOT }, /* raw sockets only */
	[IPV6_2292HOPLIMIT] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_NEXTHOP] = { NONE, NONE, NOT }, /* not in Linux */
	[IPV6_AUTHHDR] = { NONE, NONE, NOT }, /* not in Linux */
	[IPV6_FLOWINFO] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_UNICAST_HOPS] = { ENDPOINT, ENDPOINT, INT }, /* field of the packets */
	[IPV6_MULTICAST_IF] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IPV6_MULTICAST_HOPS] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IPV6_MULTICAST_LOOP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IPV6_ADD_MEMBERSHIP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IPV6_DROP_MEMBERSHIP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IPV6_ROUTER_ALERT] = { NONE, NONE, NOT }, /* raw sockets only */
	[IPV6_MTU_DISCOVER] = { ENDPOINT, ENDPOINT, INT }, /* size of packets */
	[IPV6_MTU] = { ENDPOINT, ENDPOINT, INT }, /* size of packets; get: of the route */
	[IPV6_RECVERR] = { REFUSED, REFUSED, NOT }, /* errors come by errno */
	[IPV6_V6ONLY] = { ENDPOINT, ENDPOINT, INT }, /* what bind() means */
	[IPV6_JOIN_ANYCAST] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IPV6_LEAVE_ANYCAST] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IPV6_MULTICAST_ALL] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IPV6_ROUTER_ALERT_ISOLATE] = { NONE, NONE, NOT }, /* raw sockets only */
	[IPV6_RECVERR_RFC4884] = { REFUSED, REFUSED, NOT }, /* as IPV6_RECVERR */
	[IPV6_FLOWLABEL_MGR] = { ENDPOINT, ENDPOINT, NOT }, /* a label is leased to one socket */
	[IPV6_FLOWINFO_SEND] = { ENDPOINT, ENDPOINT, INT }, /* field of the packets */
	[IPV6_IPSEC_POLICY] = { REFUSED, REFUSED, NOT }, /* as IP_XFRM_POLICY */
	[IPV6_XFRM_POLICY] = { REFUSED, REFUSED, NOT }, /* as IP_XFRM_POLICY */
	[IPV6_HDRINCL] = { NONE, NONE, NOT }, /* raw sockets only */
	[MCAST_JOIN_GROUP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_BLOCK_SOURCE] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_UNBLOCK_SOURCE] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_LEAVE_GROUP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_JOIN_SOURCE_GROUP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_LEAVE_SOURCE_GROUP] = { NONE, NONE, NOT }, /* a stream has one peer */
	[MCAST_MSFILTER] = { NONE, NONE, NOT }, /* a stream has one peer */
	[IPV6_RECVPKTINFO] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_PKTINFO] = { ENDPOINT, NONE, ADDRESS }, /* source of the packets */
	[IPV6_RECVHOPLIMIT] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_HOPLIMIT] = { NONE, NONE, NOT }, /* control messages only */
	[IPV6_RECVHOPOPTS] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_HOPOPTS] = { ENDPOINT, APART, HEADER }, /* header of the packets */
	[IPV6_RTHDRDSTOPTS] = { ENDPOINT, APART, HEADER }, /* header of the packets */
	[IPV6_RECVRTHDR] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_RTHDR] = { ENDPOINT, APART, HEADER }, /* header of the packets */
	[IPV6_RECVDSTOPTS] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_DSTOPTS] = { ENDPOINT, APART, HEADER }, /* header of the packets */
	[IPV6_RECVPATHMTU] = { ENDPOINT, ENDPOINT, INT }, /* of no effect in TCP either */
	[IPV6_PATHMTU] = { NONE, ENDPOINT, NOT }, /* of the route */
	[IPV6_DONTFRAG] = { ENDPOINT, ENDPOINT, INT }, /* size of packets */
	[IPV6_RECVTCLASS] = { ENDPOINT, ENDPOINT, INT }, /* what IPV6_2292PKTOPTIONS tells */
	[IPV6_TCLASS] = { ENDPOINT, ENDPOINT, INT }, /* field of the packets */
	[IPV6_AUTOFLOWLABEL] = { ENDPOINT, ENDPOINT, INT }, /* field of the packets */
	[IPV6_ADDR_PREFERENCES] = { ENDPOINT, ENDPOINT, INT }, /* which source address is chosen */
	[IPV6_MINHOPCOUNT] = { ENDPOINT, ENDPOINT, INT }, /* which packets are taken */
	[IPV6_RECVORIGDSTADDR] = { ENDPOINT, ENDPOINT, INT }, /* of no effect in TCP either */
	[IPV6_TRANSPARENT] = { ENDPOINT, ENDPOINT, INT }, /* what bind() takes */
	[IPV6_UNICAST_IF] = { ENDPOINT, ENDPOINT, INT }, /* which way packets go */
	[IPV6_RECVFRAGSIZE] = { ENDPOINT, ENDPOINT, INT }, /* of no effect in TCP either */
	[IPV6_FREEBIND] = { ENDPOINT, ENDPOINT, INT }, /* what bind() takes */
	[IP6T_SO_ORIGINAL_DST] = { NONE, ENDPOINT, NOT }, /* before a redirection */
};

static const struct row no_row;

static const struct row *row_find(int level, int name)
{
	const struct row *rows;
	size_t count;

	switch (level) {
	case IPPROTO_TCP:
		rows = tcp_rows;
		count = ARRAY_SIZE(tcp_rows);
		break;
	case IPPROTO_IP:
		rows = ip_rows;
		count = ARRAY_SIZE(ip_rows);
		break;
	case IPPROTO_IPV6:
		rows = ipv6_rows;
		count = ARRAY_SIZE(ipv6_rows);
		break;
	default:	/* of SOL_TLS, keys */
		return &no_row;
	}
	return name >= 0 && name < count ? &rows[name] : &no_row;
}

static int refusal(struct ssa_sock *ssk, enum what what)
{
	switch (what) {
	case APART:
		if (ssa_state(ssk) != SSA_SOCKET_STATE_CONNECTED ||
		    ssk->kind != SSA_TRANSPORT_KTLS)
			return -EOPNOTSUPP;
		fallthrough;
	case ENDPOINT:
		return 0;
	case REFUSED:
		return -EOPNOTSUPP;
	default:
		return -ENOPROTOOPT;
	}
}

static void record_free(struct ssa_record *rec)
{
	put_cred(rec->cred);
	/* It can be a key. */
	kfree_sensitive(rec);
}

static int record_apply(const struct ssa_record *rec, struct socket *endpoint)
{
	const struct cred *saved;
	int err;

	if (rec->level == IPPROTO_IPV6 && endpoint->sk->sk_family != AF_INET6)
		return 0;
	saved = override_creds(rec->cred);
	err = READ_ONCE(endpoint->ops)->setsockopt(endpoint, rec->level, rec->name,
						   KERNEL_SOCKPTR((void *)rec->value), rec->len);
	revert_creds(saved);
	return err;
}

/*
 * What the program wants, in memory of ours: TCP reads some values with the
 * endpoint locked, and a program's memory can make that last for ever.
 */
static struct ssa_record *record_new(const struct row *row, int level, int name, sockptr_t val,
				     unsigned int len)
{
	unsigned int most = row->record ?: HEADER;
	struct ssa_record *rec;

	/* As TCP, which looks at the length first. */
	if (level == IPPROTO_TCP && row->record == INT && len < INT)
		return ERR_PTR(-EINVAL);
	/* Of these TCP reads what it knows, however long they are said to be. */
	if (len > most && row->record != INT && row->record != NAME && row->record != ADDRESS)
		return ERR_PTR(-EINVAL);
	rec = kzalloc(struct_size(rec, value, most), GFP_KERNEL_ACCOUNT);
	if (!rec)
		return ERR_PTR(-ENOMEM);
	rec->cred = get_current_cred();
	rec->level = level;
	rec->name = name;
	rec->len = len;
	rec->room = most;
	len = min(len, most);
	if (len && !sockptr_is_null(val) && copy_from_sockptr(rec->value, val, len)) {
		record_free(rec);
		return ERR_PTR(-EFAULT);
	}
	return rec;
}

/*
 * Keeps what was done to @endpoint, which is or was that of a socket not
 * connected. Takes @rec over.
 */
static int record_add(struct ssa_sock *ssk, struct socket *endpoint, const struct row *row,
		      struct ssa_record *rec)
{
	struct ssa_record *old, *next;
	int err = 0;

	mutex_lock(&ssk->mirror_lock);
	/* Another one has been chosen since, without this. */
	if (ssk->endpoint != endpoint)
		record_apply(rec, ssk->endpoint);
	/* Under the lock, so that none is added after ssa_levels_free(). */
	if (ssa_endpoint_is_final(ssk))
		goto out_free;
	rec->late = ssk->replayed;
	if (row->record == EACH) {
		err = ssk->nr_records < RECORDS_MAX ? 0 : -ENOBUFS;
		if (err)
			goto out_free;
		ssk->nr_records++;
	} else {
		list_for_each_entry_safe(old, next, &ssk->records, list) {
			if (old->level != rec->level || old->name != rec->name)
				continue;
			list_del(&old->list);
			record_free(old);
		}
	}
	list_add_tail(&rec->list, &ssk->records);
	mutex_unlock(&ssk->mirror_lock);
	return 0;

out_free:
	mutex_unlock(&ssk->mirror_lock);
	record_free(rec);
	return err;
}

/**
 * ssa_levels_set - setsockopt(2) of TCP and IP
 * @ssk: the socket
 * @level: any but SOL_SOCKET and IPPROTO_TLS
 * @name: the option
 * @val: its value
 * @len: length of the value in bytes
 *
 * Return: what TCP returns, 0 or its errno; -EOPNOTSUPP for what TCP has and a
 * TLS socket must not; -ENOPROTOOPT for what neither has; -ENOMEM; -ENOBUFS for
 * a key too many, which is set, but not recorded.
 */
int ssa_levels_set(struct ssa_sock *ssk, int level, int name, sockptr_t val, unsigned int len)
{
	const struct row *row = row_find(level, name);
	/* Before the endpoint is taken, which may be exchanged from then on. */
	bool open = !ssa_endpoint_is_final(ssk);
	struct socket *endpoint;
	struct ssa_record *rec;
	struct file *file;
	sockptr_t value;
	int err;

	err = refusal(ssk, row->set);
	if (err)
		return err;
	rec = record_new(row, level, name, val, len);
	if (IS_ERR(rec))
		return PTR_ERR(rec);
	/* TCP looks at SO_BINDTODEVICE for IP_UNICAST_IF, for one. */
	ssa_sockopt_mirror(ssk);
	file = ssa_endpoint_get(ssk);
	endpoint = sock_from_file(file);
	/* IP takes no memory at all for zero. */
	value = sockptr_is_null(val) ? val : KERNEL_SOCKPTR(rec->value);
	err = READ_ONCE(endpoint->ops)->setsockopt(endpoint, level, name, value, rec->len);
	if (!err && row->record && open) {
		err = record_add(ssk, endpoint, row, rec);
	} else {
		/* What is not recorded has an answer. TCP passes over a fault there, too. */
		if (!err && !row->record)
			copy_to_sockptr(val, rec->value, len);
		record_free(rec);
	}
	fput(file);
	/* IP_TOS sets SO_PRIORITY, too. */
	ssa_sockopt_mirror(ssk);
	return err;
}

/**
 * ssa_levels_get - getsockopt(2) of TCP and IP
 * @ssk: the socket
 * @level: as ssa_levels_set()
 * @name: the option
 * @val: gets the value
 * @len: room for it; gets its length
 *
 * Return: what TCP returns, 0 or its errno; -EOPNOTSUPP or -ENOPROTOOPT as
 * ssa_levels_set().
 */
int ssa_levels_get(struct ssa_sock *ssk, int level, int name, char __user *val, int __user *len)
{
	struct socket *endpoint;
	struct file *file;
	int err;

	err = refusal(ssk, row_find(level, name)->get);
	if (err)
		return err;
	/* TCP_INFO tells of SO_MAX_PACING_RATE, for one. */
	ssa_sockopt_mirror(ssk);
	file = ssa_endpoint_get(ssk);
	endpoint = sock_from_file(file);
	err = READ_ONCE(endpoint->ops)->getsockopt(endpoint, level, name, val, len);
	fput(file);
	return err;
}

/**
 * ssa_levels_replay - do to another endpoint what the program did to the first
 * @ssk: the socket, NEW or CONNECTING
 * @endpoint: a TCP socket, just made
 *
 * With the rights that the program had. An endpoint of IPv4 gets nothing of
 * level IPPROTO_IPV6. May sleep.
 *
 * Return: 0, or the errno of the first option that TCP refused.
 */
int ssa_levels_replay(struct ssa_sock *ssk, struct socket *endpoint)
{
	struct ssa_record *rec;
	int err = 0;

	mutex_lock(&ssk->mirror_lock);
	ssk->replayed = true;
	list_for_each_entry(rec, &ssk->records, list) {
		err = record_apply(rec, endpoint);
		if (err)
			break;
	}
	/* Last: IP_TOS has set a priority that SO_PRIORITY may have changed. */
	if (!err)
		ssa_mirror_copy(ssk, endpoint);
	mutex_unlock(&ssk->mirror_lock);
	return err;
}

/**
 * ssa_levels_catch_up - what was done since another endpoint was made
 * @ssk: NEW or CONNECTING; its mirror_lock is held
 * @endpoint: of ssa_levels_replay(); bound or connected since
 *
 * What TCP refuses now has no effect.
 */
void ssa_levels_catch_up(struct ssa_sock *ssk, struct socket *endpoint)
{
	struct ssa_record *rec;

	lockdep_assert_held(&ssk->mirror_lock);
	list_for_each_entry(rec, &ssk->records, list)
		if (rec->late)
			record_apply(rec, endpoint);
	ssa_mirror_copy(ssk, endpoint);
}

/**
 * ssa_levels_free - no endpoint will be made for a socket any more
 * @ssk: neither NEW nor CONNECTING, or used by nobody
 */
void ssa_levels_free(struct ssa_sock *ssk)
{
	struct ssa_record *rec, *next;

	mutex_lock(&ssk->mirror_lock);
	list_for_each_entry_safe(rec, next, &ssk->records, list)
		record_free(rec);
	INIT_LIST_HEAD(&ssk->records);
	ssk->nr_records = 0;
	mutex_unlock(&ssk->mirror_lock);
}
