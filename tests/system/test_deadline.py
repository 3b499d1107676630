# SPDX-License-Identifier: BSD-3-Clause
"""A server that lets the client wait is given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.peers import hostile, tls_peer
from tests.peers.hostile import serving
from tests.system.test_refusals import check_refused

if TYPE_CHECKING:
    import socket

    from tests.peers.pki import Pki
    from tests.system.daemon import Daemon


@pytest.fixture(autouse=True)
def impatient(any_daemon: Daemon) -> None:
    """Have a daemon that waits no longer than needed here."""
    any_daemon.ensure("ktls", "--handshake-timeout", "3")


def test_a_silent_server_is_given_up() -> None:
    with serving(hostile.silent) as peer:
        check_refused(peer, ["within 3 s"])


def test_a_server_that_stops_in_the_middle_is_given_up(pki: Pki) -> None:
    def script(raw: socket.socket, _peer: hostile.Peer) -> None:
        connection = tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.3")
        raw.sendall(connection.handshake(stop_before_flight=0)[:200])
        hostile.read_until_closed(raw)

    with serving(script) as peer:
        check_refused(peer, ["within 3 s"])


def test_a_server_that_drips_bytes_is_given_up(pki: Pki) -> None:
    def script(raw: socket.socket, peer: hostile.Peer) -> None:
        connection = tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.3")
        for byte in connection.handshake(stop_before_flight=0):
            raw.send(bytes((byte,)))
            if peer.go_on.wait(0.1):
                return

    with serving(script) as peer:
        check_refused(peer, ["within 3 s"])
