// SPDX-License-Identifier: GPL-2.0
/*
 * The generic netlink family: commands of the daemon, and questions that
 * anyone may ask. A command runs in its sender's context, so a descriptor in a
 * message is one of the sender's.
 */

#include <linux/capability.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <net/af_unix.h>
#include <net/tcp_states.h>

#include "ssa.h"

struct genl_family ssa_nl_family __ro_after_init = {
	.name		= SSA_FAMILY_NAME,
	.version	= SSA_FAMILY_VERSION,
	.netnsok	= false,	/* one daemon, in the initial namespace */
	.parallel_ops	= true,		/* the locks are ours */
	.module		= THIS_MODULE,
	.ops		= ssa_nl_ops,
	.n_ops		= ARRAY_SIZE(ssa_nl_ops),
	.mcgrps		= ssa_nl_mcgrps,
	.n_mcgrps	= ARRAY_SIZE(ssa_nl_mcgrps),
};

/**
 * ssa_nl_new - begin a message that answers nobody
 * @cmd: SSA_CMD_*
 * @payload: room for attributes, in bytes
 * @hdr: gets what genlmsg_end() wants
 *
 * Its netlink sequence number is 0, which no question has.
 *
 * Return: to be freed by nlmsg_free(), or NULL.
 */
struct sk_buff *ssa_nl_new(u8 cmd, size_t payload, void **hdr)
{
	struct sk_buff *skb;

	skb = genlmsg_new(payload, GFP_KERNEL);
	if (!skb)
		return NULL;
	*hdr = genlmsg_put(skb, 0, 0, &ssa_nl_family, 0, cmd);
	if (!*hdr) {
		nlmsg_free(skb);
		return NULL;
	}
	return skb;
}

/**
 * ssa_nl_put_socket - who made a socket, and of what kind
 * @skb: the message
 * @ssk: the socket; its id is not put
 *
 * Return: 0 or -EMSGSIZE.
 */
int ssa_nl_put_socket(struct sk_buff *skb, struct ssa_sock *ssk)
{
	struct sock *sk = ssa_to_sk(ssk);

	if (nla_put_u32(skb, SSA_A_FAMILY, sk->sk_family) ||
	    nla_put_u32(skb, SSA_A_PID, ssk->pid) ||
	    nla_put_u32(skb, SSA_A_UID, from_kuid_munged(&init_user_ns, ssk->uid)) ||
	    nla_put_u32(skb, SSA_A_GID, from_kgid_munged(&init_user_ns, ssk->gid)) ||
	    ssa_nl_put_u64(skb, SSA_A_NETNS_COOKIE, sock_net(sk)->net_cookie) ||
	    nla_put_string(skb, SSA_A_COMM, ssk->comm))
		return -EMSGSIZE;
	return 0;
}

/* Without the endpoint's lock, under which kernel TLS reads a program's memory. */
static int put_inet(struct sk_buff *skb, int attr, const struct sock *sk, bool remote)
{
	const struct inet_sock *inet = inet_sk(sk);
	struct sockaddr_in sin = { .sin_family = AF_INET };

	if (remote) {
		sin.sin_port = READ_ONCE(inet->inet_dport);
		sin.sin_addr.s_addr = READ_ONCE(inet->inet_daddr);
	} else {
		sin.sin_port = READ_ONCE(inet->inet_sport);
		sin.sin_addr.s_addr = READ_ONCE(inet->inet_rcv_saddr) ?:
				      READ_ONCE(inet->inet_saddr);
	}
	if (remote && !sin.sin_port)
		return 0;
	return nla_put(skb, attr, sizeof(sin), &sin);
}

#if IS_ENABLED(CONFIG_IPV6)
static int put_inet6(struct sk_buff *skb, int attr, const struct sock *sk, bool remote)
{
	struct sockaddr_in6 sin6 = { .sin6_family = AF_INET6 };

	if (remote) {
		sin6.sin6_port = READ_ONCE(inet_sk(sk)->inet_dport);
		sin6.sin6_addr = sk->sk_v6_daddr;
	} else {
		sin6.sin6_port = READ_ONCE(inet_sk(sk)->inet_sport);
		sin6.sin6_addr = sk->sk_v6_rcv_saddr;
		if (ipv6_addr_any(&sin6.sin6_addr))
			sin6.sin6_addr = inet6_sk(sk)->saddr;
	}
	if (remote && !sin6.sin6_port)
		return 0;
	sin6.sin6_scope_id = ipv6_iface_scope_id(&sin6.sin6_addr, READ_ONCE(sk->sk_bound_dev_if));
	return nla_put(skb, attr, sizeof(sin6), &sin6);
}
#else
static int put_inet6(struct sk_buff *skb, int attr, const struct sock *sk, bool remote)
{
	return 0;
}
#endif

