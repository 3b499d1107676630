# SPDX-License-Identifier: BSD-3-Clause
"""Socket addresses as the kernel writes them."""

from __future__ import annotations

import ipaddress
import platform
import socket
import struct
from typing import Any, NamedTuple

_FAMILY = struct.Struct("=H")
_INET = struct.Struct("!H4s")  # struct sockaddr_in after its family: port, address
_INET6 = struct.Struct("!HI16s")  # struct sockaddr_in6 likewise: port, flow label, address
_COOKIE = struct.Struct("=Q")
# <asm-generic/socket.h>, and two architectures that have their own.
_SO_NETNS_COOKIE = {"parisc": 0x4045, "sparc64": 0x0050}.get(platform.machine(), 71)


class Address(NamedTuple):
    """An IP address and a port."""

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    @classmethod
    def of_socket(cls, name: tuple[Any, ...]) -> Address:
        """Take what Python's accept() and getpeername() give for AF_INET and AF_INET6."""
        host, _, _zone = name[0].partition("%")
        return cls(ipaddress.ip_address(host), name[1])

    def as_sockaddr(self) -> bytes:
        """Return the struct sockaddr_in or sockaddr_in6."""
        if self.ip.version == 4:
            inet = _INET.pack(self.port, self.ip.packed)
            return _FAMILY.pack(socket.AF_INET) + inet + bytes(8)
        inet6 = _INET6.pack(self.port, 0, self.ip.packed)
        return _FAMILY.pack(socket.AF_INET6) + inet6 + bytes(4)

    def __str__(self) -> str:
        if self.ip.version == 4:
            return f"{self.ip}:{self.port}"
        # Unlike ipaddress before Python 3.13, it writes ::ffff:192.0.2.1 in the mixed form.
        return f"[{socket.inet_ntop(socket.AF_INET6, self.ip.packed)}]:{self.port}"


def is_address(host: str) -> bool:
    """Tell whether a host is given as an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def own_netns() -> int:
    """Return the cookie of our own network namespace, 0 if the kernel does not tell."""
    with socket.socket() as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size)
        except OSError:
            return 0
    return int(_COOKIE.unpack(raw)[0])


def parse_sockaddr(raw: bytes) -> Address | None:
    """Read a struct sockaddr_in or sockaddr_in6; None if it is neither or cut off."""
    try:
        (family,) = _FAMILY.unpack_from(raw)
        if family == socket.AF_INET:
            port, packed4 = _INET.unpack_from(raw, _FAMILY.size)
            return Address(ipaddress.IPv4Address(packed4), port)
        if family == socket.AF_INET6:
            port, _, packed6 = _INET6.unpack_from(raw, _FAMILY.size)
            return Address(ipaddress.IPv6Address(packed6), port)
    except struct.error:
        pass
    return None
