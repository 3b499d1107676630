# SPDX-License-Identifier: BSD-3-Clause
"""Session tickets of TLS 1.3 that come after the kernel has taken over a connection.

OpenSSL alone can make a session of a ticket, and it wants to read the record that carried it. The
module has only what was in it, so it is made again: with the same keys, and the number of the next
record that OpenSSL expects, which has seen none of those that the program has read since.
"""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from OpenSSL import SSL

from ssad.handshake import Result
from ssad.keys import Aead
from ssad.policy import TLS_1_3
from ssad.sessions import Visit
from ssad.wire import TICKETS_MAX

# Seconds that a connection is kept for its tickets. They come with a server's first answer, and
# are seen when the program reads that.
_PATIENCE = 30.0
# Connections that are kept at once; each has some 30 KiB of OpenSSL's.
_READERS_MAX = 512

_APPLICATION_DATA = 23
_HANDSHAKE = 22
_TAG_LENGTH = 16


class TicketReader:
    """What is kept of a connection until its tickets have come."""

    def __init__(self, result: Result, visit: Visit) -> None:
        """`result` is that of a TLS 1.3 handshake with keys that the kernel knows."""
        if result.keys is None:
            raise ValueError("a connection without keys is no ktls connection")
        self._connection = result.connection
        self._visit = visit
        key = result.keys.receive
        self._aead = (
            ChaCha20Poly1305(key.key)
            if result.keys.aead is Aead.CHACHA20_POLY1305
            else AESGCM(key.key)
        )
        self._nonce = int.from_bytes(key.nonce)
        self._sequence = key.sequence
        self._left = TICKETS_MAX

    @classmethod
    def of(cls, result: Result, visit: Visit) -> TicketReader | None:
        """Return a reader for a connection that the kernel takes over; None if it brings no
        tickets: in TLS 1.2 they come in the handshake."""
        if result.version == TLS_1_3:
            return cls(result, visit)
        _close(result.connection)
        return None

    def receive(self, message: bytes) -> bool:
        """Take a NewSessionTicket. False if no more are wanted."""
        self._connection.bio_write(self._seal(message))
        try:
            self._connection.recv(1)
        except SSL.WantReadError:
            self._visit.look(self._connection)
        except SSL.Error:
            return False  # malformed; the program's connection need not end for that
        self._left -= 1
        return self._left > 0

    def close(self) -> None:
        """Let go of the connection."""
        _close(self._connection)

    def _seal(self, message: bytes) -> bytes:
        """Make a record (RFC 8446, 5.2)."""
        nonce = (self._nonce ^ self._sequence).to_bytes(12)
        self._sequence += 1
        inner = message + bytes((_HANDSHAKE,))
        header = struct.pack("!BHH", _APPLICATION_DATA, 0x0303, len(inner) + _TAG_LENGTH)
        return header + self._aead.encrypt(nonce, inner, header)


class TicketReaders:
    """The readers by their sockets. To be used in an event loop."""

    def __init__(self, limit: int = _READERS_MAX, patience: float = _PATIENCE) -> None:
        """`limit`: how many; `patience`: seconds that each is kept."""
        self._limit = limit
        self._patience = patience
        self._readers: OrderedDict[int, tuple[TicketReader, asyncio.TimerHandle]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._readers)

    def add(self, socket_id: int, reader: TicketReader) -> None:
        """Keep a reader; the one that was kept for longest gives way."""
        self.drop(socket_id)
        if len(self._readers) >= self._limit:
            self.drop(next(iter(self._readers)))
        timer = asyncio.get_running_loop().call_later(self._patience, self.drop, socket_id)
        self._readers[socket_id] = reader, timer

    def receive(self, socket_id: int, message: bytes) -> None:
        """A ticket has come, perhaps too late."""
        if socket_id in self._readers and not self._readers[socket_id][0].receive(message):
            self.drop(socket_id)

    def drop(self, socket_id: int) -> None:
        """Let go of a reader, if there is one."""
        if socket_id in self._readers:
            reader, timer = self._readers.pop(socket_id)
            timer.cancel()
            reader.close()


def _close(connection: SSL.Connection) -> None:
    # A session whose connection is freed without it can't be resumed (SSL_free(3)).
    connection.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)
