// SPDX-License-Identifier: GPL-2.0
/*
 * Socket options: those of level IPPROTO_TLS, by a table; those of TCP and IP,
 * forwarded to the endpoint one by one; those of SOL_SOCKET, mirrored.
 */

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/slab.h>
#include <linux/tcp.h>
#include <net/tcp.h>

#include "ssa.h"

/* On one socket, all options together. */
#define SETTINGS_MAX	256
#define SETTINGS_LEN_MAX (4 * SSA_VALUE_MAX)

#define NEW	BIT(SSA_SOCKET_STATE_NEW)
#define CONNECTED BIT(SSA_SOCKET_STATE_CONNECTED)
#define ANY	GENMASK(SSA_SOCKET_STATE_FAILED, SSA_SOCKET_STATE_NEW)

enum value_type {
	VALUE_U32,
	VALUE_STRING,		/* NUL-terminated to the program */
	VALUE_STRING_OR_FILE,	/* PEM, DER, or the path of a file of either */
};

/* What the module knows itself; the rest is the daemon's to answer. */
enum value_source {
	FROM_DAEMON,
	FROM_ID,
	FROM_HOST_NAME,
	FROM_ERROR_TEXT,
	FROM_TRANSPORT,
	FROM_VERSION,
	FROM_CIPHER,
	FROM_ALPN,
	FROM_PEER_IDENTITY,
	FROM_PEER_CHAIN,
	FROM_RESUMED,
};

struct option {
	int name;
	const char *title;
	u8 set;			/* states in which it can be set; 0: never */
	u8 get;
	enum value_type type;
	bool repeatable;	/* a second value adds to the first */
	u32 max;		/* bytes, without a NUL */
	enum value_source source;
};

#define OPTION(opt, ...) { .name = (opt), .title = #opt, __VA_ARGS__ }

static const struct option options[] = {
	OPTION(TLS_HOSTNAME, NEW, ANY, VALUE_STRING, false, SSA_HOST_NAME_MAX, FROM_HOST_NAME),
	OPTION(TLS_TRUSTED_PEER_CERTIFICATES, NEW, 0, VALUE_STRING_OR_FILE, false, SSA_VALUE_MAX),
	OPTION(TLS_CERTIFICATE_CHAIN, NEW, 0, VALUE_STRING_OR_FILE, true, SSA_VALUE_MAX),
	OPTION(TLS_PRIVATE_KEY, NEW, 0, VALUE_STRING_OR_FILE, true, SSA_VALUE_MAX),
	OPTION(TLS_REQUEST_PEER_AUTH, NEW, NEW, VALUE_U32),
	OPTION(TLS_ALPN, NEW, CONNECTED, VALUE_STRING, false, SSA_VALUE_PIECE_MAX, FROM_ALPN),
	OPTION(TLS_DISABLE_CIPHER, NEW, 0, VALUE_STRING, true, SSA_CIPHER_MAX),
	OPTION(TLS_ENABLE_CIPHER, NEW, 0, VALUE_STRING, true, SSA_CIPHER_MAX),
	OPTION(TLS_TRUSTED_CIPHERS, NEW, NEW, VALUE_STRING, false, SSA_VALUE_PIECE_MAX),
	OPTION(TLS_VERSION_MIN, NEW, NEW, VALUE_U32),
	OPTION(TLS_VERSION_MAX, NEW, NEW, VALUE_U32),
	OPTION(TLS_ID, 0, ANY, VALUE_U32, .source = FROM_ID),
	OPTION(TLS_ERROR, 0, ANY, VALUE_STRING, .source = FROM_ERROR_TEXT),
	OPTION(TLS_PEER_IDENTITY, 0, CONNECTED, VALUE_STRING, .source = FROM_PEER_IDENTITY),
	OPTION(TLS_PEER_CERTIFICATE_CHAIN, 0, CONNECTED, VALUE_STRING, .source = FROM_PEER_CHAIN),
	OPTION(TLS_CHOSEN_CIPHER, 0, CONNECTED, VALUE_STRING, .source = FROM_CIPHER),
	OPTION(TLS_VERSION_CONN, 0, CONNECTED, VALUE_U32, .source = FROM_VERSION),
	OPTION(TLS_RESUMED_SESSION, 0, CONNECTED, VALUE_U32, .source = FROM_RESUMED),
	OPTION(TLS_TRANSPORT, 0, CONNECTED, VALUE_STRING, .source = FROM_TRANSPORT),
};

