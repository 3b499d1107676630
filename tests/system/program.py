# SPDX-License-Identifier: BSD-3-Clause
"""What a program does with a TLS socket: Python's own socket calls, and the options of the level
IPPROTO_TLS. Where Python would hide what a call returns, the C library is called directly."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from ssad.wire import CHAIN_MAX, IPPROTO_TLS, TlsOption
from tests.peers.pki import HOST
from tests.system.daemon import await_condition

libc = ctypes.CDLL(None, use_errno=True)

# <linux/tls.h> and <linux/socket.h>; Python has no names for them.
SOL_TLS = 282
TLS_SET_RECORD_TYPE = 1
TLS_GET_RECORD_TYPE = 2

NOBODY = 65534

_VALUE_MAX = CHAIN_MAX + 1


class Listener(Protocol):
    """A server, whoever wrote it."""

    @property
    def address(self) -> str: ...

    @property
    def port(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, or nobody."""

    address: str
    port: int


def tls_socket(family: int = socket.AF_INET, host: str | None = HOST) -> socket.socket:
    """Make a TLS socket that will want `host` to be the peer's name."""
    made = socket.socket(family, socket.SOCK_STREAM, IPPROTO_TLS)
    if host is not None:
        try:
            set_text(made, TlsOption.TLS_HOSTNAME, host)
        except OSError:
            made.close()
            raise
    return made


def connect(server: Listener, host: str | None = HOST) -> socket.socket:
    """Connect a new TLS socket to `server`."""
    family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
    made = tls_socket(family, host)
    try:
        made.connect((server.address, server.port))
    except OSError as error:
        error.add_note(f"TLS_ERROR: {tls_error(made)}")
        made.close()
        raise
    return made


def begin(sock: socket.socket, server: Listener) -> None:
    """Begin to connect without waiting."""
    sock.settimeout(0)
    refused(errno.EINPROGRESS, lambda: sock.connect((server.address, server.port)))


def set_text(sock: socket.socket, option: TlsOption, value: str) -> None:
    """Set an option whose value is a string."""
    set_bytes(sock, option, value.encode() + b"\0")


def set_number(sock: socket.socket, option: TlsOption, value: int) -> None:
    """Set an option whose value is an int."""
    set_bytes(sock, option, struct.pack("=i", value))


def set_bytes(sock: socket.socket, option: TlsOption, value: bytes) -> None:
    """Set an option. Python's own setsockopt() would hold up all threads while the daemon is
    asked."""
    if libc.setsockopt(sock.fileno(), IPPROTO_TLS, option, value, len(value)) != 0:
        _raise_errno()


def get_text(sock: socket.socket, option: TlsOption) -> str:
    """Get an option whose value is a string; it comes with its NUL."""
    value = get_bytes(sock, option)
    assert value.endswith(b"\0"), f"{option.name} has no NUL: {value!r}"
    assert value.count(b"\0") == 1, f"{option.name} has more than one NUL: {value!r}"
    return value[:-1].decode()


def get_number(sock: socket.socket, option: TlsOption) -> int:
    """Get an option whose value is an int."""
    return int(struct.unpack("=i", get_bytes(sock, option))[0])


def get_bytes(sock: socket.socket, option: TlsOption) -> bytes:
    """Get an option. Python's own getsockopt() gives no more than 1,024 bytes, and holds up all
    threads."""
    buffer = ctypes.create_string_buffer(_VALUE_MAX)
    length = ctypes.c_uint(_VALUE_MAX)
    if libc.getsockopt(sock.fileno(), IPPROTO_TLS, option, buffer, ctypes.byref(length)) != 0:
        _raise_errno()
    return buffer.raw[: length.value]


def waits(task: int, where: str = "[ssa]") -> bool:
    """Tell whether a thread, of any process, sleeps in the kernel, in a call of the module's."""
    folder = Path(f"/proc/{task}")
    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    return state in "SD" and where in (folder / "stack").read_text()


def signal_once_it_waits(then: Callable[[], object] | None = None) -> threading.Thread:
    """Have this thread get SIGUSR1 when it waits in a call of the module's, and then do `then`."""
    caller, task = threading.get_ident(), threading.get_native_id()

    def run() -> None:
        await_condition("the call waits in the module", lambda: waits(task))
        signal.pthread_kill(caller, signal.SIGUSR1)
        if then is not None:
            then()

    other = threading.Thread(target=run)
    other.start()
    return other


def _raise_errno() -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def get_id(sock: socket.socket) -> int:
    """Get TLS_ID."""
    return int(struct.unpack("=Q", get_bytes(sock, TlsOption.TLS_ID))[0])


def tls_error(sock: socket.socket) -> str:
    """Get TLS_ERROR."""
    return get_text(sock, TlsOption.TLS_ERROR)


def so_error(sock: socket.socket) -> int:
    """Get, and thereby clear, SO_ERROR."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def refused(number: int, call: Callable[[], object]) -> None:
    """Check that `call` fails with the errno `number`."""
    found = 0
    try:
        call()
    except OSError as error:
        found = error.errno or -1  # Python's own timeouts have no errno
    assert found == number, f"wanted {errno.errorcode[number]}, found {name_of(found)}"


def name_of(number: int) -> str:
    """Name an errno."""
    if number == errno.EOPNOTSUPP:
        return "EOPNOTSUPP"  # which Python knows as ENOTSUP too
    return "success" if number == 0 else errno.errorcode.get(number, str(number))


def receive_all(sock: socket.socket) -> bytes:
    """Receive until the end of the stream."""
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


def as_tcp(sock: socket.socket) -> socket.socket:
    """Return the same socket as an object that shows no protocol, for asyncio: with one that it
    does not know it asks the resolver even for an address, and the resolver does not know it."""
    return socket.socket(sock.family, socket.SOCK_STREAM, 0, fileno=sock.detach())


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive `size` bytes."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"wanted {size} bytes, the stream ended after {len(data)}"
        data += piece
    return bytes(data)


def echo(sock: socket.socket, data: bytes) -> None:
    """Send `data` to a server that echoes, and check that it comes back."""
    sock.sendall(data)
    assert receive_exactly(sock, len(data)) == data


def address_of(server: Listener) -> bytes:
    """Return the struct sockaddr_in of a server."""
    return struct.pack("=H", socket.AF_INET) + struct.pack(
        "!H4s8x", server.port, socket.inet_aton(server.address)
    )


def raw_connect(sock: socket.socket, server: Listener) -> int:
    """Call connect(2) once and return 0 or its errno. Python's own goes on after a signal."""
    address = address_of(server)
    if libc.connect(sock.fileno(), address, len(address)) == 0:
        return 0
    return ctypes.get_errno()


def start_child(act: Callable[[], object], *, user: int | None = None) -> int:
    """Run `act` in a forked process, as `user` if given. Return its process id."""
    child = os.fork()
    if child == 0:
        _be_child(act, user)
    return child


def await_child(child: int) -> int:
    """Wait for the end of a forked process and return its status as subprocess does: 0 if `act`
    came to its end, 1 if it raised (which is then on standard error), -n if the signal n killed
    it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(act: Callable[[], object], *, user: int | None = None) -> int:
    """Run `act` in a forked process and wait for its end."""
    return await_child(start_child(act, user=user))


def _be_child(act: Callable[[], object], user: int | None) -> NoReturn:
    status = 1
    try:
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        act()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 -- nothing may return into the parent's code
        # Not pytest's own, which may be memory of this process.
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)
