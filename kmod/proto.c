// SPDX-License-Identifier: GPL-2.0
/*
 * Registration of IPPROTO_TLS as a stream protocol of AF_INET and AF_INET6;
 * AF_HOSTNAME is in hostname.c.
 *
 * Only socket() is hooked: no IP protocol handler exists for the number, so
 * no packet from the network reaches the module.
 */

#include <linux/module.h>
#include <net/protocol.h>

#include "ssa.h"

/* sk_common_release() calls it; nothing looks a TLS socket up by address. */
static void ssa_unhash(struct sock *sk)
{
}

struct proto ssa_prot = {
	.name		= "TLS",
	.owner		= THIS_MODULE,
	.init		= ssa_sock_init,
	.destroy	= ssa_sock_destroy,
	.unhash		= ssa_unhash,
	.obj_size	= sizeof(struct ssa_sock),
};

#ifdef SSA_HAVE_PROTO_ACCEPT_ARG
static int ssa_accept(struct socket *sock, struct socket *newsock, struct proto_accept_arg *arg)
{
	return ssa_sock_accept(sock, newsock, arg->flags);
}
#else
static int ssa_accept(struct socket *sock, struct socket *newsock, int flags, bool kern)
{
	return ssa_sock_accept(sock, newsock, flags);
}
#endif

#ifdef SSA_HAVE_SENDPAGE
#define SSA_SENDPAGE	.sendpage = ssa_sendpage,
#else
#define SSA_SENDPAGE
#endif

/* All families do the same; the family is the endpoint's business. */
#define SSA_STREAM_OPS(of_family) {			\
	.family		= (of_family),			\
	.owner		= THIS_MODULE,			\
	.release	= ssa_sock_release,		\
	.bind		= ssa_sock_bind,		\
	.connect	= ssa_sock_connect,		\
	.socketpair	= sock_no_socketpair,		\
	.accept		= ssa_accept,			\
	.getname	= ssa_getname,			\
	.poll		= ssa_poll,			\
	.ioctl		= ssa_ioctl,			\
	.gettstamp	= sock_gettstamp,		\
	.listen		= ssa_sock_listen,		\
	.shutdown	= ssa_sock_shutdown,		\
	.setsockopt	= ssa_setsockopt,		\
	.getsockopt	= ssa_getsockopt,		\
	.sendmsg	= ssa_sendmsg,			\
	.recvmsg	= ssa_recvmsg,			\
	.mmap		= sock_no_mmap,			\
	.set_rcvlowat	= ssa_set_rcvlowat,		\
	.splice_read	= ssa_splice_read,		\
	.splice_eof	= ssa_splice_eof,		\
	SSA_SENDPAGE					\
}

static const struct proto_ops ssa_stream_ops = SSA_STREAM_OPS(PF_INET);

/* Nothing depends on the number, which a parameter can change. */
const struct proto_ops ssa_host_stream_ops = SSA_STREAM_OPS(AF_HOSTNAME);

static struct inet_protosw ssa_protosw = {
	.type		= SOCK_STREAM,
	.protocol	= IPPROTO_TLS,
	.prot		= &ssa_prot,
	.ops		= &ssa_stream_ops,
};

#if IS_ENABLED(CONFIG_IPV6)
static struct proto ssa6_prot = {
	.name		= "TLSv6",
	.owner		= THIS_MODULE,
	.init		= ssa_sock_init,
	.destroy	= ssa_sock_destroy,
	.unhash		= ssa_unhash,
	.obj_size	= sizeof(struct ssa6_sock),
#ifdef SSA_HAVE_IPV6_PINFO_OFFSET
	.ipv6_pinfo_offset = offsetof(struct ssa6_sock, inet6),
#endif
};

static const struct proto_ops ssa6_stream_ops = SSA_STREAM_OPS(PF_INET6);

static struct inet_protosw ssa6_protosw = {
	.type		= SOCK_STREAM,
	.protocol	= IPPROTO_TLS,
	.prot		= &ssa6_prot,
	.ops		= &ssa6_stream_ops,
};

static int __init ssa_proto6_init(void)
{
	return proto_register(&ssa6_prot, 1);
}

static int __init ssa_proto6_publish(void)
{
	return inet6_register_protosw(&ssa6_protosw);
}

static void ssa_proto6_unpublish(void)
{
	inet6_unregister_protosw(&ssa6_protosw);
}

static void ssa_proto6_uninit(void)
{
	proto_unregister(&ssa6_prot);
}
#else
static int __init ssa_proto6_init(void)
{
	return 0;
}

static int __init ssa_proto6_publish(void)
{
	return 0;
}

static void ssa_proto6_unpublish(void)
{
}

static void ssa_proto6_uninit(void)
{
}
#endif

/**
 * ssa_proto_init - let programs make TLS sockets
 *
 * The last step of loading. Sockets can exist once a part of it is done, so what
 * can fail comes first: IPv6 takes any protocol that is not taken.
 *
 * Return: 0, or the negative errno of the registration that failed.
 */
int __init ssa_proto_init(void)
{
	int err;

	err = proto_register(&ssa_prot, 1);
	if (err)
		return err;
	err = ssa_proto6_init();
	if (err)
		goto err_prot;
	err = ssa_hostname_init();
	if (err)
		goto err_prot6;
	err = ssa_proto6_publish();
	if (err)
		goto err_hostname;
	inet_register_protosw(&ssa_protosw);
	return 0;

err_hostname:
	ssa_hostname_uninit();
err_prot6:
	ssa_proto6_uninit();
err_prot:
	proto_unregister(&ssa_prot);
	return err;
}

/**
 * ssa_proto_uninit - the reverse; no socket exists, each holds the module
 */
void ssa_proto_uninit(void)
{
	inet_unregister_protosw(&ssa_protosw);
	ssa_proto6_unpublish();
	ssa_hostname_uninit();
	ssa_proto6_uninit();
	proto_unregister(&ssa_prot);
}

/* The number is IPPROTO_TLS, the type SOCK_STREAM; the macro wants literals. */
MODULE_ALIAS_NET_PF_PROTO_TYPE(PF_INET, 205, 1);
MODULE_ALIAS_NET_PF_PROTO_TYPE(PF_INET6, 205, 1);
