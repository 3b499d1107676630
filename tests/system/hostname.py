# SPDX-License-Identifier: BSD-3-Clause
"""AF_HOSTNAME: struct sockaddr_host, and a hosts(5) file of the test's own."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ssad.wire import AF_HOSTNAME, IPPROTO_TLS, TLS_HOST_ADDR_SIZE
from tests.system.program import libc

_HOSTS = Path("/etc/hosts")


def host_address(name: str | bytes, port: int) -> bytes:
    """Return a struct sockaddr_host."""
    raw = name if isinstance(name, bytes) else name.encode()
    return struct.pack("=H", AF_HOSTNAME) + struct.pack(
        f"!H{TLS_HOST_ADDR_SIZE}s", port, raw + b"\0" if len(raw) < TLS_HOST_ADDR_SIZE else raw
    )


def host_socket(family: int = AF_HOSTNAME) -> socket.socket:
    """Make a TLS socket without a host name of its own."""
    return socket.socket(family, socket.SOCK_STREAM, IPPROTO_TLS)


def connect_raw(sock: socket.socket, address: bytes) -> None:
    """Call connect(2) with an address that Python does not know."""
    if libc.connect(sock.fileno(), address, len(address)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def connect_to(sock: socket.socket, name: str, port: int) -> None:
    """Connect a TLS socket to a host."""
    connect_raw(sock, host_address(name, port))


def peer_address(sock: socket.socket) -> str:
    """Return the IP address that a socket is connected to. Python does not know the family."""
    return _name(sock, libc.getpeername)[0]


def own_port(sock: socket.socket) -> int:
    """Return the port that a socket is bound to."""
    return _name(sock, libc.getsockname)[1]


def _name(sock: socket.socket, ask: Callable[..., int]) -> tuple[str, int]:
    buffer = ctypes.create_string_buffer(128)
    length = ctypes.c_uint(len(buffer))
    if ask(sock.fileno(), buffer, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    (family,) = struct.unpack_from("=H", buffer)
    (port,) = struct.unpack_from("!H", buffer, 2)
    start, size = (4, 4) if family == socket.AF_INET else (8, 16)
    return socket.inet_ntop(family, buffer.raw[start : start + size]), port


@contextmanager
def hosts(**names: list[str]) -> Iterator[None]:
    """Have each host name, its dots written as underscores, resolve to these addresses."""
    before = _HOSTS.read_bytes()
    lines = [
        f"{address} {name.replace('_', '.')}\n"
        for name, addresses in names.items()
        for address in addresses
    ]
    _HOSTS.write_text("".join(lines))
    try:
        yield
    finally:
        _HOSTS.write_bytes(before)
