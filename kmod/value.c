// SPDX-License-Identifier: GPL-2.0
/*
 * An option's value: from the program's memory, or from a file that it names.
 *
 * A file is opened and read here, in the program's context, so with its rights
 * and in its file system namespace; the daemon sees only the bytes.
 */

#include <linux/fs.h>
#include <linux/limits.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "ssa.h"

static const char pem_mark[] = "-----BEGIN ";

static struct ssa_setting *setting_new(u32 option, size_t len)
{
	struct ssa_setting *set;

	set = kvmalloc(struct_size(set, value, len), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!set)
		return NULL;
	refcount_set(&set->ref, 1);
	set->option = option;
	set->len = len;
	return set;
}

/**
 * ssa_value_copy - a value out of the program's memory
 * @option: of the value
 * @val: where it is
 * @len: its length in bytes
 *
 * Return: a reference (ssa_setting_put); -EINVAL if empty; -EMSGSIZE if
 * longer than SSA_VALUE_MAX; -EFAULT; -ENOMEM.
 */
struct ssa_setting *ssa_value_copy(u32 option, sockptr_t val, unsigned int len)
{
	struct ssa_setting *set;

	if (!len)
		return ERR_PTR(-EINVAL);
	if (len > SSA_VALUE_MAX)
		return ERR_PTR(-EMSGSIZE);
	set = setting_new(option, len);
	if (!set)
		return ERR_PTR(-ENOMEM);
	if (copy_from_sockptr(set->value, val, len)) {
		kvfree(set);
		return ERR_PTR(-EFAULT);
	}
	return set;
}

/* One byte more than allowed is asked for, to find a file that has grown. */
static struct ssa_setting *read_file(u32 option, struct file *file, loff_t size)
{
	struct ssa_setting *set;
	loff_t pos = 0;
	ssize_t ret;
	size_t room;

	room = min_t(loff_t, size, SSA_VALUE_MAX) + 1;
	set = setting_new(option, room);
	if (!set)
		return ERR_PTR(-ENOMEM);
	while (pos < room) {
		ret = kernel_read(file, set->value + pos, room - pos, &pos);
		if (ret < 0)
			goto err;
		if (!ret)
			break;
		if (fatal_signal_pending(current)) {
			ret = -EINTR;
			goto err;
		}
	}
	ret = -EINVAL;
	if (!pos)
		goto err;
	ret = -EMSGSIZE;
	if (pos > SSA_VALUE_MAX)
		goto err;
	/* Longer than a moment ago: half a file would be half a certificate. */
	ret = -EINVAL;
	if (pos == room)
		goto err;
	set->len = pos;
	return set;

err:
	kvfree_sensitive(set, struct_size(set, value, room));
	return ERR_PTR(ret);
}

static struct ssa_setting *read_path(u32 option, const char *path)
{
	struct ssa_setting *set;
	struct file *file;
	loff_t size;

	/* Nonblocking, so that a FIFO does not hold the program up. */
	file = filp_open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
	if (IS_ERR(file))
		return ERR_CAST(file);
	size = i_size_read(file_inode(file));
	if (S_ISDIR(file_inode(file)->i_mode))
		set = ERR_PTR(-EISDIR);
	else if (!S_ISREG(file_inode(file)->i_mode))
		set = ERR_PTR(-EINVAL);
	else if (size > SSA_VALUE_MAX)
		set = ERR_PTR(-EMSGSIZE);
	else
		set = read_file(option, file, size);
	fput(file);
	return set;
}

/* PEM is told by its mark, DER by its NULs, which a path has behind it only. */
static bool is_path(const struct ssa_setting *set)
{
	return set->len <= PATH_MAX && !memchr(set->value, '\0', set->len - 1) &&
	       !strnstr(set->value, pem_mark, set->len);
}

/**
 * ssa_value_copy_or_read - a value, or the content of the file that it names
 * @option: of the value
 * @val: PEM, DER or a path; the path with or without a NUL behind it
 * @len: its length in bytes
 *
 * Sleeps. Return: as ssa_value_copy(); besides, the errors of open(2) and
 * read(2) as the caller; -EISDIR or -EINVAL for what is no regular file, is
 * empty or grows; -EMSGSIZE for a file longer than SSA_VALUE_MAX.
 */
struct ssa_setting *ssa_value_copy_or_read(u32 option, sockptr_t val, unsigned int len)
{
	struct ssa_setting *given, *set;
	char *path;

	given = ssa_value_copy(option, val, len);
	if (IS_ERR(given) || !is_path(given))
		return given;
	/* Should it be a key after all, it leaves no trace. */
	path = kmemdup_nul(given->value, given->len, GFP_KERNEL);
	kvfree_sensitive(given, struct_size(given, value, given->len));
	if (!path)
		return ERR_PTR(-ENOMEM);
	set = read_path(option, path);
	kfree_sensitive(path);
	return set;
}
