// SPDX-License-Identifier: GPL-2.0
/*
 * The daemon's processes that answer requests.
 *
 * A worker is registered from the moment that its netlink socket sends
 * REGISTER until that socket is closed, by itself or by the death of its
 * process. It holds a reference to the module, so that a module in use by a
 * daemon is not removed. Sockets are spread over the workers as they are made;
 * each has one worker at a time.
 *
 * One that leaves (LEAVE) makes way for others and fails nobody: it is given
 * nothing new, finishes what it has begun, and closes its netlink socket when
 * nothing is owed to it any more.
 */

#include <linux/module.h>
#include <linux/netlink.h>
#include <linux/slab.h>
#include <net/net_namespace.h>

#include "ssa.h"

#define NOTICE_RETRY msecs_to_jiffies(20)

DEFINE_SPINLOCK(ssa_worker_lock);

/* Under ssa_worker_lock; holds one reference to each. */
static LIST_HEAD(workers);

/**
 * ssa_worker_is_gone - can a worker be sent nothing any more?
 * @worker: referenced by the caller
 *
 * True from the moment that its netlink socket is closed, which is before the
 * notifier hears of it and unregisters the worker.
 */
bool ssa_worker_is_gone(struct ssa_worker *worker)
{
	return READ_ONCE(worker->dead) || sock_flag(worker->netlink, SOCK_DEAD);
}

/**
 * ssa_worker_is_leaving - is another one to be asked from now on?
 * @worker: referenced by the caller
 *
 * True for one that is gone as well.
 */
bool ssa_worker_is_leaving(struct ssa_worker *worker)
{
	return READ_ONCE(worker->leaving) || ssa_worker_is_gone(worker);
}

/* One that does not answer has ever more requests. */
static int load(struct ssa_worker *worker)
{
	return atomic_read(&worker->sockets) + atomic_read(&worker->pending);
}

/**
 * ssa_worker_get - the worker that has the fewest sockets and requests
 *
 * Return: a reference, or NULL when there is none, or none that stays.
 */
struct ssa_worker *ssa_worker_get(void)
{
	struct ssa_worker *worker, *found = NULL;

	spin_lock(&ssa_worker_lock);
	list_for_each_entry(worker, &workers, list) {
		if (ssa_worker_is_leaving(worker))
			continue;
		if (!found || load(worker) < load(found))
			found = worker;
	}
	if (found)
		refcount_inc(&found->ref);
	spin_unlock(&ssa_worker_lock);
	return found;
}

/**
 * ssa_worker_any - is there a worker, other than those that leave?
 */
bool ssa_worker_any(void)
{
	struct ssa_worker *worker = ssa_worker_get();

	ssa_worker_put(worker);
	return worker;
}

/**
 * ssa_worker_nth - walk all workers
 * @n: from 0
 *
 * Return: a reference, or NULL at the end.
 */
struct ssa_worker *ssa_worker_nth(unsigned long n)
{
	struct ssa_worker *worker, *found = NULL;

	spin_lock(&ssa_worker_lock);
	list_for_each_entry(worker, &workers, list) {
		if (n--)
			continue;
		refcount_inc(&worker->ref);
		found = worker;
		break;
	}
	spin_unlock(&ssa_worker_lock);
	return found;
}

/**
 * ssa_worker_put - give a reference back
 * @worker: may be NULL
 */
void ssa_worker_put(struct ssa_worker *worker)
{
	if (worker && refcount_dec_and_test(&worker->ref)) {
		sock_put(worker->netlink);
		kfree(worker);
	}
}

/**
 * ssa_worker_is - did a worker send this message?
 * @worker: referenced by the caller, may be NULL
 * @skb: the message
 *
 * Told by the socket: its port number is free for others as soon as it is
 * closed, which is before the worker is known to be dead.
 */
bool ssa_worker_is(struct ssa_worker *worker, struct sk_buff *skb)
{
	return worker && worker->netlink == NETLINK_CB(skb).sk && !READ_ONCE(worker->dead);
}

