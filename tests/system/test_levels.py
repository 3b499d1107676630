# SPDX-License-Identifier: BSD-3-Clause
"""Options of the levels of sockets, TCP and IP: what a TLS socket does with each of them is what a
TCP socket does, or what the module's table says."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import socket
import struct
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS
from tests import levels
from tests.peers import tls_peer
from tests.peers.hostile import serving
from tests.system.daemon import await_condition, workers
from tests.system.program import (
    NOBODY,
    SOL_TLS,
    await_child,
    begin,
    echo,
    in_child,
    libc,
    name_of,
    receive_exactly,
    refused,
    so_error,
    start_child,
    tls_socket,
)
from tests.system.server import DEADLINE, check_served, listening, reset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.daemon import Transport
    from tests.system.server import TlsListener

LOOPBACK = "127.0.0.1"

# <asm-generic/socket.h>; Python has no names for them.
SO_PRIORITY = 12
SO_RCVBUFFORCE = 33
SO_MARK = 36
SO_PROTOCOL = 38
SO_PEEK_OFF = 42
SO_MAX_PACING_RATE = 47
SO_ZEROCOPY = 60
SO_BUF_LOCK = 72
SO_RESERVE_MEM = 73
SO_TXREHASH = 74

TCP_SAVE_SYN = 27
IPV6_FLOWLABEL_MGR = 32
IPV6_FREEBIND = 78

SYS_PIDFD_GETFD = 438

REFUSALS = {"NONE": errno.ENOPROTOOPT, "REFUSED": errno.EOPNOTSUPP}

# What a program may hand over: good and bad, of every length.
VALUES = [
    *(struct.pack("=i", value) for value in (1, 0, 2, 7, 255, -1, 1000, 70_000)),
    b"",
    b"\1",
    struct.pack("=q", 3),
    bytes(16),
    bytes(40),
    bytes(300),
    b"reno\0",
    b"nosuch\0",
]

# Options of SOL_SOCKET for which the core asks whether the socket is TCP's, and a few that are
# about one socket.
OF_TCP_ALONE = {
    "SO_ATTACH_FILTER",
    "SO_COOKIE",
    "SO_DEVMEM_DONTNEED",
    "SO_MEMINFO",
    "SO_PEEK_OFF",
    "SO_PROTOCOL",
    "SO_RESERVE_MEM",
    "SO_TIMESTAMPING_NEW",
    "SO_TIMESTAMPING_OLD",
    "SO_ZEROCOPY",
}

# Figures that are never the same on two sockets.
FIGURES = {"TCP_INFO", "TCP_TIMESTAMP", "TCP_CC_INFO"}


def number(value: int) -> bytes:
    """Pack an int."""
    return struct.pack("=i", value)


def set_value(sock: socket.socket, level: int, option: int, value: bytes) -> int:
    """Call setsockopt(2); return 0 or its errno."""
    if libc.setsockopt(sock.fileno(), level, option, value, len(value)) == 0:
        return 0
    return ctypes.get_errno()


def get_value(sock: socket.socket, level: int, option: int, room: int = 64) -> tuple[int, bytes]:
    """Call getsockopt(2); return 0 or its errno, and the value."""
    buffer = ctypes.create_string_buffer(room)
    length = ctypes.c_uint(room)
    if libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)) == 0:
        return 0, buffer.raw[: length.value]
    return ctypes.get_errno(), b""


def table(name: str) -> list[tuple[levels.Row, int]]:
    """Return the rows of a table of which the running kernel's headers have the number."""
    known = levels.defined(Path("/lib/modules", platform.release()), levels.TABLES[name][1])
    return [(row, known[row.name]) for row in levels.rows(name) if row.name in known]


