# SPDX-License-Identifier: BSD-3-Clause
"""connect() to a host name: resolved, raced (RFC 8305) and verified."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
from OpenSSL import SSL

from ssad.wire import AF_HOSTNAME, IPPROTO_TLS, SocketState, TlsOption
from tests.peers import tls_peer
from tests.peers.hostile import Peer, serving
from tests.peers.pki import HOST, INTERNATIONAL
from tests.peers.servers import free_port
from tests.system.daemon import await_condition
from tests.system.hostname import (
    connect_raw,
    connect_to,
    host_address,
    host_socket,
    hosts,
    own_port,
    peer_address,
)
from tests.system.program import (
    echo,
    get_id,
    get_text,
    refused,
    set_text,
    so_error,
    tls_error,
)
from tests.system.server import TlsListener, check_served, listener_state, set_identity
from tests.system.test_states import disconnect

if TYPE_CHECKING:
    from tests.peers.pki import Identity, Pki
    from tests.system.daemon import Daemon, Transport

DEADLINE = 60.0
WORD = b"hello"
# Far less than TCP takes to give an address up, and more than the slowest guest needs.
NO_WAIT = 30.0
# Seconds before the next address is tried as well, by default.
ATTEMPT_DELAY = 0.25

# Of our own, and tried after any dead host: see dead().
LIVE4, LIVE6 = "198.51.100.1", "2001:db8:1::1"
DEAD4 = [f"192.0.2.{host}" for host in range(2, 7)]
DEAD6 = [f"2001:db8::{host}" for host in range(2, 4)]

pytestmark = pytest.mark.usefixtures("daemon")


def _answer(tls: tls_peer.TlsConnection, _peer: Peer) -> None:
    """Echo one word to a client that says one."""
    tls.send(tls.receive(len(WORD)))


class Both:
    """A server that echoes, on one port of both loopback addresses."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.port = free_port("::")  # at every address of both families

    def listen(self, identity: Identity, *addresses: str) -> int:
        """Serve at these addresses; return the port."""
        speak = tls_peer.tls(identity, _answer)

        def script(raw: socket.socket, peer: Peer) -> None:
            with suppress(SSL.Error):  # a client that refuses, or leaves
                speak(raw, peer)

        for address in addresses:
            peer = self._stack.enter_context(serving(script, address, self.port))
            self.port = peer.port
        return self.port


@pytest.fixture
def port(pki: Pki, stack: ExitStack) -> int:
    """Have a server at both loopback addresses."""
    return Both(stack).listen(pki.ecdsa, "127.0.0.1", "::1")


