# SPDX-License-Identifier: BSD-3-Clause
"""Where the faults are injected: programs' sockets, their peers, and the worker between them."""

from __future__ import annotations

import ctypes
import random
import socket
import struct
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssad.wire import AF_HOSTNAME, IPPROTO_TLS, Transport
from tests.debug.worker import DEADLINE, Worker, install_client, install_server
from tests.system.hostname import host_address
from tests.system.program import SOL_TLS, TLS_GET_RECORD_TYPE, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

ALERT = 21
TICKET = 22

FAMILIES = {"AF_INET": socket.AF_INET, "AF_INET6": socket.AF_INET6, "AF_HOSTNAME": AF_HOSTNAME}
BOTH = dict(list(FAMILIES.items())[:2])

# How the bytes can go: the transport, and the version of TLS.
WORLDS = {
    "ktls": (Transport.KTLS, 0x0304),
    "ktls-1.2": (Transport.KTLS, 0x0303),
    "channel": (Transport.CHANNEL, 0x0304),
}

# What a call sends or receives; two records' worth.
DATA = random.Random(205).randbytes(20_000)  # noqa: S311 -- wants to be the same each time

# What tells that a connection goes on where it was.
MARK = b"and so on"


@dataclass(frozen=True, slots=True)
class Pair:
    """A connection: the program's socket, and the peer's, which encrypts too or is a channel."""

    tls: socket.socket
    peer: socket.socket

    def goes_on(self, *, sent: bytes = b"", received: bytes = b"") -> None:
        """Check that what is under way arrives, nothing else, and that both ends can go on."""
        self.tls.sendall(MARK)
        assert _receive(self.peer, len(sent + MARK)) == sent + MARK
        self.peer.sendall(MARK)
        assert _receive(self.tls, len(received + MARK)) == received + MARK

    def send_record(self, kind: int, payload: bytes) -> None:
        """Have the peer send a record that is not application data."""
        self.peer.sendmsg([payload], [(SOL_TLS, 1, bytes([kind]))])

    def peer_reads_to_the_end(self) -> tuple[bytes, bool]:
        """Return what the peer reads, and whether the end came in order."""
        data = b""
        while True:
            try:
                piece, control, _, _ = self.peer.recvmsg(1 << 16, 64)
            except ConnectionResetError:
                return data, False
            kinds = {
                value[0]
                for level, kind, value in control
                if (level, kind) == (SOL_TLS, TLS_GET_RECORD_TYPE)
            }
            if ALERT in kinds:
                return data, piece == b"\1\0"
            if not piece:
                return data, False
            data += piece


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"wanted {size} bytes, the stream ended after {len(data)}"
        data += piece
    return data


def address(family: int, port: int) -> bytes:
    """Return the address of a port on this machine as a family has it; AF_HOSTNAME: its name."""
    if family == AF_HOSTNAME:
        return host_address("localhost", port)
    if family == socket.AF_INET6:
        loopback = socket.inet_pton(family, "::1")
        return struct.pack("=H", family) + struct.pack("!HI16sI", port, 0, loopback, 0)
    loopback = socket.inet_pton(family, "127.0.0.1")
    return struct.pack("=H", family) + struct.pack("!H4s8x", port, loopback)


class World:
    """Makes sockets and connections."""

    def __init__(self, worker: Worker, transport: Transport, version: int) -> None:
        self.worker = worker
        worker.transport, worker.version = transport, version

    @property
    def has_records(self) -> bool:
        """Whether the transport has records that are not application data."""
        return self.worker.transport == Transport.KTLS

    def new(self, family: int = socket.AF_INET) -> socket.socket:
        """Make a TLS socket."""
        return socket.socket(family, socket.SOCK_STREAM, IPPROTO_TLS)

    @contextmanager
    def listener(self, family: int = socket.AF_INET) -> Iterator[socket.socket]:
        """Have a TCP socket that listens: whom a program connects to."""
        family = socket.AF_INET6 if family == AF_HOSTNAME else family
        while not self.worker.channels.empty():  # of one that failed
            self.worker.channels.get().close()
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.settimeout(DEADLINE)
            listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            listener.listen()
            yield listener

    def peer_of(self, listener: socket.socket, opened: ExitStack) -> socket.socket:
        """Return the other end of what a program has connected to `listener`."""
        tcp, _ = listener.accept()
        return self._end(opened.enter_context(tcp), opened, server=True)

    def _end(self, tcp: socket.socket, opened: ExitStack, *, server: bool) -> socket.socket:
        if self.has_records:
            (install_server if server else install_client)(tcp, self.worker.version)
            end = tcp
        else:
            end = opened.enter_context(self.worker.channels.get(timeout=DEADLINE))
        end.settimeout(DEADLINE)
        return end

    def connect(self, sock: socket.socket, family: int, listener: socket.socket) -> None:
        """Connect a program's socket to `listener`."""
        remote = address(family, listener.getsockname()[1])
        assert libc.connect(sock.fileno(), remote, len(remote)) == 0, ctypes.get_errno()

    @contextmanager
    def connected(self, family: int = socket.AF_INET) -> Iterator[Pair]:
        """Have a connection that a program has made."""
        with ExitStack() as opened:
            listener = opened.enter_context(self.listener(family))
            sock = opened.enter_context(self.new(family))
            self.connect(sock, family, listener)
            yield Pair(sock, self.peer_of(listener, opened))

    @contextmanager
    def listening(self, family: int = socket.AF_INET) -> Iterator[socket.socket]:
        """Have a program that listens."""
        with self.new(family) as listener:
            local = address(family, 0)
            assert libc.bind(listener.fileno(), local, len(local)) == 0, ctypes.get_errno()
            assert libc.listen(listener.fileno(), 8) == 0, ctypes.get_errno()
            yield listener

    def client_of(self, listener: socket.socket, opened: ExitStack) -> socket.socket:
        """Connect to a program that listens, and wait until accept() has something to return."""
        port = port_of(listener)
        place = "::1" if listener.family == socket.AF_INET6 else "127.0.0.1"
        tcp = opened.enter_context(socket.create_connection((place, port)))
        end = self._end(tcp, opened, server=False)
        self.worker.accepted.get(timeout=DEADLINE)
        return end


def port_of(sock: socket.socket) -> int:
    """Return the port that a socket of either family is bound to."""
    return int(sock.getsockname()[1])
