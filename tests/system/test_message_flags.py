# SPDX-License-Identifier: BSD-3-Clause
"""What the flags, the addresses, the buffers and the control messages of a call mean: what they
mean on TCP, or they are refused."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ssad.wire import IPPROTO_TLS
from tests.peers import tls_peer
from tests.peers.hostile import serving
from tests.system.daemon import await_condition
from tests.system.messages import BAD_POINTER, Iovec, Messages
from tests.system.program import (
    SOL_TLS,
    TLS_SET_RECORD_TYPE,
    connect,
    echo,
    libc,
    receive_exactly,
    refused,
    tls_socket,
)
from tests.system.server import listening
from tests.system.tcp import LOOPBACK, echoing_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server

pytestmark = pytest.mark.usefixtures("transport")

# <linux/socket.h>; Python has no names for them.
MSG_PROXY = 0x10
MSG_SYN = 0x400
MSG_RST = 0x1000
MSG_WAITFORONE = 0x10000
MSG_ZEROCOPY = 0x4000000
MSG_FASTOPEN = 0x20000000

SO_PEEK_OFF = 42
SO_ZEROCOPY = 60


@pytest.fixture
def both(echo_server: Server) -> Iterator[list[socket.socket]]:
    """Give a TCP and a TLS socket, each connected to a server which echoes."""
    with echoing_pair(echo_server) as pair:
        yield list(pair.values())


def test_what_tcp_passes_over_does_not_disturb(both: list[socket.socket]) -> None:
    ignored = [
        socket.MSG_EOR,
        socket.MSG_EOR | socket.MSG_MORE,
        socket.MSG_CONFIRM,
        socket.MSG_DONTROUTE,
        socket.MSG_WAITALL,
        socket.MSG_TRUNC,
        socket.MSG_CTRUNC,
        MSG_PROXY,
        MSG_SYN | MSG_RST | MSG_WAITFORONE,
    ]
    for sock in both:
        for flags in ignored:
            assert sock.send(b"data", flags) == 4
            if flags & socket.MSG_MORE:
                sock.send(b"!")
                assert receive_exactly(sock, 5) == b"data!"
            else:
                assert receive_exactly(sock, 4) == b"data"
        sock.send(b"data")
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTROUTE | socket.MSG_WAITALL
        assert sock.recv(4, flags) == b"data"


def test_what_tls_has_not_is_refused(echo_server: Server) -> None:
    with connect(echo_server) as sock:
        for flag in (socket.MSG_OOB, MSG_ZEROCOPY, MSG_FASTOPEN):
            refused(errno.EOPNOTSUPP, partial(sock.send, b"data", flag))
        refused(errno.EOPNOTSUPP, lambda: sock.recv(1, socket.MSG_OOB))
        refused(errno.EAGAIN, lambda: sock.recv(1, socket.MSG_ERRQUEUE))
        for option in (SO_ZEROCOPY, SO_PEEK_OFF):
            refused(
                errno.EOPNOTSUPP,
                partial(sock.setsockopt, socket.SOL_SOCKET, option, 1),
            )
        echo(sock, b"not disturbed")
    with tls_socket() as fresh:
        address = (echo_server.address, echo_server.port)
        refused(errno.EOPNOTSUPP, lambda: fresh.sendto(b"early", MSG_FASTOPEN, address))
        refused(errno.ENOTCONN, lambda: fresh.recv(1))


def test_truncation_drops_what_has_come(both: list[socket.socket]) -> None:
    data = bytes(range(256)) * 200
    for sock in both:
        sock.sendall(data + b"the rest")
        sock.recv(len(data) + 8, socket.MSG_PEEK | socket.MSG_WAITALL)
        room = ctypes.create_string_buffer(b"untouched")

        def drop(size: int, flags: int, sock: socket.socket = sock) -> int:
            return int(libc.recv(sock.fileno(), None, size, flags | socket.MSG_TRUNC))

        assert drop(100, socket.MSG_PEEK) == 100
        assert libc.recv(sock.fileno(), room, 8, socket.MSG_TRUNC) == 8
        assert room.value == b"untouched"
        assert drop(len(data) - 8, socket.MSG_WAITALL) == len(data) - 8
        assert receive_exactly(sock, 8) == b"the rest"
        assert drop(1, socket.MSG_DONTWAIT) == -1
        assert ctypes.get_errno() == errno.EAGAIN


def test_an_address_means_nothing_on_a_connection(both: list[socket.socket]) -> None:
    for sock in both:
        assert sock.sendto(b"data", ("192.0.2.1", 9)) == 4
        data, address = sock.recvfrom(4, socket.MSG_WAITALL)
        assert (data, address) == (b"data", None)


def test_control_messages_are_refused_or_tcps(echo_server: Server) -> None:
    with echoing_pair(echo_server) as pair:
        tls = pair["TLS"]
        for refusal in (
            (SOL_TLS, TLS_SET_RECORD_TYPE, bytes((tls_peer.ALERT,))),
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", tls.fileno())),
        ):
            refused(errno.EINVAL, partial(tls.sendmsg, [b"data"], [refusal]))
        for sock in pair.values():
            unknown = (socket.SOL_SOCKET, 999, b"four")
            refused(
                errno.EINVAL,
                partial(sock.sendmsg, [b"data"], [unknown]),
            )
            assert sock.sendmsg([b"data"], [(IPPROTO_TLS, 1, b"four")]) == 4
            assert receive_exactly(sock, 4) == b"data"


def test_sendmmsg_and_recvmmsg(both: list[socket.socket]) -> None:
    for sock in both:
        parts = [b"one", b"three", b"", b"twenty-one"]
        assert Messages(*parts).call("sendmmsg", sock, 0) == 4
        # A peek at a channel, a Unix socket, does not wait for all.
        await_condition(
            "all has come back",
            lambda s=sock: len(s.recv(18, socket.MSG_PEEK)) == 18,  # type: ignore[misc]
        )
        into = Messages(bytes(3), bytes(5), bytes(10), bytes(9))
        assert into.call("recvmmsg", sock, MSG_WAITFORONE, None) == 3
        assert into.received(3) == [b"one", b"three", b"twenty-one"]

        # The time is looked at between messages, as recvmmsg(2) says.
        sock.send(b"data")
        brief = struct.pack("=qq", 0, 0)
        assert Messages(bytes(4), bytes(4)).call("recvmmsg", sock, 0, brief) == 1
        nothing = Messages(bytes(4))
        refused(
            errno.EAGAIN,
            partial(nothing.call, "recvmmsg", sock, socket.MSG_DONTWAIT, None),
        )


def test_an_error_after_a_part_tells_the_part(both: list[socket.socket]) -> None:
    for sock in both:
        spoilt = Messages(b"good", b"bad.", b"late")
        spoilt.spoil(1)
        assert spoilt.call("sendmmsg", sock, 0) == 1
        assert receive_exactly(sock, 4) == b"good"


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_bad_pointer_is_the_programs_error(pki: Pki, version: Any) -> None:
    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        while (asked := connection.receive(1)) != b"q":
            connection.send(asked * 4)

    with serving(tls_peer.tls(pki.ecdsa, act, version)) as peer, connect(peer) as sock:

        def call(name: str) -> int:
            ctypes.set_errno(0)
            assert getattr(libc, name)(sock.fileno(), ctypes.c_void_p(BAD_POINTER), 4, 0) == -1
            return ctypes.get_errno()

        assert call("send") == errno.EFAULT
        sock.send(b".")
        assert call("recv") == errno.EFAULT
        assert receive_exactly(sock, 4) == b"...."
        good = ctypes.create_string_buffer(b"qr")
        vectors = (Iovec * 2)(Iovec(ctypes.addressof(good), 1), Iovec(BAD_POINTER, 1))
        sent = libc.writev(sock.fileno(), vectors, 2)
        assert sent in (-1, 1)  # as TCP: nothing, or what was good
        if sent < 0:
            sock.send(b"q")


def test_nothing_to_read_into_is_no_end(both: list[socket.socket]) -> None:
    for sock in both:
        sock.send(b"data")
        sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL)
        assert sock.recv(0) == b""
        assert sock.recvmsg_into([bytearray(), bytearray()])[0] == 0
        assert receive_exactly(sock, 4) == b"data"
        refused(errno.EMSGSIZE, partial(sock.sendmsg, [b"x"] * 1025))


def test_a_listener_and_an_accepted_socket(pki: Pki) -> None:
    with listening(pki.ecdsa) as listener, tls_socket() as sock:
        refused(errno.ENOTCONN, lambda: listener.sock.recv(1))
        refused(errno.EOPNOTSUPP, lambda: listener.sock.recv(1, socket.MSG_OOB))
        sock.connect((LOOPBACK, listener.port))
        with listener.accept() as accepted:
            assert Messages(b"one", b"two").call("sendmmsg", accepted, socket.MSG_EOR) == 2
            assert sock.recv(6, socket.MSG_WAITALL) == b"onetwo"
            sock.sendall(b"dropped, kept")
            assert accepted.recv(9, socket.MSG_TRUNC | socket.MSG_WAITALL) is not None
            assert accepted.recv(4, socket.MSG_WAITALL) == b"kept"
            os.set_blocking(accepted.fileno(), False)
            refused(errno.EAGAIN, lambda: accepted.recv(1))
