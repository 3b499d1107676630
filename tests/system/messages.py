# SPDX-License-Identifier: BSD-3-Clause
"""sendmmsg(2) and recvmmsg(2), which Python has not."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from tests.system.program import libc

if TYPE_CHECKING:
    import socket

BAD_POINTER = 1


class Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class Msghdr(ctypes.Structure):
    """struct msghdr, followed by what struct mmsghdr adds."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("count", ctypes.c_uint),
    ]


class Messages:
    """An array for sendmmsg(2) and recvmmsg(2), each message one buffer."""

    def __init__(self, *contents: bytes) -> None:
        self._buffers = [ctypes.create_string_buffer(c, max(len(c), 1)) for c in contents]
        self._vectors = (Iovec * len(contents))()
        self.array = (Msghdr * len(contents))()
        for i, content in enumerate(contents):
            self._vectors[i] = Iovec(ctypes.addressof(self._buffers[i]), len(content))
            self.array[i].iov = ctypes.addressof(self._vectors[i])
            self.array[i].iovlen = 1

    def spoil(self, index: int) -> None:
        """Have one buffer where there is no memory."""
        self._vectors[index].base = BAD_POINTER

    def received(self, count: int) -> list[bytes]:
        """Return what the first `count` messages hold."""
        return [self._buffers[i].raw[: self.array[i].count] for i in range(count)]

    def call(self, name: str, sock: socket.socket, *rest: Any) -> int:
        """Call sendmmsg or recvmmsg. Raises OSError."""
        function = getattr(libc, name)
        count = int(function(sock.fileno(), self.array, len(self.array), *rest))
        if count < 0:
            raise OSError(ctypes.get_errno(), name)
        return count
