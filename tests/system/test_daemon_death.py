# SPDX-License-Identifier: BSD-3-Clause
"""The daemon dies, at each step of a connection: nothing hangs, nothing leaks, and what does not
need it goes on."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS, TlsOption
from tests.peers import hostile, servers, tls_peer
from tests.peers.hostile import serving
from tests.peers.pki import ALIAS, HOST
from tests.system.daemon import (
    PARAMETERS,
    SLOWNESS,
    await_condition,
    socket_count,
    sockets,
    written,
)
from tests.system.program import (
    await_child,
    connect,
    echo,
    get_number,
    get_text,
    libc,
    name_of,
    raw_connect,
    receive_exactly,
    refused,
    set_number,
    set_text,
    so_error,
    start_child,
    tls_error,
    tls_socket,
    waits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.daemon import Daemon
    from tests.system.program import Address

DEADLINE = 60.0

# Far less than the module's own time-outs, so that it must be the death that ends a call.
SOON = 5.0 * SLOWNESS


class Caller:
    """A thread in a call; `result` is 0 or its errno."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result = -1
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._number = 0
        self._thread.start()
        await_condition("the thread runs", lambda: self._number != 0)

    def _run(self) -> None:
        self._number = threading.get_native_id()
        try:
            self._call()
        except OSError as error:
            self.result = error.errno or -1
        else:
            self.result = 0

    def await_blocked(self, where: str = "[ssa]") -> None:
        """Wait until it sleeps in the kernel, in a call of the module's."""

        def sleeps() -> bool:
            assert self._thread.is_alive(), f"the call ended: {name_of(self.result)}"
            return waits(self._number, where)

        await_condition("the call waits in the module", sleeps)

    def ended(self, wanted: int) -> None:
        """Check that the call ends soon, and how."""
        self._thread.join(SOON)
        assert not self._thread.is_alive(), "the call hangs"
        assert self.result == wanted, f"found {name_of(self.result)}"


@pytest.fixture
def daemon(any_daemon: Daemon) -> Daemon:
    """Have a daemon run that hands connections to the kernel."""
    any_daemon.ensure("ktls")
    return any_daemon


class TestKilledWhileConnecting:
    """SIGKILL at each step of a connect()."""

    def kill_and_check(self, daemon: Daemon, caller: Caller, sock: socket.socket) -> None:
        """Kill the daemon and check what the caller gets."""
        daemon.kill()
        caller.ended(errno.ECANCELED)
        assert tls_error(sock).endswith(".")
        refused(errno.EBADFD, lambda: sock.connect(("127.0.0.1", 1)))
        sock.close()
        assert socket_count() == 0

    def test_before_tcp_is_connected(self, daemon: Daemon, void: Address) -> None:
        with tls_socket() as sock:
            caller = Caller(lambda: sock.connect((void.address, void.port)))
            caller.await_blocked()
            self.kill_and_check(daemon, caller, sock)

    def test_before_it_has_seen_the_request(self, daemon: Daemon, echo_server: Server) -> None:
        with tls_socket() as sock:
            daemon.freeze()
            caller = Caller(lambda: sock.connect((echo_server.address, echo_server.port)))
            caller.await_blocked()
            self.kill_and_check(daemon, caller, sock)

    def test_while_it_waits_for_the_server(self, daemon: Daemon) -> None:
        with serving(hostile.silent) as peer, tls_socket() as sock:
            caller = Caller(lambda: sock.connect((peer.address, peer.port)))
            peer.await_report("hello")
            self.kill_and_check(daemon, caller, sock)

    def test_in_the_middle_of_the_servers_flight(self, daemon: Daemon, pki: Pki) -> None:
        def script(raw: socket.socket, peer: Peer) -> None:
            connection = tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.3")
            raw.sendall(connection.handshake(stop_before_flight=0)[:300])
            peer.report("half a flight")
            hostile.read_until_closed(raw)
            peer.report("left")

        with serving(script) as peer, tls_socket() as sock:
            caller = Caller(lambda: sock.connect((peer.address, peer.port)))
            peer.await_report("half a flight")
            self.kill_and_check(daemon, caller, sock)
            peer.await_report("left")  # the endpoint does not outlive the attempt

    def test_between_two_flights(self, daemon: Daemon, pki: Pki) -> None:
        def script(raw: socket.socket, peer: Peer) -> None:
            connection = tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.2")
            connection.handshake(stop_before_flight=1)
            peer.report("all but the last flight")
            hostile.read_until_closed(raw)

        with serving(script) as peer, tls_socket() as sock:
            caller = Caller(lambda: sock.connect((peer.address, peer.port)))
            peer.await_report("all but the last flight")
            self.kill_and_check(daemon, caller, sock)

    def test_a_connect_that_does_not_wait(self, daemon: Daemon) -> None:
        with serving(hostile.silent) as peer, tls_socket() as sock:
            sock.settimeout(0)
            assert raw_connect(sock, peer) == errno.EINPROGRESS
            peer.await_report("hello")
            poll = select.poll()
            poll.register(sock, select.POLLIN | select.POLLOUT)
            assert poll.poll(0) == []
            daemon.kill()
            ((_, events),) = poll.poll(SOON * 1000)
            assert events & select.POLLERR
            assert so_error(sock) == errno.ECANCELED

    def test_many_connects_at_once(self, daemon: Daemon) -> None:
        with serving(hostile.silent) as peer:
            made = [tls_socket() for _ in range(20)]
            address = (peer.address, peer.port)
            callers = [Caller(lambda sock=sock: sock.connect(address)) for sock in made]  # type: ignore[misc]
            for _ in callers:
                peer.await_report("hello")
            daemon.kill()
            for caller, sock in zip(callers, made, strict=True):
                caller.ended(errno.ECANCELED)
                sock.close()