class Both:
    """A TLS socket and a TCP socket to which the same is done."""

    def __init__(
        self, tls: socket.socket, tcp: socket.socket, refusals: Mapping[str, int] | None = None
    ) -> None:
        """`refusals`: besides REFUSALS."""
        self._tls = tls
        self._tcp = tcp
        self._refusals = REFUSALS | dict(refusals or {})
        self.differences: list[str] = []
        self.calls = 0

    def set(self, row: levels.Row, option: int, value: bytes) -> None:
        """Set an option on both."""
        self.calls += 1
        found = set_value(self._tls, row.level, option, value)
        wanted = self._refusals.get(row.set if row.record else "")
        if wanted is None:
            wanted = set_value(self._tcp, row.level, option, value)
        if found != wanted:
            self._differ(f"setting {row.name} to {value!r}", name_of(found), name_of(wanted))

    def get(self, row: levels.Row, option: int, room: int = 64) -> None:
        """Get an option of both."""
        self.calls += 1
        error, value = get_value(self._tls, row.level, option, room)
        wanted = self._refusals.get(row.get if row.record else "")
        wanted_value = b""
        if wanted is None:
            wanted, wanted_value = get_value(self._tcp, row.level, option, room)
        if error != wanted:
            self._differ(f"getting {row.name}", name_of(error), name_of(wanted))
        elif row.name in FIGURES:
            if len(value) != len(wanted_value):
                self._differ(f"length of {row.name}", len(value), len(wanted_value))
        elif value != wanted_value:
            self._differ(f"value of {row.name}", value, wanted_value)

    def _differ(self, what: str, found: object, wanted: object) -> None:
        self.differences.append(f"{what}: found {found}, wanted {wanted}")


def compare_new_sockets(family: int, rows: Sequence[tuple[levels.Row, int]]) -> None:
    """Set and get every option on a new TLS socket and on a new TCP socket."""
    with (
        tls_socket(family, host=None) as tls,
        socket.socket(family, socket.SOCK_STREAM) as tcp,
    ):
        # Which is for those that are connected.
        both = Both(tls, tcp, {"APART": errno.EOPNOTSUPP})
        for row, option in rows:
            if row.name in OF_TCP_ALONE:
                continue
            for value in VALUES:
                both.set(row, option, value)
            for room in (64, 4, 1, 0):
                both.get(row, option, room)
        assert both.calls > len(VALUES) * 40
        assert not both.differences, "\n".join(both.differences)


@pytest.mark.usefixtures("daemon")
class TestEveryOption:
    """On a new socket, compared with TCP's."""

    @pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary"])
    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    def test_of_tcp_and_ip(self, family: int, user: int | None) -> None:
        # Read by root: the user may have no right to.
        rows = [*table("tcp_rows"), *table("ip_rows"), *table("ipv6_rows")]
        assert in_child(lambda: compare_new_sockets(family, rows), user=user) == 0

    @pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary"])
    def test_of_sockets(self, user: int | None) -> None:
        rows = table("socket_rows")
        assert in_child(lambda: compare_new_sockets(socket.AF_INET6, rows), user=user) == 0

    def test_that_no_table_has(self) -> None:
        sol_udp, sol_raw, sol_mptcp = 17, 255, 284
        with tls_socket() as sock:
            for level in (SOL_TLS, sol_udp, sol_raw, sol_mptcp, -1, 1 << 20):
                for option in (1, 2, 3):
                    assert set_value(sock, level, option, number(1)) == errno.ENOPROTOOPT
                    assert get_value(sock, level, option)[0] == errno.ENOPROTOOPT
            for level in (socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6):
                # Among them the tables of netfilter and of multicast routers.
                for option in (-1, 0x7FFFFFFF, 44, 64, 65, 96, 128, 200, 212, 1 << 16):
                    if (level, option) == (socket.IPPROTO_IP, 44):
                        continue
                    assert set_value(sock, level, option, bytes(64)) == errno.ENOPROTOOPT
                    assert get_value(sock, level, option)[0] == errno.ENOPROTOOPT

    def test_bad_pointers(self) -> None:
        nowhere = ctypes.c_void_p(1)
        with tls_socket() as sock:
            for level, option in ((socket.IPPROTO_TCP, 1), (socket.IPPROTO_IP, 1)):
                assert libc.setsockopt(sock.fileno(), level, option, nowhere, 4) == -1
                assert ctypes.get_errno() == errno.EFAULT
                room = ctypes.byref(ctypes.c_int(4))
                assert libc.getsockopt(sock.fileno(), level, option, nowhere, room) == -1
                assert ctypes.get_errno() == errno.EFAULT

    def test_that_the_core_grants_to_tcp_alone(self) -> None:
        with tls_socket() as sock:
            for option in (SO_ZEROCOPY, SO_PEEK_OFF, SO_RESERVE_MEM):
                assert set_value(sock, socket.SOL_SOCKET, option, number(1)) == errno.EOPNOTSUPP


