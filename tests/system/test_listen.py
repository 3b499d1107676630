# SPDX-License-Identifier: BSD-3-Clause
"""bind() and listen(): where a server is, and what it can't do any more."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS, EventKind, SocketState, TlsOption
from tests.peers import clients
from tests.peers.clients import Target
from tests.peers.pki import HOST
from tests.system.daemon import await_condition, sockets
from tests.system.program import (
    NOBODY,
    get_id,
    get_number,
    in_child,
    refused,
    set_number,
    set_text,
    tls_error,
    tls_socket,
)
from tests.system.server import (
    Events,
    check_served,
    echo_all,
    listener_state,
    listening,
    served,
    set_identity,
)
from tests.system.test_cli import ssad, ssad_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from tests.peers.pki import Pki
    from tests.system.daemon import Daemon
    from tests.system.server import TlsListener

pytestmark = pytest.mark.usefixtures("daemon")

LOOPBACK = "127.0.0.1"


@pytest.fixture
def fresh(pki: Pki) -> Iterator[socket.socket]:
    """Give a TLS socket that has a certificate and is not bound."""
    with tls_socket(host=None) as sock:
        set_identity(sock, pki.ecdsa)
        yield sock


@pytest.fixture
def listener(pki: Pki) -> Iterator[TlsListener]:
    """Give a TLS socket that listens."""
    with listening(pki.ecdsa) as made:
        yield made


class TestBind:
    """Where, and with whose rights."""

    def test_a_low_port_is_not_for_everybody(self) -> None:
        def try_it() -> None:
            with tls_socket(host=None) as sock:
                refused(errno.EACCES, lambda: sock.bind((LOOPBACK, 80)))
                sock.bind((LOOPBACK, 0))

        assert in_child(try_it, user=NOBODY) == 0

    def test_root_may_have_a_low_port(self, pki: Pki) -> None:
        with listening(pki.ecdsa, port=443) as listener:
            check_served(listener, pki.root)

    def test_an_address_that_is_another_hosts(self, fresh: socket.socket) -> None:
        refused(errno.EADDRNOTAVAIL, lambda: fresh.bind(("192.0.2.77", 0)))
        fresh.bind((LOOPBACK, 0))

    def test_port_0_is_one_that_is_free(self, fresh: socket.socket) -> None:
        fresh.bind((LOOPBACK, 0))
        address, port = fresh.getsockname()
        assert address == LOOPBACK
        assert port > 0
        fresh.listen()
        assert fresh.getsockname() == (LOOPBACK, port)

    def test_a_socket_is_bound_once(self, fresh: socket.socket) -> None:
        fresh.bind((LOOPBACK, 0))
        refused(errno.EINVAL, lambda: fresh.bind((LOOPBACK, 0)))

    def test_the_wildcard_is_every_address(self, pki: Pki) -> None:
        with listening(pki.ecdsa, address="0.0.0.0") as listener:  # noqa: S104 -- that is the test
            trust = clients.context(pki.root)
            for address in (LOOPBACK, "127.0.0.99"):
                target = Target(listener.port, pki.root)
                with (
                    clients.connect(trust, target, address=address),
                    listener.accept() as accepted,
                ):
                    assert accepted.getsockname() == (address, listener.port)

    @pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, IPPROTO_TLS], ids=["tcp", "tls"])
    def test_a_port_is_somebodys(self, listener: TlsListener, protocol: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as other:
            refused(errno.EADDRINUSE, lambda: other.bind((LOOPBACK, listener.port)))

    def test_a_port_that_has_just_been_used(self, pki: Pki) -> None:
        def reuse(sock: socket.socket) -> None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        with listening(pki.ecdsa, prepare=reuse) as first:
            trust = clients.context(pki.root)
            with clients.connect(trust, Target(first.port, pki.root)) as client:
                first.accept().close()  # who closes first is in TIME_WAIT
                assert client.recv(1) == b""
        with tls_socket(host=None) as sock:
            refused(errno.EADDRINUSE, lambda: sock.bind((LOOPBACK, first.port)))

        with listening(pki.ecdsa, port=first.port, prepare=reuse) as second:
            check_served(second, pki.root)

    def test_listeners_share_a_port_if_all_want_it(self, pki: Pki) -> None:
        def share(sock: socket.socket) -> None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

        with (
            listening(pki.ecdsa, prepare=share) as first,
            listening(pki.ecdsa, port=first.port, prepare=share) as second,
        ):
            with tls_socket(host=None) as third:
                refused(errno.EADDRINUSE, lambda: third.bind((LOOPBACK, first.port)))
            trust = clients.context(pki.root)
            found: set[int] = set()
            for _ in range(64):
                with clients.connect(trust, Target(first.port, pki.root)):
                    ready, _, _ = select.select([first.sock, second.sock], [], [], 60)
                    ready[0].accept()[0].close()
                    found.add(ready[0].fileno())
                if len(found) == 2:
                    break
            assert len(found) == 2, "of 64 connections all were for one of two"


class TestBothFamilies:
    """IPv6, alone and with IPv4."""

    def test_ipv6(self, pki: Pki) -> None:
        with listening(pki.ecdsa, address="::1") as listener:
            trust = clients.context(pki.root)
            target = Target(listener.port, pki.root)
            with (
                clients.connect(trust, target, address="::1") as client,
                listener.accept() as accepted,
            ):
                assert accepted.family == socket.AF_INET6
                assert accepted.getpeername()[:2] == client.getsockname()[:2]
                client.sendall(b"six")
                assert accepted.recv(3) == b"six"

    def test_dual_stack(self, pki: Pki) -> None:
        def dual(sock: socket.socket) -> None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)

        with listening(pki.ecdsa, address="::", prepare=dual) as listener:
            trust = clients.context(pki.root)
            target = Target(listener.port, pki.root)
            for address, seen in ((LOOPBACK, f"::ffff:{LOOPBACK}"), ("::1", "::1")):
                with (
                    clients.connect(trust, target, address=address) as client,
                    listener.accept() as accepted,
                ):
                    assert accepted.getpeername()[0] == seen
                    assert accepted.getsockname()[:2] == (seen, listener.port)
                    client.sendall(b"both")
                    assert accepted.recv(4) == b"both"

    def test_ipv6_only_leaves_the_port_to_ipv4(self, pki: Pki) -> None:
        def only(sock: socket.socket) -> None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)

        with listening(pki.ecdsa, address="::", prepare=only) as six:
            address = (LOOPBACK, six.port)
            refused(errno.ECONNREFUSED, lambda: socket.create_connection(address, 60))
            with listening(pki.ecdsa, port=six.port) as four:
                check_served(four, pki.root)
                assert not six.readable()


class TestListen:
    """listen()."""

    def test_without_bind_the_port_is_chosen(self, fresh: socket.socket, pki: Pki) -> None:
        fresh.listen()
        address, port = fresh.getsockname()
        assert address == "0.0.0.0"  # noqa: S104
        with (
            clients.connect(clients.context(pki.root), Target(port, pki.root)),
            fresh.accept()[0] as accepted,
        ):
            assert accepted.getsockname() == (LOOPBACK, port)

    def test_a_bound_socket_does_not_listen_yet(self, fresh: socket.socket) -> None:
        fresh.bind((LOOPBACK, 0))
        refused(errno.ECONNREFUSED, lambda: socket.create_connection(fresh.getsockname(), 60))
        assert fresh.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
        fresh.listen()
        assert fresh.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1

    def test_again_it_changes_the_backlog(self, fresh: socket.socket) -> None:
        for backlog in (5, 7, 3):
            fresh.listen(backlog)
            state = listener_state(get_id(fresh))
            assert (state["queued"], state["backlog"]) == (0, backlog)

    def test_again_it_does_not_disturb(self, listener: TlsListener, pki: Pki) -> None:
        with clients.connect(clients.context(pki.root), Target(listener.port, pki.root)):
            listener.await_readable()
            listener.sock.listen(1)
            listener.sock.accept()[0].close()
        check_served(listener, pki.root)

    @pytest.mark.parametrize("backlog", [0, 1])
    def test_the_shortest_backlogs_do(self, pki: Pki, backlog: int) -> None:
        with listening(pki.ecdsa, backlog=backlog) as listener:
            for _ in range(3):
                check_served(listener, pki.root)

    def test_without_a_certificate_it_says_what_is_missing(self, pki: Pki) -> None:
        with tls_socket(host=None) as sock:
            sock.bind((LOOPBACK, 0))
            refused(errno.EINVAL, sock.listen)
            assert "TLS_CERTIFICATE_CHAIN" in tls_error(sock)
            set_text(sock, TlsOption.TLS_CERTIFICATE_CHAIN, str(pki.ecdsa.chain))
            refused(errno.EINVAL, sock.listen)
            assert "TLS_PRIVATE_KEY" in tls_error(sock)
            # It is no dead end.
            set_text(sock, TlsOption.TLS_PRIVATE_KEY, str(pki.ecdsa.key))
            sock.listen()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1

    def test_a_port_that_was_taken_in_the_meantime(self, stack: ExitStack, pki: Pki) -> None:
        # With SO_REUSEADDR both can be bound, and the first one to listen has the port.
        def make() -> socket.socket:
            sock = stack.enter_context(tls_socket(host=None))
            set_identity(sock, pki.ecdsa)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return sock

        first, second = make(), make()
        first.bind((LOOPBACK, 0))
        second.bind(first.getsockname())
        first.listen()
        refused(errno.EADDRINUSE, second.listen)

    def test_closing_frees_the_port_at_once(self, pki: Pki) -> None:
        def reuse(sock: socket.socket) -> None:
            # As with TCP, a connection can outlive the listener: the daemon has it for a moment.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        for _ in range(3):
            with listening(pki.ecdsa, port=4430, prepare=reuse) as listener:
                check = socket.create_connection((LOOPBACK, listener.port), 60)
                check.close()
            refused(errno.ECONNREFUSED, lambda: socket.create_connection((LOOPBACK, 4430), 60))


LISTENING: dict[str, tuple[int, Callable[[socket.socket], object]]] = {
    "bind": (errno.EINVAL, lambda sock: sock.bind((LOOPBACK, 0))),
    "connect": (errno.EOPNOTSUPP, lambda sock: sock.connect((LOOPBACK, 9))),
    "send": (errno.ENOTCONN, lambda sock: sock.send(b"never", socket.MSG_NOSIGNAL)),
    "recv": (errno.ENOTCONN, lambda sock: sock.recv(1)),
    "getpeername": (errno.ENOTCONN, lambda sock: sock.getpeername()),
    "TLS_CERTIFICATE_CHAIN": (
        errno.EOPNOTSUPP,
        lambda sock: set_text(sock, TlsOption.TLS_CERTIFICATE_CHAIN, "/dev/null"),
    ),
    "TLS_ALPN": (errno.EOPNOTSUPP, lambda sock: set_text(sock, TlsOption.TLS_ALPN, "h2")),
    "TLS_REQUEST_PEER_AUTH": (
        errno.EOPNOTSUPP,
        lambda sock: set_number(sock, TlsOption.TLS_REQUEST_PEER_AUTH, 2),
    ),
    "TLS_VERSION_CONN": (
        errno.EOPNOTSUPP,
        lambda sock: get_number(sock, TlsOption.TLS_VERSION_CONN),
    ),
}


class TestStates:
    """What can be done in which state."""

    @pytest.mark.parametrize("call", LISTENING)
    def test_a_listener_refuses(self, listener: TlsListener, pki: Pki, call: str) -> None:
        number, act = LISTENING[call]
        refused(number, lambda: act(listener.sock))
        check_served(listener, pki.root)

    def test_nothing_is_accepted_before_listen(self, fresh: socket.socket) -> None:
        refused(errno.EINVAL, fresh.accept)
        fresh.bind((LOOPBACK, 0))
        refused(errno.EINVAL, fresh.accept)

    def test_what_is_connected_neither_listens_nor_accepts(
        self, listener: TlsListener, pki: Pki
    ) -> None:
        with served(listener, echo_all), tls_socket() as sock:
            set_identity(sock, pki.ecdsa)
            sock.connect((LOOPBACK, listener.port))
            refused(errno.EINVAL, sock.listen)
            refused(errno.EINVAL, sock.accept)

    def test_what_has_failed_does_not_listen(self, fresh: socket.socket) -> None:
        refused(errno.ECONNREFUSED, lambda: fresh.connect((LOOPBACK, 9)))
        refused(errno.EBADFD, fresh.listen)

    def test_tcp_options_of_a_listener(self, listener: TlsListener, pki: Pki) -> None:
        listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        check_served(listener, pki.root)


def test_it_is_shown_with_its_queue(listener: TlsListener, pki: Pki) -> None:
    target = Target(listener.port, pki.root)
    with clients.connect(clients.context(pki.root), target) as client:
        listener.await_readable()
        state = listener_state(get_id(listener.sock))
        assert state["state"] == SocketState.LISTENING
        assert (state["queued"], state["backlog"]) == (1, 128)
        assert state["pid"] == os.getpid()
        with listener.accept() as accepted:
            assert listener_state(get_id(listener.sock))["queued"] == 0
            (shown,) = [entry for entry in sockets() if entry["socket"] == get_id(accepted)]
            assert shown["state"] == SocketState.CONNECTED
            assert shown["host_name"] == HOST
            assert shown["pid"] == os.getpid()
        assert client.recv(1) == b""


def test_ssad_ls_shows_it(listener: TlsListener) -> None:
    (shown,) = ssad_json("ls")
    assert shown["state"] == "listening"
    assert shown["local"] == f"{LOOPBACK}:{listener.port}"
    assert (shown["queued"], shown["backlog"]) == (0, 128)
    assert "listening" in ssad("ls").stdout


def test_those_who_watch_hear_of_it(pki: Pki) -> None:
    with Events() as events, listening(pki.ecdsa) as listener:
        told = events.wait_for(EventKind.LISTENING)
        assert told["socket"] == get_id(listener.sock)
        assert told["pid"] == os.getpid()
        check_served(listener, pki.root)
        accepted = events.wait_for(EventKind.ACCEPTED)
        assert accepted["host_name"] == HOST
        assert "remote_address" in accepted


def test_without_a_daemon(any_daemon: Daemon, pki: Pki) -> None:
    with tls_socket(host=None) as sock:
        set_identity(sock, pki.ecdsa)
        sock.bind((LOOPBACK, 0))
        any_daemon.stop()
        refused(errno.ECANCELED, sock.listen)
        assert "ssad" in tls_error(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
        any_daemon.ensure()
        sock.listen()
        with (
            clients.connect(
                clients.context(pki.root), Target(sock.getsockname()[1], pki.root)
            ) as client,
            sock.accept()[0] as accepted,
        ):
            accepted.send(b"well")
            assert client.recv(4) == b"well"


def test_the_end_of_the_process_ends_its_listener(pki: Pki) -> None:
    ours, theirs = os.pipe()

    def listen() -> None:
        with listening(pki.ecdsa) as listener:
            os.write(theirs, struct.pack("=H", listener.port))
            os._exit(0)

    assert in_child(listen) == 0
    (port,) = struct.unpack("=H", os.read(ours, 2))
    os.close(ours)
    os.close(theirs)
    await_condition("the listener is gone", lambda: sockets() == [])
    refused(errno.ECONNREFUSED, lambda: socket.create_connection((LOOPBACK, port), 60))
