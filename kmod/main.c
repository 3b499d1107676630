// SPDX-License-Identifier: GPL-2.0
/*
 * TLS as a protocol of the socket interface: socket(…, SOCK_STREAM, IPPROTO_TLS).
 */

#include <linux/module.h>

#include "ssa.h"

unsigned int ssa_request_timeout_ms = 10 * MSEC_PER_SEC;
module_param_named(request_timeout_ms, ssa_request_timeout_ms, uint, 0644);
MODULE_PARM_DESC(request_timeout_ms, "Longest wait for the daemon's answer, but to connect()");

unsigned int ssa_connect_timeout_ms = 300 * MSEC_PER_SEC;
module_param_named(connect_timeout_ms, ssa_connect_timeout_ms, uint, 0644);
MODULE_PARM_DESC(connect_timeout_ms,
		 "Longest connect(), should the daemon never answer; it has deadlines of its own");

/* Of our own, so that the module outlasts what runs on them. */
struct workqueue_struct *ssa_wq;
/* Apart, for this work waits for workers: deadlines must not queue behind it. */
struct workqueue_struct *ssa_adopt_wq;

static int __init ssa_init(void)
{
	int err;

	ssa_wq = alloc_workqueue("ssa", 0, 0);
	if (!ssa_wq)
		return -ENOMEM;
	err = -ENOMEM;
	ssa_adopt_wq = alloc_workqueue("ssa_adopt", WQ_UNBOUND, 0);
	if (!ssa_adopt_wq)
		goto err_wq;
	err = ssa_worker_init();
	if (err)
		goto err_adopt_wq;
	err = genl_register_family(&ssa_nl_family);
	if (err)
		goto err_worker;
	err = ssa_proto_init();
	if (err)
		goto err_family;
	return 0;

err_family:
	genl_unregister_family(&ssa_nl_family);
err_worker:
	ssa_worker_uninit();
err_adopt_wq:
	destroy_workqueue(ssa_adopt_wq);
err_wq:
	destroy_workqueue(ssa_wq);
	return err;
}

/* No socket and no worker exists: each of them holds the module. */
static void __exit ssa_exit(void)
{
	ssa_proto_uninit();
	genl_unregister_family(&ssa_nl_family);
	ssa_worker_uninit();
	destroy_workqueue(ssa_adopt_wq);
	destroy_workqueue(ssa_wq);
}

module_init(ssa_init);
module_exit(ssa_exit);

MODULE_DESCRIPTION("TLS sockets");
MODULE_AUTHOR("The ssad authors");
MODULE_LICENSE("GPL");
MODULE_VERSION(SSA_VERSION);
MODULE_ALIAS_GENL_FAMILY(SSA_FAMILY_NAME);
/* Kernel TLS; without it the daemon takes the channel. */
MODULE_SOFTDEP("post: tls");
