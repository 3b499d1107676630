// SPDX-License-Identifier: GPL-2.0
/*
 * What is known of a socket, and what happens to it, for those who watch.
 */

#include "ssa.h"

static int put_string(struct sk_buff *skb, int attr, const char *value)
{
	return value ? nla_put_string(skb, attr, value) : 0;
}

/* All that does not depend on a connection. The socket is locked. */
static int put_socket(struct sk_buff *skb, struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);

	if (ssa_nl_put_u64(skb, SSA_A_SOCKET, ssk->id) ||
	    nla_put_u32(skb, SSA_A_STATE, ssa_state(ssk)) ||
	    ssa_nl_put_socket(skb, ssk) ||
	    ssa_nl_put_address(skb, SSA_A_LOCAL_ADDRESS, ssk))
		return -EMSGSIZE;
	if (ssa_state(ssk) == SSA_SOCKET_STATE_LISTENING &&
	    (nla_put_u32(skb, SSA_A_QUEUED, sk->sk_ack_backlog) ||
	     nla_put_u32(skb, SSA_A_BACKLOG, sk->sk_max_ack_backlog)))
		return -EMSGSIZE;
	return 0;
}

/**
 * ssa_nl_put_state - all that is known of a socket, but its certificates
 * @skb: the message
 * @ssk: the socket, not locked
 *
 * Sleeps for the socket's lock. Return: 0 or -EMSGSIZE.
 */
int ssa_nl_put_state(struct sk_buff *skb, struct ssa_sock *ssk)
{
	struct ssa_facts *facts;
	int err = -EMSGSIZE;

	ssa_lock(ssk);
	facts = ssk->facts;
	if (put_socket(skb, ssk) ||
	    ssa_nl_put_address(skb, SSA_A_REMOTE_ADDRESS, ssk) ||
	    put_string(skb, SSA_A_HOST_NAME, ssk->host_name) ||
	    nla_put_u32(skb, SSA_A_TRANSPORT, ssk->kind) ||
	    ssa_nl_put_u64(skb, SSA_A_BYTES_SENT, atomic64_read(&ssk->sent)) ||
	    ssa_nl_put_u64(skb, SSA_A_BYTES_RECEIVED, atomic64_read(&ssk->received)) ||
	    nla_put_u32(skb, SSA_A_ERROR, -ssk->connect_error) ||
	    put_string(skb, SSA_A_TEXT, ssk->error_text))
		goto out;
	if (facts && (nla_put_u32(skb, SSA_A_VERSION, facts->version) ||
		      put_string(skb, SSA_A_CIPHER, facts->cipher) ||
		      put_string(skb, SSA_A_ALPN, facts->alpn)))
		goto out;
	err = 0;
out:
	ssa_unlock(ssk);
	return err;
}

static struct sk_buff *event_new(enum ssa_event_kind kind, void **hdr)
{
	struct sk_buff *skb;

	if (!genl_has_listeners(&ssa_nl_family, &init_net, SSA_NLGRP_EVENTS))
		return NULL;
	skb = ssa_nl_new(SSA_CMD_NOTIFY, NLMSG_GOODSIZE, hdr);
	if (skb && nla_put_u32(skb, SSA_A_EVENT, kind)) {
		nlmsg_free(skb);
		return NULL;
	}
	return skb;
}

/* Consumes @skb. @err: it could not be filled. */
static void event_send(struct sk_buff *skb, void *hdr, int err)
{
	if (err) {
		nlmsg_free(skb);
		return;
	}
	genlmsg_end(skb, hdr);
	genlmsg_multicast(&ssa_nl_family, skb, 0, SSA_NLGRP_EVENTS, GFP_KERNEL);
}

/**
 * ssa_event - tell those who watch
 * @ssk: what happened to it; not locked
 * @kind: what happened
 *
 * Sleeps. Nothing depends on it, so a lack of memory is passed over.
 */
void ssa_event(struct ssa_sock *ssk, enum ssa_event_kind kind)
{
	struct sk_buff *skb;
	void *hdr;

	skb = event_new(kind, &hdr);
	if (skb)
		event_send(skb, hdr, ssa_nl_put_state(skb, ssk));
}

static int put_attr(struct sk_buff *skb, const struct nlattr *attr)
{
	return attr ? nla_put(skb, nla_type(attr), nla_len(attr), nla_data(attr)) : 0;
}

/**
 * ssa_event_refused - tell those who watch that a client was refused
 * @ssk: the listening socket; not locked
 * @info: the worker's message, which says who and why
 *
 * Sleeps. As ssa_event().
 */
void ssa_event_refused(struct ssa_sock *ssk, struct genl_info *info)
{
	struct sk_buff *skb;
	void *hdr;
	int err;

	skb = event_new(SSA_EVENT_KIND_REFUSED, &hdr);
	if (!skb)
		return;
	ssa_lock(ssk);
	err = put_socket(skb, ssk);
	ssa_unlock(ssk);
	err = err ?: put_attr(skb, info->attrs[SSA_A_REMOTE_ADDRESS]) ?:
	      put_attr(skb, info->attrs[SSA_A_ERROR]) ?:
	      put_attr(skb, info->attrs[SSA_A_TEXT]);
	event_send(skb, hdr, err);
}
