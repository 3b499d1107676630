// SPDX-License-Identifier: GPL-2.0
/*
 * What was set on a socket, and TLS_CONTEXT, by which another one takes it over.
 *
 * Settings can be private keys. Those who share them each hold a reference, so
 * they live as long as the last socket that has them, and no longer.
 */

#include <linux/cred.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "ssa.h"

/* On one socket, all options together. */
#define SETTINGS_MAX	256
#define SETTINGS_LEN_MAX (4 * SSA_VALUE_MAX)

/**
 * ssa_setting_put - give a reference back
 * @set: may be NULL
 */
void ssa_setting_put(struct ssa_setting *set)
{
	/* It can be a private key. */
	if (set && refcount_dec_and_test(&set->ref))
		kvfree_sensitive(set, struct_size(set, value, set->len));
}

/**
 * ssa_settings_put - give a reference back
 * @settings: may be NULL
 */
void ssa_settings_put(struct ssa_settings *settings)
{
	u32 i;

	if (!settings || !refcount_dec_and_test(&settings->ref))
		return;
	for (i = 0; i < settings->nr; i++)
		ssa_setting_put(settings->set[i]);
	kfree(settings);
}

static void add(struct ssa_settings *to, struct ssa_setting *set)
{
	refcount_inc(&set->ref);
	to->nr++;
	to->set[to->nr - 1] = set;
	to->len += set->len;
}

/* A list of ciphers is the whole will: what was said of single ones is over. */
static bool is_over(const struct ssa_setting *old, const struct ssa_setting *set, bool repeatable)
{
	if (set->option == TLS_TRUSTED_CIPHERS &&
	    (old->option == TLS_DISABLE_CIPHER || old->option == TLS_ENABLE_CIPHER))
		return true;
	return !repeatable && old->option == set->option;
}

/**
 * ssa_settings_with - settings and one more
 * @old: the settings, or NULL
 * @set: the last one; the result holds a reference of its own
 * @repeatable: it does not replace the one of the same option
 *
 * Return: a reference (ssa_settings_put); -ENOBUFS if these are too many, for
 * what is repeatable has to end somewhere; -ENOMEM.
 */
struct ssa_settings *ssa_settings_with(const struct ssa_settings *old, struct ssa_setting *set,
				       bool repeatable)
{
	u32 i, nr = old ? old->nr : 0;
	struct ssa_settings *with;

	if (nr >= SETTINGS_MAX || ssa_settings_len(old) + set->len > SETTINGS_LEN_MAX)
		return ERR_PTR(-ENOBUFS);
	with = kzalloc(struct_size(with, set, nr + 1), GFP_KERNEL_ACCOUNT);
	if (!with)
		return ERR_PTR(-ENOMEM);
	refcount_set(&with->ref, 1);
	for (i = 0; i < nr; i++)
		if (!is_over(old->set[i], set, repeatable))
			add(with, old->set[i]);
	add(with, set);
	return with;
}

static const struct ssa_setting *find(const struct ssa_settings *settings, u32 option)
{
	u32 i;

	for (i = 0; settings && i < settings->nr; i++)
		if (settings->set[i]->option == option)
			return settings->set[i];
	return NULL;
}

/**
 * ssa_settings_u32 - the number that an option was set to
 * @settings: or NULL
 * @option: one that is not repeatable
 *
 * Return: the number, 0 if it was not set.
 */
u32 ssa_settings_u32(const struct ssa_settings *settings, u32 option)
{
	const struct ssa_setting *set = find(settings, option);
	u32 value = 0;

	if (set && set->len == sizeof(value))
		memcpy(&value, set->value, sizeof(value));
	return value;
}

/**
 * ssa_settings_len - bytes of all values
 * @settings: or NULL
 */
u32 ssa_settings_len(const struct ssa_settings *settings)
{
	return settings ? settings->len : 0;
}

/*
 * The settings that a socket has now, and its worker, with a reference to each. A
 * stranger does not learn whether there is such a socket: its id alone would be no
 * secret, since they are given in turn.
 *
 * Three have to be the same user: who calls, who made the socket that takes and
 * who made the one that gives. So neither a descriptor that was passed on nor
 * rights that were given up since make a difference. Containers can have users
 * in common, so the network namespace counts as well.
 */
