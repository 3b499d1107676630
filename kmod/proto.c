// SPDX-License-Identifier: GPL-2.0
/*
 * Registration of IPPROTO_TLS as a stream protocol of AF_INET and AF_INET6.
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

static struct proto ssa_prot = {
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

/* Both families do the same; the family is the endpoint's business. */
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
	.listen		= ssa_sock_listen,		\
	.shutdown	= ssa_sock_shutdown,		\
	.setsockopt	= ssa_setsockopt,		\
	.getsockopt	= ssa_getsockopt,		\
	.sendmsg	= ssa_sendmsg,			\
	.recvmsg	= ssa_recvmsg,			\
	.mmap		= sock_no_mmap,			\
	.splice_read	= ssa_splice_read,		\
	.splice_eof	= ssa_splice_eof,		\
	SSA_SENDPAGE					\
}

static const struct proto_ops ssa_stream_ops = SSA_STREAM_OPS(PF_INET);

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
	int err;

	err = proto_register(&ssa6_prot, 1);
	if (err)
		return err;
	err = inet6_register_protosw(&ssa6_protosw);
	if (err)
		proto_unregister(&ssa6_prot);
	return err;
}

static void ssa_proto6_uninit(void)
{
	inet6_unregister_protosw(&ssa6_protosw);
	proto_unregister(&ssa6_prot);
}
#else
static int __init ssa_proto6_init(void)
{
	return 0;
}

static void ssa_proto6_uninit(void)
{
}
#endif

/**
 * ssa_proto_init - let programs make TLS sockets
 *
 * The last step of loading: sockets can exist as soon as this returns.
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
	if (err) {
		proto_unregister(&ssa_prot);
		return err;
	}
	inet_register_protosw(&ssa_protosw);
	return 0;
}

/**
 * ssa_proto_uninit - the reverse; no socket exists, each holds the module
 */
void ssa_proto_uninit(void)
{
	inet_unregister_protosw(&ssa_protosw);
	ssa_proto6_uninit();
	proto_unregister(&ssa_prot);
}

/* The number is IPPROTO_TLS, the type SOCK_STREAM; the macro wants literals. */
MODULE_ALIAS_NET_PF_PROTO_TYPE(PF_INET, 205, 1);
MODULE_ALIAS_NET_PF_PROTO_TYPE(PF_INET6, 205, 1);
