# SPDX-License-Identifier: BSD-3-Clause
# Made from netlink_proto/ssa.yaml by netlink_proto/generate.py: do not edit.
"""The messages of ssad.wire for pyroute2.

For programs that use pyroute2 anyway.  The daemon does not: pyroute2 takes
some ten times as long for a message, and most of a command's time to load.
"""

from __future__ import annotations

from pyroute2.netlink import genlmsg  # type: ignore[import-untyped, unused-ignore]


class SsaMessage(genlmsg):  # type: ignore[misc, unused-ignore]
    """A message of the family. Values and lengths are not checked."""

    prefix = "SSA_A_"  # type: ignore[assignment, unused-ignore]
    nla_map = (  # type: ignore[assignment, unused-ignore]
        ("SSA_A_UNSPEC", "none"),
        ("SSA_A_REQUEST", "uint32"),
        ("SSA_A_SOCKET", "uint64"),
        ("SSA_A_ERROR", "uint32"),
        ("SSA_A_TEXT", "asciiz"),
        ("SSA_A_FAMILY", "uint32"),
        ("SSA_A_STATE", "uint32"),
        ("SSA_A_PID", "uint32"),
        ("SSA_A_UID", "uint32"),
        ("SSA_A_GID", "uint32"),
        ("SSA_A_NETNS_COOKIE", "uint64"),
        ("SSA_A_COMM", "asciiz"),
        ("SSA_A_EXECUTABLE", "asciiz"),
        ("SSA_A_LOCAL_ADDRESS", "cdata"),
        ("SSA_A_REMOTE_ADDRESS", "cdata"),
        ("SSA_A_HOST_NAME", "asciiz"),
        ("SSA_A_OPTION", "uint32"),
        ("SSA_A_VALUE", "cdata"),
        ("SSA_A_VALUE_LENGTH", "uint32"),
        ("SSA_A_VALUE_OFFSET", "uint32"),
        ("SSA_A_TRANSPORT", "uint32"),
        ("SSA_A_FD", "int32"),
        ("SSA_A_VERSION", "uint32"),
        ("SSA_A_CIPHER", "asciiz"),
        ("SSA_A_ALPN", "asciiz"),
        ("SSA_A_PEER_IDENTITY", "asciiz"),
        ("SSA_A_PEER_CHAIN", "cdata"),
        ("SSA_A_RESUMED", "uint32"),
        ("SSA_A_BYTES_SENT", "uint64"),
        ("SSA_A_BYTES_RECEIVED", "uint64"),
        ("SSA_A_EVENT", "uint32"),
        ("SSA_A_MODULE_VERSION", "asciiz"),
        ("SSA_A_SOCKETS", "uint32"),
        ("SSA_A_PENDING", "uint32"),
        ("SSA_A_DAEMON", "uint32"),
        ("SSA_A_BACKLOG", "uint32"),
        ("SSA_A_QUEUED", "uint32"),
        ("SSA_A_ENDPOINT_FD", "int32"),
        ("SSA_A_PORT", "uint32"),
        ("SSA_A_ENDPOINTS", "uint32"),
        ("SSA_A_ENDPOINT", "uint32"),
        ("SSA_A_SWITCHES", "uint32"),
        ("SSA_A_TICKETS", "uint32"),
        ("SSA_A_LEAVING", "uint32"),
    )
