// SPDX-License-Identifier: GPL-2.0
/*
 * Socket options of level IPPROTO_TLS, by a table. Those of TCP and IP are in
 * levels.c, those of SOL_SOCKET in mirror.c.
 */

#include <linux/slab.h>

#include "ssa.h"

#define NEW	BIT(SSA_SOCKET_STATE_NEW)
#define CONNECTED BIT(SSA_SOCKET_STATE_CONNECTED)
#define ANY	GENMASK(SSA_SOCKET_STATE_FAILED, SSA_SOCKET_STATE_NEW)

enum value_type {
	VALUE_U32,
	VALUE_U64,
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
	FROM_SWITCHES,
	FROM_SETTING,		/* 0 until it is set */
	FROM_CONTEXT,
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
	OPTION(TLS_REVOCATION_CHECKS, NEW, ANY, VALUE_U32, .source = FROM_SWITCHES),
	OPTION(TLS_OCSP_STAPLED_CHECKS, NEW, ANY, VALUE_U32, .source = FROM_SWITCHES),
	OPTION(TLS_OCSP_CHECKS, NEW, ANY, VALUE_U32, .source = FROM_SWITCHES),
	OPTION(TLS_CRL_CHECKS, NEW, ANY, VALUE_U32, .source = FROM_SWITCHES),
	OPTION(TLS_CACHED_REV_CHECKS, NEW, ANY, VALUE_U32, .source = FROM_SWITCHES),
	OPTION(TLS_SERVER_OCSP_STAPLING, NEW, NEW, VALUE_U32, .source = FROM_SWITCHES),
	OPTION(TLS_ID, 0, ANY, VALUE_U64, .source = FROM_ID),
	OPTION(TLS_ERROR, 0, ANY, VALUE_STRING, .source = FROM_ERROR_TEXT),
	OPTION(TLS_PEER_IDENTITY, 0, CONNECTED, VALUE_STRING, .source = FROM_PEER_IDENTITY),
	OPTION(TLS_PEER_CERTIFICATE_CHAIN, 0, CONNECTED, VALUE_STRING, .source = FROM_PEER_CHAIN),
	OPTION(TLS_CHOSEN_CIPHER, 0, CONNECTED, VALUE_STRING, .source = FROM_CIPHER),
	OPTION(TLS_VERSION_CONN, 0, CONNECTED, VALUE_U32, .source = FROM_VERSION),
	OPTION(TLS_RESUMED_SESSION, 0, CONNECTED, VALUE_U32, .source = FROM_RESUMED),
	OPTION(TLS_TRANSPORT, 0, CONNECTED, VALUE_STRING, .source = FROM_TRANSPORT),
	OPTION(TLS_SESSION_TTL, NEW, NEW, VALUE_U32),
	OPTION(TLS_SESSION_REUSE, NEW, ANY, VALUE_U32, .source = FROM_SETTING),
	OPTION(TLS_CONTEXT, NEW, ANY, VALUE_U64, .source = FROM_CONTEXT),
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

static struct ssa_setting *value_get(const struct option *opt, sockptr_t val, unsigned int len)
{
	struct ssa_setting *set;

	switch (opt->type) {
	case VALUE_U32:
		return len == sizeof(u32) ? ssa_value_copy(opt->name, val, len)
					  : ERR_PTR(-EINVAL);
	case VALUE_U64:
		return len == sizeof(u64) ? ssa_value_copy(opt->name, val, len)
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
	case -ENOBUFS:
		return kasprintf(GFP_KERNEL,
				 "%s is too much beside what is set on this socket.", opt->title);
	default:
		return kasprintf(GFP_KERNEL, "The value of %s could not be read (%pe).",
				 opt->title, ERR_PTR(err));
	}
}

static int set_option(struct ssa_sock *ssk, const struct option *opt, sockptr_t val,
		      unsigned int len)
{
	char *text = NULL, *host_name = NULL;
	struct ssa_settings *with = NULL;
	struct ssa_setting *set;
	int err;
	u64 id;

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
	if (opt->source == FROM_CONTEXT) {
		memcpy(&id, set->value, sizeof(id));
		err = ssa_context_take(ssk, id, &text);
		goto out_unlock;
	}
	/* Now, so that what the daemon has accepted can't fail any more. */
	with = ssa_settings_with(ssk->settings, set, opt->repeatable);
	if (IS_ERR(with)) {
		err = PTR_ERR(with);
		with = NULL;
		if (err == -ENOBUFS)
			text = set_error_text(opt, err);
		goto out_unlock;
	}
	err = ssa_user_recount(ssk, max(with->len, ssa_settings_len(ssk->settings)), &text);
	if (err)
		goto out_unlock;
	if (opt->source == FROM_HOST_NAME) {
		err = -ENOMEM;
		host_name = kmemdup_nul(set->value, set->len, GFP_KERNEL);
		if (!host_name)
			goto out_recount;
	}

	err = ssa_sock_introduce(ssk, NULL);
	if (!err)
		err = ssa_request_setting(ssk, set, &text);
	if (!err) {
		ssa_lock(ssk);
		swap(ssk->settings, with);
		if (host_name)
			swap(ssk->host_name, host_name);
		ssa_unlock(ssk);
	}
	kfree(host_name);
out_recount:
	ssa_user_recount(ssk, ssa_settings_len(ssk->settings), NULL);
out_unlock:
	mutex_unlock(&ssk->control);
out_free:
	ssa_settings_put(with);
	ssa_setting_put(set);
out_text:
	ssa_sock_take_text(ssk, text);
	return err;
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
 * errors of reading a file; -ENOENT or -EINVAL of ssa_context_take(); -ENOBUFS
 * if there are too many, or the user has too much set on his sockets; -EPROTO if
 * the policy forbids it; -ECANCELED without a daemon.
 */
int ssa_setsockopt(struct socket *sock, int level, int name, sockptr_t val, unsigned int len)
{
	struct ssa_sock *ssk = ssa_sk(sock->sk);
	const struct option *opt;

	if (level != IPPROTO_TLS)
		return ssa_levels_set(ssk, level, name, val, len);
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
	u32 value;
	int room;
	u64 id;

	if (level != IPPROTO_TLS)
		return ssa_levels_get(ssk, level, name, val, len);
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
	case FROM_CONTEXT:
		if (room < (int)sizeof(id))
			return -EINVAL;
		ssa_lock(ssk);
		id = ssk->context ?: ssk->id;
		ssa_unlock(ssk);
		return put_value(&id, sizeof(id), room, val, len);
	case FROM_SETTING:
		ssa_lock(ssk);
		value = ssa_settings_u32(ssk->settings, opt->name);
		ssa_unlock(ssk);
		return put_u32(value, room, val, len);
	case FROM_HOST_NAME:
		return put_locked_string(ssk, &ssk->host_name, room, val, len);
	case FROM_ERROR_TEXT:
		ssa_receive_explain(ssk);
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
	case FROM_SWITCHES:
		return put_u32(READ_ONCE(ssk->switches) >> (name - TLS_REVOCATION_CHECKS) & 1,
			       room, val, len);
	case FROM_DAEMON:
		break;
	}
	return ask_daemon(ssk, opt, room, val, len);
}
