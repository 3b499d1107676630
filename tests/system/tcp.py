# SPDX-License-Identifier: BSD-3-Clause
"""TCP to compare with: where a TLS socket is to do what TCP does, a test asks both."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.peers.hostile import Peer, serving
from tests.system.program import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.servers import Server

LOOPBACK = "127.0.0.1"


def _echo(connection: socket.socket, _peer: Peer) -> None:
    while data := connection.recv(1 << 16):
        connection.sendall(data)


@contextmanager
def echoing_pair(echo_server: Server) -> Iterator[dict[str, socket.socket]]:
    """Connect a TCP and a TLS socket, in this order, to servers that echo."""
    with ExitStack() as opened:
        peer = opened.enter_context(serving(_echo))
        tcp = opened.enter_context(socket.create_connection((peer.address, peer.port)))
        tls = opened.enter_context(connect(echo_server))
        yield {"TCP": tcp, "TLS": tls}