static int settings_of(const struct ssa_sock *ssk, u64 id, struct ssa_settings **found,
		       struct ssa_worker **worker)
{
	struct ssa_sock *donor;
	int err = 0;

	donor = ssa_sock_get(id);
	if (!donor)
		return -ENOENT;
	ssa_lock(donor);
	if (!donor->endpoint || !uid_eq(donor->uid, current_euid()) ||
	    !uid_eq(ssk->uid, current_euid()) ||
	    !net_eq(sock_net(ssa_to_sk(donor)), sock_net(&ssk->inet.sk))) {
		err = -ENOENT;
	} else if (donor->server) {
		err = -EINVAL;
	} else {
		*found = donor->settings;
		if (*found)
			refcount_inc(&(*found)->ref);
		*worker = donor->worker;
		if (*worker)
			refcount_inc(&(*worker)->ref);
	}
	ssa_unlock(donor);
	sock_put(ssa_to_sk(donor));
	return err;
}

static char *take_error_text(int err, u64 id)
{
	if (err == -EINVAL)
		return kasprintf(GFP_KERNEL,
				 "TLS_CONTEXT: socket %llu was accepted, so nothing was set on it; name the one that listens.",
				 id);
	return kasprintf(GFP_KERNEL,
			 "TLS_CONTEXT: this user has no TLS socket %llu in this network namespace.",
			 id);
}

/* Settings of another kind, of which the worker is told; or as before. */
static int replace(struct ssa_sock *ssk, struct ssa_settings *settings, char **text)
{
	u32 switches = READ_ONCE(ssk->switches), len = ssa_settings_len(settings);
	struct ssa_settings *old = ssk->settings;
	int err;

	err = ssa_user_recount(ssk, max(len, ssa_settings_len(old)), text);
	if (err) {
		ssa_settings_put(settings);
		return err;
	}
	ssa_lock(ssk);
	ssk->settings = settings;
	ssa_unlock(ssk);
	/* The worker begins afresh with a socket that it is told of again. */
	ssk->introduced = false;
	err = ssa_sock_introduce(ssk, text);
	if (!err) {
		ssa_user_recount(ssk, len, NULL);
		ssa_settings_put(old);
		return 0;
	}
	ssa_lock(ssk);
	ssk->settings = old;
	ssa_unlock(ssk);
	ssk->introduced = false;
	/* The worker may have told those of a part of the others. */
	WRITE_ONCE(ssk->switches, switches);
	ssa_user_recount(ssk, ssa_settings_len(old), NULL);
	ssa_settings_put(settings);
	return err;
}

/**
 * ssa_context_take - take over all that was set on another socket
 * @ssk: NEW, its control lock is held; its own settings are dropped
 * @id: of the other socket
 * @text: gets a sentence if it fails, or NULL; to be freed
 *
 * Later changes of either are its own. The other's control lock is not needed: it
 * has its settings of before or after what it is just told.
 *
 * Return: 0; -ENOENT if there is no such socket, it is another user's or in
 * another network namespace; -EINVAL if it was accepted; -ENOBUFS if the user has
 * too much set on his sockets; -ENOMEM; an error of ssa_sock_introduce(). The
 * settings are what they were then.
 */
int ssa_context_take(struct ssa_sock *ssk, u64 id, char **text)
{
	struct ssa_settings *taken = NULL;
	struct ssa_worker *worker = NULL;
	const struct ssa_setting *name;
	char *host_name = NULL;
	int err;

	err = settings_of(ssk, id, &taken, &worker);
	if (err) {
		*text = take_error_text(err, id);
		return err;
	}
	name = find(taken, TLS_HOSTNAME);
	if (name) {
		host_name = kmemdup_nul(name->value, name->len, GFP_KERNEL);
		if (!host_name) {
			ssa_settings_put(taken);
			err = -ENOMEM;
			goto out_worker;
		}
	}
	/* Each worker has sessions of its own; else it is better to spread the sockets. */
	if (ssa_settings_u32(taken, TLS_SESSION_REUSE))
		ssa_sock_follow(ssk, worker);
	err = replace(ssk, taken, text);
	if (!err) {
		ssa_lock(ssk);
		swap(ssk->host_name, host_name);
		if (id != ssk->id)
			ssk->context = id;
		ssa_unlock(ssk);
	}
	kfree(host_name);
out_worker:
	ssa_worker_put(worker);
	return err;
}