/**
 * ssa_nl_put_address - an address of the endpoint, if it has one
 * @skb: the message
 * @attr: SSA_A_LOCAL_ADDRESS or SSA_A_REMOTE_ADDRESS
 * @ssk: the socket
 *
 * With its lock held; or with the control lock, in a call that finds the socket
 * NEW or LISTENING. What changes just now may be
 * seen half changed, as in ss(8).
 *
 * Return: 0 or -EMSGSIZE.
 */
int ssa_nl_put_address(struct sk_buff *skb, int attr, struct ssa_sock *ssk)
{
	bool remote = attr == SSA_A_REMOTE_ADDRESS;

	if (!ssk->endpoint)
		return 0;
	if (ssk->endpoint->sk->sk_family == AF_INET6)
		return put_inet6(skb, attr, ssk->endpoint->sk, remote);
	return put_inet(skb, attr, ssk->endpoint->sk, remote);
}

/* Only the worker that was asked may answer. */
static struct ssa_request *request_of(struct sk_buff *skb, struct genl_info *info)
{
	struct ssa_request *req;

	if (!info->attrs[SSA_A_REQUEST]) {
		NL_SET_ERR_MSG(info->extack, "the attribute request is missing");
		return ERR_PTR(-EINVAL);
	}
	req = ssa_request_get(nla_get_u32(info->attrs[SSA_A_REQUEST]));
	if (!req) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[SSA_A_REQUEST],
				    "nothing with this request id waits for an answer");
		return ERR_PTR(-ENOENT);
	}
	if (!ssa_worker_is(req->worker, skb)) {
		ssa_request_put(req);
		NL_SET_ERR_MSG(info->extack, "the request was put to another process");
		return ERR_PTR(-EPERM);
	}
	return req;
}

static struct sk_buff *reply_new(struct genl_info *info, void **hdr)
{
	struct sk_buff *skb;

	skb = genlmsg_new(GENLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (!skb)
		return NULL;
	*hdr = genlmsg_put_reply(skb, info, &ssa_nl_family, 0, info->genlhdr->cmd);
	if (!*hdr) {
		nlmsg_free(skb);
		return NULL;
	}
	return skb;
}

int ssa_nl_register_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct sk_buff *reply;
	void *hdr;
	int err;

	if (!info->attrs[SSA_A_DAEMON]) {
		NL_SET_ERR_MSG(info->extack, "the attribute daemon is missing");
		return -EINVAL;
	}
	reply = reply_new(info, &hdr);
	if (!reply)
		return -ENOMEM;
	if (nla_put_string(reply, SSA_A_MODULE_VERSION, SSA_VERSION)) {
		nlmsg_free(reply);
		return -EMSGSIZE;
	}
	genlmsg_end(reply, hdr);

	err = ssa_worker_register(skb, nla_get_u32(info->attrs[SSA_A_DAEMON]), info->extack);
	if (err) {
		nlmsg_free(reply);
		return err;
	}
	err = genlmsg_reply(reply, info);
	/* After the reply, which else might find no room. */
	ssa_listen_adopt_all();
	return err;
}

int ssa_nl_endpoint_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct ssa_request *req;
	struct sk_buff *reply;
	struct file *file;
	int fd, err;
	void *hdr;
	u32 index;

	req = request_of(skb, info);
	if (IS_ERR(req))
		return PTR_ERR(req);
	if (!req->ssk) {
		NL_SET_ERR_MSG(info->extack, "only a connect or listen request has an endpoint");
		err = -EINVAL;
		goto out_put;
	}

	index = info->attrs[SSA_A_ENDPOINT] ? nla_get_u32(info->attrs[SSA_A_ENDPOINT]) : 0;
	file = ssa_endpoint_of(req->ssk, req, index);
	if (!file) {
		NL_SET_ERR_MSG(info->extack,
			       "there is no such endpoint, or the socket was closed in the meantime");
		err = -ENOENT;
		goto out_put;
	}
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		err = fd;
		goto out_file;
	}
	err = -ENOMEM;
	reply = reply_new(info, &hdr);
	if (!reply)
		goto out_fd;
	if (nla_put_u32(reply, SSA_A_REQUEST, req->id) || nla_put_s32(reply, SSA_A_FD, fd) ||
	    nla_put_u32(reply, SSA_A_FAMILY, sock_from_file(file)->sk->sk_family)) {
		nlmsg_free(reply);
		goto out_fd;
	}
	genlmsg_end(reply, hdr);
	err = genlmsg_reply(reply, info);
	if (err)
		goto out_fd;
	fd_install(fd, file);	/* last, since it can't be taken back */
	ssa_request_put(req);
	return 0;