def test_a_connection_answers_as_a_connection_of_tcp(
    transport: Transport, echo_server: Server
) -> None:
    tables = [name for name in levels.TABLES if name != "socket_rows"]
    address = (echo_server.address, echo_server.port)
    with tls_socket() as tls, socket.create_connection(address) as tcp:
        tls.connect(address)
        # The daemon is at the endpoint of a channel.
        both = Both(tls, tcp, {"APART": errno.EOPNOTSUPP} if transport == "channel" else {})
        for name in tables:
            for row, option in table(name):
                if row.name not in {"TCP_MAXSEG", "TCP_WINDOW_CLAMP", "TCP_QUICKACK"}:
                    both.get(row, option)
        assert not both.differences, "\n".join(both.differences)
        info = tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        assert info[0] == 1  # TCP_ESTABLISHED
        assert struct.unpack_from("=I", info, 16)[0] > 500  # tcpi_snd_mss
        (segment,) = struct.unpack("=i", tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 4))
        assert segment > 500


@pytest.mark.usefixtures("daemon")
def test_the_label_of_a_flow_is_told_to_who_leases_it() -> None:
    labels = []
    with (
        tls_socket(socket.AF_INET6, host=None) as tls,
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as tcp,
    ):
        for sock in (tls, tcp):
            # <linux/in6.h>, struct in6_flowlabel_req: make one, for this socket alone.
            wish = struct.pack("=IBBHHHI", 0, 0, 1, 1, 0, 0, 0)
            loopback = socket.inet_pton(socket.AF_INET6, "::1")
            request = ctypes.create_string_buffer(loopback + wish, 32)
            level = socket.IPPROTO_IPV6
            assert libc.setsockopt(sock.fileno(), level, IPV6_FLOWLABEL_MGR, request, 32) == 0
            labels.append(int(struct.unpack_from("!I", request, 16)[0]))
    assert all(0 < label <= 0xFFFFF for label in labels)


@pytest.mark.usefixtures("daemon")
def test_what_a_socket_is() -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        with tls_socket(family, host=None) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TLS
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == family
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


@pytest.mark.usefixtures("daemon")
def test_an_ordinary_user_gets_no_more_than_from_tcp() -> None:
    # An algorithm that is loaded, but not among those for everybody.
    subprocess.run(["modprobe", "tcp_vegas"], check=True)

    def ask() -> None:
        forbidden = [
            (socket.SOL_SOCKET, SO_MARK, number(5)),
            (socket.SOL_SOCKET, SO_PRIORITY, number(7)),
            (socket.SOL_SOCKET, SO_RCVBUFFORCE, number(1 << 26)),
            (socket.IPPROTO_IP, socket.IP_TRANSPARENT, number(1)),
            (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"vegas"),
        ]
        with tls_socket() as sock:
            for level, option, value in forbidden:
                before = get_value(sock, level, option)
                assert set_value(sock, level, option, value) == errno.EPERM, option
                assert get_value(sock, level, option) == before, option
            # The first device is anybody's to choose, another is not.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
            found = set_value(sock, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"")
            assert found == errno.EPERM
            refused(errno.EACCES, lambda: sock.bind((LOOPBACK, 80)))
        # A scope binds to a device as well, for which the same holds.
        with tls_socket(socket.AF_INET6, host=None) as sock:
            lo = socket.if_nametoindex("lo")
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            sock.bind(("fe80::1", 0, 0, lo))
            (index,) = struct.unpack("=i", sock.getsockopt(socket.SOL_SOCKET, 62, 4))
            assert index == lo
            found = set_value(sock, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"")
            assert found == errno.EPERM

    assert in_child(ask, user=NOBODY) == 0