/**
 * ssa_worker_send - send one message to a worker
 * @worker: referenced by the caller
 * @skb: the whole message; consumed in every case
 *
 * Does not sleep for room in the worker's buffer. Half of it is kept for the
 * kernel's answers: once one message found no room, netlink drops all others as
 * well until the worker has read everything.
 *
 * Not by netlink_unicast(), which looks for the port number: as soon as the worker
 * has closed its socket anybody can have that, and there are private keys in some
 * messages. What a socket has got that is closed meanwhile is freed with it.
 *
 * Return: 0; -EAGAIN if the worker's buffer is full; -ECONNREFUSED if it is gone.
 */
int ssa_worker_send(struct ssa_worker *worker, struct sk_buff *skb)
{
	struct sock *to = worker->netlink;
	int err = -ECONNREFUSED;

	if (ssa_worker_is_gone(worker))
		goto err_free;
	err = -EAGAIN;
	if (atomic_read(&to->sk_rmem_alloc) > READ_ONCE(to->sk_rcvbuf) / 2 ||
	    __sock_queue_rcv_skb(to, skb))
		goto err_free;
	return 0;

err_free:
	nlmsg_free(skb);
	return err;
}

static int send_notice(struct ssa_worker *worker, const struct ssa_notice *notice)
{
	struct sk_buff *skb;
	void *hdr;

	skb = ssa_nl_new(notice->cmd, nla_total_size(sizeof(u64)), &hdr);
	if (!skb)
		return -ENOMEM;
	if (ssa_nl_put_u64(skb, SSA_A_SOCKET, notice->socket)) {
		nlmsg_free(skb);
		return -EMSGSIZE;
	}
	genlmsg_end(skb, hdr);
	return ssa_worker_send(worker, skb);
}

static void drop_notices(struct list_head *notices)
{
	struct ssa_notice *notice, *next;

	list_for_each_entry_safe(notice, next, notices, list)
		kfree(notice);
}

/* Sends what did not fit into the worker's buffer at first. */
static void notice_work(struct work_struct *work)
{
	struct ssa_worker *worker = container_of(to_delayed_work(work),
						 struct ssa_worker, notice_work);
	struct ssa_notice *notice, *next;
	LIST_HEAD(notices);
	bool again = false;
	int err = 0;

	spin_lock(&ssa_worker_lock);
	list_splice_init(&worker->notices, &notices);
	spin_unlock(&ssa_worker_lock);

	list_for_each_entry_safe(notice, next, &notices, list) {
		err = send_notice(worker, notice);
		if (err)
			break;
		list_del(&notice->list);
		kfree(notice);
	}

	spin_lock(&ssa_worker_lock);
	if (!worker->dead && !list_empty(&notices)) {
		list_splice_init(&notices, &worker->notices);
		again = queue_delayed_work(ssa_wq, &worker->notice_work, NOTICE_RETRY);
	}
	spin_unlock(&ssa_worker_lock);

	drop_notices(&notices);
	if (!again)
		ssa_worker_put(worker);
}

/**
 * ssa_notice_new - make a notice ahead of its time, so that sending can't fail
 * @ssk: what it is about
 * @cmd: SSA_CMD_CLOSE or SSA_CMD_ROOM
 *
 * Return: to be given to ssa_worker_notify() or kfree(); or NULL.
 */
struct ssa_notice *ssa_notice_new(struct ssa_sock *ssk, u8 cmd)
{
	struct ssa_notice *notice = kzalloc(sizeof(*notice), GFP_KERNEL_ACCOUNT);

	if (notice) {
		notice->socket = ssk->id;
		notice->cmd = cmd;
	}
	return notice;
}

/**
 * ssa_worker_notify - send a notice
 * @worker: that knows the socket; the caller's reference is consumed
 * @notice: consumed
 *
 * It is sent now, or as soon as the worker has room for it.
 */
