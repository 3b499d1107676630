# SPDX-License-Identifier: BSD-3-Clause
"""SIGIO, or the signal of F_SETSIG, tells what TCP tells (socket(7), fcntl(2))."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.peers import clients, hostile, tls_peer
from tests.peers.clients import Target
from tests.peers.hostile import serving
from tests.system.program import begin, connect, receive_exactly, refused, so_error, tls_socket
from tests.system.server import listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki

DEADLINE = 60

SIGNAL = signal.SIGRTMIN + 3

# <linux/fcntl.h>; Python has no names for them.
F_SETSIG = 10
F_SETOWN_EX = 15
F_OWNER_TID = 0

# <asm-generic/siginfo.h>: si_code.
POLL_IN, POLL_OUT, POLL_ERR, POLL_HUP = 1, 2, 4, 6

# What the kernel has as si_band of each: events of poll(2).
BANDS = {
    POLL_IN: select.POLLIN | select.POLLRDNORM,
    POLL_OUT: select.POLLOUT | select.POLLWRNORM | select.POLLWRBAND,
    POLL_ERR: select.POLLERR,
    POLL_HUP: select.POLLHUP | select.POLLERR,
}


@pytest.fixture(autouse=True)
def blocked() -> Iterator[None]:
    """Have the signals wait until they are asked for, and none left afterwards."""
    signals = {SIGNAL, signal.SIGIO}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    yield
    while signal.sigtimedwait(signals, 0) is not None:
        pass
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def ask(sock: socket.socket, number: int = SIGNAL) -> None:
    """Have a signal sent to this thread, the one that blocks it, for what happens to a socket."""
    owner = struct.pack("ii", F_OWNER_TID, threading.get_native_id())
    fcntl.fcntl(sock, F_SETOWN_EX, owner)
    fcntl.fcntl(sock, F_SETSIG, number)
    fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | os.O_ASYNC)


def await_signal(*codes: int) -> None:
    """Wait for a signal with one of the codes; others tell of what has been already. Each has the
    band of its code."""
    while True:
        told = signal.sigtimedwait({SIGNAL}, DEADLINE)
        assert told is not None, f"no signal with a code of {codes}"
        assert told.si_band == BANDS[told.si_code]
        if told.si_code in codes:
            return


def drop_signals() -> list[int]:
    """Take all signals that are there and return their codes."""
    codes = []
    while (told := signal.sigtimedwait({SIGNAL}, 0)) is not None:
        codes.append(told.si_code)
    return codes


@contextmanager
def asking(sock: socket.socket) -> Iterator[None]:
    """Ask for signals as long as the context lasts."""
    ask(sock)
    yield
    flags = fcntl.fcntl(sock, fcntl.F_GETFL)
    fcntl.fcntl(sock, fcntl.F_SETFL, flags & ~os.O_ASYNC)


@pytest.mark.usefixtures("transport")
def test_a_connection_is_told_of_from_its_begin_to_its_end(pki: Pki) -> None:
    def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
        connection.receive(1)
        connection.send(b"data")
        connection.receive(1)
        peer.go_on.wait(DEADLINE)
        connection.close_notify()

    with serving(tls_peer.tls(pki.ecdsa, act)) as peer, tls_socket() as sock, asking(sock):
        begin(sock, peer)
        await_signal(POLL_OUT)
        sock.send(b".")
        await_signal(POLL_IN)
        select.select([sock], [], [], DEADLINE)
        assert receive_exactly(sock, 4) == b"data"
        sock.send(b".")
        drop_signals()
        peer.go_on.set()
        await_signal(POLL_IN, POLL_HUP)
        select.select([sock], [], [], DEADLINE)
        assert sock.recv(1) == b""


@pytest.mark.usefixtures("transport")
def test_a_failed_connect_is_told() -> None:
    script = hostile.answer(hostile.GARBAGE, when_told=True)
    with serving(script) as peer, tls_socket() as sock, asking(sock):
        begin(sock, peer)
        peer.go_on.set()
        await_signal(POLL_ERR)
        assert so_error(sock) == errno.EPROTO


@pytest.mark.usefixtures("transport")
def test_a_reset_is_told(pki: Pki) -> None:
    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        connection.receive(1)
        hostile.reset(connection.raw)

    with serving(tls_peer.tls(pki.ecdsa, act)) as peer, connect(peer) as sock, asking(sock):
        sock.send(b".")
        await_signal(POLL_HUP, POLL_ERR)
        refused(errno.ECONNRESET, lambda: sock.recv(1))


@pytest.mark.usefixtures("transport")
def test_room_is_told_only_to_who_has_found_none(pki: Pki) -> None:
    def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
        assert connection.receive(1) == b"."
        connection.send(b".")
        peer.go_on.wait(DEADLINE)
        connection.await_close_notify()

    with serving(tls_peer.tls(pki.ecdsa, act)) as peer, connect(peer) as sock, asking(sock):
        sock.send(b".")
        assert receive_exactly(sock, 1) == b"."
        # Room there was all the time, though the transport has told of what was read.
        assert POLL_OUT not in drop_signals()

        sock.settimeout(0)

        def fill() -> None:
            for _ in range(1 << 12):
                sock.send(bytes(1 << 14))

        # A signal that came already was for room that there was before the last of these.
        refused(errno.EAGAIN, fill)
        while POLL_OUT in drop_signals():
            refused(errno.EAGAIN, fill)
        peer.go_on.set()
        await_signal(POLL_OUT)
        assert select.select([], [sock], [], DEADLINE)[1]


def test_a_listener_tells_of_a_connection(pki: Pki, transport: str) -> None:
    assert transport
    with listening(pki.ecdsa) as listener, asking(listener.sock):
        target = Target(listener.port, pki.root)
        with clients.connect(clients.context(pki.root), target) as client:
            await_signal(POLL_IN)
            with listener.sock.accept()[0] as accepted, asking(accepted):
                client.send(b"data")
                await_signal(POLL_IN)
                assert receive_exactly(accepted, 4) == b"data"
                client.close()
                await_signal(POLL_IN, POLL_HUP)


@pytest.mark.usefixtures("daemon")
def test_sigio_goes_to_who_owns_the_socket(pki: Pki) -> None:
    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        connection.receive(1)
        connection.send(b".")
        connection.await_close_notify()

    with serving(tls_peer.tls(pki.ecdsa, act)) as peer, connect(peer) as sock:
        ask(sock, 0)
        assert fcntl.fcntl(sock, fcntl.F_GETOWN) == os.getpid()
        sock.send(b".")
        told = signal.sigtimedwait({signal.SIGIO}, DEADLINE)
        assert told is not None
        assert told.si_signo == signal.SIGIO
