# SPDX-License-Identifier: BSD-3-Clause
"""The data calls of a connected socket do what they do on TCP, on both transports."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import select
import signal
import socket
import struct
import termios
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.peers import tls_peer
from tests.peers.hostile import APPLICATION_DATA, serving
from tests.system.program import (
    SOL_TLS,
    TLS_SET_RECORD_TYPE,
    connect,
    echo,
    in_child,
    receive_exactly,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server

pytestmark = pytest.mark.usefixtures("transport")

# Several records and a part of one.
DATA = bytes(range(256)) * 313


@pytest.fixture
def sock(echo_server: Server) -> Iterator[socket.socket]:
    """Give a socket that is connected to a server which echoes."""
    with connect(echo_server) as connected:
        yield connected


class TestFlags:
    """MSG_* flags."""

    def test_peek_leaves_the_data(self, sock: socket.socket) -> None:
        sock.sendall(b"twice")
        assert sock.recv(2, socket.MSG_PEEK | socket.MSG_WAITALL) == b"tw"
        assert sock.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL) == b"twice"
        assert sock.recv(5, socket.MSG_WAITALL) == b"twice"
        refused(errno.EAGAIN, lambda: sock.recv(5, socket.MSG_DONTWAIT))

    def test_waitall_waits_for_all(self, sock: socket.socket) -> None:
        half = len(DATA) // 2
        sock.sendall(DATA[:half])
        later = threading.Timer(0.3, sock.sendall, [DATA[half:]])
        later.start()
        assert sock.recv(len(DATA), socket.MSG_WAITALL) == DATA
        later.join()

    def test_dontwait_does_not_wait(self, sock: socket.socket) -> None:
        refused(errno.EAGAIN, lambda: sock.recv(1, socket.MSG_DONTWAIT))
        refused(errno.EAGAIN, lambda: sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        refused(errno.EAGAIN, lambda: sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_WAITALL))

    def test_more_is_sent_with_what_follows(self, sock: socket.socket) -> None:
        sock.send(b"first, ", socket.MSG_MORE)
        sock.send(b"last")
        assert receive_exactly(sock, 11) == b"first, last"

    def test_there_is_no_urgent_data(self, sock: socket.socket) -> None:
        refused(errno.EOPNOTSUPP, lambda: sock.send(b"!", socket.MSG_OOB))
        echo(sock, b"not disturbed")

    def test_a_broken_pipe_kills_only_who_lets_it(self, sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        refused(errno.EPIPE, lambda: sock.send(b"late", socket.MSG_NOSIGNAL))

        def send(flags: int) -> None:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
            try:
                sock.send(b"late", flags)
            except BrokenPipeError:
                return

        assert in_child(lambda: send(0)) == -signal.SIGPIPE
        assert in_child(lambda: send(socket.MSG_NOSIGNAL)) == 0


class TestBuffers:
    """One call, many buffers, or a file."""

    def test_writev_and_readv(self, sock: socket.socket) -> None:
        assert os.writev(sock.fileno(), [b"scattered ", b"", b"and ", b"gathered"]) == 22
        parts = [bytearray(10), bytearray(4), bytearray(8)]
        sock.recv(22, socket.MSG_PEEK | socket.MSG_WAITALL)
        assert os.readv(sock.fileno(), parts) == 22
        assert b"".join(parts) == b"scattered and gathered"

    def test_a_thousand_buffers(self, sock: socket.socket) -> None:
        pieces = [bytes((i % 251,)) * (i % 7) for i in range(1024)]  # IOV_MAX
        data = b"".join(pieces)
        assert sock.sendmsg(pieces) == len(data)
        into = [bytearray(len(piece)) for piece in pieces]
        sock.recv(len(data), socket.MSG_PEEK | socket.MSG_WAITALL)
        assert sock.recvmsg_into(into)[0] == len(data)
        assert b"".join(into) == data

    def test_nothing_is_nothing(self, sock: socket.socket) -> None:
        assert sock.send(b"") == 0
        assert sock.recv(0) == b""
        echo(sock, b"not disturbed")

    def test_sendfile(self, sock: socket.socket, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(DATA)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(receive_exactly(sock, len(DATA))))
        reader.start()
        with path.open("rb") as file:
            sent = 0
            while sent < len(DATA):
                sent += os.sendfile(sock.fileno(), file.fileno(), sent, len(DATA) - sent)
        reader.join()
        assert received == [DATA]

    def test_splice_both_ways(self, sock: socket.socket) -> None:
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", 0) as source, os.fdopen(write_end, "wb", 0) as sink:
            data = DATA[:40000]
            sink.write(data)
            sent = 0
            while sent < len(data):
                sent += os.splice(source.fileno(), sock.fileno(), len(data) - sent)
            received = b""
            while len(received) < len(data):
                count = os.splice(sock.fileno(), sink.fileno(), len(data))
                assert count, "the stream ended"
                received += source.read(count)
            assert received == data

    def test_splice_does_not_wait_if_told_so(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", 0), os.fdopen(write_end, "wb", 0) as sink:
            refused(errno.EAGAIN, lambda: os.splice(sock.fileno(), sink.fileno(), 1))

    def test_a_file_object_over_it(self, sock: socket.socket) -> None:
        with sock.makefile("rwb") as stream:
            stream.write(b"first line\nsecond line\n")
            stream.flush()
            assert stream.readline() == b"first line\n"
            assert stream.readline() == b"second line\n"


class TestAmounts:
    """How much there is, and how long to wait for it."""

    @staticmethod
    def available(sock: socket.socket) -> int:
        """Return what FIONREAD says."""
        return int(
            struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0],
        )

    def test_fionread_counts_data(self, sock: socket.socket) -> None:
        assert self.available(sock) == 0
        sock.sendall(b"x" * 1000)
        sock.recv(1000, socket.MSG_PEEK | socket.MSG_WAITALL)
        assert self.available(sock) == 1000
        receive_exactly(sock, 400)
        assert self.available(sock) == 600
        receive_exactly(sock, 600)
        assert self.available(sock) == 0

    def test_fionread_does_not_count_records_without_data(self, pki: Pki) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            peer.report("tickets are sent")
            connection.receive(1)
            connection.send(b"data")
            connection.await_close_notify()

        with serving(tls_peer.tls(pki.ecdsa, act)) as peer, connect(peer) as sock:
            peer.await_report("tickets are sent")
            assert self.available(sock) == 0
            sock.send(b".")
            sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL)
            assert self.available(sock) == 4

    def test_a_receive_timeout_ends_a_read(self, sock: socket.socket) -> None:
        timeout = struct.pack("=qq", 0, 100_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        refused(errno.EAGAIN, lambda: sock.recv(1))
        sock.send(b"half")
        assert select.select([sock], [], [], 60)[0] == [sock]
        assert sock.recv(8, socket.MSG_WAITALL) == b"half"

    def test_a_send_timeout_ends_a_write(self, pki: Pki) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            peer.go_on.wait()
            connection.await_close_notify()
            peer.report("all is read")

        timeout = struct.pack("=qq", 0, 500_000)
        with serving(tls_peer.tls(pki.ecdsa, act)) as peer:
            with connect(peer) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)

                def fill() -> None:
                    total = 0
                    while total < 64 << 20:
                        total += sock.send(bytes(1 << 16))

                refused(errno.EAGAIN, fill)
                peer.go_on.set()
            peer.await_report("all is read")

    def test_a_low_water_mark_holds_readiness_back(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        sock.send(b"12")
        assert select.select([sock], [], [], 30)[0] == [sock]
        assert receive_exactly(sock, 2) == b"12"


class TestControlMessages:
    """A program neither sees nor forges what belongs to TLS."""

    def test_a_record_type_is_never_shown(self, sock: socket.socket) -> None:
        sock.sendall(b"plain")
        sock.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL)
        data, control, flags, address = sock.recvmsg(100, 1024)
        assert (data, control, address) == (b"plain", [], None)
        assert not flags & (socket.MSG_CTRUNC | socket.MSG_EOR | socket.MSG_TRUNC)

    def test_a_record_type_cannot_be_forged(self, sock: socket.socket) -> None:
        forged = (SOL_TLS, TLS_SET_RECORD_TYPE, bytes((tls_peer.ALERT,)))
        try:
            sent = sock.sendmsg([b"\1\0"], [forged])
        except OSError:
            sent = 0
        # Refused or sent as data, but no close_notify: the server still echoes.
        assert receive_exactly(sock, sent) == b"\1\0"[:sent]
        echo(sock, b"still open")

    def test_a_descriptor_does_not_go_anywhere(self, sock: socket.socket) -> None:
        with sock.dup() as other:
            before = descriptor_count()
            try:
                socket.send_fds(sock, [b"data"], [other.fileno()])
            except OSError:
                sock.send(b"data")
            data, descriptors, _flags, _address = socket.recv_fds(sock, 4, 4)
            assert data == b"data"
            assert descriptors == []
            assert descriptor_count() == before


def descriptor_count() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class TestOrder:
    """What is sent comes whole and in order."""

    def test_many_sizes(self, sock: socket.socket) -> None:
        digest = hashlib.sha256()
        sizes = [1, 2, 16383, 16384, 16385, 32768, 50000, 3]
        for size in sizes:
            piece = DATA[:size]
            digest.update(piece)
            sender = threading.Thread(target=sock.sendall, args=[piece])
            sender.start()
            assert receive_exactly(sock, size) == piece
            sender.join()

    def test_a_record_without_data_is_not_the_end(self, pki: Pki) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send_sealed(APPLICATION_DATA, b"")
            connection.send_sealed(APPLICATION_DATA, b"data")
            connection.await_close_notify()

        with serving(tls_peer.tls(pki.ecdsa, act)) as peer, connect(peer) as sock:
            assert receive_exactly(sock, 4) == b"data"
