# SPDX-License-Identifier: BSD-3-Clause
"""Namespaces, above all those of the network, and a thread's way into one."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.program import libc

# <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

# <linux/sockios.h>, <linux/if.h>
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

# <asm-generic/socket.h>; Python has no name for it.
SO_NETNS_COOKIE = 71

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace that has a name, and a loopback device that is up."""

    name: str

    def ip(self, *words: str) -> None:
        """Run ip(8) in it."""
        subprocess.run(["ip", "-n", self.name, *words], check=True)

    def delete(self) -> None:
        """Take its name away: it lives as long as something holds it."""
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling thread, and those that it starts, in the namespace."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(own)
        finally:
            os.close(own)


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a network namespace."""
    made = Namespace(f"ssa{next(_numbers)}")
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.ip("link", "set", "dev", "lo", "up")
        yield made
    finally:
        if Path("/run/netns", made.name).exists():
            made.delete()


def _enter(descriptor: int) -> None:
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def unshare(flags: int) -> None:
    """Leave for namespaces of one's own."""
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def raise_loopback() -> None:
    """Bring up the loopback device. Starts no program, which would cost an unmapped user its
    rights."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", IFF_UP))


def cookie(sock: socket.socket) -> int:
    """Return the number of the network namespace of a socket."""
    return int(
        struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0],
    )


def is_gone(interface: str) -> bool:
    """Tell whether a device of our namespace is gone, as one of a pair goes with the namespace of
    the other."""
    return not Path("/sys/class/net", interface).exists()