out_fd:
	put_unused_fd(fd);
out_file:
	fput(file);
out_put:
	ssa_request_put(req);
	return err;
}

static int get_string(struct genl_info *info, int attr, char **to)
{
	if (!info->attrs[attr])
		return 0;
	*to = nla_strdup(info->attrs[attr], GFP_KERNEL);
	return *to ? 0 : -ENOMEM;
}

/* The pieces of the peer's chain, put together, with a NUL behind. */
static int get_chain(struct genl_info *info, struct ssa_facts *facts)
{
	struct nlattr *attr;
	u32 len = 0;
	int rem;

	nlmsg_for_each_attr(attr, info->nlhdr, GENL_HDRLEN, rem)
		if (nla_type(attr) == SSA_A_PEER_CHAIN)
			len += nla_len(attr);
	if (len > SSA_CHAIN_MAX) {
		NL_SET_ERR_MSG(info->extack, "the peer's certificate chain is too long");
		return -EMSGSIZE;
	}
	facts->peer_chain = kvmalloc(len + 1, GFP_KERNEL | __GFP_NOWARN);
	if (!facts->peer_chain)
		return -ENOMEM;
	facts->peer_chain_len = 0;
	nlmsg_for_each_attr(attr, info->nlhdr, GENL_HDRLEN, rem) {
		if (nla_type(attr) != SSA_A_PEER_CHAIN)
			continue;
		memcpy(facts->peer_chain + facts->peer_chain_len, nla_data(attr), nla_len(attr));
		facts->peer_chain_len += nla_len(attr);
	}
	facts->peer_chain[facts->peer_chain_len] = '\0';
	return 0;
}

static int get_facts(struct genl_info *info, struct ssa_result *res)
{
	struct ssa_facts *facts;

	if (!info->attrs[SSA_A_VERSION] || !info->attrs[SSA_A_CIPHER]) {
		NL_SET_ERR_MSG(info->extack, "a connection needs version and cipher");
		return -EINVAL;
	}
	facts = kzalloc(sizeof(*facts), GFP_KERNEL);
	if (!facts)
		return -ENOMEM;
	res->facts = facts;
	facts->version = nla_get_u32(info->attrs[SSA_A_VERSION]);
	if (info->attrs[SSA_A_RESUMED])
		facts->resumed = nla_get_u32(info->attrs[SSA_A_RESUMED]);
	return get_string(info, SSA_A_CIPHER, &facts->cipher) ?:
	       get_string(info, SSA_A_ALPN, &facts->alpn) ?:
	       get_string(info, SSA_A_PEER_IDENTITY, &facts->peer_identity) ?:
	       get_string(info, SSA_A_HOST_NAME, &res->host_name) ?:
	       get_chain(info, facts);
}

/* A connected Unix stream socket of the sender's, whatever else it may name. */
static int get_channel(struct genl_info *info, struct ssa_result *res)
{
	struct socket *sock;
	struct file *file;
	struct sock *sk;

	if (!info->attrs[SSA_A_FD]) {
		NL_SET_ERR_MSG(info->extack, "a channel needs the attribute fd");
		return -EINVAL;
	}
	file = fget(nla_get_s32(info->attrs[SSA_A_FD]));
	if (!file) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[SSA_A_FD],
				    "no such file descriptor");
		return -EBADF;
	}
	sock = sock_from_file(file);
	sk = sock ? sock->sk : NULL;
	if (!sk || sk->sk_family != AF_UNIX || sk->sk_type != SOCK_STREAM ||
	    READ_ONCE(sk->sk_state) != TCP_ESTABLISHED) {
		fput(file);
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[SSA_A_FD],
				    "a channel has to be a connected Unix stream socket");
		return -EINVAL;
	}
	res->channel = file;
	return 0;
}

