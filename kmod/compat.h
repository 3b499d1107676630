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
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
/* Before MSG_SPLICE_PAGES, splice and sendfile wrote by ->sendpage(). */
#define SSA_HAVE_SENDPAGE
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

#endif
