# SPDX-License-Identifier: BSD-3-Clause
"""connect() that does not wait, and connect() that is cut short."""

from __future__ import annotations

import asyncio
import errno
import select
import signal
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.peers import hostile, tls_peer
from tests.peers.hostile import serving
from tests.system.program import (
    Address,
    as_tcp,
    begin,
    echo,
    libc,
    raw_connect,
    refused,
    signal_once_it_waits,
    so_error,
    tls_error,
    tls_socket,
)

if TYPE_CHECKING:
    import types
    from collections.abc import Iterator

    from tests.peers.hostile import Peer, Script
    from tests.peers.pki import Pki
    from tests.peers.servers import Server

DEADLINE = 60.0

GARBAGE = hostile.answer(hostile.GARBAGE, when_told=True)


def late(pki: Pki) -> Script:
    """Return a script that waits with the handshake until it is told to go on."""

    def script(raw: socket.socket, peer: Peer) -> None:
        peer.report("accepted")
        peer.go_on.wait(DEADLINE)
        connection = tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.3")
        connection.handshake()
        connection.send(connection.receive(4))

    return script


@pytest.mark.usefixtures("transport")
class TestConnectWithoutWaiting:
    """connect() of a nonblocking socket."""

    def test_it_ends_with_success_once(self, pki: Pki) -> None:
        with serving(late(pki)) as peer, tls_socket() as sock:
            begin(sock, peer)
            assert raw_connect(sock, peer) == errno.EALREADY
            peer.go_on.set()
            assert select.select([], [sock], [], DEADLINE)[1]
            assert so_error(sock) == 0
            assert raw_connect(sock, peer) == 0
            assert raw_connect(sock, peer) == errno.EOPNOTSUPP
            sock.settimeout(None)
            echo(sock, b"done")

    def test_it_ends_with_the_error_once(self) -> None:
        with serving(GARBAGE) as peer, tls_socket() as sock:
            begin(sock, peer)
            peer.go_on.set()
            select.select([], [sock], [], DEADLINE)
            assert raw_connect(sock, peer) == errno.EPROTO
            assert so_error(sock) == 0
            assert raw_connect(sock, peer) == errno.EBADFD

    def test_so_error_has_the_error_once(self) -> None:
        with serving(GARBAGE) as peer, tls_socket() as sock:
            begin(sock, peer)
            peer.go_on.set()
            select.select([], [sock], [], DEADLINE)
            assert so_error(sock) == errno.EPROTO
            assert so_error(sock) == 0
            assert "other than TLS" in tls_error(sock)

    def test_a_connect_under_way_is_told(self) -> None:
        with serving(hostile.silent) as peer, tls_socket() as sock:
            begin(sock, peer)
            peer.await_report("hello")
            assert raw_connect(sock, peer) == errno.EALREADY
            refused(errno.EAGAIN, lambda: sock.send(b"early"))
            refused(errno.EAGAIN, lambda: sock.recv(1))

    def test_closing_ends_a_connect_under_way(self) -> None:
        left = threading.Event()

        def script(connection: socket.socket, peer: Peer) -> None:
            hostile.silent(connection, peer)
            left.set()

        with serving(script) as peer:
            with tls_socket() as sock:
                begin(sock, peer)
                peer.await_report("hello")
            assert left.wait(DEADLINE), "the server should see the connection end"

    def test_an_unspecified_address_ends_a_connect_under_way(self) -> None:
        unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
        with serving(hostile.silent) as peer, tls_socket() as sock:
            begin(sock, peer)
            peer.await_report("hello")
            assert libc.connect(sock.fileno(), unspecified, len(unspecified)) == 0
            refused(errno.ENOTCONN, lambda: sock.send(b"never"))

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test_it_works_from_asyncio(self, echo_server: Server, loop: str) -> None:
        async def use() -> None:
            running = asyncio.get_running_loop()
            with as_tcp(tls_socket()) as sock:
                sock.settimeout(0)
                await running.sock_connect(sock, (echo_server.address, echo_server.port))
                await running.sock_sendall(sock, b"asynchronous")
                received = b""
                while len(received) < 12:
                    received += await running.sock_recv(sock, 12)
                assert received == b"asynchronous"

        if loop == "uvloop":
            uvloop.run(use())
        else:
            asyncio.run(use())

    def test_asyncio_gets_the_error(self) -> None:
        async def use(peer: Peer) -> None:
            loop = asyncio.get_running_loop()
            with as_tcp(tls_socket()) as sock:
                sock.settimeout(0)
                with pytest.raises(OSError, match=str(errno.EPROTO)):
                    await loop.sock_connect(sock, (peer.address, peer.port))

        with serving(hostile.answer(hostile.GARBAGE)) as peer:
            asyncio.run(use(peer))


class TestConnectThatIsCutShort:
    """A connect() that waits and is interrupted, or waits no longer."""

    @pytest.fixture(autouse=True)
    def signals(self) -> Iterator[None]:
        """Have a signal that does nothing but interrupt."""

        def ignore(_number: int, _frame: types.FrameType | None) -> None:
            pass

        before = signal.signal(signal.SIGUSR1, ignore)
        yield
        signal.signal(signal.SIGUSR1, before)

    @staticmethod
    def signal_when(peer: Peer, report: str) -> threading.Thread:
        """Send the signal to the main thread when the peer reports."""

        def send() -> None:
            peer.await_report(report)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        sender = threading.Thread(target=send)
        sender.start()
        return sender

    @pytest.mark.usefixtures("daemon")
    def test_a_signal_interrupts_it_and_it_goes_on(self, pki: Pki) -> None:
        with serving(late(pki)) as peer, tls_socket() as sock:
            sender = self.signal_when(peer, "accepted")
            assert raw_connect(sock, peer) == errno.EINTR
            sender.join()
            peer.go_on.set()
            assert select.select([], [sock], [], DEADLINE)[1], "it should get writable"
            assert so_error(sock) == 0
            echo(sock, b"done")

    @pytest.mark.usefixtures("daemon")
    def test_a_signal_that_restarts_calls_does_not_end_it(self, pki: Pki) -> None:
        with serving(late(pki)) as peer, tls_socket() as sock:
            signal.siginterrupt(signal.SIGUSR1, False)  # noqa: FBT003 -- takes no keyword
            sender = self.signal_when(peer, "accepted")
            later = threading.Timer(0.5, peer.go_on.set)
            later.start()
            assert raw_connect(sock, peer) == 0
            sender.join()
            later.join()
            echo(sock, b"done")

    @pytest.mark.usefixtures("daemon")
    def test_a_send_timeout_bounds_it_and_it_goes_on(self, pki: Pki) -> None:
        with serving(late(pki)) as peer, tls_socket() as sock:
            timeout = struct.pack("=qq", 0, 200_000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
            assert raw_connect(sock, peer) == errno.EINPROGRESS
            peer.go_on.set()
            forever = struct.pack("=qq", 0, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, forever)
            assert raw_connect(sock, peer) == 0
            echo(sock, b"done")

    @pytest.mark.usefixtures("daemon")
    def test_a_signal_interrupts_it_before_tcp_is_connected(self, void: Address) -> None:
        with tls_socket() as sock:
            later = signal_once_it_waits()
            assert raw_connect(sock, void) == errno.EINTR
            later.join()
