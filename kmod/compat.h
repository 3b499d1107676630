/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Differences between kernel versions, and nothing else. Floor: 6.1.
 */
#ifndef _SSA_COMPAT_H
#define _SSA_COMPAT_H

#include <linux/compiler_attributes.h>
#include <linux/fs.h>
#include <linux/mm_types.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/socket.h>
#include <linux/tcp.h>
#include <linux/version.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
/* Before MSG_SPLICE_PAGES, splice and sendfile wrote by ->sendpage(). */
#define SSA_HAVE_SENDPAGE
#define SSA_MSG_SPLICE 0
#else
/* How splice and sendfile say that a write is theirs. */
#define SSA_MSG_SPLICE (MSG_SPLICE_PAGES | MSG_SENDPAGE_NOPOLICY)
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
/* Before, struct ipv6_pinfo was at the end of the object by definition. */
#define SSA_HAVE_IPV6_PINFO_OFFSET
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
/* Before, proto_ops.accept() had its arguments one by one. */
#define SSA_HAVE_PROTO_ACCEPT_ARG
#endif

#ifndef __counted_by
#define __counted_by(...)
#endif

/* Options that the oldest kernel has no name for. */
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD		76
#define SO_PEERPIDFD		77
#endif
#ifndef SO_DEVMEM_LINEAR
#define SO_DEVMEM_LINEAR	78
#define SO_DEVMEM_DMABUF	79
#define SO_DEVMEM_DONTNEED	80
#endif
#ifndef TCP_AO_ADD_KEY
#define TCP_AO_ADD_KEY		38
#define TCP_AO_DEL_KEY		39
#define TCP_AO_INFO		40
#define TCP_AO_GET_KEYS		41
#define TCP_AO_REPAIR		42
#endif
#ifndef TCP_IS_MPTCP
#define TCP_IS_MPTCP		43
#endif

/**
 * ssa_exe_file - the file that the current process executes
 *
 * get_mm_exe_file() is not exported. Return: a reference, or NULL.
 */
static inline struct file *ssa_exe_file(void)
{
	struct file *file = NULL;

	if (!current->mm)
		return NULL;
	rcu_read_lock();
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0)
	file = rcu_dereference(current->mm->exe_file);
	if (file && !get_file_rcu(file))
		file = NULL;
#else
	file = get_file_rcu(&current->mm->exe_file);
#endif
	rcu_read_unlock();
	return file;
}

/**
 * ssa_hold_netns - let a socket hold its network namespace
 * @sk: of the kernel, so that it may not; seen by nobody else
 *
 * Kernels that have sk_net_refcnt_upgrade() account for more than its absence
 * lets others do, so it is looked for by Kbuild. Return: 0; -ENONET if the namespace
 * is on its way out.
 */
static inline int ssa_hold_netns(struct sock *sk)
{
	struct net *net = sock_net(sk);

	if (sk->sk_net_refcnt)
		return 0;
	if (!maybe_get_net(net))
		return -ENONET;
#ifdef SSA_HAVE_SK_NET_REFCNT_UPGRADE
	/* It takes a reference of its own. */
	sk_net_refcnt_upgrade(sk);
	put_net(net);
	return 0;
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	/* Those that hold it not are tracked apart. */
	__netns_tracker_free(net, &sk->ns_tracker, false);
#endif
	netns_tracker_alloc(net, &sk->ns_tracker, GFP_KERNEL);
	sk->sk_net_refcnt = 1;
	sock_inuse_add(net, 1);
	return 0;
}

#endif
