// SPDX-License-Identifier: GPL-2.0
/*
 * AF_HOSTNAME: TLS sockets that are connected to a name instead of an address.
 *
 * The family has nothing but TLS sockets. What they do is what those of
 * AF_INET and AF_INET6 do; their endpoint is of either family (endpoint.c).
 */

#include <linux/in.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <net/inet_common.h>

#include "ssa.h"

static int family = AF_HOSTNAME;
module_param_named(hostname_family, family, int, 0444);
MODULE_PARM_DESC(hostname_family,
		 "Number of AF_HOSTNAME, should this kernel need the usual one for something else");

/* The same, once it can be registered. */
int ssa_hostname_family = -1;

static int hostname_create(struct net *net, struct socket *sock, int protocol, int kern)
{
	struct sock *sk;
	int err;

	if (sock->type != SOCK_STREAM)
		return -ESOCKTNOSUPPORT;
	if (protocol && protocol != IPPROTO_TLS)
		return -EPROTONOSUPPORT;

	sock->state = SS_UNCONNECTED;
	sock->ops = &ssa_host_stream_ops;
	sk = sk_alloc(net, family, GFP_KERNEL, &ssa_prot, kern);
	if (!sk)
		return -ENOBUFS;
	sock_init_data(sock, sk);
	sk->sk_protocol = IPPROTO_TLS;
	sk->sk_destruct = inet_sock_destruct;
	sk->sk_txrehash = READ_ONCE(net->core.sysctl_txrehash);
	err = sk->sk_prot->init(sk);
	if (err) {
		sk_common_release(sk);
		sock->sk = NULL;
	}
	return err;
}

static struct net_proto_family hostname_proto_family = {
	.create	= hostname_create,
	.owner	= THIS_MODULE,
};

/**
 * ssa_hostname_init - let programs make sockets of AF_HOSTNAME
 *
 * Return: 0; -EEXIST if the kernel does not have the number free; -EINVAL if it
 * has no such family.
 */
int __init ssa_hostname_init(void)
{
	int err;

	if (family <= AF_UNSPEC || family >= NPROTO)
		return -EINVAL;
	hostname_proto_family.family = family;
	ssa_hostname_family = family;
	err = sock_register(&hostname_proto_family);
	if (err) {
		pr_err("ssa: the address family %d can't be had (%pe); hostname_family= takes another\n",
		       family, ERR_PTR(err));
		ssa_hostname_family = -1;
	}
	return err;
}

/**
 * ssa_hostname_uninit - the reverse; no socket exists, each holds the module
 */
void ssa_hostname_uninit(void)
{
	sock_unregister(family);
}

/**
 * ssa_hostname_parse - check a struct sockaddr_host
 * @addr: of that family
 * @len: its length in bytes
 *
 * A length that ends with the name's NUL will do, and so will that of a struct
 * sockaddr_storage.
 *
 * Return: the address; ERR_PTR(-EINVAL) for a wrong length, an empty name or
 * one without its NUL.
 */
const struct sockaddr_host *ssa_hostname_parse(const struct sockaddr *addr, int len)
{
	const struct sockaddr_host *host = (const struct sockaddr_host *)addr;
	int room = len - (int)offsetof(struct sockaddr_host, sh_addr);

	room = min_t(int, room, sizeof(host->sh_addr.name));
	if (room <= 1 || !host->sh_addr.name[0] || !memchr(host->sh_addr.name, 0, room))
		return ERR_PTR(-EINVAL);
	return host;
}

/* The number is AF_HOSTNAME; the macro wants a literal. */
MODULE_ALIAS_NETPROTO(18);
