# SPDX-License-Identifier: BSD-3-Clause
"""What ioctl(2) does with a TLS socket, compared with one of TCP."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.system.daemon import await_condition
from tests.system.program import receive_exactly, refused, tls_socket
from tests.system.server import listening
from tests.system.tcp import LOOPBACK, echoing_pair

if TYPE_CHECKING:
    from tests.peers.pki import Pki
    from tests.peers.servers import Server

# <asm-generic/ioctls.h> and <linux/sockios.h>; Python has no names for them.
SIOCATMARK = 0x8905
SIOCSPGRP, SIOCGPGRP = 0x8902, 0x8904
FIOSETOWN, FIOGETOWN = 0x8901, 0x8903
SIOCGSTAMP, SIOCGSTAMPNS = 0x8906, 0x8907
SIOCOUTQNSD = 0x894B
SIOCGIFINDEX = 0x8933
SIOCINQ, SIOCOUTQ = termios.FIONREAD, termios.TIOCOUTQ
UNKNOWN = 0x89A7

QUESTIONS = [
    SIOCINQ,
    SIOCOUTQ,
    SIOCOUTQNSD,
    SIOCATMARK,
    SIOCGSTAMP,
    SIOCGSTAMPNS,
    FIOGETOWN,
    SIOCGPGRP,
    termios.TCGETS,
    UNKNOWN,
]


def ask(sock: socket.socket, question: int) -> int | str:
    """Return the number that is the answer, or the name of the errno."""
    try:
        answer = fcntl.ioctl(sock, question, bytes(64))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return int(struct.unpack_from("=i", answer)[0])


def answers(sock: socket.socket) -> dict[str, int | str]:
    """Ask everything."""
    return {hex(question): ask(sock, question) for question in QUESTIONS}


def nothing_under_way(sock: socket.socket) -> bool:
    """Tell whether all that was sent is acknowledged."""
    return ask(sock, SIOCOUTQ) == 0


@pytest.mark.usefixtures("transport")
def test_every_state_answers_as_tcp(pki: Pki, echo_server: Server) -> None:
    with ExitStack() as opened:
        made = opened.enter_context(tls_socket())
        made_tcp = opened.enter_context(socket.socket())
        listener = opened.enter_context(listening(pki.ecdsa)).sock
        listener_tcp = opened.enter_context(socket.create_server((LOOPBACK, 0)))
        connected = opened.enter_context(echoing_pair(echo_server))

        assert answers(made) == answers(made_tcp)
        assert answers(listener) == answers(listener_tcp)
        assert ask(listener, SIOCINQ) == ask(listener, SIOCOUTQ) == "EINVAL"
        for sock in connected.values():
            await_condition("all is acknowledged", partial(nothing_under_way, sock))
        assert answers(connected["TLS"]) == answers(connected["TCP"])
        assert ask(connected["TLS"], UNKNOWN) == "ENOTTY"


@pytest.mark.usefixtures("transport")
def test_amounts_are_of_data_and_of_what_is_under_way(echo_server: Server) -> None:
    with echoing_pair(echo_server) as pair:
        for sock in pair.values():
            sock.sendall(b"x" * 1000)
            assert sock.recv(1000, socket.MSG_PEEK | socket.MSG_WAITALL) == b"x" * 1000
            assert ask(sock, SIOCINQ) == 1000
            # Echoed, so it has been sent, and acknowledged soon.
            await_condition("all is acknowledged", partial(nothing_under_way, sock))
            assert ask(sock, SIOCOUTQNSD) == 0
            receive_exactly(sock, 1000)


@pytest.mark.usefixtures("transport")
def test_what_a_peer_does_not_read_is_counted(pki: Pki) -> None:
    with listening(pki.ecdsa) as listener, tls_socket() as sock:
        sock.connect((LOOPBACK, listener.port))
        with listener.accept():
            sock.settimeout(0)
            try:
                while True:
                    sock.send(bytes(1 << 16))
            except BlockingIOError:
                pass
            waiting = ask(sock, SIOCOUTQ)
            assert isinstance(waiting, int)
            assert waiting > 1 << 14


@pytest.mark.usefixtures("daemon")
def test_what_the_core_does_it_does_for_these_too() -> None:
    with tls_socket() as tls, socket.socket() as tcp:
        for sock in (tls, tcp):
            fcntl.ioctl(sock, FIOSETOWN, struct.pack("=i", os.getpid()))
            assert ask(sock, SIOCGPGRP) == os.getpid()
            fcntl.ioctl(sock, SIOCSPGRP, struct.pack("=i", -os.getpgrp()))
            assert ask(sock, FIOGETOWN) == -os.getpgrp()

            for request, flag in ((termios.FIONBIO, os.O_NONBLOCK), (termios.FIOASYNC, os.O_ASYNC)):
                fcntl.ioctl(sock, request, struct.pack("=i", 1))
                assert fcntl.fcntl(sock, fcntl.F_GETFL) & flag
                fcntl.ioctl(sock, request, struct.pack("=i", 0))
                assert not fcntl.fcntl(sock, fcntl.F_GETFL) & flag

            answer = fcntl.ioctl(sock, SIOCGIFINDEX, struct.pack("=16s24x", b"lo"))
            assert struct.unpack_from("=i", answer, 16)[0] == socket.if_nametoindex("lo")
            refused(errno.ENODEV, partial(fcntl.ioctl, sock, SIOCGIFINDEX, b"none" * 10))
