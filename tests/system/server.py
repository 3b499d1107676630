# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of servers are made of: TLS sockets that listen, what they serve, and what those
who watch are told."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ssad.link import Link, MessagesLost
from ssad.wire import Attributes, Command, EventKind, SocketState, TlsOption
from tests.peers import clients
from tests.peers.clients import Target
from tests.peers.http import answer_http1, answer_http2
from tests.system.daemon import await_condition, sockets, workers
from tests.system.program import (
    get_number,
    get_text,
    set_text,
    tls_socket,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.peers.pki import Identity

DEADLINE = 60.0

# Far less than any deadline of the module's or the daemon's, on a guest that is slow.
SOON = 10.0

Prepare = Callable[[socket.socket], object]


@dataclass(frozen=True, slots=True)
class TlsListener:
    """A TLS socket that listens, and where."""

    sock: socket.socket
    address: str
    port: int

    def accept(self) -> socket.socket:
        """Wait for a connection and accept it."""
        self.await_readable()
        return self.sock.accept()[0]

    def await_readable(self) -> None:
        """Wait until accept() has something to give."""
        assert select.select([self.sock], [], [], DEADLINE)[0], "nothing came for accept()"

    def readable(self) -> bool:
        """Tell whether accept() has something to give."""
        return bool(select.select([self.sock], [], [], 0)[0])


class Visits:
    """Accepts from whichever of several listeners a connection has come to."""

    def __init__(self, listeners: Sequence[TlsListener]) -> None:
        self._listeners = {listener.sock.fileno(): listener.sock for listener in listeners}
        self.met: set[int] = set()

    def accept(self) -> socket.socket:
        """Wait for a connection and accept it."""
        ready = select.select(list(self._listeners), [], [], DEADLINE)[0]
        assert ready, "nothing came for accept()"
        self.met.add(ready[0])
        return self._listeners[ready[0]].accept()[0]


def set_identity(sock: socket.socket, identity: Identity) -> None:
    """Give a socket a certificate chain and its key, as paths."""
    set_text(sock, TlsOption.TLS_CERTIFICATE_CHAIN, str(identity.chain))
    set_text(sock, TlsOption.TLS_PRIVATE_KEY, str(identity.key))


@contextmanager
def listening(
    *identities: Identity,
    address: str = "127.0.0.1",
    port: int = 0,
    backlog: int = 128,
    prepare: Prepare | None = None,
) -> Iterator[TlsListener]:
    """Have a TLS socket listen, after `prepare` has set on it what the test wants."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with tls_socket(family, host=None) as sock:
        for identity in identities:
            set_identity(sock, identity)
        if prepare is not None:
            prepare(sock)
        sock.bind((address, port))
        sock.listen(backlog)
        yield TlsListener(sock, address, sock.getsockname()[1])


Act = Callable[[socket.socket], None]


@contextmanager
def served(listener: TlsListener, act: Act) -> Iterator[None]:
    """Accept connections and run `act` for each in a thread, until the context ends.

    An OSError in `act` is the other side's doing. Any other exception is the thread's, and fails
    the test that runs.
    """
    end = os.eventfd(0)
    threads: list[threading.Thread] = []
    held: list[socket.socket] = []

    def run(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            act(connection)

    def accept() -> None:
        while True:
            if end in select.select([listener.sock.fileno(), end], [], [])[0]:
                return
            try:
                connection, _ = listener.sock.accept()
            except BlockingIOError:
                continue  # somebody else, in another process, was faster
            connection.settimeout(None)
            held.append(connection)
            threads.append(threading.Thread(target=run, args=[connection]))
            threads[-1].start()

    before = listener.sock.gettimeout()
    listener.sock.settimeout(0)
    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield
    finally:
        os.eventfd_write(end, 1)
        acceptor.join()
        os.close(end)
        with suppress(OSError):
            listener.sock.settimeout(before)
        for connection in held:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def echo_all(sock: socket.socket) -> None:
    """Send back each byte, then say goodbye."""
    while data := sock.recv(1 << 16):
        sock.sendall(data)


Fact = str | int


def facts(sock: socket.socket) -> dict[str, Fact]:
    """Return what an accepted socket tells of its connection; empty text where it has nothing."""
    return {
        "transport": get_text(sock, TlsOption.TLS_TRANSPORT),
        "version": get_number(sock, TlsOption.TLS_VERSION_CONN),
        "cipher": get_text(sock, TlsOption.TLS_CHOSEN_CIPHER),
        "resumed": get_number(sock, TlsOption.TLS_RESUMED_SESSION),
        "name": text_or_none(sock, TlsOption.TLS_HOSTNAME),
        "alpn": text_or_none(sock, TlsOption.TLS_ALPN),
        "identity": text_or_none(sock, TlsOption.TLS_PEER_IDENTITY),
        "peer": sock.getpeername()[1],
    }


def text_or_none(sock: socket.socket, option: TlsOption) -> str:
    """Get an option that a connection may have or not; empty if it has not."""
    try:
        return get_text(sock, option)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return ""


def tell_facts(sock: socket.socket) -> None:
    """Answer HTTP with a page that has the facts of the connection, over what ALPN has chosen."""
    found = facts(sock)
    page = json.dumps(found).encode() + b"\n"
    if found["alpn"] == "h2":
        answer_http2(sock, page)
    else:
        answer_http1(sock, page)


def facts_in(said: bytes) -> dict[str, Fact]:
    """Find the facts in what a client printed."""
    found: dict[str, Fact] = json.loads(clients.line_in(said, b'{"transport"'))
    return found


def check_served(listener: TlsListener, root: Path) -> None:
    """Check that a good client is served, without a thread that serves."""
    target = Target(listener.port, root)
    trust = clients.context(root)
    with clients.connect(trust, target) as client, listener.accept() as accepted:
        client.sendall(b"question")
        assert accepted.recv(8, socket.MSG_WAITALL) == b"question"
        accepted.sendall(b"answer")
        assert client.recv(6) == b"answer"


class Stopwatch:
    """How long a good client waits for the connection and its first answer."""

    def __init__(self, listener: TlsListener, root: Path) -> None:
        self._target = Target(listener.port, root)
        self._trust = clients.context(root)

    def median(self, count: int = 9) -> float:
        """Return the seconds that the client in the middle of `count` took; `served` is to echo."""
        return sorted(self._one() for _ in range(count))[count // 2]

    def _one(self) -> float:
        start = time.monotonic()
        with clients.connect(self._trust, self._target) as client:
            client.sendall(b"echo")
            assert client.recv(4) == b"echo"
        return time.monotonic() - start


def listener_state(sock_id: int) -> Attributes:
    """Ask the module for one socket."""
    (found,) = [entry for entry in sockets() if entry["socket"] == sock_id]
    return found


def await_queued(sock_id: int, count: int) -> None:
    """Wait until so many finished connections wait for accept()."""
    await_condition(
        f"{count} connections are queued", lambda: listener_state(sock_id).get("queued") == count
    )


def await_workers(count: int) -> None:
    """Wait until so many workers are registered."""
    await_condition(f"{count} workers are registered", lambda: len(workers()) == count)


def worker_pids() -> list[int]:
    """Return the process ids of the workers."""
    return [worker["pid"] for worker in workers()]


class Events:
    """What the module tells those who watch, from the beginning of a with statement on."""

    def __enter__(self) -> Self:
        self._link = Link()
        self._link.subscribe()
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def wait_for(self, kind: EventKind) -> Attributes:
        """Return the next event of a kind; those of other kinds before it are dropped."""
        end = time.monotonic() + DEADLINE
        while True:
            left = end - time.monotonic()
            assert left > 0, f"no event {kind.name} came"
            if not self._link.has_messages:
                select.select([self._link.fileno()], [], [], left)
            try:
                message = self._link.receive(wait=False)
            except MessagesLost:
                continue
            if message is None or message.command != Command.NOTIFY:
                continue
            if message.attributes["event"] == kind:
                return message.attributes

    def refusal(self) -> Attributes:
        """Return the next refusal."""
        return self.wait_for(EventKind.REFUSED)


def listeners() -> list[Attributes]:
    """Ask the module for the sockets that listen."""
    return [entry for entry in sockets() if entry["state"] == SocketState.LISTENING]


def reset(sock: socket.socket) -> None:
    """Close a TCP connection with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def tcp_connections(port: int, count: int) -> list[socket.socket]:
    """Make TCP connections to a local port that say nothing."""
    made: list[socket.socket] = []
    try:
        made.extend(socket.create_connection(("127.0.0.1", port), DEADLINE) for _ in range(count))
    except OSError:
        close_all(made)
        raise
    return made


def close_all(made: Sequence[socket.socket]) -> None:
    """Close sockets."""
    for sock in made:
        sock.close()


class Measured:
    """Prints a measurement where the one who runs the tests sees it, and records it."""

    def __init__(
        self, capsys: pytest.CaptureFixture[str], record: Callable[[str, object], None]
    ) -> None:
        self._capsys = capsys
        self._record = record

    def __call__(self, what: str, text: str) -> None:
        self._record(what, text)
        with self._capsys.disabled():
            print(f"\n  {what}: {text}", flush=True)
