# SPDX-License-Identifier: BSD-3-Clause
"""io_submit(2) reads and writes a TLS socket and polls it."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from typing import TYPE_CHECKING, Self

import pytest

from tests.system.program import connect, libc, receive_exactly, refused

if TYPE_CHECKING:
    import socket

    from tests.peers.servers import Server

# <asm/unistd_64.h> and <linux/aio_abi.h>
SYS_IO_SETUP, SYS_IO_DESTROY, SYS_IO_GETEVENTS, SYS_IO_SUBMIT = 206, 207, 208, 209
PREAD, PWRITE, POLL = 0, 1, 5

DEADLINE = struct.pack("=qq", 60, 0)


class Context:
    """An aio context, one request at a time."""

    def __enter__(self) -> Self:
        self._id = ctypes.c_ulong(0)
        self._call(SYS_IO_SETUP, 8, ctypes.byref(self._id))
        return self

    def __exit__(self, *_: object) -> None:
        self._call(SYS_IO_DESTROY, self._id)

    @staticmethod
    def _call(*arguments: object) -> int:
        result = int(libc.syscall(*arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), "aio")
        return result

    def submit(self, sock: socket.socket, verb: int, what: int, size: int, offset: int = 0) -> None:
        """Submit a request."""
        # struct iocb
        control = struct.pack(
            "=QIiHhIQQqQII", 7, 0, 0, verb, 0, sock.fileno(), what, size, offset, 0, 0, 0
        )
        self._control = ctypes.create_string_buffer(control, len(control))
        pointer = ctypes.c_void_p(ctypes.addressof(self._control))
        assert self._call(SYS_IO_SUBMIT, self._id, ctypes.c_long(1), ctypes.byref(pointer)) == 1

    def wait(self) -> int:
        """Return the result of the request."""
        event = ctypes.create_string_buffer(32)  # struct io_event
        one = ctypes.c_long(1)
        assert self._call(SYS_IO_GETEVENTS, self._id, one, one, event, DEADLINE) == 1
        return int(struct.unpack_from("=q", event.raw, 16)[0])


@pytest.mark.usefixtures("transport")
def test_it_reads_and_writes_and_polls(echo_server: Server) -> None:
    data = ctypes.create_string_buffer(b"data", 4)
    room = ctypes.create_string_buffer(4)
    with connect(echo_server) as sock, Context() as context:
        context.submit(sock, PWRITE, ctypes.addressof(data), 4)
        assert context.wait() == 4
        context.submit(sock, POLL, select.POLLIN, 0)
        assert context.wait() & select.POLLIN
        context.submit(sock, PREAD, ctypes.addressof(room), 4)
        assert context.wait() == 4
        assert room.raw == b"data"

        # A poll that waits, and a socket that does not.
        context.submit(sock, POLL, select.POLLIN, 0)
        sock.send(b"more")
        assert context.wait() & select.POLLIN
        assert receive_exactly(sock, 4) == b"more"
        os.set_blocking(sock.fileno(), False)
        context.submit(sock, PREAD, ctypes.addressof(room), 4)
        assert context.wait() == -errno.EAGAIN
        context.submit(sock, PREAD, ctypes.addressof(room), 4, 1)
        assert context.wait() == -errno.ESPIPE
        refused(errno.ESPIPE, lambda: os.pread(sock.fileno(), 1, 0))
