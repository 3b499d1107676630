# SPDX-License-Identifier: BSD-3-Clause
"""Records that are broken, and records that are no data."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import termios
from typing import IO, TYPE_CHECKING

import pytest
from OpenSSL import SSL

from tests.peers import hostile, servers, tls_peer
from tests.peers.hostile import APPLICATION_DATA, HANDSHAKE
from tests.system.daemon import await_condition
from tests.system.program import (
    connect,
    receive_exactly,
    refused,
    tls_error,
)

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.tls_peer import Act
    from tests.system.conftest import Peers
    from tests.system.daemon import Transport

pytestmark = pytest.mark.usefixtures("transport")

DEADLINE = 60.0

# RFC 8446, 4.6.1: lifetime, age_add, nonce, ticket, no extensions.
TICKET = struct.pack("!IIB1sH8sH", 7200, 1, 1, b"n", 8, b"a ticket", 0)
NEW_SESSION_TICKET = b"\4" + len(TICKET).to_bytes(3, "big") + TICKET


class TestBrokenRecords:
    """Records that no key of the peer's has made, or that no record may be."""

    def check_broken(self, peers: Peers, send: Act) -> None:
        """Check that what `send` sends gives an error, and neither data nor an end of file."""

        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.send_sealed(APPLICATION_DATA, b"good")
            send(connection, peer)
            hostile.read_until_closed(connection.raw)

        with peers(act) as peer, connect(peer) as sock:
            assert receive_exactly(sock, 4) == b"good"
            with pytest.raises(OSError, match="Errno") as caught:
                sock.recv(1)
            # The first two are what kernel TLS says to a broken and a too long record.
            assert caught.value.errno in (errno.EBADMSG, errno.EMSGSIZE, errno.EPROTO)

    def test_a_flipped_bit(self, peers: Peers) -> None:
        self.check_broken(peers, lambda c, _: c.send_sealed(APPLICATION_DATA, b"bad", spoil=True))

    def test_16_kib_and_one_byte(self, peers: Peers) -> None:
        body = bytes(hostile.PLAIN_MAX + 1)
        self.check_broken(peers, lambda c, _: c.send_sealed(APPLICATION_DATA, body))

    def test_longer_than_any_record(self, peers: Peers) -> None:
        body = bytes(hostile.ENCRYPTED_MAX + 1)
        self.check_broken(peers, lambda c, _: c.send_sealed(APPLICATION_DATA, body))

    def test_no_record_at_all(self, peers: Peers) -> None:
        self.check_broken(peers, lambda c, _: c.raw.sendall(hostile.GARBAGE))

    def test_a_record_in_the_clear(self, peers: Peers) -> None:
        clear = hostile.record(APPLICATION_DATA, b"forged data, not encrypted at all")
        self.check_broken(peers, lambda c, _: c.raw.sendall(clear))

    def test_16_kib_are_well(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send_sealed(APPLICATION_DATA, bytes(hostile.PLAIN_MAX))
            connection.await_close_notify()

        with peers(act) as peer, connect(peer) as sock:
            assert receive_exactly(sock, hostile.PLAIN_MAX) == bytes(hostile.PLAIN_MAX)


class TestBesidesData:
    """Records that are no data do not show, wherever they come."""

    @pytest.fixture
    def ticket_between(self, peers: Peers, stack: ExitStack) -> socket.socket:
        """Connect to a server that has sent three bytes, a ticket, three bytes, and a ticket."""

        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            ticket = (HANDSHAKE, NEW_SESSION_TICKET)
            for kind, body in (
                (APPLICATION_DATA, b"abc"),
                ticket,
                (APPLICATION_DATA, b"def"),
                ticket,
            ):
                connection.send_sealed(kind, body)
            peer.report("sent")
            hostile.read_until_closed(connection.raw)

        peer = stack.enter_context(peers(act))
        sock = stack.enter_context(connect(peer))
        peer.await_report("sent")
        return sock

    def test_a_read(self, ticket_between: socket.socket) -> None:
        assert receive_exactly(ticket_between, 6) == b"abcdef"
        refused(errno.EAGAIN, lambda: ticket_between.recv(1, socket.MSG_DONTWAIT))

    def test_a_read_of_all(self, ticket_between: socket.socket) -> None:
        assert ticket_between.recv(6, socket.MSG_WAITALL) == b"abcdef"

    def test_a_peek(self, ticket_between: socket.socket) -> None:
        sock = ticket_between
        seen = sock.recv(6, socket.MSG_PEEK)
        assert seen == b"abcdef"[: len(seen)]
        assert seen
        assert receive_exactly(sock, 3) == b"abc"
        assert sock.recv(6, socket.MSG_PEEK) == b"def"
        assert receive_exactly(sock, 3) == b"def"

    def test_a_read_with_a_control_buffer(self, ticket_between: socket.socket) -> None:
        received = b""
        while len(received) < 6:
            data, control, _flags, _address = ticket_between.recvmsg(6 - len(received), 1024)
            assert control == []
            received += data
        assert received == b"abcdef"

    def test_a_splice(self, ticket_between: socket.socket) -> None:
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", 0) as source, os.fdopen(write_end, "wb", 0) as sink:
            received = b""
            while len(received) < 6:
                count = os.splice(ticket_between.fileno(), sink.fileno(), 6)
                received += source.read(count)
            assert received == b"abcdef"

    def test_a_poll(self, ticket_between: socket.socket) -> None:
        assert select.select([ticket_between], [], [], DEADLINE)[0] == [ticket_between]
        receive_exactly(ticket_between, 6)
        assert select.select([ticket_between], [], [], 0.3)[0] == []

    def test_renegotiation_is_not_taken_up(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.ask_to_renegotiate()
            # A refusal, which is a warning, ends it for OpenSSL; without an answer it reads on.
            with contextlib.suppress(SSL.Error):
                connection.receive(1)
            peer.go_on.wait(DEADLINE)  # until the test is done

        with peers(act, "TLSv1.2") as peer, connect(peer) as sock:
            refused(errno.EAGAIN, lambda: sock.recv(1, socket.MSG_DONTWAIT))
            sock.send(b".")


def waiting_in(pipe: IO[bytes]) -> int:
    """Return how many bytes are in a pipe."""
    return int(struct.unpack("=i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


class TestKeyUpdate:
    """A peer that changes its keys."""

    def test_data_is_never_lost_or_wrong(self, peers: Peers, transport: Transport) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send_sealed(APPLICATION_DATA, b"old key")
            connection.send_sealed(HANDSHAKE, tls_peer.KEY_UPDATE)
            connection.update_key()
            connection.send_sealed(APPLICATION_DATA, b"new key")
            hostile.read_until_closed(connection.raw)

        with peers(act) as peer, connect(peer) as sock:
            assert receive_exactly(sock, 7) == b"old key"
            if transport == "channel":
                assert receive_exactly(sock, 7) == b"new key"
            else:  # kernel TLS can change keys from Linux 6.14 on
                refused(errno.EPROTO, lambda: sock.recv(1))
                assert "KeyUpdate" in tls_error(sock)

    def test_a_server_that_no_one_here_wrote(
        self, pki: Pki, logs: Path, transport: Transport
    ) -> None:
        with (
            servers.openssl(pki.ecdsa, logs, "-tls1_3", stdin=subprocess.PIPE) as server,
            connect(server) as sock,
        ):
            keyboard = server.process.stdin
            assert keyboard is not None
            keyboard.write(b"old key\n")
            keyboard.flush()
            assert receive_exactly(sock, 8) == b"old key\n"
            keyboard.write(b"k\n")
            keyboard.flush()
            # A command takes what else is in the pipe with it.
            await_condition("the command is read", lambda: waiting_in(keyboard) == 0)
            keyboard.write(b"new key\n")
            keyboard.flush()
            if transport == "channel":
                assert receive_exactly(sock, 8) == b"new key\n"
            else:
                refused(errno.EPROTO, lambda: sock.recv(1))
