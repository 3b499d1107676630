// SPDX-License-Identifier: GPL-2.0
/*
 * Races made wide, for tests; debug builds only (SSA_DEBUG=y).
 *
 * A call that comes to a named place waits there for as long as the parameter
 * "window" names it, so that a test can do meanwhile what is to race with it,
 * and then lets it go on.
 */

#include <linux/module.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/wait.h>

#include "ssa.h"

/* A test that fails is not to leave anybody here. */
#define LONGEST	(60 * HZ)

static const char * const names[] = {
	[SSA_WINDOW_NONE]		= "none",
	[SSA_WINDOW_ACCEPTING]		= "accepting",
	[SSA_WINDOW_BRINGING]		= "bringing",
	[SSA_WINDOW_CLOSING]		= "closing",
	[SSA_WINDOW_COMPLETING]		= "completing",
	[SSA_WINDOW_LEAVING]		= "leaving",
	[SSA_WINDOW_NOTIFYING]		= "notifying",
	[SSA_WINDOW_OPENING]		= "opening",
	[SSA_WINDOW_RECEIVING]		= "receiving",
	[SSA_WINDOW_REGISTERING]	= "registering",
	[SSA_WINDOW_SHUTTING]		= "shutting",
};

static int window;
static DECLARE_WAIT_QUEUE_HEAD(changed);

static int late;
module_param_named(window_late, late, int, 0444);
MODULE_PARM_DESC(window_late, "Calls that went on by themselves, since nobody let them");

static int set(const char *val, const struct kernel_param *kp)
{
	int found = sysfs_match_string(names, val);

	if (found < 0)
		return found;
	WRITE_ONCE(window, found);
	wake_up_all(&changed);
	return 0;
}

static int get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%s\n", names[READ_ONCE(window)]);
}

static const struct kernel_param_ops ops = { .set = set, .get = get };
module_param_cb(window, &ops, NULL, 0644);
MODULE_PARM_DESC(window, "Where calls wait, so that something can race with them");

/**
 * ssa_window - wait here, if this is where a test wants it
 * @here: the place
 *
 * Sleeps, for a bounded time. Not killable, as who has been killed closes sockets.
 */
void ssa_window(enum ssa_window here)
{
	if (!wait_event_timeout(changed, READ_ONCE(window) != here, LONGEST))
		WRITE_ONCE(late, READ_ONCE(late) + 1);
}