def endpoint_of(port: int) -> socket.socket:
    """Return the TCP socket beneath a TLS socket that the daemon holds as well: one that listens,
    or whose transport is a channel. It has the local port `port`."""
    for worker in workers():
        pidfd = os.pidfd_open(worker["pid"])
        try:
            for entry in Path(f"/proc/{worker['pid']}/fd").iterdir():
                if found := _endpoint(pidfd, int(entry.name), port):
                    return found
        finally:
            os.close(pidfd)
    pytest.fail(f"no worker has a socket of port {port}")


def _endpoint(pidfd: int, descriptor: int, port: int) -> socket.socket | None:
    copy = libc.syscall(SYS_PIDFD_GETFD, pidfd, descriptor, 0)
    if copy < 0:
        return None
    try:
        sock = socket.socket(fileno=copy)
    except OSError:  # not a socket
        os.close(copy)
        return None
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == port:
        return sock
    sock.close()
    return None


SETTINGS = [
    (socket.SOL_SOCKET, socket.SO_REUSEADDR, number(1)),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT, number(1)),
    (socket.SOL_SOCKET, socket.SO_DONTROUTE, number(1)),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, number(1 << 17)),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, number(1 << 16)),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, number(1)),
    (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 3)),
    (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0"),
    (socket.SOL_SOCKET, SO_MARK, number(77)),
    (socket.SOL_SOCKET, socket.SO_INCOMING_CPU, number(0)),
    (socket.SOL_SOCKET, SO_MAX_PACING_RATE, number(1_000_000)),
    (socket.SOL_SOCKET, SO_TXREHASH, number(0)),
    (socket.SOL_SOCKET, SO_BUF_LOCK, number(3)),
    (socket.IPPROTO_IP, socket.IP_TOS, number(0x10)),
    (socket.IPPROTO_IP, socket.IP_TTL, number(33)),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, number(1)),
    (socket.IPPROTO_TCP, socket.TCP_MAXSEG, number(1000)),
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
    (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, number(3)),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, number(30_000)),
    (socket.IPPROTO_TCP, TCP_SAVE_SYN, number(1)),
    # IP_TOS has set it as well: the last one wins.
    (socket.SOL_SOCKET, SO_PRIORITY, number(5)),
]


def settings_of(sock: socket.socket) -> dict[tuple[int, int], tuple[int, bytes]]:
    """Return what each of SETTINGS is on a socket."""
    return {(level, option): get_value(sock, level, option) for level, option, _ in SETTINGS}


def apply(sock: socket.socket) -> None:
    """Set all of SETTINGS."""
    for setting in SETTINGS:
        sock.setsockopt(*setting)


