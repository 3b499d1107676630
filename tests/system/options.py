# SPDX-License-Identifier: BSD-3-Clause
"""The module's table of options of level IPPROTO_TLS, read out of its source; and the two calls as
C has them, for whatever arguments."""

from __future__ import annotations

import ctypes
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from ssad import wire
from ssad.wire import IPPROTO_TLS, SocketState, TlsOption
from tests.system.program import libc

_SOURCE = Path(__file__).parents[2] / "kmod/sockopt.c"
_ROW = re.compile(
    r"^\tOPTION\((TLS_\w+), (\w+), (\w+), VALUE_(\w+)(?:, (?:true|false), SSA_(\w+))?.*\),$",
    re.MULTILINE,
)
_STATES = {
    "0": frozenset[SocketState](),
    "NEW": frozenset({SocketState.NEW}),
    "CONNECTED": frozenset({SocketState.CONNECTED}),
    "ANY": frozenset(SocketState),
}
_NUMBERS = {"U32": "=I", "U64": "=Q"}

# An int or a string as the option's type has it, or the very bytes.
Value = int | str | bytes


@dataclass(frozen=True, slots=True)
class Option:
    """What the table says of one option."""

    number: TlsOption
    set: frozenset[SocketState]  # states in which it can be set
    get: frozenset[SocketState]
    kind: str  # as in enum value_type
    longest: int | None  # bytes, without a NUL

    @property
    def size(self) -> int | None:
        """Bytes of its value, if that is a number."""
        return struct.calcsize(_NUMBERS[self.kind]) if self.kind in _NUMBERS else None

    def encode(self, value: Value) -> bytes:
        """Return a value as setsockopt(2) wants it."""
        match value:
            case bytes():
                return value
            case str():
                return value.encode() + b"\0"
            case int():
                return struct.pack(_NUMBERS[self.kind], value)

    def decode(self, value: bytes) -> str:
        """Return in words what getsockopt(2) gave."""
        if self.size is not None:
            return str(struct.unpack(_NUMBERS[self.kind], value)[0])
        assert value.endswith(b"\0"), f"{self.number.name} has no NUL: {value!r}"
        return value[:-1].decode()


def table() -> list[Option]:
    """Return the rows, in the module's order."""
    return [
        Option(
            TlsOption[name],
            _STATES[settable],
            _STATES[gettable],
            kind,
            getattr(wire, longest) if longest else None,
        )
        for name, settable, gettable, kind, longest in _ROW.findall(_SOURCE.read_text())
    ]


def raw_set(sock: socket.socket, option: int, value: bytes | None, length: int) -> int:
    """Call setsockopt(2); return 0 or its errno. No value: a null pointer."""
    if libc.setsockopt(sock.fileno(), IPPROTO_TLS, option, value, length) == 0:
        return 0
    return ctypes.get_errno()


def raw_get(
    sock: socket.socket, option: int, room: int, *, nowhere: bool = False
) -> tuple[int, int, bytes]:
    """Call getsockopt(2) with this much room, or with room nowhere; return 0 or its errno, the
    length that it told, and what is where the value belongs."""
    buffer = ctypes.create_string_buffer(b"\xaa" * max(room, 1), max(room, 1))
    length = ctypes.c_int(room)
    where = None if nowhere else buffer
    if libc.getsockopt(sock.fileno(), IPPROTO_TLS, option, where, ctypes.byref(length)) == 0:
        return 0, length.value, buffer.raw
    return ctypes.get_errno(), length.value, buffer.raw


def get_without_length(sock: socket.socket, option: int) -> int:
    """Call getsockopt(2) with a null pointer for the length; return 0 or its errno."""
    buffer = ctypes.create_string_buffer(8)
    if libc.getsockopt(sock.fileno(), IPPROTO_TLS, option, buffer, None) == 0:
        return 0
    return ctypes.get_errno()
