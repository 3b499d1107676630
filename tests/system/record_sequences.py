# SPDX-License-Identifier: BSD-3-Clause
"""Records at random, and a program that reads in every way that there is, checked against the model
of `record_model.py`. All but the threads' timing comes from a seed."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import random
import select
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.peers import hostile
from tests.peers.hostile import APPLICATION_DATA, HANDSHAKE
from tests.peers.sealer import PLAIN_MAX
from tests.peers.tls_peer import ALERT, FATAL, WARNING
from tests.system.messages import Messages
from tests.system.program import libc, tls_error
from tests.system.record_model import (
    CLOSE_NOTIFY,
    HELLO_REQUEST,
    NEW_SESSION_TICKET,
    USER_CANCELED,
    message,
)

if TYPE_CHECKING:
    from tests.peers.sealer import Sealer
    from tests.system.record_model import Model

# What the program waits in a read at most, in seconds: then it hangs.
PATIENCE = 30

# What reads are made of: bytes asked for.
SIZES = (1, 2, 7, 100, 1000, 5000, 20000, 100_000)

MSG_WAITFORONE = 0x10000


class Reader:
    """A program that reads in every way that there is, each time another."""

    def __init__(self, sock: socket.socket, model: Model, source: random.Random) -> None:
        self._sock = sock
        self._model = model
        self._source = source
        self._got = 0
        self._ways: list[Callable[[], bytes | int | None]] = [
            self._recv,
            self._recv,
            self._peek,
            self._waitall,
            self._dontwait,
            self._recvmsg,
            self._readv,
            self._splice,
            self._recvmmsg,
            self._trunc,
            self._amount,
            self._nothing,
            self._poll,
        ]

    @property
    def _rest(self) -> int:
        return len(self._model.data) - self._got

    def run(self) -> None:
        """Read until the end, and check all."""
        while True:
            way = self._source.choice(self._ways)
            found = result_of_any(way)
            if isinstance(found, bytes):
                self._take(found, way.__name__)
            elif found is not None:
                assert found == self._model.error, (
                    f"{way.__name__} ended with {found}, wanted {self._model.error}: "
                    f"{tls_error(self._sock)}; {self._rest} bytes were to come"
                )
                break
        assert self._rest == 0, f"{way.__name__} ended {self._rest} bytes early"

    def _take(self, data: bytes, how: str) -> None:
        wanted = self._model.data[self._got : self._got + len(data)]
        assert data == wanted, f"{how} gave {data[:50]!r}, wanted {wanted[:50]!r} at {self._got}"
        self._got += len(data)

    def _size(self) -> int:
        return self._source.choice(SIZES)

    def _recv(self) -> bytes | int:
        return self._sock.recv(self._size()) or 0

    def _peek(self) -> bytes | int:
        found = self._sock.recv(self._size(), socket.MSG_PEEK)
        self._take(found, "a peek")
        self._got -= len(found)
        return b"" if found else 0

    def _waitall(self) -> bytes | int:
        size = self._size()
        found = self._sock.recv(size, socket.MSG_WAITALL)
        assert len(found) == min(size, self._rest), (
            f"a read of all gave {len(found)} of {size} bytes, and {self._rest} were to come"
        )
        return found or 0

    def _dontwait(self) -> bytes | int | None:
        try:
            return self._sock.recv(self._size(), socket.MSG_DONTWAIT) or 0
        except BlockingIOError:
            self._await()
            return None

    def _await(self) -> None:
        assert select.select([self._sock], [], [], PATIENCE)[0], "nothing can be read"

    def _recvmsg(self) -> bytes | int:
        found, control, _flags, _address = self._sock.recvmsg(self._size(), 1024)
        assert control == [], "a control message of kernel TLS"
        return found or 0

    def _readv(self) -> bytes | int:
        parts = [bytearray(self._size()) for _ in range(self._source.randrange(1, 5))]
        count = os.readv(self._sock.fileno(), parts)
        return b"".join(parts)[:count] or 0

    def _splice(self) -> bytes | int:
        return spliced(self._sock, self._size()) or 0

    def _recvmmsg(self) -> bytes | int | None:
        flags = self._source.choice([0, MSG_WAITFORONE, socket.MSG_DONTWAIT])
        sizes = [self._size() for _ in range(self._source.randrange(1, 6))]
        into = Messages(*map(bytes, sizes))
        try:
            count = into.call("recvmmsg", self._sock, flags, None)
        except BlockingIOError:
            assert flags, "a read waited in vain"
            self._await()
            return None
        except OSError as error:
            # The core tells of an error at once, and the data is still there.
            if error.errno == self._model.error and self._rest:
                return None
            raise
        parts = into.received(count)
        # At the end of the stream each is empty.
        assert b"" not in parts or not any(parts[parts.index(b"") :]), "data after the end"
        return b"".join(parts) or 0

    def _trunc(self) -> bytes | int:
        size = self._size()
        count = int(libc.recv(self._sock.fileno(), None, size, socket.MSG_TRUNC))
        if count < 0:
            raise_errno()
        assert count <= self._rest, "more was dropped than there was"
        return self._model.data[self._got : self._got + count] or 0

    def _amount(self) -> None:
        amount = array.array("i", [0])
        fcntl.ioctl(self._sock, termios.FIONREAD, amount)
        assert 0 <= amount[0] <= self._rest, f"{amount[0]} bytes are told of {self._rest}"

    def _nothing(self) -> None:
        assert self._sock.recv(0) == b""

    def _poll(self) -> None:
        select.select([self._sock], [], [], 0)


def raise_errno() -> None:
    """Raise what the last call of the C library failed with."""
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def result_of_any(way: Callable[[], bytes | int | None]) -> bytes | int | None:
    """Return what a read gives, or the errno that it fails with."""
    try:
        return way()
    except OSError as error:
        return error.errno or -1


def result_of(read: Callable[[], bytes]) -> bytes | int:
    """Return what a read gives: data, or how the stream ends."""
    try:
        return read() or 0
    except OSError as error:
        return error.errno or -1


def spliced(sock: socket.socket, size: int) -> bytes:
    """Read by splice(2)."""
    source, sink = os.pipe()
    try:
        count = os.splice(sock.fileno(), sink, size)
        return os.read(source, count) if count else b""
    finally:
        os.close(source)
        os.close(sink)


class Sequence:
    """What a peer sends: records at random, then one that ends the stream, and more that must not
    count."""

    def __init__(
        self, sealer: Sealer, model: Model, source: random.Random, *, strict: bool
    ) -> None:
        """`strict`: only what OpenSSL, too, takes as the model does."""
        self._strict = strict
        self._sealer = sealer
        self._model = model
        self._source = source
        self._wire: list[bytes] = []
        self._tls13 = sealer.version == "TLSv1.3"
        for _ in range(source.randrange(40)):
            self._harmless()
        self._end()
        if model.error is None:
            self._cut()
        else:
            for _ in range(source.randrange(3)):
                self._record(APPLICATION_DATA, b"late")
        self.records = len(self._wire)

    def pieces(self) -> Iterator[bytes]:
        """Give all of it, cut anywhere."""
        wire = b"".join(self._wire)
        size = self._source.choice([3, 50, 700, 5000, 1 << 20])
        # Not so many that it takes for ever.
        size = max(size, len(wire) // 50)
        while wire:
            cut = self._source.randrange(1, 2 * size)
            yield wire[:cut]
            wire = wire[cut:]

    def _record(self, kind: int, body: bytes) -> None:
        padding = 0
        if self._source.random() < 0.3:
            room = max(PLAIN_MAX - len(body), 0)
            padding = self._source.choice([0, min(1, room), room, self._source.randrange(room + 1)])
        self._model.take(kind, body)
        self._wire.append(self._sealer.seal(kind, body, padding=padding * self._tls13))

    def _harmless(self) -> None:
        """Send something that does not end the stream."""
        source = self._source
        what = source.random()
        if what < 0.55:
            size = source.choice([0, 1, 5, 100, 1000, source.randrange(PLAIN_MAX)])
            self._record(APPLICATION_DATA, source.randbytes(size))
        elif what < 0.6:
            self._record(APPLICATION_DATA, source.randbytes(PLAIN_MAX))
        elif what < 0.7:
            level = source.randrange(256) if self._tls13 else WARNING
            self._record(ALERT, bytes((level, USER_CANCELED)))
            if self._strict:  # OpenSSL counts those in a row
                self._record(APPLICATION_DATA, b"after a warning")
        elif what < 0.85:
            self._messages()
        elif not self._strict:
            self._odd()

    def _odd(self) -> None:
        """Send what the module passes over, and OpenSSL does not."""
        if self._tls13 or self._source.random() < 0.5:
            self._record(HANDSHAKE, b"")
        else:
            self._record(ALERT, bytes((WARNING, self._source.randrange(1, 256))))

    def _messages(self) -> None:
        """Send messages that may come, cut into records anywhere."""
        source = self._source
        if not self._model.is_client:
            return  # no message may come from a client
        if self._strict and not self._tls13:
            self._record(HANDSHAKE, self._message())
            return
        stream = b"".join(self._message() for _ in range(source.choice([1, 1, 2, 10])))
        while stream:
            cut = source.choice([1, 3, 10, 1000, PLAIN_MAX, PLAIN_MAX])
            self._record(HANDSHAKE, stream[:cut])
            stream = stream[cut:]
            if not self._strict and source.random() < 0.2:
                self._record(APPLICATION_DATA, b"within a message")

    def _message(self) -> bytes:
        """Make one of the only kind that may come."""
        length = self._source.choice([1, 50, 300, 10000])
        if not self._tls13:
            return message(HELLO_REQUEST, b"" if self._strict else bytes(length))
        # RFC 8446, 4.6.1: lifetime, age_add, nonce, ticket, no extensions.
        head = struct.pack("!IIB1sH", 7200, 1, 1, b"n", length)
        return message(NEW_SESSION_TICKET, head + self._source.randbytes(length) + bytes(2))

    def _end(self) -> None:
        source = self._source
        what = source.random()
        if what < 0.25:
            self._record(ALERT, bytes((WARNING, CLOSE_NOTIFY)))
        elif what < 0.4:
            self._record(source.randrange(1, 256), source.randbytes(source.randrange(10)))
        elif what < 0.5:
            self._record(ALERT, bytes((FATAL, source.randrange(1, 256))))
        elif what < 0.6:
            self._record(HANDSHAKE, message(source.randrange(256), b"content"))
        elif what < 0.65:
            self._record(ALERT, source.randbytes(source.choice([0, 1, 3, 50])))
        elif what < 0.8:
            self._break()

    def _cut(self) -> None:
        """Nothing more comes; maybe in the middle of a record."""
        if self._source.random() < 0.5:
            self._wire.append(self._sealer.seal(APPLICATION_DATA, bytes(100))[:-1])
        self._model.cut()

    def _break(self) -> None:
        """Send what is no record."""
        source = self._source
        kind = source.choice([ALERT, HANDSHAKE, APPLICATION_DATA])
        body = source.randbytes(source.choice([0, 2, 100, PLAIN_MAX]))
        self._model.broken()
        broken: list[Callable[[], bytes]] = [
            lambda: self._sealer.seal(kind, body, spoil=True),
            lambda: self._sealer.seal(kind, bytes(PLAIN_MAX + 1)),
            lambda: self._sealer.seal(kind, bytes(hostile.ENCRYPTED_MAX + 1)),
            # Not encrypted. Kernel TLS looks when there is room for the nonce of TLS 1.2.
            lambda: hostile.record(kind, body if len(body) > 8 else bytes(8)),
            lambda: hostile.GARBAGE,
        ]
        self._wire.append(source.choice(broken)())


def play(
    program: socket.socket,
    peer: socket.socket,
    sealer: Sealer,
    model: Model,
    source: random.Random,
    *,
    strict: bool = False,
) -> int:
    """Have the peer send a sequence and the program read it; return how many records it had.

    Both sockets are closed.
    """
    with program, peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wait_with_patience(program)
        sequence = Sequence(sealer, model, source, strict=strict)
        pieces = list(sequence.pieces())

        def send() -> None:
            # It may have ended the stream before.
            with suppress(OSError):
                for piece in pieces:
                    peer.sendall(piece)
                peer.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            Reader(program, model, source).run()
            check_end(program, model)
        finally:
            program.close()  # which ends the sender's wait
            sender.join()
    return sequence.records


def wait_with_patience(sock: socket.socket) -> None:
    """Let no read wait for ever."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", PATIENCE, 0))


def check_end(sock: socket.socket, model: Model) -> None:
    """Check that a stream, all data of which was read, has the model's end."""
    wanted = model.error
    assert wanted is not None
    for read in (
        lambda: sock.recv(100),
        lambda: sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT),
        lambda: sock.recv(10, socket.MSG_WAITALL),
        lambda: spliced(sock, 10),
    ):
        # The end is the same for who asks again, however that is.
        found = result_of(read)
        assert found == wanted, f"wanted {wanted}, found {found!r}: {tls_error(sock)}"
    assert model.words in tls_error(sock), f"{model.words!r} should be in {tls_error(sock)!r}"
    assert select.select([sock], [], [], 0)[0], "an end can be read"
