# SPDX-License-Identifier: BSD-3-Clause
"""shutdown(2) and connect(AF_UNSPEC) make a listening socket stop, as they do on TCP."""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.peers import clients
from tests.peers.clients import Target
from tests.system.daemon import await_condition, sockets
from tests.system.program import get_id, libc, refused
from tests.system.server import DEADLINE, listening
from tests.system.tcp import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.peers.pki import Pki

UNSPECIFIED = struct.pack("=H14x", socket.AF_UNSPEC)


def forget(sock: socket.socket) -> None:
    """Call connect(AF_UNSPEC)."""
    if libc.connect(sock.fileno(), UNSPECIFIED, len(UNSPECIFIED)) != 0:
        raise OSError(ctypes.get_errno(), "connect")


STOPS: list[Callable[[socket.socket], object]] = [
    lambda sock: sock.shutdown(socket.SHUT_RD),
    lambda sock: sock.shutdown(socket.SHUT_RDWR),
    forget,
]


def check_stop(sock: socket.socket, stop: Callable[[socket.socket], object]) -> None:
    """Stop a listener at which a thread waits."""
    address = sock.getsockname()
    results: list[int | None] = []

    def accept() -> None:
        try:
            sock.accept()
        except OSError as error:
            results.append(error.errno)

    waiting = threading.Thread(target=accept)
    waiting.start()
    task = f"/proc/self/task/{waiting.native_id}/wchan"
    await_condition("the thread waits in accept()", lambda: _waits(task))
    sock.shutdown(socket.SHUT_WR)  # which is nothing to a listener
    assert not results
    stop(sock)
    waiting.join(DEADLINE)
    assert results == [errno.EINVAL]
    refused(errno.EINVAL, sock.accept)
    assert select.select([sock], [], [], 0)[0] == [sock]
    refused(errno.ENOTCONN, lambda: sock.recv(1))
    refused(errno.ENOTCONN, lambda: sock.shutdown(socket.SHUT_RD))
    with socket.socket() as client:
        refused(errno.ECONNREFUSED, lambda: client.connect(address))
    socket.create_server(address).close()  # the port is free


def _waits(task: str) -> bool:
    with open(task, encoding="ascii") as file:  # noqa: PTH123 -- /proc
        return file.read() not in ("0", "")


@pytest.mark.usefixtures("daemon")
def test_it_is_as_on_tcp(pki: Pki) -> None:
    for stop in STOPS:
        with socket.create_server((LOOPBACK, 0)) as tcp:
            check_stop(tcp, stop)
        with listening(pki.ecdsa) as listener:
            check_stop(listener.sock, stop)
            refused(errno.EOPNOTSUPP, listener.sock.listen)


def test_what_nobody_has_accepted_is_closed(pki: Pki, transport: str) -> None:
    assert transport
    with listening(pki.ecdsa) as listener:
        trust = clients.context(pki.root)
        with clients.connect(trust, Target(listener.port, pki.root)) as client:
            listener.await_readable()
            listener.sock.shutdown(socket.SHUT_RDWR)
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
            here = get_id(listener.sock)
            await_condition(
                "its connection is gone", lambda: [each["socket"] for each in sockets()] == [here]
            )