@pytest.fixture
def dead() -> Iterator[None]:
    """Have hosts that take every packet and never answer, of both families.

    getaddrinfo(3) would give an address of our own before theirs, but for one that is deprecated
    (RFC 6724, 6, rule 3).
    """
    make = [
        f"address add {LIVE4}/32 dev lo preferred_lft 0",
        f"address add {LIVE6}/128 dev lo nodad preferred_lft 0",
        "link add void0 type dummy",
        "address add 192.0.2.1/24 dev void0",
        "address add 2001:db8::1/64 dev void0 nodad",
        "link set void0 up",
        *(f"neighbour replace {a} lladdr 02:00:00:00:00:02 dev void0" for a in [*DEAD4, *DEAD6]),
    ]
    for command in make:
        subprocess.run(["ip", *command.split()], check=True)
    yield
    for command in (
        "link del void0",
        f"address del {LIVE4}/32 dev lo",
        f"address del {LIVE6}/128 dev lo",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def test_each_family_connects_to_a_name_and_verifies_it(transport: Transport, port: int) -> None:
    wanted = {
        AF_HOSTNAME: {"127.0.0.1", "::1"},
        socket.AF_INET: {"127.0.0.1"},
        socket.AF_INET6: {"::1"},
    }
    with hosts(server_test=["127.0.0.1", "::1"]):
        for family, addresses in wanted.items():
            with host_socket(family) as sock:
                connect_to(sock, HOST, port)
                assert peer_address(sock) in addresses
                assert get_text(sock, TlsOption.TLS_HOSTNAME) == HOST
                assert get_text(sock, TlsOption.TLS_TRANSPORT) == transport
                echo(sock, WORD)


def test_an_address_as_text_is_verified_as_an_address(
    port: int, pki: Pki, stack: ExitStack
) -> None:
    for text in ("127.0.0.1", "::1"):
        with host_socket() as sock:
            connect_to(sock, text, port)
            assert peer_address(sock) == text
    only_names = Both(stack).listen(pki.no_address, "127.0.0.1")
    with host_socket() as sock:
        refused(errno.EPROTO, lambda: connect_to(sock, "127.0.0.1", only_names))


def test_an_international_name_is_resolved_and_verified_in_its_ascii_form(
    pki: Pki, stack: ExitStack
) -> None:
    port = Both(stack).listen(pki.international, "127.0.0.1")
    with hosts(**{INTERNATIONAL: ["127.0.0.1"]}), host_socket() as sock:
        connect_to(sock, "Bücher.test", port)
        assert get_text(sock, TlsOption.TLS_HOSTNAME) == INTERNATIONAL


def test_a_certificate_for_another_name_is_refused(port: int) -> None:
    with hosts(elsewhere_test=["127.0.0.1"]), host_socket() as sock:
        refused(errno.EPROTO, lambda: connect_to(sock, "elsewhere.test", port))
        assert "elsewhere.test" in tls_error(sock)
        refused(errno.EBADFD, lambda: connect_to(sock, HOST, port))


@pytest.mark.parametrize(
    ("addresses", "live"),
    [
        ([DEAD6[0], LIVE4], LIVE4),
        ([DEAD4[0], LIVE6], LIVE6),
        ([DEAD4[0], LIVE4], LIVE4),
        ([*DEAD6, LIVE6], LIVE6),
        ([*DEAD4, *DEAD6, LIVE4], LIVE4),
    ],
    ids=["dead v6", "dead v4", "v4 alone", "v6 alone", "seven dead"],
)
@pytest.mark.usefixtures("dead")
def test_a_live_address_is_found_without_waiting_for_the_dead(
    pki: Pki, stack: ExitStack, addresses: list[str], live: str
) -> None:
    port = Both(stack).listen(pki.ecdsa, live)
    with hosts(server_test=addresses), host_socket() as sock:
        start = time.monotonic()
        connect_to(sock, HOST, port)
        took = time.monotonic() - start
        assert peer_address(sock) == live
        assert ATTEMPT_DELAY < took < NO_WAIT, "the dead were to be tried first, and not for long"
        echo(sock, WORD)


def test_an_address_that_refuses_is_passed_over(pki: Pki, stack: ExitStack) -> None:
    # getaddrinfo(3) gives the first one first, however they are ordered.
    addresses = ["127.0.0.1", "127.0.0.3", "127.0.0.2"]
    port = Both(stack).listen(pki.ecdsa, addresses[-1])
    for family in (AF_HOSTNAME, socket.AF_INET):
        with hosts(server_test=addresses), host_socket(family) as sock:
            connect_to(sock, HOST, port)
            assert peer_address(sock) == addresses[-1]


def test_when_all_addresses_refuse_so_does_connect(port: int) -> None:
    with hosts(server_test=["127.0.0.2", "::1"]), host_socket() as sock:
        refused(errno.ECONNREFUSED, lambda: connect_to(sock, HOST, port + 1))
        assert f"127.0.0.2:{port + 1}: Connection refused" in tls_error(sock)
        assert f"[::1]:{port + 1}: Connection refused" in tls_error(sock)


def test_a_name_that_does_not_resolve_is_econnaborted(port: int) -> None:
    with host_socket() as sock:
        refused(errno.ECONNABORTED, lambda: connect_to(sock, "name.invalid", port))
        assert "name.invalid did not resolve" in tls_error(sock)
    with hosts(server_test=["::1"]), host_socket(socket.AF_INET) as sock:
        refused(errno.ECONNABORTED, lambda: connect_to(sock, HOST, port))
        assert tls_error(sock) == f"{HOST} has no IPv4 address."


def test_what_is_no_name_is_einval(port: int) -> None:
    full = host_address(HOST, port)
    unusable = {
        "no NUL": host_address(b"x" * 120, port),
        "no NUL within the length": full[: 4 + len(HOST)],
        "empty": host_address("", port),
        "too short": full[:4],
        "too long": full + bytes(5),
    }
    with host_socket() as sock, hosts(server_test=["127.0.0.1"]):
        for address in unusable.values():
            refused(errno.EINVAL, partial(connect_raw, sock, address))
        refused(errno.EAFNOSUPPORT, lambda: connect_raw(sock, b"\2\0" + bytes(14)))
        # Nothing was begun. And the name's NUL is where the address may end.
        connect_raw(sock, full[: 5 + len(HOST)])
    with host_socket() as sock, hosts(server_test=["127.0.0.1"]):
        connect_raw(sock, full + bytes(4))  # as long as a struct sockaddr_storage
    for name in ("a..b", "127.1", "-a.test", "fe80::1%lo", "a b"):
        with host_socket() as sock:
            refused(errno.EINVAL, partial(connect_to, sock, name, port))
            assert name in tls_error(sock)


def test_the_name_and_tls_hostname_must_not_contradict(port: int) -> None:
    with hosts(server_test=["127.0.0.1"]):
        with host_socket() as sock:
            set_text(sock, TlsOption.TLS_HOSTNAME, "Server.Test.")
            connect_to(sock, HOST, port)
        with host_socket() as sock:
            set_text(sock, TlsOption.TLS_HOSTNAME, "other.test")
            refused(errno.EINVAL, lambda: connect_to(sock, HOST, port))
            assert "other.test" in tls_error(sock)


def test_bind_decides_the_family_and_the_port(port: int) -> None:
    for address in ("127.0.0.1", "::1"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (
            hosts(server_test=["127.0.0.1", "::1"]),
            host_socket() as sock,
            socket.socket(family) as plain,
        ):
            plain.bind((address, 0))
            bound = plain.getsockname()[1]
            plain.close()
            as_family = socket.socket(family, socket.SOCK_STREAM, 0, fileno=sock.fileno())
            as_family.bind((address, bound))
            as_family.detach()
            assert own_port(sock) == bound
            connect_to(sock, HOST, port)
            assert peer_address(sock) == address
            assert own_port(sock) == bound


@pytest.mark.usefixtures("dead")
def test_a_bound_socket_tries_one_address_after_the_other(pki: Pki, stack: ExitStack) -> None:
    port = Both(stack).listen(pki.ecdsa, LIVE4)
    with hosts(server_test=[DEAD4[0], LIVE4]), host_socket(socket.AF_INET) as sock:
        sock.bind(("0.0.0.0", 0))  # noqa: S104 - it does not listen
        start = time.monotonic()
        connect_to(sock, HOST, port)
        assert time.monotonic() - start > ATTEMPT_DELAY
        assert peer_address(sock) == LIVE4


def test_a_connect_without_waiting_ends_with_its_result(port: int) -> None:
    with hosts(server_test=["127.0.0.1", "::1"]), host_socket() as sock:
        sock.settimeout(0)
        refused(errno.EINPROGRESS, lambda: connect_to(sock, HOST, port))
        assert select.select([], [sock], [], DEADLINE)[1]
        assert so_error(sock) == 0
        connect_to(sock, HOST, port)
        refused(errno.EOPNOTSUPP, lambda: connect_to(sock, HOST, port))
        sock.settimeout(DEADLINE)
        echo(sock, WORD)


@pytest.mark.usefixtures("dead")
def test_a_race_is_given_up_when_the_program_gives_up(daemon: Daemon) -> None:
    with hosts(server_test=[*DEAD4, *DEAD6]), host_socket() as sock:
        sock.settimeout(0)
        refused(errno.EINPROGRESS, lambda: connect_to(sock, HOST, 443))
        await_condition("TCP connects", connecting)
        assert listener_state(get_id(sock))["state"] == SocketState.CONNECTING
        assert disconnect(sock) == 0
        assert listener_state(get_id(sock))["state"] == SocketState.CLOSED
        await_condition("nothing connects any more", lambda: not connecting())
    with hosts(server_test=DEAD4), host_socket() as sock:
        sock.settimeout(0)
        refused(errno.EINPROGRESS, lambda: connect_to(sock, HOST, 443))
        await_condition("TCP connects", connecting)
    await_condition("nothing connects any more", lambda: not connecting())
    daemon.await_idle()


def connecting() -> bool:
    """Tell whether a TCP connection to a dead host is under way."""
    found = subprocess.run(
        ["ss", "-tnH", "state", "syn-sent"], check=True, capture_output=True, text=True
    )
    return bool(found.stdout.strip())


@pytest.mark.usefixtures("dead")
def test_the_workers_death_ends_a_race(any_daemon: Daemon) -> None:
    with hosts(server_test=DEAD4), host_socket() as sock:
        sock.settimeout(0)
        refused(errno.EINPROGRESS, lambda: connect_to(sock, HOST, 443))
        await_condition("TCP connects", connecting)
        any_daemon.kill()
        assert select.select([], [sock], [], DEADLINE)[1]
        assert so_error(sock) == errno.ECANCELED
        await_condition("nothing connects any more", lambda: not connecting())


def test_a_socket_of_the_family_can_listen(pki: Pki) -> None:
    with host_socket() as sock:
        set_identity(sock, pki.ecdsa)
        as_inet = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=sock.fileno())
        as_inet.bind(("127.0.0.1", 0))
        sock.listen()
        port = own_port(sock)
        check_served(TlsListener(as_inet, "127.0.0.1", port), pki.root)
        as_inet.detach()


def test_the_family_has_tls_sockets_and_nothing_else() -> None:
    for kind, protocol, number in (
        (socket.SOCK_STREAM, IPPROTO_TLS, 0),
        (socket.SOCK_STREAM, 0, 0),
        (socket.SOCK_DGRAM, IPPROTO_TLS, errno.ESOCKTNOSUPPORT),
        (socket.SOCK_DGRAM, 0, errno.ESOCKTNOSUPPORT),
        (socket.SOCK_STREAM, socket.IPPROTO_TCP, errno.EPROTONOSUPPORT),
    ):
        if number:
            refused(number, partial(socket.socket, AF_HOSTNAME, kind, protocol))
            continue
        with socket.socket(AF_HOSTNAME, kind, protocol) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == AF_HOSTNAME
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == IPPROTO_TLS
