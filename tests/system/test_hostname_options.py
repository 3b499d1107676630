# SPDX-License-Identifier: BSD-3-Clause
"""connect() to a host name uses several TCP sockets at once: whichever wins has all that was set,
as a TCP socket would have it; and what else a name shares with an address."""

from __future__ import annotations

import errno
import select
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.wire import AF_HOSTNAME, SocketState, TlsOption
from tests.peers import servers
from tests.peers.pki import HOST
from tests.system.daemon import await_condition
from tests.system.hostname import connect_to, host_socket, hosts, own_port, peer_address
from tests.system.netns import cookie, namespace
from tests.system.program import (
    NOBODY,
    echo,
    get_id,
    get_number,
    get_text,
    in_child,
    receive_all,
    refused,
    set_number,
    so_error,
    tls_error,
)
from tests.system.server import echo_all, listener_state, listening, served
from tests.system.test_hostname import Both
from tests.system.test_levels import SO_MARK, SO_PRIORITY, get_value, number, ss

if TYPE_CHECKING:
    from tests.peers.pki import Pki
    from tests.system.daemon import Daemon

DEADLINE = 60.0
WORD = b"hello"
# getaddrinfo(3) gives the near ones first (RFC 6724), and IPv6 before IPv4.
NEAR4, FAR4 = "127.0.0.1", "127.0.0.2"
NEAR6, FAR6 = "::1", "2001:db8:1::1"

Setting = tuple[int, int, bytes]

TCP: list[Setting] = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, number(1)),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, number(1000)),
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, number(1)),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, number(1 << 17)),
    (socket.SOL_SOCKET, SO_MARK, number(0x4D)),
    (socket.IPPROTO_IP, socket.IP_TOS, number(0x10)),
]
# It is too late for this one once TCP connects.
EARLY: list[Setting] = [(socket.IPPROTO_TCP, socket.TCP_MAXSEG, number(1000))]
IPV6: list[Setting] = [(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, number(0x20))]

# What ss tells of a connection with all of TCP set.
TOLD = ("timer:(keepalive,16min", "fwmark:0x4d", f"tb{1 << 18},", " reno ")


@pytest.fixture
def far6() -> Iterator[None]:
    """Have a second IPv6 address of our own."""
    there = f"{FAR6}/128 dev lo"
    subprocess.run(["ip", "address", "add", *there.split(), "nodad"], check=True)
    yield
    subprocess.run(["ip", "address", "del", *there.split()], check=True)


def apply(sock: socket.socket, settings: Sequence[Setting]) -> None:
    """Set options."""
    for setting in settings:
        sock.setsockopt(*setting)


def check_in_force(sock: socket.socket, live: str, port: int, settings: Sequence[Setting]) -> None:
    """Check that a TLS socket, connected to a server, has what a TCP socket has, and that TCP
    itself knows of it."""
    family = socket.AF_INET6 if ":" in live else socket.AF_INET
    assert peer_address(sock) == live
    with socket.socket(family) as plain:
        apply(plain, settings)
        plain.connect((live, port))
        for level, option, _ in settings:
            found, wanted = (get_value(one, level, option) for one in (sock, plain))
            assert found == wanted, f"to {live}: option {option} of level {level}"
    # What is of the level SOL_SOCKET the TLS socket tells of itself.
    local = own_port(sock)
    await_condition(f"ss tells {TOLD}", lambda: all(one in ss(local, "-oemi") for one in TOLD))


def overflows() -> int:
    """Return how many SYNs found the queue of a listener full."""
    names, values = (
        line.split()
        for line in Path("/proc/net/netstat").read_text().splitlines()
        if line.startswith("TcpExt:")
    )
    return int(dict(zip(names, values, strict=True))["ListenOverflows"])


def queued(listener: socket.socket) -> int:
    """Return how many connections wait for accept(): tcpi_unacked of a TCP socket that listens."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", info, 24)[0])


@contextmanager
def silent(address: str, port: int) -> Iterator[None]:
    """Have TCP at an address of our own not answer: the queue of the one who listens is full.

    A host that is elsewhere would not do: it would be tried last.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as opened:
        listener = opened.enter_context(
            socket.create_server((address, port), family=family, backlog=1)
        )
        for _ in range(2):
            opened.enter_context(socket.create_connection((address, port)))
        await_condition("the queue is full", lambda: queued(listener) == 2)
        yield


CASES: list[tuple[int, str | None, str]] = [
    (AF_HOSTNAME, None, NEAR6),  # its own endpoint, of IPv6
    (AF_HOSTNAME, NEAR6, FAR6),  # the spare one of IPv6
    (AF_HOSTNAME, NEAR6, FAR4),  # the first of IPv4
    (AF_HOSTNAME, NEAR4, FAR4),  # the second of IPv4
    (socket.AF_INET, None, FAR4),
    (socket.AF_INET, NEAR4, FAR4),
    (socket.AF_INET6, NEAR6, FAR6),
]


@contextmanager
def reachable(pki: Pki, dead: str | None, live: str) -> Iterator[int]:
    """Have HOST be at two addresses, of which one does not answer; give the port."""
    with ExitStack() as stack:
        port = Both(stack).listen(pki.ecdsa, live)
        if dead is not None:
            stack.enter_context(silent(dead, port))
        stack.enter_context(hosts(server_test=[live] if dead is None else [dead, live]))
        before = overflows()
        yield port
        # Else another endpoint would have won than the test was for.
        assert (overflows() > before) == (dead is not None), f"{dead} was to be tried first"