void ssa_worker_notify(struct ssa_worker *worker, struct ssa_notice *notice)
{
	int err;

	err = send_notice(worker, notice);
	if (!err || err == -ECONNREFUSED)
		goto out_free;

	spin_lock(&ssa_worker_lock);
	if (worker->dead) {
		spin_unlock(&ssa_worker_lock);
		goto out_free;
	}
	list_add_tail(&notice->list, &worker->notices);
	/*
	 * The work owns a reference while it is queued. Queued already: its
	 * run takes the whole list, so this entry too, under the same lock.
	 */
	if (queue_delayed_work(ssa_wq, &worker->notice_work, NOTICE_RETRY))
		refcount_inc(&worker->ref);
	spin_unlock(&ssa_worker_lock);
	ssa_worker_put(worker);
	return;

out_free:
	kfree(notice);
	ssa_worker_put(worker);
}

/**
 * ssa_worker_close - tell a worker that a socket is not its own any more
 * @worker: that knows the socket
 * @ssk: which lives on
 *
 * Return: 0, also if the worker is gone; -EAGAIN if it has no room; -ENOMEM.
 */
int ssa_worker_close(struct ssa_worker *worker, struct ssa_sock *ssk)
{
	const struct ssa_notice notice = { .socket = ssk->id, .cmd = SSA_CMD_CLOSE };
	int err = send_notice(worker, &notice);

	return err == -ECONNREFUSED ? 0 : err;
}

/**
 * ssa_worker_forget - a socket that a worker knows is no more
 * @worker: it, and the caller's reference is consumed; or NULL
 * @close: notice of SSA_CMD_CLOSE; consumed
 */
void ssa_worker_forget(struct ssa_worker *worker, struct ssa_notice *close)
{
	if (worker) {
		atomic_dec(&worker->sockets);
		ssa_worker_notify(worker, close);
	} else {
		kfree(close);
	}
}

static bool register_locked(struct ssa_worker *worker)
{
	struct ssa_worker *other;

	lockdep_assert_held(&ssa_worker_lock);
	list_for_each_entry(other, &workers, list) {
		if (ssa_worker_is_gone(other))
			continue;
		if (other->daemon != worker->daemon || other->netlink == worker->netlink)
			return false;
	}
	list_add_tail(&worker->list, &workers);
	return true;
}

/**
 * ssa_worker_register - make a netlink port a worker
 * @skb: the message of who wants to be it
 * @daemon: its daemon's main process
 * @extack: gets the reason of a refusal
 *
 * Return: 0; -EBUSY if there is a worker of another daemon, or on this port;
 * -ENODEV if the module is being removed; -ENOMEM.
 */
int ssa_worker_register(struct sk_buff *skb, u32 daemon, struct netlink_ext_ack *extack)
{
	struct ssa_worker *worker;
	bool done;

	ssa_window(SSA_WINDOW_REGISTERING);
	worker = kzalloc(sizeof(*worker), GFP_KERNEL);
	if (!worker)
		return -ENOMEM;
	if (!try_module_get(THIS_MODULE)) {
		kfree(worker);
		return -ENODEV;
	}
	refcount_set(&worker->ref, 1);
	worker->netlink = NETLINK_CB(skb).sk;
	sock_hold(worker->netlink);
	worker->portid = NETLINK_CB(skb).portid;
	worker->pid = task_tgid_nr(current);
	worker->daemon = daemon;
	INIT_LIST_HEAD(&worker->notices);
	INIT_DELAYED_WORK(&worker->notice_work, notice_work);

	spin_lock(&ssa_worker_lock);
	done = register_locked(worker);
	spin_unlock(&ssa_worker_lock);
	if (!done) {
		ssa_worker_put(worker);
		module_put(THIS_MODULE);
		NL_SET_ERR_MSG(extack, "a daemon is registered already");
		return -EBUSY;
	}
	return 0;
}

/**
 * ssa_worker_of - the worker that sent a message
 * @skb: the message
 *
 * Return: a reference, or NULL if it is no worker's.
 */
