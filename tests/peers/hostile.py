# SPDX-License-Identifier: BSD-3-Clause
"""TCP servers that break TLS on purpose.

A script is what the server does with one connection; scripts that speak TLS first are in
`tls_peer.py`.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

HANDSHAKE = 22
APPLICATION_DATA = 23

# RFC 8446, 5.1 and 5.2: what a record may hold at most, plain and encrypted.
PLAIN_MAX = 1 << 14
ENCRYPTED_MAX = PLAIN_MAX + 256

DEADLINE = 60.0


@dataclass(slots=True)
class Peer:
    """A hostile server that listens."""

    address: str
    port: int
    # What the scripts report: the test awaits it with `await_report`.
    reports: queue.Queue[str] = field(default_factory=queue.Queue)
    # Set by the test to let a script that waits for it go on.
    go_on: threading.Event = field(default_factory=threading.Event)

    def report(self, what: str) -> None:
        """Tell the test how far the script is."""
        self.reports.put(what)

    def await_report(self, what: str) -> None:
        """Wait until a script has reported `what`, which must be its next report."""
        found = self.reports.get(timeout=DEADLINE)
        assert found == what, f"the peer should report {what!r} next, found {found!r}"


Script = Callable[[socket.socket, Peer], None]


@contextmanager
def serving(script: Script, address: str = "127.0.0.1", port: int = 0) -> Iterator[Peer]:
    """Run `script` for every connection, each in a thread, until the context ends.

    An OSError in a script is the other side's doing. Any other exception is the thread's, and
    fails the test that runs.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def run(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            script(connection, peer)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # the context has ended
            connections.append(connection)
            threads.append(threading.Thread(target=run, args=[connection]))
            threads[-1].start()

    with socket.create_server((address, port), family=family, backlog=512) as listener:
        peer = Peer(address, listener.getsockname()[1])
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield peer
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() would not
            acceptor.join()
            peer.go_on.set()
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def record(kind: int, body: bytes) -> bytes:
    """Return a TLS record; nothing is encrypted, and the length may be a lie."""
    return struct.pack("!BHH", kind, 0x0303, len(body)) + body


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Read `size` bytes. Raises ConnectionError if the stream ends before."""
    data = connection.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise ConnectionError
    return data


def read_record(connection: socket.socket) -> bytes:
    """Read one whole TLS record."""
    header = read_exactly(connection, 5)
    return header + read_exactly(connection, int.from_bytes(header[3:], "big"))


def read_until_closed(connection: socket.socket) -> None:
    """Read and drop until the other side closes."""
    while connection.recv(65536):
        pass


def reset(connection: socket.socket) -> None:
    """Close with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def silent(connection: socket.socket, peer: Peer) -> None:
    """Take the ClientHello and say nothing."""
    read_record(connection)
    peer.report("hello")
    read_until_closed(connection)


def mute_until_told(_connection: socket.socket, peer: Peer) -> None:
    """Say nothing until the test lets go, then close."""
    peer.report("accepted")
    peer.go_on.wait(DEADLINE)


def close_after_hello(connection: socket.socket, _peer: Peer) -> None:
    """Leave after the ClientHello."""
    read_record(connection)


def reset_after_hello(connection: socket.socket, _peer: Peer) -> None:
    """Reset the connection after the ClientHello."""
    read_record(connection)
    reset(connection)


def answer(data: bytes, *, when_told: bool = False) -> Script:
    """Return a script that answers a ClientHello with `data`, then waits to be left."""

    def script(connection: socket.socket, peer: Peer) -> None:
        read_record(connection)
        if when_told:
            peer.go_on.wait(DEADLINE)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        read_until_closed(connection)

    return script


# No record type has the number 0x80 and more; the rest is noise.
GARBAGE = b"\x80\xff" + os.urandom(4096)
SMTP_BANNER = b"220 mail.test ESMTP\r\n"
OVERSIZED_PLAIN = record(HANDSHAKE, b"\2" + bytes(PLAIN_MAX))
OVERSIZED_HEADER = record(HANDSHAKE, b"\2" + bytes(ENCRYPTED_MAX))
EMPTY_RECORDS = record(HANDSHAKE, b"") * 100