@pytest.mark.usefixtures("daemon", "far6")
def test_what_was_set_before_is_in_force_on_the_one_that_wins(pki: Pki) -> None:
    for family, dead, live in CASES:
        settings = [*TCP, *EARLY, *(IPV6 if ":" in live else [])]
        with reachable(pki, dead, live) as port, host_socket(family) as sock:
            apply(sock, settings)
            connect_to(sock, HOST, port)
            check_in_force(sock, live, port, settings)
            echo(sock, WORD)


@pytest.mark.usefixtures("far6")
def test_what_is_set_while_it_connects_is_in_force_on_the_one_that_wins(
    pki: Pki, daemon: Daemon
) -> None:
    for family, dead, live in CASES:
        settings = [*TCP, *(IPV6 if ":" in live else [])]
        with reachable(pki, dead, live) as port, host_socket(family) as sock:
            sock.settimeout(0)
            daemon.freeze()
            refused(errno.EINPROGRESS, partial(connect_to, sock, HOST, port))
            apply(sock, settings)
            assert listener_state(get_id(sock))["state"] == SocketState.CONNECTING
            daemon.thaw()
            assert select.select([], [sock], [], DEADLINE)[1]
            assert so_error(sock) == 0
            sock.settimeout(DEADLINE)
            check_in_force(sock, live, port, settings)
            echo(sock, WORD)


@pytest.mark.usefixtures("daemon", "far6")
def test_what_is_set_as_root_is_in_force_for_who_is_not_any_more(pki: Pki) -> None:
    privileged = [
        *TCP,
        (socket.IPPROTO_IP, socket.IP_TRANSPARENT, number(1)),
        (socket.SOL_SOCKET, SO_PRIORITY, number(7)),
    ]
    for dead, live in ((NEAR6, FAR6), (NEAR6, FAR4)):
        with reachable(pki, dead, live) as port, host_socket() as sock:
            apply(sock, privileged)

            def connect_as_nobody(sock: socket.socket = sock, port: int = port) -> None:
                refused(errno.EPERM, lambda: sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 5))
                connect_to(sock, HOST, port)

            assert in_child(connect_as_nobody, user=NOBODY) == 0
            check_in_force(sock, live, port, privileged)
            echo(sock, WORD)


@pytest.mark.usefixtures("daemon")
def test_a_session_is_resumed_by_name(pki: Pki, logs: Path) -> None:
    resumed = []
    with (
        servers.openssl(pki.ecdsa, logs, "-www") as server,
        silent(NEAR6, server.port),
    ):
        # Each with an endpoint of its own kind; the name is what they share.
        for family, addresses in (
            (socket.AF_INET, [server.address]),
            (socket.AF_INET, [server.address]),
            (AF_HOSTNAME, [NEAR6, server.address]),
        ):
            with hosts(server_test=addresses), host_socket(family) as sock:
                set_number(sock, TlsOption.TLS_SESSION_REUSE, 1)
                connect_to(sock, HOST, server.port)
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                page = receive_all(sock)
                resumed.append(get_number(sock, TlsOption.TLS_RESUMED_SESSION))
                assert (b"\nReused, " in page) == bool(resumed[-1])
                assert get_text(sock, TlsOption.TLS_PEER_IDENTITY) == f"CN={HOST}"
    assert resumed == [0, 1, 1]


def test_without_a_daemon_a_name_is_ecanceled(any_daemon: Daemon, pki: Pki) -> None:
    any_daemon.ensure()
    with reachable(pki, None, FAR4) as port, host_socket() as sock, host_socket() as other:
        any_daemon.stop()
        for blocking in (True, False):
            sock.setblocking(blocking)
            refused(errno.ECANCELED, lambda: connect_to(sock, HOST, port))
            assert "daemon is not running" in tls_error(sock)
        refused(errno.ECANCELED, host_socket)
        # Nothing was begun.
        any_daemon.ensure()
        connect_to(other, HOST, port)
        echo(other, WORD)


@pytest.mark.usefixtures("daemon")
def test_a_socket_of_another_network_namespace_connects_there(pki: Pki) -> None:
    for address, family in ((NEAR4, socket.AF_INET), (NEAR6, AF_HOSTNAME), (NEAR4, AF_HOSTNAME)):
        with namespace() as near, ExitStack() as opened:
            with near.entered():
                sock = opened.enter_context(host_socket(family))
                listener = opened.enter_context(listening(pki.ecdsa, address=address))
                opened.enter_context(served(listener, echo_all))
            with host_socket(family) as outside:
                assert cookie(sock) != cookie(outside)
                # From here there is nobody at this port.
                refused(errno.ECONNREFUSED, partial(connect_to, outside, address, listener.port))
            connect_to(sock, address, listener.port)
            assert peer_address(sock) == address
            echo(sock, WORD)


@pytest.mark.usefixtures("daemon")
def test_a_name_is_not_resolved_for_another_network_namespace() -> None:
    for family in (socket.AF_INET, socket.AF_INET6, AF_HOSTNAME):
        with namespace() as near, hosts(server_test=[NEAR4, NEAR6]):
            with near.entered():
                sock = host_socket(family)
            with sock:
                refused(errno.ECONNABORTED, partial(connect_to, sock, HOST, 443))
                assert tls_error(sock) == (
                    f"{HOST} can't be resolved for a program in another network namespace than "
                    "ssad's; resolve it there, and connect to an address."
                )
