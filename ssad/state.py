# SPDX-License-Identifier: BSD-3-Clause
"""What the worker knows of the programs' sockets that are not connected yet.

It is a cache: the kernel owns the settings and tells them again to a new worker.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field

from ssad.errors import Refused
from ssad.settings import Settings
from ssad.wire import VALUE_MAX, TlsOption


class Value:
    """An option's value that comes in pieces, in order."""

    def __init__(self, option: TlsOption, length: int) -> None:
        self._option = option
        self._length = length
        self._received = bytearray()

    def continues(self, option: TlsOption, length: int, offset: int) -> bool:
        """Tell whether a piece is the next one of this value."""
        return (option, length, offset) == (self._option, self._length, len(self._received))

    def add(self, piece: bytes) -> None:
        """Append a piece. Raises Refused with EINVAL if it is longer than what is missing."""
        if len(self._received) + len(piece) > self._length:
            raise Refused(errno.EINVAL, f"The value of {self._option.name} is longer than it said.")
        self._received += piece

    @property
    def complete(self) -> bytes | None:
        """The whole value, once it is there."""
        return bytes(self._received) if len(self._received) == self._length else None


@dataclass(slots=True, eq=False)
class Socket:
    """A program's TLS socket, from its creation until its connect has been completed, or, if it
    listens, until it is closed."""

    id: int
    pid: int
    uid: int
    comm: str
    settings: Settings = field(default_factory=Settings)
    netns: int = 0  # cookie of the network namespace
    connecting: asyncio.Task[None] | None = None
    _value: Value | None = None

    def receive_piece(
        self, option: TlsOption, length: int, offset: int, piece: bytes
    ) -> bytes | None:
        """Take the next piece of an option's value; return the value once it is whole.

        Raises Refused with EINVAL for a piece out of order; what came before is forgotten then.
        """
        value, self._value = self._value, None
        if offset == 0:
            if length > VALUE_MAX:
                raise Refused(errno.EINVAL, f"{option.name} is longer than {VALUE_MAX} bytes.")
            value = Value(option, length)
        elif value is None or not value.continues(option, length, offset):
            raise Refused(errno.EINVAL, f"A piece of the value of {option.name} is missing.")
        value.add(piece)
        if value.complete is None:
            self._value = value
        return value.complete


class Sockets:
    """The sockets by their ids."""

    def __init__(self) -> None:
        self._sockets: dict[int, Socket] = {}

    def add(self, socket: Socket) -> None:
        """Remember a socket. Under an id that was known before, it starts afresh."""
        self._sockets[socket.id] = socket

    def get(self, socket_id: int) -> Socket:
        """Return a socket. Raises Refused with EBADF if it is not known."""
        try:
            return self._sockets[socket_id]
        except KeyError:
            raise Refused(errno.EBADF, f"ssad does not know socket {socket_id}.") from None

    def forget(self, socket_id: int) -> Socket | None:
        """Forget a socket and return it, if it was known."""
        return self._sockets.pop(socket_id, None)