static const struct option *option_find(int name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(options); i++)
		if (options[i].name == name)
			return &options[i];
	return NULL;
}

static const char * const transport_names[] = {
	[SSA_TRANSPORT_NONE]	= "none",
	[SSA_TRANSPORT_KTLS]	= "ktls",
	[SSA_TRANSPORT_CHANNEL]	= "channel",
};

static void setting_free(struct ssa_setting *set)
{
	/* It can be a private key. */
	kvfree_sensitive(set, struct_size(set, value, set->len));
}

/**
 * ssa_settings_free - drop what was set
 * @ssk: no call looks at its settings
 */
void ssa_settings_free(struct ssa_sock *ssk)
{
	struct ssa_setting *set, *next;

	list_for_each_entry_safe(set, next, &ssk->settings, list)
		setting_free(set);
	INIT_LIST_HEAD(&ssk->settings);
	ssk->nr_settings = 0;
	ssk->settings_len = 0;
}

/* A setting that the daemon accepted. Takes @set over. */
static void settings_add(struct ssa_sock *ssk, struct ssa_setting *set,
			 const struct option *opt)
{
	struct ssa_setting *old, *next;

	if (!opt->repeatable) {
		list_for_each_entry_safe(old, next, &ssk->settings, list) {
			if (old->option != set->option)
				continue;
			list_del(&old->list);
			ssk->nr_settings--;
			ssk->settings_len -= old->len;
			setting_free(old);
		}
	}
	list_add_tail(&set->list, &ssk->settings);
	ssk->nr_settings++;
	ssk->settings_len += set->len;
}

static struct ssa_setting *value_get(const struct option *opt, sockptr_t val, unsigned int len)
{
	struct ssa_setting *set;

	switch (opt->type) {
	case VALUE_U32:
		return len == sizeof(u32) ? ssa_value_copy(opt->name, val, len)
					  : ERR_PTR(-EINVAL);
	case VALUE_STRING_OR_FILE:
		return ssa_value_copy_or_read(opt->name, val, len);
	case VALUE_STRING:
		break;
	}
	if (len > opt->max + 1)
		return ERR_PTR(-EMSGSIZE);
	set = ssa_value_copy(opt->name, val, len);
	if (IS_ERR(set))
		return set;
	if (!set->value[set->len - 1])
		set->len--;
	if (!set->len || memchr(set->value, 0, set->len)) {
		kvfree(set);
		return ERR_PTR(-EINVAL);
	}
	if (set->len > opt->max) {
		kvfree(set);
		return ERR_PTR(-EMSGSIZE);
	}
	return set;
}

/* Why an option was not set, where the daemon does not say it. */
static char *set_error_text(const struct option *opt, int err)
{
	switch (err) {
	case -EMSGSIZE:
		return kasprintf(GFP_KERNEL, "The value of %s is longer than %u bytes.",
				 opt->title, opt->max);
	case -EINVAL:
		return kasprintf(GFP_KERNEL, "The value of %s has no valid form.", opt->title);
	case -EOPNOTSUPP:
		return kasprintf(GFP_KERNEL, "%s can be set before connect() or listen() only.",
				 opt->title);
	default:
		return kasprintf(GFP_KERNEL, "The value of %s could not be read (%pe).",
				 opt->title, ERR_PTR(err));
	}
}

