// SPDX-License-Identifier: GPL-2.0
/*
 * How many sockets of a user the daemon knows: there is a limit, so that those
 * of one user do not take from all others what the daemon has.
 *
 * A socket counts from socket() until it is closed, or until the daemon has
 * completed its connect() and does not relay the connection. So a program may
 * have any number of connections on kernel TLS, and what it has accepted counts
 * only where it is relayed.
 *
 * Users are counted as in kernel/ucount.c, which modules can't use: the real
 * user of who called socket(), and who made the user namespaces that he is in.
 * Else somebody with many ids in a namespace of his own would have many limits.
 * Root has no limit.
 */

#include <linux/cred.h>
#include <linux/module.h>
#include <linux/user_namespace.h>

#include "ssa.h"

static unsigned int sockets_per_user = 65536;
module_param(sockets_per_user, uint, 0644);
MODULE_PARM_DESC(sockets_per_user,
		 "Most sockets of a user that the daemon knows at a time; root may have any number");

/* Their numbers, as values, by kuid. */
static DEFINE_XARRAY(users);

static int count_up(kuid_t uid)
{
	unsigned long nr;
	int err;

	if (uid_eq(uid, GLOBAL_ROOT_UID))
		return 0;
	xa_lock(&users);
	nr = xa_to_value(xa_load(&users, __kuid_val(uid)));
	if (nr >= READ_ONCE(sockets_per_user))
		err = -EMFILE;
	else	/* Atomic: else the lock would be dropped in between. */
		err = xa_err(__xa_store(&users, __kuid_val(uid), xa_mk_value(nr + 1), GFP_ATOMIC));
	xa_unlock(&users);
	return err;
}

static void count_down(kuid_t uid)
{
	unsigned long nr;

	if (uid_eq(uid, GLOBAL_ROOT_UID))
		return;
	xa_lock(&users);
	nr = xa_to_value(xa_load(&users, __kuid_val(uid))) - 1;
	/* In place of a value, or of nothing else: no memory is needed. */
	__xa_store(&users, __kuid_val(uid), nr ? xa_mk_value(nr) : NULL, 0);
	xa_unlock(&users);
}

/* The next to be counted; who is himself in a namespace that he made counts once. */
static struct ucounts *next(struct ucounts *at)
{
	kuid_t uid = at->uid;

	do {
		at = at->ns->ucounts;
	} while (at && uid_eq(at->uid, uid));
	return at;
}

/**
 * ssa_user_count - count a socket
 * @ssk: not counted; locked, or seen by nobody else
 * @cred: whose it is
 *
 * Return: 0; -EMFILE if the user has as many as he may have; -ENOMEM.
 */
int ssa_user_count(struct ssa_sock *ssk, const struct cred *cred)
{
	struct ucounts *at, *done;
	int err;

	for (at = cred->ucounts; at; at = next(at)) {
		err = count_up(at->uid);
		if (err)
			goto err_count;
	}
	ssk->counted = get_cred(cred);
	return 0;

err_count:
	for (done = cred->ucounts; done != at; done = next(done))
		count_down(done->uid);
	return err;
}

/**
 * ssa_user_uncount - a socket does not count any more
 * @counted: what ssa_user_count() left in it, taken out under its lock; or NULL
 */
void ssa_user_uncount(const struct cred *counted)
{
	struct ucounts *at;

	if (!counted)
		return;
	for (at = counted->ucounts; at; at = next(at))
		count_down(at->uid);
	put_cred(counted);
}