static int get_connection(struct genl_info *info, struct ssa_result *res)
{
	int err = 0;
	u32 kind;

	kind = info->attrs[SSA_A_TRANSPORT] ? nla_get_u32(info->attrs[SSA_A_TRANSPORT])
					    : SSA_TRANSPORT_NONE;
	if (kind == SSA_TRANSPORT_NONE) {
		NL_SET_ERR_MSG(info->extack, "a connection needs a transport");
		return -EINVAL;
	}
	res->kind = kind;
	if (kind == SSA_TRANSPORT_CHANNEL)
		err = get_channel(info, res);
	return err ?: get_facts(info, res);
}

/* The endpoint that is connected. */
static int get_chosen(struct genl_info *info, struct ssa_request *req, struct ssa_result *res)
{
	struct nlattr *attr = info->attrs[SSA_A_ENDPOINT];

	res->chosen = attr ? nla_get_u32(attr) : 0;
	if (res->chosen <= req->nr_spare)
		return 0;
	NL_SET_ERR_MSG_ATTR(info->extack, attr, "the request has no such endpoint");
	return -EINVAL;
}

static int get_value(struct genl_info *info, struct ssa_result *res)
{
	struct nlattr *attr = info->attrs[SSA_A_VALUE];

	if (!attr)
		return 0;
	res->value_len = nla_len(attr);
	res->value = kmemdup_nul(nla_data(attr), nla_len(attr), GFP_KERNEL);
	return res->value ? 0 : -ENOMEM;
}

int ssa_nl_complete_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct ssa_result res = { .from_worker = true };
	struct ssa_request *req;
	bool granted;
	int err;

	req = request_of(skb, info);
	if (IS_ERR(req))
		return PTR_ERR(req);

	/*
	 * All that can be wrong with the message is found before the request is
	 * taken, so that a wrong answer leaves it to be answered rightly.
	 */
	err = -EINVAL;
	if (!info->attrs[SSA_A_ERROR]) {
		NL_SET_ERR_MSG(info->extack, "the attribute error is missing");
		goto err_clear;
	}
	res.error = -(int)nla_get_u32(info->attrs[SSA_A_ERROR]);
	err = get_string(info, SSA_A_TEXT, &res.text);
	if (err)
		goto err_clear;
	if (info->attrs[SSA_A_SWITCHES]) {
		res.has_switches = true;
		res.switches = nla_get_u32(info->attrs[SSA_A_SWITCHES]);
	}
	if (!res.error && req->cmd == SSA_CMD_CONNECT)
		err = get_chosen(info, req, &res) ?: get_connection(info, &res);
	else
		err = get_value(info, &res);
	if (err)
		goto err_clear;

	/* Here, for other commands have no room for this attribute. */
	if (info->attrs[SSA_A_TICKETS])
		res.tickets = nla_get_u32(info->attrs[SSA_A_TICKETS]);

	granted = !res.error;
	if (!ssa_request_finish(req, &res)) {
		NL_SET_ERR_MSG(info->extack, "the request was completed in the meantime");
		err = -ENOENT;
	} else if (req->cmd == SSA_CMD_LISTEN && granted && req->result.error) {
		NL_SET_ERR_MSG(info->extack, "the endpoint could not listen");
		err = req->result.error;
	}
	ssa_request_put(req);
	return err;

err_clear:
	ssa_result_clear(&res);
	ssa_request_put(req);
	return err;
}

/* The TCP connection that the sender has accepted. */
static int get_endpoint(struct genl_info *info, struct ssa_sock *ssk, struct ssa_result *res)
{
	struct socket *sock;
	struct file *file;
	struct sock *sk;

	if (!info->attrs[SSA_A_ENDPOINT_FD]) {
		NL_SET_ERR_MSG(info->extack, "an accepted connection needs endpoint-fd");
		return -EINVAL;
	}
	file = fget(nla_get_s32(info->attrs[SSA_A_ENDPOINT_FD]));
	if (!file) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[SSA_A_ENDPOINT_FD],
				    "no such file descriptor");
		return -EBADF;
	}
	sock = sock_from_file(file);
	sk = sock ? sock->sk : NULL;
	if (!sk || sk->sk_type != SOCK_STREAM || sk->sk_protocol != IPPROTO_TCP ||
	    !net_eq(sock_net(sk), sock_net(ssa_to_sk(ssk))) ||
	    (1 << READ_ONCE(sk->sk_state)) & (TCPF_LISTEN | TCPF_SYN_SENT)) {
		fput(file);
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[SSA_A_ENDPOINT_FD],
				    "the endpoint has to be a TCP connection to the listening socket");
		return -EINVAL;
	}
	res->endpoint = file;
	return 0;
}

