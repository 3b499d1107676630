# SPDX-License-Identifier: BSD-3-Clause
"""Every call in every state: what kmod/states.c says, and what happens."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ssad.wire import SocketState, TlsOption
from tests.peers import hostile
from tests.peers.hostile import serving
from tests.system.program import (
    Address,
    begin,
    connect,
    get_bytes,
    get_id,
    libc,
    name_of,
    raw_connect,
    set_text,
    tls_socket,
)
from tests.system.server import listener_state, set_identity
from tests.system.states import table

if TYPE_CHECKING:
    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.daemon import Transport

NEW, CONNECTING, CONNECTED, LISTENING, CLOSED, FAILED = SocketState

# connect(2): an address of this family ends what the socket is at.
_NOWHERE = struct.pack("=H14x", socket.AF_UNSPEC)

# What a call gets that goes ahead, and can't be done at once.
AHEAD = {
    ("CONNECT", NEW): "EINPROGRESS",
    ("CONNECT", CONNECTING): "EALREADY",
    ("ACCEPT", LISTENING): "EAGAIN",
    ("SEND", CONNECTING): "EAGAIN",
    ("RECV", CONNECTING): "EAGAIN",
    ("RECV", CONNECTED): "EAGAIN",
}

# In which states an option can be used is data of sockopt.c; one of each kind stands for it here.
OPTIONS = {
    "set TLS_ALPN": {NEW: "0"},
    "get TLS_CHOSEN_CIPHER": {CONNECTED: "0"},
    "get TLS_TRUSTED_CIPHERS": {NEW: "0"},
    "get TLS_ID": dict.fromkeys(SocketState, "0"),
    "set TCP_NODELAY": dict.fromkeys(SocketState, "0"),
}


@dataclass(frozen=True, slots=True)
class World:
    """What it takes to bring a socket into every state."""

    server: Server
    void: Address
    pki: Pki

    @contextmanager
    def at(self, state: SocketState) -> Iterator[socket.socket]:
        """Have a nonblocking socket in a state, its past forgotten."""
        with connect(self.server) if state == CONNECTED else tls_socket() as made:
            match state:
                case SocketState.NEW:
                    set_identity(made, self.pki.ecdsa)
                case SocketState.CONNECTING:
                    begin(made, self.void)
                case SocketState.LISTENING:
                    set_identity(made, self.pki.ecdsa)
                    made.bind(("127.0.0.1", 0))
                    made.listen()
                case SocketState.CLOSED:
                    begin(made, self.void)
                    assert disconnect(made) == 0
                    assert raw_connect(made, self.void) == errno.ECONNABORTED
                case SocketState.FAILED:
                    with serving(hostile.answer(hostile.GARBAGE)) as peer:
                        assert raw_connect(made, peer) == errno.EPROTO
            made.settimeout(0)
            assert listener_state(get_id(made))["state"] == state
            yield made

    def bind(self, sock: socket.socket) -> None:
        """Bind a socket to any port."""
        sock.bind(("127.0.0.1", 0))

    def connect(self, sock: socket.socket) -> None:
        """Connect a socket to a host that never answers."""
        number = raw_connect(sock, self.void)
        if number:
            raise OSError(number, "connect")


def disconnect(sock: socket.socket) -> int:
    """Call connect(2) with AF_UNSPEC. Return its errno."""
    return 0 if libc.connect(sock.fileno(), _NOWHERE, len(_NOWHERE)) == 0 else -1


def _disconnect(sock: socket.socket) -> None:
    assert disconnect(sock) == 0


def calls(world: World) -> dict[str, Callable[[socket.socket], object]]:
    """Return what each row of the table does with a socket."""
    return {
        "BIND": world.bind,
        "CONNECT": world.connect,
        "DISCONNECT": _disconnect,
        "LISTEN": lambda sock: sock.listen(),
        "ACCEPT": lambda sock: sock.accept(),
        "SEND": lambda sock: sock.send(b"x"),
        "RECV": lambda sock: sock.recv(1),
        "SHUTDOWN": lambda sock: sock.shutdown(socket.SHUT_RDWR),
        "GETSOCKNAME": lambda sock: sock.getsockname(),
        "GETPEERNAME": lambda sock: sock.getpeername(),
        "FIONREAD": lambda sock: fcntl.ioctl(sock, termios.FIONREAD, bytes(4)),
        "set TLS_ALPN": lambda sock: set_text(sock, TlsOption.TLS_ALPN, "h2"),
        "get TLS_CHOSEN_CIPHER": lambda sock: get_bytes(sock, TlsOption.TLS_CHOSEN_CIPHER),
        "get TLS_TRUSTED_CIPHERS": lambda sock: get_bytes(sock, TlsOption.TLS_TRUSTED_CIPHERS),
        "get TLS_ID": lambda sock: get_bytes(sock, TlsOption.TLS_ID),
        "set TCP_NODELAY": lambda sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    }


def outcome(call: Callable[[socket.socket], object], sock: socket.socket) -> str:
    """Make a call and return the name of its errno, "0" if it succeeded."""
    try:
        call(sock)
    except OSError as error:
        return name_of(error.errno or -1)
    return "0"


def wanted() -> dict[str, dict[SocketState, str]]:
    """Return what each call is to give in each state, nonblocking as the sockets are."""
    rows = {
        call: {
            state: AHEAD.get((call, state), "0") if number == "0" else number
            for state, number in states.items()
        }
        for call, states in table().items()
    }
    for call, ahead in OPTIONS.items():
        rows[call] = {state: ahead.get(state, "EOPNOTSUPP") for state in SocketState}
    return rows


def as_table(rows: dict[str, dict[SocketState, str]]) -> str:
    """Write down rows for the one who runs the tests."""
    width = max(map(len, rows)) + 1
    head = f"{'':{width}}" + "".join(f"{state.name:13}" for state in SocketState)
    lines = [
        f"{call:{width}}" + "".join(f"{number:13}" for number in states.values())
        for call, states in rows.items()
    ]
    return "\n".join(["", head, *lines])


@pytest.fixture
def world(echo_server: Server, void: Address, pki: Pki) -> World:
    """Have what it takes to bring a socket into every state."""
    return World(echo_server, void, pki)


def test_each_call_does_in_each_state_what_the_table_says(
    transport: Transport, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, dict[SocketState, str]] = {}
    for name, call in calls(world).items():
        found[name] = {}
        for state in SocketState:
            with world.at(state) as sock:
                found[name][state] = outcome(call, sock)
    with capsys.disabled():
        print(f"\n{transport}:{as_table(found)}")
    assert found == wanted()


@pytest.mark.usefixtures("daemon")
def test_connect_to_no_address_ends_what_a_socket_is_at(world: World) -> None:
    ends = dict.fromkeys(SocketState, CLOSED) | {NEW: NEW, FAILED: FAILED}
    for state, end in ends.items():
        with world.at(state) as sock:
            assert disconnect(sock) == 0
            assert listener_state(get_id(sock))["state"] == end, state.name