static int set_option(struct ssa_sock *ssk, const struct option *opt, sockptr_t val,
		      unsigned int len)
{
	char *text = NULL, *host_name = NULL;
	struct ssa_setting *set;
	int err;

	/* Here so that no file is read in vain, and below since it can change. */
	set = opt->set & BIT(ssa_state(ssk)) ? value_get(opt, val, len) : ERR_PTR(-EOPNOTSUPP);
	if (IS_ERR(set)) {
		err = PTR_ERR(set);
		text = set_error_text(opt, err);
		goto out_text;
	}
	if (mutex_lock_interruptible(&ssk->control)) {
		err = -ERESTARTSYS;
		goto out_free;
	}
	if (!(opt->set & BIT(ssa_state(ssk)))) {
		err = -EOPNOTSUPP;
		text = set_error_text(opt, err);
		goto out_unlock;
	}
	err = -ENOBUFS;	/* a repeatable option has to end somewhere */
	if (ssk->nr_settings >= SETTINGS_MAX || ssk->settings_len + set->len > SETTINGS_LEN_MAX)
		goto out_unlock;
	if (opt->source == FROM_HOST_NAME) {
		err = -ENOMEM;
		host_name = kmemdup_nul(set->value, set->len, GFP_KERNEL);
		if (!host_name)
			goto out_unlock;
	}

	err = ssa_sock_introduce(ssk, NULL);
	if (!err)
		err = ssa_request_setting(ssk, set, &text);
	if (!err) {
		settings_add(ssk, set, opt);
		set = NULL;
		if (host_name) {
			ssa_lock(ssk);
			swap(ssk->host_name, host_name);
			ssa_unlock(ssk);
		}
	}
	kfree(host_name);
out_unlock:
	mutex_unlock(&ssk->control);
out_free:
	if (set)
		setting_free(set);
out_text:
	if (text) {
		ssa_lock(ssk);
		swap(ssk->error_text, text);
		ssa_unlock(ssk);
		kfree(text);
	}
	return err;
}

/*
 * Options of other levels that a program may use. They are the endpoint's, and
 * the kernel checks the caller's rights. What is not named is refused: it would
 * take the endpoint away from under TLS (TCP_ULP, TCP_REPAIR, IPV6_ADDRFORM),
 * show its keys (SOL_TLS), send data before the handshake (TCP_FASTOPEN_CONNECT)
 * or has no meaning on a stream.
 */
static bool forwarded(int level, int name)
{
	switch (level) {
	case IPPROTO_TCP:
		switch (name) {
		case TCP_NODELAY:
		case TCP_MAXSEG:
		case TCP_CORK:
		case TCP_KEEPIDLE:
		case TCP_KEEPINTVL:
		case TCP_KEEPCNT:
		case TCP_SYNCNT:
		case TCP_LINGER2:
		case TCP_WINDOW_CLAMP:
		case TCP_INFO:
		case TCP_QUICKACK:
		case TCP_CONGESTION:
		case TCP_USER_TIMEOUT:
		case TCP_NOTSENT_LOWAT:
		case TCP_CC_INFO:
			return true;
		}
		return false;
	case IPPROTO_IP:
		switch (name) {
		case IP_TOS:
		case IP_TTL:
		case IP_MTU:
		case IP_MTU_DISCOVER:
		case IP_FREEBIND:
		case IP_TRANSPARENT:
		case IP_MINTTL:
		case IP_BIND_ADDRESS_NO_PORT:
			return true;
		}
		return false;
	case IPPROTO_IPV6:
		switch (name) {
		case IPV6_V6ONLY:
		case IPV6_UNICAST_HOPS:
		case IPV6_MTU:
		case IPV6_MTU_DISCOVER:
		case IPV6_TCLASS:
		case IPV6_FREEBIND:
		case IPV6_TRANSPARENT:
		case IPV6_MINHOPCOUNT:
			return true;
		}
		return false;
	default:
		return false;
	}
}

