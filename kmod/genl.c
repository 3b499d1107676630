// SPDX-License-Identifier: GPL-2.0
/* Made from netlink_proto/ssa.yaml by netlink_proto/generate.py: do not edit. */

#include "genl.h"

/* SSA_CMD_REGISTER - do */
static const struct nla_policy ssa_register_nl_policy[SSA_A_DAEMON + 1] = {
	[SSA_A_DAEMON] = { .type = NLA_U32 },
};

/* SSA_CMD_ENDPOINT - do */
static const struct nla_policy ssa_endpoint_nl_policy[SSA_A_ENDPOINT + 1] = {
	[SSA_A_REQUEST] = { .type = NLA_U32 },
	[SSA_A_ENDPOINT] = { .type = NLA_U32 },
};

/* SSA_CMD_COMPLETE - do */
static const struct nla_policy ssa_complete_nl_policy[SSA_A_TICKETS + 1] = {
	[SSA_A_REQUEST] = { .type = NLA_U32 },
	[SSA_A_ERROR] = NLA_POLICY_MAX(NLA_U32, 511),
	[SSA_A_TEXT] = { .type = NLA_NUL_STRING, .len = SSA_TEXT_MAX },
	[SSA_A_HOST_NAME] = { .type = NLA_NUL_STRING, .len = SSA_HOST_NAME_MAX },
	[SSA_A_VALUE] = { .type = NLA_BINARY, .len = SSA_VALUE_PIECE_MAX },
	[SSA_A_TRANSPORT] = NLA_POLICY_MAX(NLA_U32, SSA_TRANSPORT_CHANNEL),
	[SSA_A_FD] = NLA_POLICY_MIN(NLA_S32, 0),
	[SSA_A_VERSION] = { .type = NLA_U32 },
	[SSA_A_CIPHER] = { .type = NLA_NUL_STRING, .len = SSA_CIPHER_MAX },
	[SSA_A_ALPN] = { .type = NLA_NUL_STRING, .len = SSA_ALPN_MAX },
	[SSA_A_PEER_IDENTITY] = { .type = NLA_NUL_STRING, .len = SSA_IDENTITY_MAX },
	[SSA_A_PEER_CHAIN] = { .type = NLA_BINARY, .len = SSA_CHAIN_PIECE_MAX },
	[SSA_A_RESUMED] = NLA_POLICY_MAX(NLA_U32, 1),
	[SSA_A_ENDPOINT] = { .type = NLA_U32 },
	[SSA_A_SWITCHES] = { .type = NLA_U32 },
	[SSA_A_TICKETS] = NLA_POLICY_MAX(NLA_U32, SSA_TICKETS_MAX),
};

/* SSA_CMD_END_OF_STREAM - do */
static const struct nla_policy ssa_end_of_stream_nl_policy[SSA_A_TEXT + 1] = {
	[SSA_A_SOCKET] = { .type = NLA_U64 },
	[SSA_A_ERROR] = NLA_POLICY_MAX(NLA_U32, 511),
	[SSA_A_TEXT] = { .type = NLA_NUL_STRING, .len = SSA_TEXT_MAX },
};

/* SSA_CMD_ACCEPTED - do */
static const struct nla_policy ssa_accepted_nl_policy[SSA_A_ENDPOINT_FD + 1] = {
	[SSA_A_SOCKET] = { .type = NLA_U64 },
	[SSA_A_ERROR] = NLA_POLICY_MAX(NLA_U32, 511),
	[SSA_A_TEXT] = { .type = NLA_NUL_STRING, .len = SSA_TEXT_MAX },
	[SSA_A_REMOTE_ADDRESS] = { .type = NLA_BINARY, .len = SSA_ADDRESS_MAX },
	[SSA_A_HOST_NAME] = { .type = NLA_NUL_STRING, .len = SSA_HOST_NAME_MAX },
	[SSA_A_TRANSPORT] = NLA_POLICY_MAX(NLA_U32, SSA_TRANSPORT_CHANNEL),
	[SSA_A_FD] = NLA_POLICY_MIN(NLA_S32, 0),
	[SSA_A_VERSION] = { .type = NLA_U32 },
	[SSA_A_CIPHER] = { .type = NLA_NUL_STRING, .len = SSA_CIPHER_MAX },
	[SSA_A_ALPN] = { .type = NLA_NUL_STRING, .len = SSA_ALPN_MAX },
	[SSA_A_PEER_IDENTITY] = { .type = NLA_NUL_STRING, .len = SSA_IDENTITY_MAX },
	[SSA_A_PEER_CHAIN] = { .type = NLA_BINARY, .len = SSA_CHAIN_PIECE_MAX },
	[SSA_A_RESUMED] = NLA_POLICY_MAX(NLA_U32, 1),
	[SSA_A_ENDPOINT_FD] = NLA_POLICY_MIN(NLA_S32, 0),
};

const struct genl_ops ssa_nl_ops[] = {
	{
		.cmd = SSA_CMD_REGISTER,
		.flags = GENL_ADMIN_PERM,
		.policy = ssa_register_nl_policy,
		.maxattr = SSA_A_DAEMON,
		.doit = ssa_nl_register_doit,
	},
	{
		.cmd = SSA_CMD_ENDPOINT,
		.policy = ssa_endpoint_nl_policy,
		.maxattr = SSA_A_ENDPOINT,
		.doit = ssa_nl_endpoint_doit,
	},
	{
		.cmd = SSA_CMD_COMPLETE,
		.policy = ssa_complete_nl_policy,
		.maxattr = SSA_A_TICKETS,
		.doit = ssa_nl_complete_doit,
	},
	{
		.cmd = SSA_CMD_END_OF_STREAM,
		.policy = ssa_end_of_stream_nl_policy,
		.maxattr = SSA_A_TEXT,
		.doit = ssa_nl_end_of_stream_doit,
	},
	{
		.cmd = SSA_CMD_MODULE_GET,
		.doit = ssa_nl_module_get_doit,
	},
	{
		.cmd = SSA_CMD_WORKER_GET,
		.dumpit = ssa_nl_worker_get_dumpit,
	},
	{
		.cmd = SSA_CMD_SOCKET_GET,
		.dumpit = ssa_nl_socket_get_dumpit,
	},
	{
		.cmd = SSA_CMD_ACCEPTED,
		.policy = ssa_accepted_nl_policy,
		.maxattr = SSA_A_ENDPOINT_FD,
		.doit = ssa_nl_accepted_doit,
	},
	{
		.cmd = SSA_CMD_LEAVE,
		.doit = ssa_nl_leave_doit,
	},
};

const struct genl_multicast_group ssa_nl_mcgrps[] = {
	[SSA_NLGRP_EVENTS] = {
		.name = SSA_MCGRP_EVENTS,
		.flags = GENL_MCAST_CAP_NET_ADMIN,
	},
};