class TestKilledInOtherCalls:
    """SIGKILL while another call waits for an answer."""

    @pytest.mark.parametrize(
        "call",
        [
            lambda sock: set_text(sock, TlsOption.TLS_HOSTNAME, "other.test"),
            lambda sock: get_number(sock, TlsOption.TLS_VERSION_MIN),
            lambda sock: sock.bind(("127.0.0.1", 0)),
        ],
        ids=["setsockopt", "getsockopt", "bind"],
    )
    def test_a_call_on_a_socket(
        self, daemon: Daemon, call: Callable[[socket.socket], object]
    ) -> None:
        with tls_socket() as sock:
            daemon.freeze()
            caller = Caller(lambda: call(sock))
            caller.await_blocked()
            daemon.kill()
            caller.ended(errno.ECANCELED)

    def test_making_a_socket(self, daemon: Daemon) -> None:
        daemon.freeze()
        caller = Caller(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS))
        caller.await_blocked()
        daemon.kill()
        caller.ended(errno.ECANCELED)

    def test_closing_a_socket_does_not_wait_for_it(self, daemon: Daemon) -> None:
        sock = tls_socket()
        daemon.freeze()
        sock.close()
        assert socket_count() == 0
        daemon.kill()


class TestKilledWhileConnected:
    """SIGKILL with connections that are established."""

    def test_kernel_tls_goes_on_and_closes_properly(self, daemon: Daemon, pki: Pki) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            for _ in range(2):
                connection.send(connection.receive(5))
            connection.await_close_notify()
            peer.report("close_notify")

        with serving(tls_peer.tls(pki.ecdsa, act)) as peer:
            with connect(peer) as sock:
                assert get_text(sock, TlsOption.TLS_TRANSPORT) == "ktls"
                echo(sock, b"first")
                daemon.kill()
                echo(sock, b"still")
                assert get_text(sock, TlsOption.TLS_CHOSEN_CIPHER)
            peer.await_report("close_notify")

    def test_kernel_tls_outlives_the_next_daemon_too(
        self, daemon: Daemon, echo_server: Server
    ) -> None:
        with connect(echo_server) as sock:
            daemon.kill()
            daemon.ensure("ktls")
            daemon.stop()
            echo(sock, b"three daemons later")

    def test_a_channel_is_reset(self, daemon: Daemon, pki: Pki) -> None:
        daemon.ensure("channel")

        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.send(b"before")
            hostile.read_until_closed(connection.raw)
            peer.report("left")

        with serving(tls_peer.tls(pki.ecdsa, act)) as peer, connect(peer) as sock:
            assert get_text(sock, TlsOption.TLS_TRANSPORT) == "channel"
            sock.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL)
            poll = select.poll()
            poll.register(sock, select.POLLRDHUP)
            daemon.kill()
            assert poll.poll(SOON * 1000), "who waits should be woken"
            assert receive_exactly(sock, 6) == b"before"
            refused(errno.ECONNRESET, lambda: sock.recv(1))
            refused(errno.EPIPE, lambda: sock.send(b"after"))
            sock.close()
            # The endpoint is not kept open by anybody.
            peer.await_report("left")

    def test_a_reader_of_a_channel_is_woken(self, daemon: Daemon, echo_server: Server) -> None:
        daemon.ensure("channel")
        with connect(echo_server) as sock:
            caller = Caller(lambda: sock.recv(1))
            caller.await_blocked()
            daemon.kill()
            caller.ended(errno.ECONNRESET)