@pytest.mark.usefixtures("daemon")
class TestEndpoint:
    """What TCP itself has in the end."""

    def test_has_what_was_set(self, pki: Pki) -> None:
        with socket.socket() as tcp, listening(pki.ecdsa, prepare=apply) as listener:
            apply(tcp)
            tcp.bind((LOOPBACK, 0))
            tcp.listen()
            wanted = settings_of(tcp)
            assert settings_of(listener.sock) == wanted
            with endpoint_of(listener.port) as endpoint:
                found = settings_of(endpoint)
            # The daemon closes this one last, and must not wait.
            linger = socket.SOL_SOCKET, socket.SO_LINGER
            assert found.pop(linger) != wanted.pop(linger)
            assert found == wanted
            assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1

    def test_has_what_is_set_while_it_listens_and_unset(self, pki: Pki) -> None:
        with listening(pki.ecdsa) as listener, endpoint_of(listener.port) as endpoint:
            before = settings_of(endpoint)
            listener.sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 5)
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            check_served(listener, pki.root)
            assert endpoint.getsockopt(socket.SOL_SOCKET, SO_MARK) == 5
            assert endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 1 << 18
            assert endpoint.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == 1
            listener.sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 0)
            listener.sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 0)
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            after = settings_of(endpoint)
            key = (socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert after.pop(key) == (0, number(1 << 18))
            del before[key]
            assert after == before

    def test_priority_follows_the_type_of_service(self) -> None:
        with tls_socket() as tls, socket.socket() as tcp:
            for sock in (tls, tcp):
                sock.setsockopt(socket.SOL_SOCKET, SO_PRIORITY, 3)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
            wanted = tcp.getsockopt(socket.SOL_SOCKET, SO_PRIORITY)
            assert wanted != 3
            assert tls.getsockopt(socket.SOL_SOCKET, SO_PRIORITY) == wanted


Pair = tuple[socket.socket, socket.socket]


@contextmanager
def pair_of(listener: TlsListener) -> Iterator[Pair]:
    """Connect a TLS socket to a listening one; give both ends, client first."""
    with tls_socket() as client:
        client.connect((LOOPBACK, listener.port))
        with listener.accept() as accepted:
            yield client, accepted


@pytest.fixture
def pair(pki: Pki, transport: str) -> Iterator[Pair]:
    """Give both ends of a connection, over each transport."""
    assert transport
    with ExitStack() as stack:
        listener = stack.enter_context(listening(pki.ecdsa))
        yield stack.enter_context(pair_of(listener))


def events_of(sock: socket.socket, wait: float = 0) -> int:
    """Poll a socket, for at most `wait` seconds, for whatever poll() tells."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLRDHUP)
    return dict(poll.poll(wait * 1000)).get(sock.fileno(), 0)


class TestLowWaterMark:
    """SO_RCVLOWAT counts the program's bytes."""

    def test_makes_readable_and_wakes_a_read(self, pair: Pair) -> None:
        client, accepted = pair
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
        client.sendall(b"a" * 60)
        assert accepted.recv(60, socket.MSG_PEEK | socket.MSG_WAITALL) == b"a" * 60
        assert not events_of(accepted)
        client.sendall(b"b" * 60)
        assert events_of(accepted, DEADLINE) == select.POLLIN
        assert accepted.recv(1000) == b"a" * 60 + b"b" * 60

        client.sendall(b"c" * 10)
        assert accepted.recv(10, socket.MSG_PEEK | socket.MSG_WAITALL) == b"c" * 10
        assert not events_of(accepted)
        assert accepted.recv(1000, socket.MSG_DONTWAIT) == b"c" * 10
        client.sendall(b"d" * 10)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        assert events_of(accepted, DEADLINE) == select.POLLIN

    def test_of_many_records_is_reached(self, pair: Pair) -> None:
        client, accepted = pair
        accepted.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", int(DEADLINE), 0)
        )
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 40_000)
        client.sendall(b"x" * 39_999)
        client.sendall(b"y" * 20_001)
        got = accepted.recv(60_000)
        assert len(got) >= 40_000
        client.shutdown(socket.SHUT_WR)
        while piece := accepted.recv(60_000):  # the end is less than the mark
            got += piece
        assert len(got) == 60_000

    @pytest.mark.usefixtures("daemon")
    def test_is_the_limit_of_tcp(self) -> None:
        with socket.socket() as tcp, socket.socket(proto=IPPROTO_TLS) as tls:
            for sock in (tcp, tls):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 0x7FFFFFFF)
            wanted = tcp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
            assert tls.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == wanted


def test_an_error_comes_once(pair: Pair) -> None:
    client, accepted = pair
    reset(client)
    assert events_of(accepted, DEADLINE) & (select.POLLIN | select.POLLERR)
    both = select.POLLERR | select.POLLHUP  # a channel tells of the error before it ends
    await_condition("it is over", lambda: events_of(accepted) & both == both)
    assert so_error(accepted) == errno.ECONNRESET
    assert so_error(accepted) == 0
    assert not events_of(accepted) & select.POLLERR
    refused(errno.EPIPE, lambda: accepted.send(b"late", socket.MSG_NOSIGNAL))
    assert so_error(accepted) == 0


def test_an_error_that_a_read_returned_is_over(pair: Pair) -> None:
    client, accepted = pair
    reset(client)
    await_condition("the error is known", lambda: bool(events_of(accepted) & select.POLLERR))
    refused(errno.ECONNRESET, lambda: accepted.recv(1))
    assert so_error(accepted) == 0


def ss(port: int, *options: str) -> str:
    """Ask ss for the connection whose local port is `port`."""
    command = ["ss", "-tnH", *options, f"sport = :{port}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_keepalive_probes(pair: Pair) -> None:
    client, _ = pair
    port = client.getsockname()[1]
    assert "keepalive" not in ss(port, "-o")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1000)
    await_condition("TCP waits to probe", lambda: "timer:(keepalive,16min" in ss(port, "-o"))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
    refused(errno.EAGAIN, lambda: client.recv(1, socket.MSG_DONTWAIT))
    assert "keepalive" not in ss(port, "-o")