/**
 * ssa_setsockopt - setsockopt(2), all levels but SOL_SOCKET
 * @sock: the socket
 * @level: IPPROTO_TLS, IPPROTO_TCP, IPPROTO_IP or IPPROTO_IPV6
 * @name: the option
 * @val: its value
 * @len: length of the value in bytes
 *
 * Return: 0; -ENOPROTOOPT for an option that is unknown or can't be set;
 * -EOPNOTSUPP in a wrong state; -EINVAL, -EFAULT, -EMSGSIZE for a wrong value;
 * errors of reading a file; -EPROTO if the policy forbids it; -ECANCELED
 * without a daemon.
 */
int ssa_setsockopt(struct socket *sock, int level, int name, sockptr_t val, unsigned int len)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	const struct option *opt;

	if (level != IPPROTO_TLS) {
		if (!forwarded(level, name))
			return -ENOPROTOOPT;
		return READ_ONCE(ssk->endpoint->ops)->setsockopt(ssk->endpoint, level, name,
								 val, len);
	}
	opt = option_find(name);
	if (!opt || !opt->set)
		return -ENOPROTOOPT;
	return set_option(ssk, opt, val, len);
}

/* To the program: what there is, or the length that is needed. */
static int put_value(const void *value, int size, int room, char __user *val, int __user *len)
{
	if (put_user(size, len))
		return -EFAULT;
	if (size > room)
		return -EMSGSIZE;
	return copy_to_user(val, value, size) ? -EFAULT : 0;
}

static int put_u32(u32 value, int room, char __user *val, int __user *len)
{
	if (room < (int)sizeof(value))
		return -EINVAL;
	return put_value(&value, sizeof(value), room, val, len);
}

static int put_string(const char *value, int room, char __user *val, int __user *len)
{
	if (!value)
		value = "";
	return put_value(value, strlen(value) + 1, room, val, len);
}

/* A string that the lock protects. */
static int put_locked_string(struct ssa_sock *ssk, char **where, int room,
			     char __user *val, int __user *len)
{
	char *copy;
	int err;

	ssa_lock(ssk);
	copy = kstrdup(*where ?: "", GFP_KERNEL);
	ssa_unlock(ssk);
	if (!copy)
		return -ENOMEM;
	err = put_string(copy, room, val, len);
	kfree(copy);
	return err;
}

static int ask_daemon(struct ssa_sock *ssk, const struct option *opt, int room,
		      char __user *val, int __user *len)
{
	struct ssa_result res = {};
	int err;

	if (mutex_lock_interruptible(&ssk->control))
		return -ERESTARTSYS;
	err = ssa_state(ssk) == SSA_SOCKET_STATE_NEW ? ssa_sock_introduce(ssk, NULL) : -EOPNOTSUPP;
	if (!err)
		err = ssa_request_getsockopt(ssk, opt->name, &res);
	if (!err)
		err = res.error;
	mutex_unlock(&ssk->control);
	if (!err && !res.value)
		err = -ECANCELED;
	else if (!err && opt->type == VALUE_U32)
		err = res.value_len == sizeof(u32) ? put_u32(*(u32 *)res.value, room, val, len)
						   : -ECANCELED;
	else if (!err)	/* ssa_nl_complete_doit() put a NUL behind it */
		err = put_string(res.value, room, val, len);
	ssa_result_clear(&res);
	return err;
}

/**
 * ssa_getsockopt - getsockopt(2), all levels but SOL_SOCKET
 * @sock: the socket
 * @level: as ssa_setsockopt()
 * @name: the option
 * @val: gets the value; strings with a NUL
 * @len: room for it; gets its length, also when the room is too small
 *
 * Return: 0; -ENOPROTOOPT for an option that is unknown or can't be read;
 * -EOPNOTSUPP in a wrong state; -EMSGSIZE if the room is too small; -EINVAL,
 * -EFAULT; -ECANCELED without a daemon, if it has to be asked.
 */
