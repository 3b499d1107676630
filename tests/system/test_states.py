# SPDX-License-Identifier: BSD-3-Clause
"""Every call in every state: what kmod/states.c says, and what happens."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import tempfile
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
from tests.system.test_splices import Pipe

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

# Calls that do what another one does, and have its row.
LIKE = {"sendfile": "SEND", "splice into": "SEND", "splice out of": "RECV"}

# What poll(2) tells in each state (readiness.c), when nothing has come and no error is pending.
POLL_IN = select.POLLIN | select.POLLRDNORM
POLL_OUT = select.POLLOUT | select.POLLWRNORM
POLL_END = POLL_IN | POLL_OUT | select.POLLRDHUP | select.POLLHUP
POLLED = {
    NEW: POLL_OUT | select.POLLHUP,
    CONNECTING: 0,
    CONNECTED: POLL_OUT,
    LISTENING: 0,
    CLOSED: POLL_END,
    FAILED: POLL_END,
}
EVENTS = {
    "IN": POLL_IN,
    "OUT": POLL_OUT,
    "RDHUP": select.POLLRDHUP,
    "HUP": select.POLLHUP,
    "ERR": select.POLLERR,
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


def _sendfile(sock: socket.socket) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
        file.flush()
        os.sendfile(sock.fileno(), file.fileno(), 0, 1)


def _splice_into(sock: socket.socket) -> None:
    with Pipe() as pipe:
        os.write(pipe.sink, b"x")
        os.splice(pipe.source, sock.fileno(), 1)


def _splice_out_of(sock: socket.socket) -> None:
    with Pipe() as pipe:
        os.splice(sock.fileno(), pipe.sink, 1)


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
        "sendfile": _sendfile,
        "splice into": _splice_into,
        "splice out of": _splice_out_of,
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


def polled(sock: socket.socket) -> str:
    """Poll a socket for all of EVENTS; return what is told."""
    poll = select.poll()
    poll.register(sock, POLL_END)
    return named(dict(poll.poll(0)).get(sock.fileno(), 0))


def named(events: int) -> str:
    """Name events of poll(2)."""
    names = []
    for name, bits in EVENTS.items():
        if events & bits == bits:
            names.append(name)
            events &= ~bits
    if events:
        names.append(hex(events))
    return "+".join(names) or "none"


def wanted() -> dict[str, dict[SocketState, str]]:
    """Return what each call is to give in each state, nonblocking as the sockets are."""
    rows = {
        call: {
            state: AHEAD.get((call, state), "0") if number == "0" else number
            for state, number in states.items()
        }
        for call, states in table().items()
    }
    for call, other in LIKE.items():
        rows[call] = rows[other]
    for call, ahead in OPTIONS.items():
        rows[call] = {state: ahead.get(state, "EOPNOTSUPP") for state in SocketState}
    rows["poll"] = {state: named(events) for state, events in POLLED.items()}
    return rows


def as_table(rows: dict[str, dict[SocketState, str]]) -> str:
    """Write down rows for the one who runs the tests."""
    width = max(map(len, rows)) + 1
    cell = max(len(told) for states in rows.values() for told in states.values()) + 1
    head = f"{'':{width}}" + "".join(f"{state.name:{cell}}" for state in SocketState)
    lines = [
        f"{call:{width}}" + "".join(f"{told:{cell}}" for told in states.values())
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
    asks: dict[str, Callable[[socket.socket], str]] = {"poll": polled}
    asks |= {name: partial(outcome, call) for name, call in calls(world).items()}
    for name, ask in asks.items():
        found[name] = {}
        for state in SocketState:
            with world.at(state) as sock:
                found[name][state] = ask(sock)
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