static int accepted(struct genl_info *info, struct ssa_sock *ssk, struct ssa_worker *worker)
{
	struct ssa_result res = { .from_worker = true };
	struct ssa_sock *child;
	struct sk_buff *reply;
	void *hdr;
	int err;

	err = get_endpoint(info, ssk, &res) ?: get_connection(info, &res);
	if (err)
		goto out_clear;
	err = -ENOMEM;
	reply = reply_new(info, &hdr);
	if (!reply)
		goto out_clear;
	child = ssa_listen_accepted(ssk, worker, &res);
	if (IS_ERR(child)) {
		err = PTR_ERR(child);
		goto out_reply;
	}
	err = ssa_listen_enqueue(ssk, child, reply, hdr, info);
	ssa_result_clear(&res);
	if (err == -ENOENT)
		NL_SET_ERR_MSG(info->extack, "the TLS socket was closed");
	return err;

out_reply:
	nlmsg_free(reply);
	if (err == -ENOENT)
		NL_SET_ERR_MSG(info->extack, "the TLS socket was closed");
	else if (err == -ECONNABORTED)
		NL_SET_ERR_MSG(info->extack, "the connection has no transport");
	else if (err == -EMFILE)
		NL_SET_ERR_MSG(info->extack, "the user has too many TLS sockets");
	else if (err == -EINVAL)
		NL_SET_ERR_MSG(info->extack, "the connection is not to the listening socket");
out_clear:
	ssa_result_clear(&res);
	return err;
}

int ssa_nl_accepted_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct ssa_worker *worker;
	struct ssa_sock *ssk;
	struct sock *sk;
	int err;

	if (!info->attrs[SSA_A_SOCKET] || !info->attrs[SSA_A_ERROR]) {
		NL_SET_ERR_MSG(info->extack, "the attributes socket and error are needed");
		return -EINVAL;
	}
	ssk = ssa_sock_get(nla_get_u64(info->attrs[SSA_A_SOCKET]));
	if (!ssk) {
		NL_SET_ERR_MSG(info->extack, "there is no such TLS socket");
		return -ENOENT;
	}
	sk = ssa_to_sk(ssk);
	worker = ssa_listen_worker(ssk, skb);
	if (ssa_state(ssk) == SSA_SOCKET_STATE_CLOSED) {
		NL_SET_ERR_MSG(info->extack, "the TLS socket does not listen any more");
		err = -ENOENT;
	} else if (!worker) {
		NL_SET_ERR_MSG(info->extack, "the TLS socket is another process's");
		err = -EPERM;
	} else if (nla_get_u32(info->attrs[SSA_A_ERROR])) {
		ssa_event_refused(ssk, info);
		err = 0;
	} else {
		err = accepted(info, ssk, worker);
	}
	ssa_worker_put(worker);
	sock_put(sk);
	return err;
}

int ssa_nl_leave_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct ssa_worker *worker;
	struct sk_buff *reply;
	void *hdr;
	int err;

	worker = ssa_worker_of(skb);
	if (!worker) {
		NL_SET_ERR_MSG(info->extack, "the sender is no worker");
		return -EPERM;
	}
	err = ssa_worker_leave(worker);
	if (err) {
		NL_SET_ERR_MSG(info->extack, "there is no other worker that stays");
		goto out;
	}
	err = -ENOMEM;
	reply = reply_new(info, &hdr);
	if (!reply)
		goto out;
	if (nla_put_u32(reply, SSA_A_PENDING, ssa_worker_owed(worker))) {
		nlmsg_free(reply);
		err = -EMSGSIZE;
		goto out;
	}
	genlmsg_end(reply, hdr);
	err = genlmsg_reply(reply, info);
out:
	ssa_worker_put(worker);
	return err;
}

