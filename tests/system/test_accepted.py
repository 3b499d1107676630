# SPDX-License-Identifier: BSD-3-Clause
"""What accept() gives is a TLS socket like one that has connected, and it inherits what Linux lets
a TCP connection inherit from its listener."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import select
import socket
import ssl
import struct
import subprocess
import termios
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS, TlsOption
from tests.peers import clients, servers
from tests.peers.clients import Target
from tests.system.program import (
    get_id,
    in_child,
    receive_all,
    receive_exactly,
    refused,
    set_text,
    so_error,
    tls_error,
    tls_socket,
)
from tests.system.server import (
    DEADLINE,
    check_served,
    listening,
    reset,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.peers.pki import Pki
    from tests.peers.servers import Version
    from tests.system.daemon import Transport
    from tests.system.server import TlsListener

LOOPBACK = "127.0.0.1"

# Many records and a part of one.
SIZE = 10_000_001
BLOCK = 1 << 17

Pair = tuple[ssl.SSLSocket, socket.socket]


@contextmanager
def connected(pki: Pki, version: Version | None = None) -> Iterator[Pair]:
    """Connect a client of Python's ssl module to a TLS socket; give both ends, client first."""
    with listening(pki.ecdsa) as listener:
        trust = clients.context(pki.root, version)
        client = clients.connect(trust, Target(listener.port, pki.root))
        accepted = listener.accept()
    with client, accepted:
        yield client, accepted


@pytest.fixture
def pair(pki: Pki, transport: Transport) -> Iterator[Pair]:
    """Give both ends of a connection, over each transport."""
    assert transport
    with connected(pki) as found:
        yield found


@pytest.fixture(params=servers.VERSIONS)
def pair_of_version(
    request: pytest.FixtureRequest, pki: Pki, transport: Transport
) -> Iterator[Pair]:
    """Give both ends of a connection, over each transport and version."""
    assert transport
    with connected(pki, request.param) as found:
        yield found


