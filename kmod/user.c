// SPDX-License-Identifier: GPL-2.0
/*
 * How many sockets of a user the daemon knows: there is a limit, so that those
 * of one user do not take from all others what the daemon has.
 *
 * A socket counts from socket() until it is closed, or until the daemon has
 * completed its connect() and does not relay the connection. So a program may
 * have any number of connections on kernel TLS, and what it has accepted counts
 * only where it is relayed. The daemon keeps what was set on a socket as well,
 * be it taken over from another one: so much of it counts as a socket more.
 *
 * Users are counted as in kernel/ucount.c, which modules can't use: the real
 * user of who called socket(), and who made the user namespaces that he is in.
 * Else somebody with many ids in a namespace of his own would have many limits.
 * Root has no limit.
 */

#include <linux/cred.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/user_namespace.h>

#include "ssa.h"

static unsigned int sockets_per_user = 65536;
module_param(sockets_per_user, uint, 0644);
MODULE_PARM_DESC(sockets_per_user,
		 "Most sockets of a user that the daemon knows at a time; root may have any number");

/* Bytes of options that count as a socket. */
#define SETTINGS_UNIT SZ_4K

/* Their numbers, as values, by kuid. */
static DEFINE_XARRAY(users);

static int count_up(kuid_t uid, u32 more)
{
	unsigned long nr;
	int err;

	if (uid_eq(uid, GLOBAL_ROOT_UID))
		return 0;
	xa_lock(&users);
	nr = xa_to_value(xa_load(&users, __kuid_val(uid))) + more;
	if (nr > READ_ONCE(sockets_per_user))
		err = -EMFILE;
	else	/* Atomic: else the lock would be dropped in between. */
		err = xa_err(__xa_store(&users, __kuid_val(uid), xa_mk_value(nr), GFP_ATOMIC));
	xa_unlock(&users);
	return err;
}

static void count_down(kuid_t uid, u32 less)
{
	unsigned long nr;

	if (uid_eq(uid, GLOBAL_ROOT_UID))
		return;
	xa_lock(&users);
	nr = xa_to_value(xa_load(&users, __kuid_val(uid))) - less;
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

/* Counts for a user and those above, or for none of them. */
static int add(const struct cred *cred, u32 more)
{
	struct ucounts *at, *done;
	int err;

	for (at = cred->ucounts; at; at = next(at)) {
		err = count_up(at->uid, more);
		if (err)
			goto err_count;
	}
	return 0;

err_count:
	for (done = cred->ucounts; done != at; done = next(done))
		count_down(done->uid, more);
	return err;
}

static void subtract(const struct cred *cred, u32 less)
{
	struct ucounts *at;

	for (at = cred->ucounts; at; at = next(at))
		count_down(at->uid, less);
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
	int err = add(cred, 1);

	if (!err)
		ssk->counted = (struct ssa_count){ .cred = get_cred(cred), .nr = 1 };
	return err;
}

/**
 * ssa_user_recount - count what is set on a socket
 * @ssk: not locked; its control lock is held
 * @len: bytes of it
 * @text: gets a sentence if it is too much, to be freed; NULL if it can't be
 *
 * Return: 0, always if it is no more than before; -ENOBUFS if it is more than
 * the user may have; -ENOMEM.
 */
int ssa_user_recount(struct ssa_sock *ssk, u32 len, char **text)
{
	struct ssa_count *counted = &ssk->counted;
	u32 nr = 1 + len / SETTINGS_UNIT;
	int err = 0;

	ssa_lock(ssk);
	if (!counted->cred)
		goto out;
	if (nr > counted->nr)
		err = add(counted->cred, nr - counted->nr);
	else
		subtract(counted->cred, counted->nr - nr);
	if (!err)
		counted->nr = nr;
out:
	ssa_unlock(ssk);
	if (err != -EMFILE)
		return err;
	*text = kstrdup("This user has too much set on TLS sockets; see socket-tls(2).",
			GFP_KERNEL);
	return -ENOBUFS;
}

/**
 * ssa_user_uncount - a socket does not count any more
 * @counted: what ssa_user_count() left in it, taken out under its lock
 */
void ssa_user_uncount(struct ssa_count counted)
{
	if (!counted.cred)
		return;
	subtract(counted.cred, counted.nr);
	put_cred(counted.cred);
}
