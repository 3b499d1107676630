# SPDX-License-Identifier: BSD-3-Clause
"""TCP's own errors come through unchanged, and the caller's rights and namespace decide."""

from __future__ import annotations

import errno
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.peers import servers, tls_peer
from tests.peers.hostile import serving
from tests.system.program import (
    NOBODY,
    Address,
    connect,
    echo,
    in_child,
    libc,
    receive_exactly,
    refused,
    tls_error,
    tls_socket,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server

pytestmark = pytest.mark.usefixtures("daemon")

CLONE_NEWNET = 0x40000000  # <linux/sched.h>


def check_connect(address: str, error: int) -> None:
    """Check that a connect to `address` fails with `error`, and that the socket says why."""
    with tls_socket() as sock:
        refused(error, lambda: sock.connect((address, 443)))
        assert tls_error(sock).endswith("."), tls_error(sock)
        refused(errno.EBADFD, lambda: sock.connect((address, 443)))


@pytest.fixture
def routes() -> Iterator[None]:
    """Have networks that can't be reached, each for a reason of its own."""
    kinds = {"unreachable": "203.0.113.0/24", "prohibit": "198.51.100.0/24"}
    for kind, network in kinds.items():
        subprocess.run(["ip", "route", "add", kind, network], check=True)
    yield
    for kind, network in kinds.items():
        subprocess.run(["ip", "route", "del", kind, network], check=True)


def test_a_port_where_nobody_listens_refuses() -> None:
    port = servers.free_port()
    with tls_socket() as sock:
        refused(errno.ECONNREFUSED, lambda: sock.connect(("127.0.0.1", port)))
        assert "refused" in tls_error(sock).lower()


def test_a_port_where_nobody_listens_refuses_over_ipv6() -> None:
    port = servers.free_port("::1")
    with tls_socket(socket.AF_INET6) as sock:
        refused(errno.ECONNREFUSED, lambda: sock.connect(("::1", port)))


@pytest.mark.usefixtures("routes")
def test_an_unreachable_host_is_told() -> None:
    check_connect("203.0.113.1", errno.EHOSTUNREACH)


@pytest.mark.usefixtures("routes")
def test_a_prohibited_host_is_told() -> None:
    check_connect("198.51.100.1", errno.EACCES)


def test_no_route_is_told() -> None:
    def alone() -> None:
        assert libc.unshare(CLONE_NEWNET) == 0
        check_connect("203.0.113.1", errno.ENETUNREACH)

    assert in_child(alone) == 0


def test_a_host_that_does_not_answer_times_out(void: Address) -> None:
    with tls_socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        refused(errno.ETIMEDOUT, lambda: sock.connect((void.address, void.port)))
        assert "timed out" in tls_error(sock).lower()


def test_an_address_in_use_is_told() -> None:
    with tls_socket() as first, tls_socket() as second:
        first.bind(("127.0.0.1", 0))
        refused(errno.EADDRINUSE, lambda: second.bind(first.getsockname()))


def test_a_connection_that_exists_already_is_told(echo_server: Server) -> None:
    with tls_socket() as first, tls_socket() as second:
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        first.connect((echo_server.address, echo_server.port))
        refused(
            errno.EADDRNOTAVAIL,
            lambda: second.connect((echo_server.address, echo_server.port)),
        )
        echo(first, b"not disturbed")


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with tls_socket() as sock:
        refused(errno.EADDRNOTAVAIL, lambda: sock.bind(("203.0.113.1", 0)))


def test_a_bound_address_is_the_one_that_the_peer_sees(pki: Pki) -> None:
    seen: list[tuple[str, int]] = []

    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        seen.append(connection.raw.getpeername())
        connection.send(b"seen")
        connection.await_close_notify()  # who has left has no name any more

    with serving(tls_peer.tls(pki.ecdsa, act)) as peer, tls_socket() as sock:
        sock.bind(("127.0.0.2", 0))
        bound = sock.getsockname()
        assert bound[0] == "127.0.0.2"
        sock.connect((peer.address, peer.port))
        receive_exactly(sock, 4)
        assert seen == [bound]
        assert sock.getsockname() == bound
        assert sock.getpeername() == (peer.address, peer.port)


def test_the_rights_of_the_caller_decide_on_a_port() -> None:
    def bind() -> None:
        with tls_socket() as sock:
            refused(errno.EACCES, lambda: sock.bind(("127.0.0.1", 80)))

    assert in_child(bind, user=NOBODY) == 0
    with tls_socket() as sock:
        sock.bind(("127.0.0.1", 80))


def test_the_network_namespace_is_the_callers(pki: Pki) -> None:
    def alone() -> None:
        assert libc.unshare(CLONE_NEWNET) == 0
        subprocess.run(["ip", "link", "set", "dev", "lo", "up"], check=True)

        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send(connection.receive(4))
            connection.await_close_notify()

        with serving(tls_peer.tls(pki.ecdsa, act)) as peer, connect(peer) as sock:
            echo(sock, b"here")

    assert in_child(alone) == 0


def test_a_wrong_address_is_refused_and_spoils_nothing(echo_server: Server) -> None:
    with tls_socket() as sock:
        short = b"\2\0\0\1"
        assert libc.connect(sock.fileno(), short, len(short)) == -1
        with socket.socket(socket.AF_INET6) as other:
            other.bind(("::1", 0))
            address = bytes((socket.AF_INET6, 0)) + bytes(26)
            assert libc.connect(sock.fileno(), address, len(address)) == -1
        sock.connect((echo_server.address, echo_server.port))
        echo(sock, b"still good")


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_socket_that_is_not_connected_has_no_stream(how: int) -> None:
    with tls_socket() as sock:
        refused(errno.ENOTCONN, lambda: sock.send(b"early"))
        refused(errno.ENOTCONN, lambda: sock.recv(1))
        refused(errno.ENOTCONN, lambda: sock.shutdown(how))
        refused(errno.ENOTCONN, sock.getpeername)