def content(size: int) -> bytes:
    """Return bytes that repeat, but not at any block's or record's size."""
    unit = bytes(range(251)) * 997
    return (unit * (size // len(unit) + 1))[:size]


def digest_of_stream(receive: Callable[[int], bytes]) -> str:
    """Receive until the end of the stream and return the SHA-256."""
    digest = hashlib.sha256()
    while data := receive(BLOCK):
        digest.update(data)
    return digest.hexdigest()


class TestData:
    """Bytes in both directions."""

    def test_10_mb_come_in(self, pair_of_version: Pair) -> None:
        client, accepted = pair_of_version
        data = content(SIZE)

        def send() -> None:
            client.sendall(data)
            client.unwrap()

        sender = threading.Thread(target=send)
        sender.start()
        assert digest_of_stream(accepted.recv) == hashlib.sha256(data).hexdigest()
        accepted.shutdown(socket.SHUT_RDWR)  # the client's unwrap() waits for ours
        sender.join()

    def test_10_mb_go_out(self, pair_of_version: Pair) -> None:
        client, accepted = pair_of_version
        data = content(SIZE)

        def send() -> None:
            accepted.sendall(data)
            accepted.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert digest_of_stream(client.recv) == hashlib.sha256(data).hexdigest()
        sender.join()

    def test_sendfile(self, pair: Pair, tmp_path: Path) -> None:
        client, accepted = pair
        data = content(300_001)
        path = tmp_path / "file"
        path.write_bytes(data)

        def send() -> None:
            with path.open("rb") as file:
                sent = 0
                while sent < len(data):
                    sent += os.sendfile(accepted.fileno(), file.fileno(), sent, len(data) - sent)
            accepted.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert clients.receive_all(client) == data
        sender.join()

    def test_peek_and_waitall(self, pair: Pair) -> None:
        client, accepted = pair
        client.sendall(b"twice")
        assert accepted.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL) == b"twice"
        assert accepted.recv(5, socket.MSG_WAITALL) == b"twice"
        refused(errno.EAGAIN, lambda: accepted.recv(1, socket.MSG_DONTWAIT))

    def test_readiness_and_amount(self, pair: Pair) -> None:
        client, accepted = pair
        poll = select.poll()
        poll.register(accepted, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
        assert poll.poll(0) == [(accepted.fileno(), select.POLLOUT)]
        client.sendall(b"x" * 100)
        accepted.recv(100, socket.MSG_PEEK | socket.MSG_WAITALL)
        assert poll.poll(0) == [(accepted.fileno(), select.POLLIN | select.POLLOUT)]
        assert struct.unpack("=i", fcntl.ioctl(accepted, termios.FIONREAD, bytes(4))) == (100,)

    def test_a_child_shares_it(self, pair: Pair) -> None:
        client, accepted = pair
        assert in_child(lambda: accepted.sendall(b"child ")) == 0
        accepted.sendall(b"parent")
        assert client.recv(6) + client.recv(6) == b"child parent"


class TestEnds:
    """How a stream ends."""

    @pytest.mark.usefixtures("transport")
    def test_the_client_may_end_its_half_first(self, pki: Pki) -> None:
        # Python's ssl module can't, a TLS socket can.
        with listening(pki.ecdsa) as listener, tls_socket() as client:
            client.connect((LOOPBACK, listener.port))
            with listener.accept() as accepted:
                client.sendall(b"question")
                client.shutdown(socket.SHUT_WR)
                assert receive_all(accepted) == b"question"
                accepted.sendall(b"answer")
                accepted.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b"answer"

    def test_the_program_may_end_its_half_first(self, pair_of_version: Pair) -> None:
        client, accepted = pair_of_version
        accepted.sendall(b"all")
        accepted.shutdown(socket.SHUT_WR)
        refused(errno.EPIPE, lambda: accepted.send(b"late"))
        assert clients.receive_all(client) == b"all"  # an end without close_notify would raise
        client.send(b"still")
        assert receive_exactly(accepted, 5) == b"still"

    def test_close_says_goodbye(self, pair_of_version: Pair) -> None:
        client, accepted = pair_of_version
        accepted.sendall(b"bye")
        accepted.close()
        assert clients.receive_all(client) == b"bye"

    def test_a_clients_goodbye_is_the_end_of_file(self, pair_of_version: Pair) -> None:
        client, accepted = pair_of_version
        client.sendall(b"all")
        leaver = threading.Thread(target=client.unwrap)  # returns when we say goodbye, too
        leaver.start()
        assert receive_all(accepted) == b"all"
        assert so_error(accepted) == 0
        accepted.close()
        leaver.join()

    def test_an_end_without_goodbye_is_a_reset(self, pair_of_version: Pair) -> None:
        client, accepted = pair_of_version
        client.sendall(b"cut")
        client.shutdown(socket.SHUT_WR)  # TCP's
        assert receive_exactly(accepted, 3) == b"cut"
        refused(errno.ECONNRESET, lambda: accepted.recv(1))
        assert "without close_notify" in tls_error(accepted)

    def test_a_reset_is_one(self, pair: Pair) -> None:
        client, accepted = pair
        reset(client)
        refused(errno.ECONNRESET, lambda: accepted.recv(1))

    def test_a_linger_time_of_zero_resets(self, pair: Pair) -> None:
        client, accepted = pair
        reset(accepted)
        # Python's ssl tells no reset from an end.
        with socket.socket(fileno=client.detach()) as tcp:
            tcp.settimeout(DEADLINE)
            refused(errno.ECONNRESET, lambda: list(iter(lambda: tcp.recv(1 << 16), b"")))


def test_a_clients_key_update(pki: Pki, transport: Transport) -> None:
    with listening(pki.ecdsa) as listener:
        target = Target(listener.port, pki.root)
        command = [
            *("openssl", "s_client", "-quiet", "-no_ign_eof", "-connect"),
            f"127.0.0.1:{target.port}",
        ]
        with (
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            ) as visitor,
            listener.accept() as accepted,
        ):
            assert visitor.stdin is not None

            def type_in(line: bytes) -> None:
                assert visitor.stdin is not None
                visitor.stdin.write(line)
                visitor.stdin.flush()

            type_in(b"before\n")
            assert receive_exactly(accepted, 7) == b"before\n"
            type_in(b"k\n")  # a command, for it comes alone
            assert visitor.stderr is not None
            while visitor.stderr.readline() != b"KEYUPDATE\n":
                assert visitor.poll() is None
            if transport == "channel":
                type_in(b"after\n")
                assert receive_exactly(accepted, 6) == b"after\n"
            else:
                refused(errno.EPROTO, lambda: accepted.recv(1))
                assert "KeyUpdate" in tls_error(accepted)
            visitor.terminate()


class TestStates:
    """It is connected."""

    def test_what_it_refuses(self, pair: Pair) -> None:
        client, accepted = pair
        refused(errno.EINVAL, lambda: accepted.bind((LOOPBACK, 0)))
        refused(errno.EOPNOTSUPP, lambda: accepted.connect((LOOPBACK, 9)))
        refused(errno.EINVAL, accepted.listen)
        refused(errno.EINVAL, accepted.accept)
        refused(errno.EOPNOTSUPP, lambda: set_text(accepted, TlsOption.TLS_ALPN, "h2"))
        client.sendall(b"well")
        assert receive_exactly(accepted, 4) == b"well"

    @pytest.mark.usefixtures("daemon")
    def test_it_has_an_id_of_its_own(self, pki: Pki) -> None:
        with connected(pki) as (_, first), connected(pki) as (_, second):
            assert get_id(first) != get_id(second)


def timeval(seconds: int) -> bytes:
    """Return a struct timeval."""
    return struct.pack("=qq", seconds, 0)


def number(value: int) -> bytes:
    """Return an int as options want it."""
    return struct.pack("=i", value)


# What a program may set on a listener: level, option, value. SO_PEEK_OFF and the like are no
# stream socket's.
SO_MARK, SO_PRIORITY, SO_BUSY_POLL, SO_MAX_PACING_RATE = 36, 12, 46, 47
SO_BUF_LOCK, SO_TXREHASH, IP_MTU_DISCOVER, IP_RECVTTL = 72, 74, 10, 12
SETTINGS: dict[str, tuple[int, int, bytes]] = {
    "SO_KEEPALIVE": (socket.SOL_SOCKET, socket.SO_KEEPALIVE, number(1)),
    "SO_RCVBUF": (socket.SOL_SOCKET, socket.SO_RCVBUF, number(1 << 16)),
    "SO_SNDBUF": (socket.SOL_SOCKET, socket.SO_SNDBUF, number(1 << 17)),
    "SO_LINGER": (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 1)),
    "SO_RCVTIMEO": (socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(50)),
    "SO_SNDTIMEO": (socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(51)),
    "SO_RCVLOWAT": (socket.SOL_SOCKET, socket.SO_RCVLOWAT, number(2)),
    "SO_REUSEADDR": (socket.SOL_SOCKET, socket.SO_REUSEADDR, number(1)),
    "SO_REUSEPORT": (socket.SOL_SOCKET, socket.SO_REUSEPORT, number(1)),
    "SO_DONTROUTE": (socket.SOL_SOCKET, socket.SO_DONTROUTE, number(1)),
    "SO_OOBINLINE": (socket.SOL_SOCKET, socket.SO_OOBINLINE, number(1)),
    "SO_PRIORITY": (socket.SOL_SOCKET, SO_PRIORITY, number(5)),
    "SO_MARK": (socket.SOL_SOCKET, SO_MARK, number(77)),
    "SO_BINDTODEVICE": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo".ljust(16, b"\0")),
    "SO_MAX_PACING_RATE": (socket.SOL_SOCKET, SO_MAX_PACING_RATE, number(50_000_000)),
    "SO_TXREHASH": (socket.SOL_SOCKET, SO_TXREHASH, number(0)),
    "SO_BUF_LOCK": (socket.SOL_SOCKET, SO_BUF_LOCK, number(3)),
    "TCP_NODELAY": (socket.IPPROTO_TCP, socket.TCP_NODELAY, number(1)),
    "TCP_CONGESTION": (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno".ljust(16, b"\0")),
    "TCP_LINGER2": (socket.IPPROTO_TCP, socket.TCP_LINGER2, number(9)),
    "TCP_NOTSENT_LOWAT": (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, number(1 << 17)),
    "TCP_KEEPIDLE": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, number(77)),
    "TCP_KEEPINTVL": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, number(7)),
    "TCP_KEEPCNT": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, number(3)),
    "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, number(30_000)),
    "IP_TOS": (socket.IPPROTO_IP, socket.IP_TOS, number(0x10)),
    "IP_TTL": (socket.IPPROTO_IP, socket.IP_TTL, number(33)),
    "IP_RECVTTL": (socket.IPPROTO_IP, IP_RECVTTL, number(1)),
    "IP_MTU_DISCOVER": (socket.IPPROTO_IP, IP_MTU_DISCOVER, number(2)),
}


