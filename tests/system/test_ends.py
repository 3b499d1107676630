# SPDX-License-Identifier: BSD-3-Clause
"""How a stream ends."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest
from OpenSSL import SSL

from tests.peers import hostile, servers, tls_peer
from tests.peers.hostile import APPLICATION_DATA, HANDSHAKE
from tests.system.program import (
    connect,
    echo,
    in_child,
    receive_all,
    receive_exactly,
    refused,
    so_error,
    tls_error,
)

if TYPE_CHECKING:
    from tests.peers.hostile import Peer
    from tests.peers.servers import Server, Version
    from tests.system.conftest import Peers

pytestmark = pytest.mark.usefixtures("transport")

DEADLINE = 60.0

USER_CANCELED = bytes((tls_peer.WARNING, 90))


@pytest.fixture(params=servers.VERSIONS)
def version(request: pytest.FixtureRequest) -> Version:
    """Give each version in turn."""
    found: Version = request.param
    return found


class TestByTheProgram:
    """The program ends the stream."""

    def test_close_says_goodbye_after_the_last_byte(self, peers: Peers, version: Version) -> None:
        size = 1 << 20

        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.send(connection.receive(1))
            assert connection.receive(size) == bytes(size)
            connection.await_close_notify()
            peer.report("close_notify")

        with peers(act, version) as peer:
            with connect(peer) as sock:
                # The peer's tickets have come: TCP answers what comes after close() with a reset.
                echo(sock, b".")
                sock.sendall(bytes(size))
            peer.await_report("close_notify")

    def test_the_end_of_the_process_says_goodbye(self, peers: Peers, version: Version) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.send(connection.receive(1))
            assert connection.receive(4) == b"bye!"
            connection.await_close_notify()
            peer.report("close_notify")

        def leave(peer: Peer) -> None:
            sock = connect(peer)
            echo(sock, b".")  # the peer's tickets have come
            sock.send(b"bye!")
            os._exit(0)

        with peers(act, version) as peer:
            assert in_child(lambda: leave(peer)) == 0
            peer.await_report("close_notify")

    def test_closing_with_unread_data_still_says_goodbye(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.send(b"never read")
            connection.receive(4)
            peer.report("received")

        with peers(act) as peer:
            with connect(peer) as sock:
                sock.recv(1, socket.MSG_PEEK)
                sock.send(b"last")
            peer.await_report("received")

    def test_a_half_close_leaves_the_other_half(self, peers: Peers, version: Version) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.receive(8)
            connection.await_close_notify()
            connection.send(b"answer")
            connection.close_notify()

        with peers(act, version) as peer, connect(peer) as sock:
            sock.send(b"question")
            sock.shutdown(socket.SHUT_WR)
            refused(errno.EPIPE, lambda: sock.send(b"late"))
            assert receive_all(sock) == b"answer"
            assert sock.recv(1) == b""

    def test_a_half_close_of_an_echo(self, echo_server: Server) -> None:
        with connect(echo_server) as sock:
            data = bytes(range(256)) * 1000

            def send() -> None:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert receive_all(sock) == data
            sender.join()

    def test_shutting_down_reading_ends_reading(self, echo_server: Server) -> None:
        with connect(echo_server) as sock:
            sock.shutdown(socket.SHUT_RD)
            assert sock.recv(1) == b""

    def test_shutting_down_wakes_a_reader(self, echo_server: Server) -> None:
        with connect(echo_server) as sock:
            found: list[bytes] = []
            reader = threading.Thread(target=lambda: found.append(sock.recv(1)))
            reader.start()
            sock.shutdown(socket.SHUT_RDWR)
            reader.join(DEADLINE)
            assert found == [b""]

    def test_a_linger_time_of_zero_resets(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.send(connection.receive(1))
            try:
                connection.await_close_notify()
            except ConnectionResetError:
                peer.report("reset")

        with peers(act) as peer:
            with connect(peer) as sock:
                # The peer's handshake is over too, so that the reset does not end that.
                echo(sock, b".")
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            peer.await_report("reset")

    @staticmethod
    def full(peer: Peer, linger: int) -> socket.socket:
        """Return a connection that has written as much as it can, and a linger time in seconds."""
        sock = connect(peer)
        # The peer's handshake is over too.
        echo(sock, b".")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger))
        sock.setblocking(False)  # noqa: FBT003 -- takes no keyword
        idle = 0
        while idle < 20:  # the daemon may be about to take more
            try:
                sock.send(bytes(16384))
                idle = 0
            except BlockingIOError:
                idle += 1
                select.select([], [sock], [], 0.01)
        return sock

    def test_a_linger_time_waits_for_the_peer(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.send(connection.receive(1))
            peer.go_on.wait(DEADLINE)
            connection.await_close_notify()
            peer.report("close_notify")

        with peers(act) as peer:
            closer = threading.Thread(target=self.full(peer, 60).close)
            closer.start()
            closer.join(0.3)
            assert closer.is_alive(), "close() does not wait for a peer that does not read"
            peer.go_on.set()
            closer.join(40)
            assert not closer.is_alive(), "close() waits though the peer has read all"
            peer.await_report("close_notify")

    def test_a_linger_time_is_the_longest_that_close_takes(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.send(connection.receive(1))
            peer.go_on.wait(DEADLINE)

        with peers(act) as peer, connect(peer) as other:
            sock = self.full(peer, 1)
            begun = time.monotonic()
            sock.close()
            assert 0.9 < time.monotonic() - begun < DEADLINE / 2
            # The daemon has not waited with it.
            echo(other, b".")


class TestByThePeer:
    """The peer ends the stream."""

    def test_close_notify_is_the_end_of_file(self, peers: Peers, version: Version) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send(b"all")
            connection.close_notify()

        with peers(act, version) as peer, connect(peer) as sock:
            assert receive_all(sock) == b"all"
            assert sock.recv(1) == b""
            assert so_error(sock) == 0

    def test_after_close_notify_the_program_may_still_write(
        self, peers: Peers, version: Version
    ) -> None:
        def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
            connection.close_notify()
            assert connection.receive(5) == b"still"
            connection.await_close_notify()
            peer.report("close_notify")

        with peers(act, version) as peer:
            with connect(peer) as sock:
                assert sock.recv(1) == b""
                sock.send(b"still")
            peer.await_report("close_notify")

    def test_data_after_close_notify_is_never_seen(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.raw.sendall(
                connection.seal(APPLICATION_DATA, b"all")
                + connection.seal(tls_peer.ALERT, tls_peer.CLOSE_NOTIFY)
                + connection.seal(APPLICATION_DATA, b"late")
            )
            hostile.read_until_closed(connection.raw)

        with peers(act) as peer, connect(peer) as sock:
            assert receive_all(sock) == b"all"
            assert sock.recv(1) == b""

    def test_an_end_without_close_notify_is_a_reset(self, peers: Peers, version: Version) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send(b"cut")

        with peers(act, version) as peer, connect(peer) as sock:
            assert receive_exactly(sock, 3) == b"cut"
            refused(errno.ECONNRESET, lambda: sock.recv(1))
            assert "without close_notify" in tls_error(sock)

    def test_an_end_within_a_record_is_a_reset(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.raw.sendall(connection.seal(APPLICATION_DATA, b"never whole")[:-1])

        with peers(act) as peer, connect(peer) as sock:
            refused(errno.ECONNRESET, lambda: sock.recv(1))

    def test_a_cut_stream_is_a_reset_for_splice_too(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.receive(1)

        read_end, write_end = os.pipe()
        with (
            os.fdopen(read_end, "rb", 0),
            os.fdopen(write_end, "wb", 0) as sink,
            peers(act) as peer,
            connect(peer) as sock,
        ):
            sock.send(b".")
            refused(errno.ECONNRESET, lambda: os.splice(sock.fileno(), sink.fileno(), 1))

    def test_a_cut_stream_wakes_who_waits(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.receive(1)

        with peers(act) as peer, connect(peer) as sock:
            sock.send(b".")
            assert select.select([sock], [], [], DEADLINE)[0] == [sock]
            refused(errno.ECONNRESET, lambda: sock.recv(1))

    def test_a_reset_is_a_reset(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.receive(1)
            hostile.reset(connection.raw)

        with peers(act) as peer, connect(peer) as sock:
            sock.send(b".")
            refused(errno.ECONNRESET, lambda: sock.recv(1))

            def send_on() -> None:
                for _ in range(1000):
                    sock.send(bytes(1000))

            refused(errno.EPIPE, send_on)

    def test_a_fatal_alert_is_told_by_its_name(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send_sealed(APPLICATION_DATA, b"before")
            connection.send_sealed(tls_peer.ALERT, tls_peer.INTERNAL_ERROR)
            hostile.read_until_closed(connection.raw)

        with peers(act) as peer, connect(peer) as sock:
            assert receive_exactly(sock, 6) == b"before"
            refused(errno.EPROTO, lambda: sock.recv(1))
            assert "internal_error" in tls_error(sock)

    def test_a_warning_alert_changes_nothing(self, peers: Peers) -> None:
        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send_sealed(tls_peer.ALERT, USER_CANCELED)
            connection.send_sealed(APPLICATION_DATA, b"data")
            connection.await_close_notify()

        with peers(act) as peer, connect(peer) as sock:
            assert receive_exactly(sock, 4) == b"data"


def test_a_peer_that_gets_a_fatal_alert_knows_why(peers: Peers) -> None:
    heard: list[str] = []

    def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
        connection.send_sealed(HANDSHAKE, b"\x0b\0\0\0")  # a Certificate, out of turn
        try:
            connection.await_close_notify()
        except SSL.Error as error:
            heard.append(str(error))
        peer.report("over")

    with peers(act) as peer, connect(peer) as sock:
        refused(errno.EPROTO, lambda: sock.recv(1))
        peer.await_report("over")
        assert "alert" in heard[0]


def test_connections_after_a_broken_one_are_well(peers: Peers, echo_server: Server) -> None:
    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        connection.raw.sendall(hostile.GARBAGE)

    with peers(act) as peer, connect(peer) as sock, connect(echo_server) as good:
        with pytest.raises(OSError, match="Errno"):
            sock.recv(1)
        echo(good, b"well")
