# SPDX-License-Identifier: BSD-3-Clause
"""When a socket is ready."""

from __future__ import annotations

import errno
import select
import socket
import threading
from typing import TYPE_CHECKING, Self

import pytest

from tests.peers import hostile, tls_peer
from tests.peers.hostile import serving
from tests.system.program import (
    begin,
    connect,
    receive_exactly,
    refused,
    so_error,
    tls_socket,
)

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.peers.hostile import Peer, Script
    from tests.peers.pki import Pki

DEADLINE = 60.0

IN = select.EPOLLIN
OUT = select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP


class Epoll:
    """epoll(7) with one socket in it."""

    def __init__(self, sock: socket.socket, *, edge: bool) -> None:
        self._epoll = select.epoll()
        flags = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP
        self._epoll.register(sock, flags | (select.EPOLLET if edge else 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()

    def drain(self) -> int:
        """Return the events that are there, and with edges none but new ones afterwards."""
        return sum(events for _, events in self._epoll.poll(0))

    def wait(self) -> int:
        """Wait for events."""
        return sum(events for _, events in self._epoll.poll(DEADLINE))

    def wait_for(self, wanted: int) -> int:
        """Wait for an event that has at least `wanted`."""
        while True:
            events = self.wait()
            assert events, "no event came"
            if events & wanted == wanted:
                return events


def send_when_told(pki: Pki, data: bytes = b"data") -> Script:
    """Return a script that sends `data` for every byte that it gets."""

    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        while connection.receive(1) != b"q":
            connection.send(data)

    return tls_peer.tls(pki.ecdsa, act)


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("edge", [False, True], ids=["level", "edge"])
class TestEpoll:
    """epoll(7), registered before there is a connection."""

    def test_a_connect_makes_it_writable(self, pki: Pki, *, edge: bool) -> None:
        with (
            serving(send_when_told(pki)) as peer,
            tls_socket() as sock,
            Epoll(sock, edge=edge) as epoll,
        ):
            epoll.drain()  # an unconnected stream socket hangs up, as TCP's does
            begin(sock, peer)
            events = epoll.wait_for(OUT)
            assert not events & BROKEN
            assert not events & IN
            sock.send(b"q")

    def test_a_failed_connect_is_told(self, *, edge: bool) -> None:
        with (
            serving(hostile.answer(hostile.GARBAGE, when_told=True)) as peer,
            tls_socket() as sock,
            Epoll(sock, edge=edge) as epoll,
        ):
            epoll.drain()
            begin(sock, peer)
            peer.go_on.set()
            assert epoll.wait_for(OUT | select.EPOLLERR) & select.EPOLLHUP
            assert so_error(sock) == errno.EPROTO

    def test_data_makes_it_readable_each_time(self, pki: Pki, *, edge: bool) -> None:
        with (
            serving(send_when_told(pki)) as peer,
            tls_socket() as sock,
            Epoll(sock, edge=edge) as epoll,
        ):
            sock.connect((peer.address, peer.port))
            for _ in range(3):
                sock.send(b".")
                epoll.wait_for(IN)
                assert receive_exactly(sock, 4) == b"data"
                while epoll.drain() & IN:
                    assert not edge, "an edge should come once"
                    refused(errno.EAGAIN, lambda: sock.recv(1, socket.MSG_DONTWAIT))
            sock.send(b"q")

    def test_what_is_left_unread_is_told_again_or_not(self, pki: Pki, *, edge: bool) -> None:
        with (
            serving(send_when_told(pki)) as peer,
            tls_socket() as sock,
            Epoll(sock, edge=edge) as epoll,
        ):
            sock.connect((peer.address, peer.port))
            sock.send(b".")
            epoll.wait_for(IN)
            assert sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL) == b"data"
            epoll.drain()
            assert bool(epoll.drain() & IN) is not edge
            sock.send(b"q")

    def test_the_end_of_the_stream_is_told(self, pki: Pki, *, edge: bool) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.receive(1)
            connection.close_notify()

        with (
            serving(tls_peer.tls(pki.ecdsa, act)) as peer,
            tls_socket() as sock,
            Epoll(sock, edge=edge) as epoll,
        ):
            sock.connect((peer.address, peer.port))
            sock.send(b".")
            epoll.wait_for(IN | select.EPOLLRDHUP)
            assert sock.recv(1) == b""


@pytest.mark.usefixtures("transport")
class TestPollAndSelect:
    """poll(2) and select(2)."""

    def test_poll_tells_of_writing_and_reading(self, pki: Pki) -> None:
        with serving(send_when_told(pki)) as peer, tls_socket() as sock:
            poll = select.poll()
            poll.register(sock, select.POLLIN | select.POLLOUT)
            begin(sock, peer)
            assert poll.poll(DEADLINE * 1000) == [(sock.fileno(), select.POLLOUT)]
            sock.send(b".")
            poll.modify(sock, select.POLLIN)
            assert poll.poll(DEADLINE * 1000) == [(sock.fileno(), select.POLLIN)]
            assert receive_exactly(sock, 4) == b"data"
            assert poll.poll(0) == []
            sock.send(b"q")

    def test_select_tells_of_writing_and_reading(self, pki: Pki) -> None:
        with serving(send_when_told(pki)) as peer, tls_socket() as sock:
            begin(sock, peer)
            assert select.select([sock], [sock], [], DEADLINE) == ([], [sock], [])
            sock.send(b".")
            assert select.select([sock], [], [], DEADLINE) == ([sock], [], [])
            assert receive_exactly(sock, 4) == b"data"
            assert select.select([sock], [], [], 0) == ([], [], [])
            sock.send(b"q")

    def test_records_without_data_do_not_make_it_readable(self, pki: Pki) -> None:
        sent = threading.Event()

        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            sent.set()  # with the end of its handshake it has sent two session tickets
            connection.receive(1)

        with serving(tls_peer.tls(pki.ecdsa, act)) as peer, connect(peer) as sock:
            assert sent.wait(DEADLINE)
            assert select.select([sock], [], [], 0.5) == ([], [], [])
            refused(errno.EAGAIN, lambda: sock.recv(1, socket.MSG_DONTWAIT))
            sock.send(b"q")

    def test_a_thread_that_waits_to_read_is_woken(self, pki: Pki, stack: ExitStack) -> None:
        peer = stack.enter_context(serving(send_when_told(pki)))
        sock = stack.enter_context(connect(peer))
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(receive_exactly(sock, 4)))
        reader.start()
        sock.send(b".")
        reader.join(DEADLINE)
        assert received == [b"data"]
        sock.send(b"q")

    def test_a_peer_that_does_not_read_makes_it_unwritable(self, pki: Pki) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            peer.go_on.wait(DEADLINE)
            connection.await_close_notify()
            peer.report("all is read")

        with serving(tls_peer.tls(pki.ecdsa, act)) as peer:
            with connect(peer) as sock:
                sock.settimeout(0)
                sent = 0
                while select.select([], [sock], [], 2)[1]:
                    assert sent < 64 << 20, f"{sent} bytes were taken that nobody reads"
                    try:
                        sent += sock.send(bytes(1 << 14))
                    except BlockingIOError:
                        continue
                peer.go_on.set()
                assert select.select([], [sock], [], DEADLINE)[1], "room should be told"
            peer.await_report("all is read")
