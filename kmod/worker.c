// SPDX-License-Identifier: GPL-2.0
/*
 * The daemon process that answers requests.
 *
 * A worker is registered from the moment that its netlink socket sends
 * REGISTER until that socket is closed, by itself or by the death of its
 * process. It holds a reference to the module, so that a module in use by a
 * daemon is not removed.
 */

#include <linux/module.h>
#include <linux/netlink.h>
#include <linux/slab.h>
#include <net/net_namespace.h>

#include "ssa.h"

#define CLOSE_RETRY msecs_to_jiffies(20)

DEFINE_SPINLOCK(ssa_worker_lock);

/* Under ssa_worker_lock; holds one reference. */
static struct ssa_worker *registered;

/**
 * ssa_worker_get - the worker that takes requests now
 *
 * Return: a reference, or NULL when there is none.
 */
struct ssa_worker *ssa_worker_get(void)
{
	struct ssa_worker *worker;

	spin_lock(&ssa_worker_lock);
	worker = registered;
	if (worker)
		refcount_inc(&worker->ref);
	spin_unlock(&ssa_worker_lock);
	return worker;
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
 * Does not sleep for room in the worker's buffer.
 *
 * Return: 0; -EAGAIN if the worker's buffer is full; -ECONNREFUSED or another
 * error of netlink_unicast() if it is gone.
 */
int ssa_worker_send(struct ssa_worker *worker, struct sk_buff *skb)
{
	/* The latter: closed, and its port number may be another's already. */
	if (READ_ONCE(worker->dead) || sock_flag(worker->netlink, SOCK_DEAD)) {
		nlmsg_free(skb);
		return -ECONNREFUSED;
	}
	return genlmsg_unicast(&init_net, skb, worker->portid);
}

static int send_close(struct ssa_worker *worker, u64 socket)
{
	struct sk_buff *skb;
	void *hdr;

	skb = ssa_nl_new(SSA_CMD_CLOSE, nla_total_size(sizeof(u64)), &hdr);
	if (!skb)
		return -ENOMEM;
	if (ssa_nl_put_u64(skb, SSA_A_SOCKET, socket)) {
		nlmsg_free(skb);
		return -EMSGSIZE;
	}
	genlmsg_end(skb, hdr);
	return ssa_worker_send(worker, skb);
}

static void drop_closes(struct list_head *closes)
{
	struct ssa_close *close, *next;

	list_for_each_entry_safe(close, next, closes, list)
		kfree(close);
}

/* Sends what did not fit into the worker's buffer when it was closed. */
static void close_work(struct work_struct *work)
{
	struct ssa_worker *worker = container_of(to_delayed_work(work),
						 struct ssa_worker, close_work);
	struct ssa_close *close, *next;
	LIST_HEAD(closes);
	bool again = false;
	int err = 0;

	spin_lock(&ssa_worker_lock);
	list_splice_init(&worker->closes, &closes);
	spin_unlock(&ssa_worker_lock);

	list_for_each_entry_safe(close, next, &closes, list) {
		err = send_close(worker, close->socket);
		if (err)
			break;
		list_del(&close->list);
		kfree(close);
	}

	spin_lock(&ssa_worker_lock);
	if (!worker->dead && !list_empty(&closes)) {
		list_splice_init(&closes, &worker->closes);
		again = queue_delayed_work(ssa_wq, &worker->close_work, CLOSE_RETRY);
	}
	spin_unlock(&ssa_worker_lock);

	drop_closes(&closes);
	if (!again)
		ssa_worker_put(worker);
}

/**
 * ssa_worker_close - tell a worker that a socket is gone
 * @worker: that knows the socket; the caller's reference is consumed
 * @close: made with the socket, so that this can't fail; consumed
 *
 * The message is sent now, or as soon as the worker has room for it.
 */
void ssa_worker_close(struct ssa_worker *worker, struct ssa_close *close)
{
	int err;

	err = send_close(worker, close->socket);
	if (!err || err == -ECONNREFUSED)
		goto out_free;

	spin_lock(&ssa_worker_lock);
	if (worker->dead) {
		spin_unlock(&ssa_worker_lock);
		goto out_free;
	}
	list_add_tail(&close->list, &worker->closes);
	/*
	 * The work owns a reference while it is queued. Queued already: its
	 * run takes the whole list, so this entry too, under the same lock.
	 */
	if (queue_delayed_work(ssa_wq, &worker->close_work, CLOSE_RETRY))
		refcount_inc(&worker->ref);
	spin_unlock(&ssa_worker_lock);
	ssa_worker_put(worker);
	return;

out_free:
	kfree(close);
	ssa_worker_put(worker);
}

/**
 * ssa_worker_register - make a netlink port the worker
 * @skb: the message of who wants to be it
 * @extack: gets the reason of a refusal
 *
 * Return: 0; -EBUSY if there is a worker; -ENODEV if the module is being
 * removed; -ENOMEM.
 */
int ssa_worker_register(struct sk_buff *skb, struct netlink_ext_ack *extack)
{
	struct ssa_worker *worker;

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
	INIT_LIST_HEAD(&worker->closes);
	INIT_DELAYED_WORK(&worker->close_work, close_work);

	spin_lock(&ssa_worker_lock);
	if (registered) {
		spin_unlock(&ssa_worker_lock);
		ssa_worker_put(worker);
		module_put(THIS_MODULE);
		NL_SET_ERR_MSG(extack, "a daemon is registered already");
		return -EBUSY;
	}
	registered = worker;
	spin_unlock(&ssa_worker_lock);
	return 0;
}

static void unregister(u32 portid)
{
	struct ssa_worker *worker;
	LIST_HEAD(closes);

	spin_lock(&ssa_worker_lock);
	worker = registered;
	if (!worker || worker->portid != portid) {
		spin_unlock(&ssa_worker_lock);
		return;
	}
	registered = NULL;
	/*
	 * From here on no request is added for it (request_add() looks at
	 * dead under the lock of the table), so those that are failed below
	 * are all.
	 */
	WRITE_ONCE(worker->dead, true);
	list_splice_init(&worker->closes, &closes);
	spin_unlock(&ssa_worker_lock);

	drop_closes(&closes);
	ssa_request_fail_worker(worker);
	if (cancel_delayed_work_sync(&worker->close_work))
		ssa_worker_put(worker);
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
