/* SPDX-License-Identifier: GPL-2.0 */
/* Made from netlink_proto/ssa.yaml by netlink_proto/generate.py: do not edit. */

#ifndef _SSA_GENL_H
#define _SSA_GENL_H

#include <net/genetlink.h>
#include <net/netlink.h>

#include "ssa_netlink.h"

int ssa_nl_register_doit(struct sk_buff *skb, struct genl_info *info);
int ssa_nl_endpoint_doit(struct sk_buff *skb, struct genl_info *info);
int ssa_nl_complete_doit(struct sk_buff *skb, struct genl_info *info);
int ssa_nl_end_of_stream_doit(struct sk_buff *skb, struct genl_info *info);
int ssa_nl_module_get_doit(struct sk_buff *skb, struct genl_info *info);
int ssa_nl_worker_get_dumpit(struct sk_buff *skb, struct netlink_callback *cb);
int ssa_nl_socket_get_dumpit(struct sk_buff *skb, struct netlink_callback *cb);
int ssa_nl_accepted_doit(struct sk_buff *skb, struct genl_info *info);
int ssa_nl_leave_doit(struct sk_buff *skb, struct genl_info *info);

/* Indices of the multicast groups, for genlmsg_multicast(). */
enum {
	SSA_NLGRP_EVENTS,
};

/*
 * For the family, whose resv_start_op has to stay 0: then a command without a
 * policy refuses every attribute, and one with a policy those that it does not
 * list.
 */
extern const struct genl_ops ssa_nl_ops[9];
extern const struct genl_multicast_group ssa_nl_mcgrps[1];

#endif /* _SSA_GENL_H */