def values(sock: socket.socket) -> dict[str, bytes]:
    """Return all of SETTINGS."""
    return {
        name: sock.getsockopt(level, option, len(value))
        for name, (level, option, value) in SETTINGS.items()
    }


def apply(sock: socket.socket, names: Sequence[str]) -> None:
    """Set some of SETTINGS."""
    for name in names:
        sock.setsockopt(*SETTINGS[name])


class TestInheritance:
    """Compared with TCP itself."""

    def inherited(self, pki: Pki, names: Sequence[str], protocol: int) -> dict[str, bytes]:
        """Set options on a listener, and return what they are on what it accepts."""

        def prepare(sock: socket.socket) -> None:
            apply(sock, names)

        if protocol == IPPROTO_TLS:
            with listening(pki.ecdsa, prepare=prepare) as listener:
                return self.of_accepted(pki, listener)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as sock:
            prepare(sock)
            sock.bind((LOOPBACK, 0))
            sock.listen()
            with socket.create_connection(sock.getsockname(), DEADLINE), sock.accept()[0] as got:
                return values(got)

    def of_accepted(self, pki: Pki, listener: TlsListener) -> dict[str, bytes]:
        """Return what the options of a connection are that has just been accepted."""
        trust = clients.context(pki.root)
        with (
            clients.connect(trust, Target(listener.port, pki.root)) as client,
            listener.accept() as accepted,
        ):
            client.sendall(b"both")  # they do not stand in the way either
            assert receive_exactly(accepted, 4) == b"both"
            return values(accepted)

    @pytest.mark.usefixtures("transport")
    def test_what_was_set(self, pki: Pki) -> None:
        names = list(SETTINGS)
        wanted = self.inherited(pki, names, socket.IPPROTO_TCP)
        assert self.inherited(pki, names, IPPROTO_TLS) == wanted

    @pytest.mark.usefixtures("daemon")
    def test_what_was_not(self, pki: Pki) -> None:
        wanted = self.inherited(pki, [], socket.IPPROTO_TCP)
        found = self.inherited(pki, [], IPPROTO_TLS)
        for name in ("SO_RCVBUF", "SO_SNDBUF"):  # TCP tunes them as packets come
            del wanted[name], found[name]
        assert found == wanted

    @pytest.mark.usefixtures("daemon")
    def test_what_is_set_while_it_listens(self, pki: Pki) -> None:
        names = ["SO_KEEPALIVE", "SO_LINGER", "SO_RCVTIMEO", "TCP_NODELAY", "SO_SNDBUF"]
        with listening(pki.ecdsa) as listener:
            check_served(listener, pki.root)
            apply(listener.sock, names)
            found = self.of_accepted(pki, listener)
        wanted = self.inherited(pki, names, socket.IPPROTO_TCP)
        for name in names:
            assert found[name] == wanted[name], name

    @pytest.mark.usefixtures("daemon")
    def test_a_connection_and_its_listener_go_separate_ways(self, pki: Pki) -> None:
        with listening(pki.ecdsa) as listener:
            trust = clients.context(pki.root)
            with (
                clients.connect(trust, Target(listener.port, pki.root)),
                listener.accept() as accepted,
            ):
                apply(accepted, ["SO_KEEPALIVE", "TCP_NODELAY"])
                found = values(listener.sock)
                assert found["SO_KEEPALIVE"] == number(0)
                assert found["TCP_NODELAY"] == number(0)


@pytest.mark.usefixtures("transport")
def test_nothing_is_left_of_the_plain_text_on_the_wire(pki: Pki) -> None:
    # TCP's own view: what a packet filter sees of the bytes is never the program's.
    with connected(pki) as (client, accepted):
        accepted.sendall(b"secret" * 10)
        with socket.socket(fileno=os.dup(client.fileno())) as raw:
            assert select.select([raw], [], [], DEADLINE)[0]
            seen = raw.recv(1000, socket.MSG_PEEK)
        assert b"secret" not in seen
        assert client.recv(60) == b"secret" * 10


@pytest.mark.usefixtures("daemon")
def test_ss_shows_the_endpoints(pki: Pki) -> None:
    with connected(pki) as (_, accepted):
        port = accepted.getsockname()[1]
        run = subprocess.run(
            ["ss", "-tnH", f"sport = :{port}"], check=True, capture_output=True, text=True
        )
        assert "ESTAB" in run.stdout