int ssa_nl_end_of_stream_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct ssa_sock *ssk;
	struct sock *sk;
	char *text = NULL;
	int err;
	u32 end;

	if (!info->attrs[SSA_A_SOCKET] || !info->attrs[SSA_A_ERROR]) {
		NL_SET_ERR_MSG(info->extack, "the attributes socket and error are needed");
		return -EINVAL;
	}
	end = nla_get_u32(info->attrs[SSA_A_ERROR]);
	err = get_string(info, SSA_A_TEXT, &text);
	if (err)
		return err;
	ssk = ssa_sock_get(nla_get_u64(info->attrs[SSA_A_SOCKET]));
	if (!ssk) {
		kfree(text);
		NL_SET_ERR_MSG(info->extack, "there is no such TLS socket");
		return -ENOENT;
	}

	sk = ssa_to_sk(ssk);
	ssa_lock(ssk);
	if (ssa_state(ssk) != SSA_SOCKET_STATE_CONNECTED) {
		NL_SET_ERR_MSG(info->extack, "the TLS socket is closed");
		err = -ENOENT;
	} else if (ssk->kind != SSA_TRANSPORT_CHANNEL) {
		NL_SET_ERR_MSG(info->extack, "the TLS socket has no channel");
		err = -EINVAL;
	} else if (!ssa_worker_is(ssk->worker, skb)) {
		NL_SET_ERR_MSG(info->extack, "the channel is another process's");
		err = -EPERM;
	} else {
		if (text)
			swap(ssk->error_text, text);
		WRITE_ONCE(ssk->channel_end, end ? -(int)end : SSA_RX_CLOSE_NOTIFY);
		/* TCP itself broke, and the worker has had its error. */
		if (end && READ_ONCE(ssk->endpoint->sk->sk_state) == TCP_CLOSE)
			WRITE_ONCE(sk->sk_err, end);
	}
	ssa_unlock(ssk);
	sock_put(sk);
	kfree(text);
	return err;
}

int ssa_nl_module_get_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct sk_buff *reply;
	void *hdr;

	reply = reply_new(info, &hdr);
	if (!reply)
		return -ENOMEM;
	if (nla_put_string(reply, SSA_A_MODULE_VERSION, SSA_VERSION) ||
	    nla_put_u32(reply, SSA_A_SOCKETS, ssa_sock_count())) {
		nlmsg_free(reply);
		return -EMSGSIZE;
	}
	genlmsg_end(reply, hdr);
	return genlmsg_reply(reply, info);
}

int ssa_nl_worker_get_dumpit(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct ssa_worker *worker;
	int err = 0;
	void *hdr;

	for (; (worker = ssa_worker_nth(cb->args[0])); cb->args[0]++) {
		hdr = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq,
				  &ssa_nl_family, NLM_F_MULTI, SSA_CMD_WORKER_GET);
		if (!hdr || nla_put_u32(skb, SSA_A_PID, worker->pid) ||
		    nla_put_u32(skb, SSA_A_PENDING, atomic_read(&worker->pending)) ||
		    nla_put_u32(skb, SSA_A_DAEMON, worker->daemon) ||
		    nla_put_u32(skb, SSA_A_SOCKETS, atomic_read(&worker->sockets)) ||
		    nla_put_u32(skb, SSA_A_LEAVING, READ_ONCE(worker->leaving)))
			err = -EMSGSIZE;
		ssa_worker_put(worker);
		if (err) {
			if (hdr)
				genlmsg_cancel(skb, hdr);
			break;	/* goes into the next message, if one has room */
		}
		genlmsg_end(skb, hdr);
	}
	return skb->len ?: err;
}

int ssa_nl_socket_get_dumpit(struct sk_buff *skb, struct netlink_callback *cb)
{
	bool all = netlink_capable(cb->skb, CAP_NET_ADMIN);
	unsigned long id = cb->args[0];
	struct ssa_sock *ssk;
	int err = 0;
	void *hdr;

	for (; (ssk = ssa_sock_next(&id)); id++) {
		if (!all && !uid_eq(ssk->uid, NETLINK_CB(cb->skb).sk->sk_uid)) {
			sock_put(ssa_to_sk(ssk));
			continue;
		}
		hdr = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq,
				  &ssa_nl_family, NLM_F_MULTI, SSA_CMD_SOCKET_GET);
		err = hdr ? ssa_nl_put_state(skb, ssk) : -EMSGSIZE;
		sock_put(ssa_to_sk(ssk));
		if (err) {
			if (hdr)
				genlmsg_cancel(skb, hdr);
			break;	/* goes into the next message, if one has room */
		}
		genlmsg_end(skb, hdr);
	}
	cb->args[0] = id;
	return skb->len ?: err;
}