struct ssa_worker *ssa_worker_of(struct sk_buff *skb)
{
	struct ssa_worker *worker, *found = NULL;

	spin_lock(&ssa_worker_lock);
	list_for_each_entry(worker, &workers, list) {
		if (!ssa_worker_is(worker, skb))
			continue;
		refcount_inc(&worker->ref);
		found = worker;
		break;
	}
	spin_unlock(&ssa_worker_lock);
	return found;
}

static bool leave_locked(struct ssa_worker *worker)
{
	struct ssa_worker *other;

	lockdep_assert_held(&ssa_worker_lock);
	list_for_each_entry(other, &workers, list) {
		if (other == worker || ssa_worker_is_leaving(other))
			continue;
		WRITE_ONCE(worker->leaving, true);
		return true;
	}
	return READ_ONCE(worker->leaving);
}

/**
 * ssa_worker_leave - a worker is about to go: let others have what it has
 * @worker: referenced by the caller
 *
 * What it has been asked stays its own. Listening sockets are moved at once, by
 * their own work; a socket that is not connected when it is used next, which
 * ssa_sock_introduce() sees to.
 *
 * Return: 0; -EBUSY if there is no other that stays.
 */
int ssa_worker_leave(struct ssa_worker *worker)
{
	bool done;

	spin_lock(&ssa_worker_lock);
	done = leave_locked(worker);
	spin_unlock(&ssa_worker_lock);
	if (!done)
		return -EBUSY;
	ssa_listen_adopt_all();
	return 0;
}

/**
 * ssa_worker_owed - what a worker that leaves may still be asked, or has been
 * @worker: referenced by the caller, leaving
 *
 * Once it is 0 it stays so, and nobody misses the worker.
 */
u32 ssa_worker_owed(struct ssa_worker *worker)
{
	/* First: a call makes its request before it lets go of its socket. */
	u32 owed = ssa_sock_count_busy(worker);

	return owed + atomic_read(&worker->pending);
}

/* A worker whose socket is closed, and had this number, which may be another's now. */
static struct ssa_worker *take_worker(u32 portid)
{
	struct ssa_worker *worker;

	lockdep_assert_held(&ssa_worker_lock);
	list_for_each_entry(worker, &workers, list) {
		if (worker->portid != portid || !sock_flag(worker->netlink, SOCK_DEAD))
			continue;
		list_del(&worker->list);
		return worker;
	}
	return NULL;
}

static void unregister(u32 portid)
{
	struct ssa_worker *worker;
	LIST_HEAD(notices);

	spin_lock(&ssa_worker_lock);
	worker = take_worker(portid);
	if (!worker) {
		spin_unlock(&ssa_worker_lock);
		return;
	}
	/*
	 * From here on no request is added for it (ssa_request_add() looks at
	 * dead under the lock of the table), so those that are failed below
	 * are all.
	 */
	WRITE_ONCE(worker->dead, true);
	list_splice_init(&worker->notices, &notices);
	spin_unlock(&ssa_worker_lock);

	drop_notices(&notices);
	ssa_request_fail_worker(worker);
	ssa_listen_adopt_all();
	if (cancel_delayed_work_sync(&worker->notice_work))
		ssa_worker_put(worker);
	ssa_window(SSA_WINDOW_LEAVING);
	ssa_worker_put(worker);
	module_put(THIS_MODULE);
}

static int netlink_event(struct notifier_block *nb, unsigned long event, void *ptr)
{
	struct netlink_notify *notify = ptr;

	if (event == NETLINK_URELEASE && notify->protocol == NETLINK_GENERIC &&
	    net_eq(notify->net, &init_net))
		unregister(notify->portid);
	return NOTIFY_DONE;
}

static struct notifier_block netlink_notifier = {
	.notifier_call = netlink_event,
};

int __init ssa_worker_init(void)
{
	return netlink_register_notifier(&netlink_notifier);
}

void ssa_worker_uninit(void)
{
	netlink_unregister_notifier(&netlink_notifier);
}
