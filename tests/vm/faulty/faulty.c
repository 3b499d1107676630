// SPDX-License-Identifier: GPL-2.0
/*
 * Does one thing wrong each time that it is loaded, which one the parameter "fault" says. A debug
 * kernel that keeps quiet about any of them proves nothing about other modules.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>

#define FAULTY_SIZE 200

static char *fault;
module_param(fault, charp, 0);
MODULE_PARM_DESC(fault, "what to do wrong");

static void faulty_expired(struct timer_list *timer)
{
}

static DEFINE_TIMER(faulty_timer, faulty_expired);
static DEFINE_SPINLOCK(faulty_first);
static DEFINE_SPINLOCK(faulty_second);
static int __rcu *faulty_pointer;
/* Read at run time, so that the compiler knows of none of this. */
static int faulty_distance = 40;

static int faulty_use_after_free(void)
{
	u8 *freed = kmalloc(FAULTY_SIZE, GFP_KERNEL);

	if (!freed)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(freed);
	kfree(freed);
	(void)READ_ONCE(freed[1]);
	return 0;
}

static int faulty_out_of_bounds(void)
{
	u8 *small = kmalloc(FAULTY_SIZE, GFP_KERNEL);

	if (!small)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(small);
	WRITE_ONCE(small[FAULTY_SIZE], 1);
	kfree(small);
	return 0;
}

static int faulty_leak(void)
{
	u8 *lost = kmalloc(FAULTY_SIZE, GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(lost);
	return lost ? 0 : -ENOMEM;
}

static int faulty_sleep(void)
{
	spin_lock(&faulty_first);
	might_sleep();
	spin_unlock(&faulty_first);
	return 0;
}

static int faulty_order(void)
{
	spin_lock(&faulty_first);
	spin_lock(&faulty_second);
	spin_unlock(&faulty_second);
	spin_unlock(&faulty_first);
	spin_lock(&faulty_second);
	spin_lock(&faulty_first);
	spin_unlock(&faulty_first);
	spin_unlock(&faulty_second);
	return 0;
}

static int faulty_rcu(void)
{
	return rcu_dereference(faulty_pointer) ? -EINVAL : 0;
}

static int faulty_shift(void)
{
	pr_info("%d\n", 1 << READ_ONCE(faulty_distance));
	return 0;
}

static int faulty_object(void)
{
	mod_timer(&faulty_timer, jiffies + HZ);
	timer_setup(&faulty_timer, faulty_expired, 0);
	timer_delete_sync(&faulty_timer);
	return 0;
}

static int faulty_refcount(void)
{
	refcount_t count = REFCOUNT_INIT(0);

	refcount_inc(&count);
	return 0;
}

static const struct {
	const char *name;
	int (*act)(void);
} faulty_faults[] = {
	{ "use-after-free", faulty_use_after_free },
	{ "out-of-bounds", faulty_out_of_bounds },
	{ "leak", faulty_leak },
	{ "sleep", faulty_sleep },
	{ "order", faulty_order },
	{ "rcu", faulty_rcu },
	{ "shift", faulty_shift },
	{ "object", faulty_object },
	{ "refcount", faulty_refcount },
};

static int __init faulty_init(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(faulty_faults); i++)
		if (fault && !strcmp(fault, faulty_faults[i].name))
			return faulty_faults[i].act();
	return -EINVAL;
}

static void __exit faulty_exit(void)
{
}

module_init(faulty_init);
module_exit(faulty_exit);
MODULE_DESCRIPTION("Does what a debug kernel has to report");
MODULE_LICENSE("GPL");