class TestTheNextDaemon:
    """What a new socket was told survives in the kernel."""

    def test_options_are_told_to_it(self, daemon: Daemon, pki: Pki, logs: Path) -> None:
        with (
            servers.openssl(pki.unknown_ca, logs, "-www", "-alpn", "http/1.1") as server,
            tls_socket() as sock,
        ):
            sock.bind(("127.0.0.3", 0))
            set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, pki.unknown_root.read_text())
            set_text(sock, TlsOption.TLS_HOSTNAME, ALIAS)
            set_text(sock, TlsOption.TLS_ALPN, "h2,http/1.1")
            set_number(sock, TlsOption.TLS_VERSION_MAX, 0x0303)
            set_text(sock, TlsOption.TLS_DISABLE_CIPHER, "ECDHE-ECDSA-AES128-GCM-SHA256")
            set_text(sock, TlsOption.TLS_DISABLE_CIPHER, "ECDHE-ECDSA-AES256-GCM-SHA384")
            daemon.kill()
            daemon.ensure("ktls")
            assert get_number(sock, TlsOption.TLS_VERSION_MAX) == 0x0303
            sock.connect((server.address, server.port))
            assert get_text(sock, TlsOption.TLS_HOSTNAME) == ALIAS
            assert get_text(sock, TlsOption.TLS_ALPN) == "http/1.1"
            assert get_number(sock, TlsOption.TLS_VERSION_CONN) == 0x0303
            cipher = get_text(sock, TlsOption.TLS_CHOSEN_CIPHER)
            assert cipher == "ECDHE-ECDSA-CHACHA20-POLY1305"
            assert sock.getsockname()[0] == "127.0.0.3"

    def test_a_trust_store_of_many_pieces_is_told_to_it(
        self, daemon: Daemon, pki: Pki, logs: Path
    ) -> None:
        # What the first certificates are does not matter, their length does.
        many = pki.root.read_text() * 100 + pki.unknown_root.read_text()
        with servers.openssl(pki.unknown_ca, logs, "-www") as server, tls_socket() as sock:
            set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, many)
            daemon.kill()
            daemon.ensure("ktls")
            sock.connect((server.address, server.port))

    def test_a_socket_that_failed_stays_failed(self, daemon: Daemon) -> None:
        with serving(hostile.answer(hostile.GARBAGE)) as peer, tls_socket() as sock:
            refused(errno.EPROTO, lambda: sock.connect((peer.address, peer.port)))
            daemon.kill()
            daemon.ensure("ktls")
            refused(errno.EBADFD, lambda: sock.connect((peer.address, peer.port)))
            assert "other than TLS" in tls_error(sock)


@contextmanager
def frozen(daemon: Daemon) -> Iterator[None]:
    """Have the daemon answer nothing, and calls wait for it no longer than a moment."""
    daemon.freeze()
    try:
        with written(PARAMETERS / "request_timeout_ms", 300):
            yield
    finally:
        daemon.thaw()


class TestStopped:
    """SIGTERM, and a daemon that does not answer."""

    def test_a_connect_under_way_is_canceled(self, daemon: Daemon) -> None:
        with serving(hostile.silent) as peer, tls_socket() as sock:
            caller = Caller(lambda: sock.connect((peer.address, peer.port)))
            peer.await_report("hello")
            daemon.stop()
            caller.ended(errno.ECANCELED)

    def test_a_call_does_not_wait_for_ever(self, daemon: Daemon, echo_server: Server) -> None:
        with tls_socket() as sock, frozen(daemon):
            refused(errno.ECANCELED, lambda: sock.bind(("127.0.0.1", 0)))
        # Its late answer harms nobody.
        with connect(echo_server) as sock:
            echo(sock, b"well")

    def test_an_option_that_was_not_answered_is_not_set(
        self, daemon: Daemon, echo_server: Server
    ) -> None:
        with tls_socket() as sock:
            with frozen(daemon):
                refused(
                    errno.ECANCELED, lambda: set_text(sock, TlsOption.TLS_HOSTNAME, "other.test")
                )
            sock.connect((echo_server.address, echo_server.port))
            assert get_text(sock, TlsOption.TLS_HOSTNAME) == HOST

    def test_a_program_that_waits_for_it_can_be_killed(self, daemon: Daemon) -> None:
        daemon.freeze()
        child = start_child(tls_socket)
        await_condition("the child waits in the module", lambda: waits(child))
        os.kill(child, signal.SIGKILL)
        assert await_child(child) == -signal.SIGKILL
        assert socket_count() == 0
        daemon.thaw()

    def test_closing_while_it_is_frozen_is_told_later(
        self, daemon: Daemon, echo_server: Server
    ) -> None:
        with tls_socket() as sock:
            daemon.freeze()
            sock.settimeout(0)
            assert raw_connect(sock, echo_server) == errno.EINPROGRESS
        assert sockets() == []
        daemon.thaw()
        with connect(echo_server) as sock:
            echo(sock, b"well")


def test_it_is_killed_again_and_again_under_load(any_daemon: Daemon, echo_server: Server) -> None:
    stop = threading.Event()
    found: set[int] = set()

    def load() -> None:
        while not stop.is_set():
            sock = libc.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS)
            if sock == -1:
                time.sleep(0.01)
                continue
            with socket.socket(fileno=sock) as made:
                try:
                    set_text(made, TlsOption.TLS_HOSTNAME, ALIAS)
                    made.connect((echo_server.address, echo_server.port))
                    echo(made, b"load")
                except OSError as error:
                    found.add(error.errno or -1)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            any_daemon.ensure("ktls")
            any_daemon.kill()
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
    assert found <= {errno.ECANCELED}, [name_of(number) for number in found]