int ssa_getsockopt(struct socket *sock, int level, int name, char __user *val, int __user *len)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	const struct option *opt;
	struct ssa_facts *facts;
	int room;
	u64 id;

	if (level != IPPROTO_TLS) {
		if (!forwarded(level, name))
			return -ENOPROTOOPT;
		return READ_ONCE(ssk->endpoint->ops)->getsockopt(ssk->endpoint, level, name,
								 val, len);
	}
	opt = option_find(name);
	if (!opt || !opt->get)
		return -ENOPROTOOPT;
	if (get_user(room, len))
		return -EFAULT;
	if (room < 0)
		return -EINVAL;
	if (!(opt->get & BIT(ssa_state(ssk))))
		return -EOPNOTSUPP;

	/* Set before the state became CONNECTED, and not changed since. */
	facts = ssk->facts;
	switch (opt->source) {
	case FROM_ID:
		if (room < (int)sizeof(id))
			return -EINVAL;
		id = ssk->id;	/* usercopy takes nothing out of the slab */
		return put_value(&id, sizeof(id), room, val, len);
	case FROM_HOST_NAME:
		return put_locked_string(ssk, &ssk->host_name, room, val, len);
	case FROM_ERROR_TEXT:
		return put_locked_string(ssk, &ssk->error_text, room, val, len);
	case FROM_TRANSPORT:
		return put_string(transport_names[ssk->kind], room, val, len);
	case FROM_VERSION:
		return put_u32(facts->version, room, val, len);
	case FROM_RESUMED:
		return put_u32(facts->resumed, room, val, len);
	case FROM_CIPHER:
		return put_string(facts->cipher, room, val, len);
	case FROM_ALPN:
		return put_string(facts->alpn, room, val, len);
	case FROM_PEER_IDENTITY:
		return put_string(facts->peer_identity, room, val, len);
	case FROM_PEER_CHAIN:
		return put_string(facts->peer_chain, room, val, len);
	case FROM_DAEMON:
		break;
	}
	return ask_daemon(ssk, opt, room, val, len);
}

/* Flags of struct sock that mean something on TCP too. */
#define MIRRORED_FLAGS (BIT(SOCK_KEEPOPEN) | BIT(SOCK_LINGER) | BIT(SOCK_LOCALROUTE))

static bool mirror_changed(const struct ssa_mirror *old, const struct sock *sk)
{
	return old->rcvtimeo != READ_ONCE(sk->sk_rcvtimeo) ||
	       old->sndtimeo != READ_ONCE(sk->sk_sndtimeo) ||
	       old->rcvlowat != READ_ONCE(sk->sk_rcvlowat) ||
	       old->flags != (READ_ONCE(sk->sk_flags) & MIRRORED_FLAGS) ||
	       old->lingertime != READ_ONCE(sk->sk_lingertime) ||
	       old->userlocks != sk->sk_userlocks ||
	       old->sndbuf != READ_ONCE(sk->sk_sndbuf) ||
	       old->rcvbuf != READ_ONCE(sk->sk_rcvbuf) ||
	       old->mark != READ_ONCE(sk->sk_mark) ||
	       old->priority != READ_ONCE(sk->sk_priority) ||
	       old->bound_dev_if != READ_ONCE(sk->sk_bound_dev_if) ||
	       old->reuse != sk->sk_reuse || old->reuseport != sk->sk_reuseport;
}

