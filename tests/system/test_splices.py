# SPDX-License-Identifier: BSD-3-Clause
"""sendfile(2), splice(2), vmsplice(2) and tee(2), with more than fits anywhere at once."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import select
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Self

import pytest

from tests.system.program import libc, receive_exactly, refused, tls_socket
from tests.system.server import listening
from tests.system.tcp import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.peers.pki import Pki

SIZE = 32 << 20
BLOCK = 1 << 17

# Repeats at no size of a page or a record.
UNIT = bytes(range(251)) * 997

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends(pki: Pki, transport: str) -> Iterator[Ends]:
    """Give both ends of a connection between two TLS sockets, the accepted one second."""
    assert transport
    with listening(pki.ecdsa) as listener, tls_socket() as sock:
        sock.connect((LOOPBACK, listener.port))
        with listener.accept() as accepted:
            yield sock, accepted


def digest_of_stream(sock: socket.socket) -> tuple[int, str]:
    """Receive to the end; return how much it was and its SHA-256."""
    digest = hashlib.sha256()
    length = 0
    while data := sock.recv(BLOCK):
        length += len(data)
        digest.update(data)
    return length, digest.hexdigest()


def received(sink: socket.socket, send: Callable[[], object]) -> tuple[int, str]:
    """Call `send` while another thread receives all."""
    found: list[tuple[int, str]] = []
    reader = threading.Thread(target=lambda: found.append(digest_of_stream(sink)))
    reader.start()
    send()
    reader.join()
    return found[0]


@pytest.fixture(scope="session")
def large(directory: Path) -> Path:
    """Make a file that is larger than any buffer."""
    path = directory / "to-send"
    with path.open("wb") as file:
        written = 0
        while written < SIZE:
            written += file.write(UNIT[: SIZE - written])
    return path


@pytest.mark.timeout(600)
def test_a_large_file_goes_out_without_waiting_in_a_call(ends: Ends, large: Path) -> None:
    sock, accepted = ends
    wanted = hashlib.sha256(large.read_bytes()).hexdigest()

    def send() -> None:
        accepted.settimeout(0)
        with large.open("rb") as file:
            offset = 0
            while True:
                try:
                    # More than there is: the end of the file is the end.
                    sent = os.sendfile(accepted.fileno(), file.fileno(), offset, SIZE * 2)
                except BlockingIOError:
                    assert select.select([], [accepted], [], 60)[1], "no room was told"
                    continue
                if not sent:
                    break
                offset += sent
        accepted.shutdown(socket.SHUT_WR)

    assert received(sock, send) == (SIZE, wanted)


def test_the_end_of_a_file_leaves_nothing_held_back(ends: Ends, large: Path) -> None:
    sock, accepted = ends
    at = SIZE - 12345
    with large.open("rb") as file:
        sent = 0
        while more := os.sendfile(sock.fileno(), file.fileno(), at + sent, SIZE):
            sent += more
        assert sent == 12345
        file.seek(at)
        assert receive_exactly(accepted, sent) == file.read()


def test_a_file_that_is_cut_short_meanwhile(ends: Ends, tmp_path: Path) -> None:
    sock, accepted = ends
    path = tmp_path / "short"
    path.write_bytes(UNIT)
    with path.open("r+b") as file:
        assert os.sendfile(sock.fileno(), file.fileno(), 0, 1000) == 1000
        file.truncate(1500)
        assert os.sendfile(sock.fileno(), file.fileno(), 1000, 10000) == 500
        assert os.sendfile(sock.fileno(), file.fileno(), 1500, 10000) == 0
    assert receive_exactly(accepted, 1500) == UNIT[:1500]


def test_memory_goes_through_pipes(ends: Ends) -> None:
    sock, accepted = ends
    data = UNIT[:50000]
    memory = ctypes.create_string_buffer(data, len(data))
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(memory), len(data))
    with Pipe() as pipe, Pipe() as copy:
        assert libc.vmsplice(pipe.sink, vector, 1, 0) == len(data)
        assert libc.tee(pipe.source, copy.sink, len(data), 0) == len(data)
        for source in (pipe.source, copy.source):
            sent = 0
            while sent < len(data):
                sent += os.splice(source, sock.fileno(), len(data) - sent)
            got = b""
            while len(got) < len(data):
                count = os.splice(accepted.fileno(), pipe.sink, BLOCK)
                assert count, "the stream ended"
                got += os.read(pipe.source, count)
            assert got == data


def test_what_tcp_refuses(ends: Ends, large: Path) -> None:
    sock, _accepted = ends
    with socket.socket() as other, large.open("rb") as file:
        for each in (sock, other):
            refused(
                errno.EINVAL,
                partial(os.copy_file_range, file.fileno(), each.fileno(), 100),
            )
        refused(errno.EINVAL, lambda: os.sendfile(other.fileno(), sock.fileno(), None, 100))


class Pipe:
    """pipe(2)."""

    def __init__(self) -> None:
        self.source, self.sink = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.source)
        os.close(self.sink)