def test_the_size_of_buffers_is_told_as_tcp_tunes_it(pair: Pair) -> None:
    client, accepted = pair
    with socket.socket() as tcp, tls_socket() as tls:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            wanted = tcp.getsockopt(socket.SOL_SOCKET, option)
            assert tls.getsockopt(socket.SOL_SOCKET, option) == wanted
    for _ in range(20):
        client.sendall(bytes(20_000))
        assert receive_exactly(accepted, 20_000) == bytes(20_000)
    for sock, key in ((client, "tb"), (accepted, "rb")):
        refused(errno.EAGAIN, lambda sock=sock: sock.recv(1, socket.MSG_DONTWAIT))  # type: ignore[misc]
        option = socket.SO_SNDBUF if key == "tb" else socket.SO_RCVBUF
        size = sock.getsockopt(socket.SOL_SOCKET, option)
        assert f",{key}{size}," in ss(sock.getsockname()[1], "-m").replace("(", ",")


def test_mark_and_pace_of_a_connection(pair: Pair) -> None:
    client, accepted = pair
    client.setsockopt(socket.SOL_SOCKET, SO_MARK, 0x4D)
    client.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 12_500_000)
    client.sendall(b"marked")
    assert receive_exactly(accepted, 6) == b"marked"
    port = client.getsockname()[1]
    assert "fwmark:0x4d" in ss(port, "-e")
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    assert struct.unpack_from("=Q", info, 112)[0] == 12_500_000  # tcpi_max_pacing_rate


def test_time_is_limited(pair: Pair) -> None:
    client, _ = pair
    timeout = struct.pack("=qq", 0, 50_000)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    refused(errno.EAGAIN, lambda: client.recv(1))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    def fill() -> None:
        while True:
            client.send(bytes(1 << 20))

    refused(errno.EAGAIN, fill)


def unsent(sock: socket.socket) -> int:
    """Return how many bytes, encrypted, TCP has and has not sent."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 148)
    return int(struct.unpack_from("=I", info, 144)[0])  # tcpi_notsent_bytes


def is_held_back(sender: socket.socket, receiver: socket.socket) -> bool:
    """Wait until TCP has what was sent; tell whether it keeps that to itself."""
    await_condition("TCP has it", lambda: bool(unsent(sender) or events_of(receiver)))
    # In this order: what is unsent now was so when the receiver was looked at.
    return not events_of(receiver) and unsent(sender) > 0


def test_cork_holds_back(pair: Pair) -> None:
    client, accepted = pair
    for sock in pair:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # TCP does so for a fifth of a second (tcp(7)): a guest that is slow may look too late.
    for _ in range(20):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        client.sendall(b"held")
        held = is_held_back(client, accepted)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        assert unsent(client) == 0
        assert receive_exactly(accepted, 4) == b"held"
        if held:
            return
    pytest.fail("TCP sent it at once")


@pytest.mark.usefixtures("daemon")
def test_options_can_be_set_while_it_connects(pki: Pki) -> None:
    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        connection.send(connection.receive(4))
        connection.await_close_notify()

    def script(raw: socket.socket, peer: Peer) -> None:
        peer.go_on.wait(DEADLINE)
        tls_peer.tls(pki.ecdsa, act)(raw, peer)

    with serving(script) as peer, tls_socket() as sock:
        begin(sock, peer)
        told, tell = os.pipe()

        def set_until_it_is_connected() -> None:
            count = 0
            while not select.select([], [sock], [], 0)[1]:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                count += 1
                if count == 100:
                    os.write(tell, b"x")
            assert count >= 100

        child = start_child(set_until_it_is_connected)
        os.close(tell)
        with os.fdopen(told, "rb") as pipe:
            assert pipe.read(1) == b"x", "it could not set them while it connects"
        peer.go_on.set()
        assert await_child(child) == 0
        assert so_error(sock) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        sock.settimeout(DEADLINE)
        echo(sock, b"echo")