/* The endpoint faces the network: all that has to do with TCP is its. */
static void mirror_endpoint(struct ssa_sock *ssk, const struct ssa_mirror *old,
			    const struct ssa_mirror *new)
{
	bool keepalive = new->flags & BIT(SOCK_KEEPOPEN);
	bool linger = new->flags & BIT(SOCK_LINGER);
	struct sock *to = ssk->endpoint->sk;

	/*
	 * The endpoint of a channel is closed by the daemon last, which must
	 * not wait; ssa_transport_close() does. A reset needs no waiting.
	 */
	if (ssk->kind == SSA_TRANSPORT_CHANNEL && new->lingertime)
		linger = false;

	if (new->mark != old->mark)
		sock_set_mark(to, new->mark);
	if (new->bound_dev_if != old->bound_dev_if)
		sock_bindtoindex(to, new->bound_dev_if, true);

	lock_sock(to);
	to->sk_reuse = new->reuse;
	to->sk_reuseport = new->reuseport;
	/* Only when set: IP_TOS sets it on the endpoint as well. */
	if (new->priority != old->priority)
		WRITE_ONCE(to->sk_priority, new->priority);
	sock_valbool_flag(to, SOCK_LOCALROUTE, new->flags & BIT(SOCK_LOCALROUTE));
	sock_valbool_flag(to, SOCK_LINGER, linger);
	to->sk_lingertime = new->lingertime;
	if (keepalive != sock_flag(to, SOCK_KEEPOPEN)) {
		if (to->sk_prot->keepalive)
			to->sk_prot->keepalive(to, keepalive);
		sock_valbool_flag(to, SOCK_KEEPOPEN, keepalive);
	}
	/* Unless the program has set a size, TCP tunes its own. */
	if (new->userlocks & SOCK_SNDBUF_LOCK && new->sndbuf != old->sndbuf) {
		to->sk_userlocks |= SOCK_SNDBUF_LOCK;
		WRITE_ONCE(to->sk_sndbuf, new->sndbuf);
		to->sk_write_space(to);
	}
	if (new->userlocks & SOCK_RCVBUF_LOCK && new->rcvbuf != old->rcvbuf) {
		to->sk_userlocks |= SOCK_RCVBUF_LOCK;
		WRITE_ONCE(to->sk_rcvbuf, new->rcvbuf);
	}
	release_sock(to);
}

/**
 * ssa_sockopt_mirror - copy what was set at SOL_SOCKET to where it acts
 * @ssk: no lock of its endpoint is held
 *
 * The core keeps these options on the TLS socket, and has checked the caller's
 * rights. Called before each use of the endpoint or the transport, and cheap
 * when nothing has changed.
 */
void ssa_sockopt_mirror(struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk), *to;
	struct ssa_mirror new = {};

	if (likely(!mirror_changed(&ssk->mirror, sk)))
		return;

	mutex_lock(&ssk->mirror_lock);
	new.rcvtimeo = READ_ONCE(sk->sk_rcvtimeo);
	new.sndtimeo = READ_ONCE(sk->sk_sndtimeo);
	new.rcvlowat = READ_ONCE(sk->sk_rcvlowat);
	new.flags = READ_ONCE(sk->sk_flags) & MIRRORED_FLAGS;
	new.lingertime = READ_ONCE(sk->sk_lingertime);
	new.userlocks = sk->sk_userlocks;
	new.sndbuf = READ_ONCE(sk->sk_sndbuf);
	new.rcvbuf = READ_ONCE(sk->sk_rcvbuf);
	new.mark = READ_ONCE(sk->sk_mark);
	new.priority = READ_ONCE(sk->sk_priority);
	new.bound_dev_if = READ_ONCE(sk->sk_bound_dev_if);
	new.reuse = sk->sk_reuse;
	new.reuseport = sk->sk_reuseport;

	mirror_endpoint(ssk, &ssk->mirror, &new);
	to = ssk->transport ? ssk->transport->sk : ssk->endpoint->sk;
	WRITE_ONCE(to->sk_rcvtimeo, new.rcvtimeo);
	WRITE_ONCE(to->sk_sndtimeo, new.sndtimeo);
	/* Not before: the handshake's messages may be shorter. */
	if (ssk->transport)
		WRITE_ONCE(to->sk_rcvlowat, new.rcvlowat);
	ssk->mirror = new;
	mutex_unlock(&ssk->mirror_lock);
}
