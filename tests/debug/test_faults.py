# SPDX-License-Identifier: BSD-3-Clause
"""Whatever can fail inside a system call does, one after the other: the call then says so, and the
socket is as usable as before, or has cleanly failed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from ssad.wire import AF_HOSTNAME, IPPROTO_TLS, SocketState, TlsOption
from tests.debug.faults import FILE, PORT, USUAL, Call, Faults, Result, Sys, titled
from tests.debug.worker import CHAIN, DEADLINE
from tests.debug.world import (
    BOTH,
    DATA,
    FAMILIES,
    MARK,
    TICKET,
    Pair,
    World,
    address,
    port_of,
)
from tests.system import options
from tests.system.program import get_id, libc, tls_error

pytestmark = pytest.mark.timeout(180)


def length_of(value: bytes) -> bytes:
    """Give a socklen_t."""
    return struct.pack("=i", len(value))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_socket(faults: Faults, world: World, family: int, request: pytest.FixtureRequest) -> None:
    assert world.has_records

    def act(call: Call) -> None:
        result = call(Sys.SOCKET, family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, IPPROTO_TLS)
        if not result.error:
            with socket.socket(fileno=result.value) as sock:
                assert get_id(sock)

    faults.each(titled("socket", request), act, FILE)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_bind(faults: Faults, world: World, family: int, request: pytest.FixtureRequest) -> None:
    # A socket of AF_HOSTNAME gets another endpoint for it.
    local = address(family if family != AF_HOSTNAME else socket.AF_INET, 0)

    def act(call: Call) -> None:
        with world.new(family) as sock:
            result = call(Sys.BIND, sock.fileno(), local, len(local))
            if result.error:
                assert libc.bind(sock.fileno(), local, len(local)) == 0, ctypes.get_errno()
            assert libc.listen(sock.fileno(), 8) == 0, ctypes.get_errno()

    faults.each(titled("bind", request), act, FILE | PORT)


def test_listen(faults: Faults, world: World) -> None:
    def act(call: Call) -> None:
        with world.new() as sock, ExitStack() as opened:
            sock.bind(("127.0.0.1", 0))
            result = call(Sys.LISTEN, sock.fileno(), 8)
            if result.error:
                sock.listen(8)
            client = world.client_of(sock, opened)
            accepted, _ = sock.accept()
            with accepted:
                Pair(accepted, client).goes_on()

    faults.each("listen", act, USUAL | PORT)


HOWS = {
    "AF_INET": (socket.AF_INET, socket.AF_INET),
    "AF_INET6": (socket.AF_INET6, socket.AF_INET6),
    "AF_INET by name": (socket.AF_INET, AF_HOSTNAME),
    "AF_HOSTNAME": (AF_HOSTNAME, AF_HOSTNAME),
}


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_connect(
    faults: Faults, either: World, how: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    family, named = how
    reached = socket.AF_INET if family == AF_HOSTNAME else family

    def act(call: Call) -> None:
        with ExitStack() as opened:
            listener = opened.enter_context(either.listener(reached))
            sock = opened.enter_context(either.new(family))
            remote = address(named, port_of(listener))
            result = call(Sys.CONNECT, sock.fileno(), remote, len(remote))
            if result.error and libc.connect(sock.fileno(), remote, len(remote)) != 0:
                assert ctypes.get_errno() == errno.EBADFD
                assert tls_error(sock) or call.lasting  # which needs memory too
                return
            Pair(sock, either.peer_of(listener, opened)).goes_on()

    faults.each(titled("connect", request), act, FILE)


def test_connect_of_no_address(
    faults: Faults, either: World, request: pytest.FixtureRequest
) -> None:
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)

    def act(call: Call) -> None:
        with either.connected() as pair:
            call(Sys.CONNECT, pair.tls.fileno(), nowhere, len(nowhere))
            if call.result and not call.result.error:
                pair.peer_reads_to_the_end()

    faults.each(titled("connect AF_UNSPEC", request), act, lasting=False)


@pytest.mark.parametrize("family", BOTH.values(), ids=BOTH)
def test_accept(faults: Faults, either: World, family: int, request: pytest.FixtureRequest) -> None:
    def act(call: Call) -> None:
        with either.listening(family) as listener, ExitStack() as opened:
            client = either.client_of(listener, opened)
            room = bytes(28)
            result = call(Sys.ACCEPT4, listener.fileno(), room, length_of(room), os.O_CLOEXEC)
            if not result.error:
                accepted = socket.socket(fileno=result.value)
            else:
                listener.settimeout(0)
                try:
                    accepted, _ = listener.accept()
                except BlockingIOError:
                    return  # taken, and closed again, as with TCP
            with accepted:
                accepted.setblocking(True)  # noqa: FBT003 -- its name says what it is
                Pair(accepted, client).goes_on()

    faults.each(titled("accept4", request), act, FILE)


# What an option is set to that has no number.
TEXTS = {
    TlsOption.TLS_HOSTNAME: b"a.test\0",
    TlsOption.TLS_ALPN: b"h2,http/1.1\0",
    TlsOption.TLS_TRUSTED_CIPHERS: b"TLS_AES_128_GCM_SHA256\0",
}


def test_setsockopt(faults: Faults, world: World, tmp_path: Path) -> None:
    path = tmp_path / "chain.pem"
    path.write_bytes(CHAIN)
    with world.new() as donor:
        for option in options.table():
            if SocketState.NEW not in option.set:
                continue
            values = {"": TEXTS.get(option.number, b"TLS_AES_128_GCM_SHA256\0")}
            if option.number == TlsOption.TLS_CONTEXT:
                values = {"": struct.pack("=Q", get_id(donor))}
            elif option.size is not None:
                values = {"": struct.pack("=I", 1)}
            elif option.kind == "STRING_OR_FILE":
                values = {" of a file": bytes(path) + b"\0", "": CHAIN * 300}
            for how, value in values.items():
                name = option.number

                def act(call: Call, name: TlsOption = name, value: bytes = value) -> None:
                    with world.new() as sock:
                        call(Sys.SETSOCKOPT, sock.fileno(), IPPROTO_TLS, name, value, len(value))
                        again = libc.setsockopt(sock.fileno(), IPPROTO_TLS, name, value, len(value))
                        assert again == 0, ctypes.get_errno()

                faults.each(f"setsockopt {name.name}{how}", act, FILE)


@pytest.mark.parametrize(
    "state", [SocketState.NEW, SocketState.CONNECTED], ids=lambda one: one.name
)
def test_getsockopt(faults: Faults, world: World, state: SocketState) -> None:
    with ExitStack() as opened:
        if state == SocketState.NEW:
            sock = opened.enter_context(world.new())
        else:
            sock = opened.enter_context(world.connected()).tls
        for option in options.table():
            if state not in option.get:
                continue

            def act(call: Call, name: TlsOption = option.number) -> None:
                room = ctypes.create_string_buffer(1 << 10)
                length = length_of(room.raw)
                call(Sys.GETSOCKOPT, sock.fileno(), IPPROTO_TLS, name, room, length)
                assert options.raw_get(sock, name, 1 << 10)[0] == 0

            faults.each(f"getsockopt {option.number.name} {state.name}", act)


MD5 = struct.pack("=H", socket.AF_INET) + bytes(128 - 2) + struct.pack("=BBHi", 0, 0, 3, 0) + b"key"
LEVELS: dict[str, tuple[int, int, bytes]] = {
    "SO_SNDBUF": (socket.SOL_SOCKET, socket.SO_SNDBUF, struct.pack("=i", 100_000)),
    "SO_LINGER": (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 1)),
    "SO_RCVTIMEO": (socket.SOL_SOCKET, 20, struct.pack("=qq", 10, 0)),
    "SO_RCVLOWAT": (socket.SOL_SOCKET, socket.SO_RCVLOWAT, struct.pack("=i", 1)),
    "SO_BINDTODEVICE": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0"),
    "TCP_NODELAY": (socket.IPPROTO_TCP, socket.TCP_NODELAY, struct.pack("=i", 1)),
    "TCP_CONGESTION": (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic\0"),
    "TCP_MD5SIG": (socket.IPPROTO_TCP, 14, MD5.ljust(216, b"\0")),
    "TCP_INFO": (socket.IPPROTO_TCP, socket.TCP_INFO, b""),
    "IP_TOS": (socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", 8)),
    "IP_OPTIONS": (socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1\1\1\0"),
    "IPV6_V6ONLY": (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, struct.pack("=i", 1)),
    "IPV6_HOPOPTS": (socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, b"\0\0\1\4\0\0\0\0"),
}


@pytest.mark.parametrize("name", LEVELS)
def test_options_of_other_levels(faults: Faults, world: World, name: str) -> None:
    level, option, value = LEVELS[name]
    family = socket.AF_INET6 if name.startswith("IPV6") else socket.AF_INET

    def set_it(call: Call) -> None:
        call(Sys.SETSOCKOPT, sock.fileno(), level, option, value, len(value))
        assert libc.setsockopt(sock.fileno(), level, option, value, len(value)) == 0

    def get_it(call: Call) -> None:
        room = bytes(512)
        call(Sys.GETSOCKOPT, sock.fileno(), level, option, room, length_of(room))

    with world.new(family) as sock:
        if value:
            faults.each(f"setsockopt {name}", set_it)
        if name not in {"TCP_MD5SIG", "IPV6_HOPOPTS"}:  # read never, or once connected
            faults.each(f"getsockopt {name}", get_it)


def test_options_survive_the_exchange_of_endpoints(faults: Faults, world: World) -> None:
    """With options to be set on the further endpoints of a connect() to a name."""

    def act(call: Call) -> None:
        with ExitStack() as opened:
            listener = opened.enter_context(world.listener())
            sock = opened.enter_context(world.new())
            for name in ("TCP_NODELAY", "TCP_CONGESTION", "IP_OPTIONS"):
                level, option, value = LEVELS[name]
                assert libc.setsockopt(sock.fileno(), level, option, value, len(value)) == 0
            remote = address(AF_HOSTNAME, port_of(listener))
            result = call(Sys.CONNECT, sock.fileno(), remote, len(remote))
            if result.error and libc.connect(sock.fileno(), remote, len(remote)) != 0:
                assert ctypes.get_errno() == errno.EBADFD
                return
            Pair(sock, world.peer_of(listener, opened)).goes_on()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

    faults.each("connect by name, with options", act, FILE)


def vector(data: ctypes.Array[ctypes.c_char]) -> bytes:
    """Give a struct iovec."""
    return struct.pack("=QQ", ctypes.addressof(data), len(data))


def message(vectors: ctypes.Array[ctypes.c_char]) -> bytes:
    """Give a struct msghdr, padded to what is an element of sendmmsg(2)."""
    count = len(vectors) // 16
    return struct.pack("=QQQQQQQQ", 0, 0, ctypes.addressof(vectors), count, 0, 0, 0, 0)


Send = Callable[[Call, int], Result]


def _sendmsg(number: Sys) -> Send:
    def send(call: Call, descriptor: int) -> Result:
        memory = ctypes.create_string_buffer(DATA, len(DATA))
        vectors = ctypes.create_string_buffer(vector(memory), 16)
        if number == Sys.WRITEV:
            return call(number, descriptor, vectors, 1)
        header = ctypes.create_string_buffer(message(vectors), 64)
        if number == Sys.SENDMSG:
            return call(number, descriptor, header, 0)
        result = call(number, descriptor, header, 1, 0)
        if result.value == 1:  # a message, the length of which is behind it
            (length,) = struct.unpack_from("=I", header.raw, 56)
            return Result(length, 0, result.injected)
        return result

    return send


def _sendto(call: Call, descriptor: int) -> Result:
    return call(Sys.SENDTO, descriptor, DATA, len(DATA), 0, None, 0)


def _sendfile(call: Call, descriptor: int) -> Result:
    with Path("/dev/shm/faults").open("w+b") as file:
        file.write(DATA)
        file.flush()
        file.seek(0)
        return call(Sys.SENDFILE, descriptor, file.fileno(), None, len(DATA))


def _splice_to(call: Call, descriptor: int) -> Result:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb", 0) as writer:
        assert writer.write(DATA) == len(DATA)
        return call(Sys.SPLICE, read_end, None, descriptor, None, len(DATA), 0)


SENDS: dict[str, Send] = {
    "send": _sendto,
    "sendmsg": _sendmsg(Sys.SENDMSG),
    "sendmmsg": _sendmsg(Sys.SENDMMSG),
    "writev": _sendmsg(Sys.WRITEV),
    "sendfile": _sendfile,
    "splice to": _splice_to,
}


@pytest.mark.parametrize("how", SENDS)
def test_send(faults: Faults, each: World, how: str, request: pytest.FixtureRequest) -> None:
    def act(call: Call) -> None:
        with each.connected() as pair:
            result = SENDS[how](call, pair.tls.fileno())
            try:
                pair.goes_on(sent=DATA[: max(result.value, 0)])
            except ConnectionAbortedError:
                # Kernel TLS had no memory to encrypt it, which nothing undoes: it is over.
                assert result.injected
                assert "no memory" in tls_error(pair.tls)

    faults.each(titled("", request), act, USUAL | {errno.ECONNABORTED}, lasting=False)


Receive = Callable[[Call, int], tuple[Result, bytes]]


def _recv(flags: int = 0) -> Receive:
    def receive(call: Call, descriptor: int) -> tuple[Result, bytes]:
        memory = ctypes.create_string_buffer(len(DATA))
        result = call(Sys.RECVFROM, descriptor, memory, len(DATA), flags, None, None)
        taken = b"" if flags & socket.MSG_PEEK else DATA[: max(result.value, 0)]
        if result.value > 0 and not flags & socket.MSG_TRUNC:
            assert memory.raw[: result.value] == DATA[: result.value]
        return result, taken

    return receive


def _recvmsg(number: Sys) -> Receive:
    def receive(call: Call, descriptor: int) -> tuple[Result, bytes]:
        memory = ctypes.create_string_buffer(len(DATA))
        vectors = ctypes.create_string_buffer(vector(memory), 16)
        if number == Sys.READV:
            result = call(number, descriptor, vectors, 1)
        else:
            header = ctypes.create_string_buffer(message(vectors), 64)
            if number == Sys.RECVMSG:
                result = call(number, descriptor, header, 0)
            else:
                result = call(number, descriptor, header, 1, socket.MSG_DONTWAIT, None)
                if result.value == 1:
                    (length,) = struct.unpack_from("=I", header.raw, 56)
                    result = Result(length, 0, result.injected)
        got = max(result.value, 0)
        assert memory.raw[:got] == DATA[:got]
        return result, DATA[:got]

    return receive


def _splice_from(call: Call, descriptor: int) -> tuple[Result, bytes]:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    with os.fdopen(read_end, "rb", 0) as reader, os.fdopen(write_end, "wb"):
        result = call(Sys.SPLICE, descriptor, None, write_end, None, len(DATA), 0)
        got = max(result.value, 0)
        if got:
            assert reader.read(got) == DATA[:got]
        return result, DATA[:got]


RECEIVES: dict[str, Receive] = {
    "recv": _recv(),
    "recv MSG_PEEK": _recv(socket.MSG_PEEK),
    "recv MSG_TRUNC": _recv(socket.MSG_TRUNC),
    "recv MSG_WAITALL": _recv(socket.MSG_WAITALL),
    "recvmsg": _recvmsg(Sys.RECVMSG),
    "recvmmsg": _recvmsg(Sys.RECVMMSG),
    "readv": _recvmsg(Sys.READV),
    "splice from": _splice_from,
}


@pytest.mark.parametrize("how", RECEIVES)
def test_receive(faults: Faults, each: World, how: str, request: pytest.FixtureRequest) -> None:
    with each.connected() as pair:

        def act(call: Call) -> None:
            pair.peer.sendall(DATA)
            assert select.select([pair.tls], [], [], DEADLINE)[0]
            _, taken = RECEIVES[how](call, pair.tls.fileno())
            pair.goes_on(received=DATA[len(taken) :])

        faults.each(titled("", request), act)


@pytest.mark.parametrize("how", RECEIVES)
def test_receive_behind_a_ticket(faults: Faults, world: World, how: str) -> None:
    ticket = b"\4" + (1000).to_bytes(3, "big") + bytes(1000)

    def act(call: Call) -> None:
        with world.connected() as pair:
            pair.send_record(TICKET, ticket)
            pair.peer.sendall(DATA)
            _, taken = RECEIVES[how](call, pair.tls.fileno())
            pair.goes_on(received=DATA[len(taken) :])

    faults.each(f"{how} behind a ticket", act)
    assert world.worker.tickets.get(timeout=DEADLINE) == ticket


@pytest.mark.parametrize("how", ["recv", "splice from"])
def test_receive_the_end(faults: Faults, world: World, how: str) -> None:
    def act(call: Call) -> None:
        with world.connected() as pair:
            pair.send_record(21, b"\1\0")
            result, _ = RECEIVES[how](call, pair.tls.fileno())
            assert result.value <= 0
            assert pair.tls.recv(1) == b""

    faults.each(f"{how} at close_notify", act)


EPOLL_CTL_ADD = 1  # <linux/eventpoll.h>


def _poll(call: Call, descriptor: int) -> Result:
    return call(Sys.POLL, struct.pack("=ihh", descriptor, select.POLLIN, 0), 1, -1)


def _select(call: Call, descriptor: int) -> Result:
    return call(
        Sys.SELECT, descriptor + 1, (1 << descriptor).to_bytes(128, "little"), None, None, None
    )


def _epoll_ctl(call: Call, descriptor: int) -> Result:
    with select.epoll() as poller:
        event = struct.pack("=IQ", select.EPOLLIN, 0)
        result = call(Sys.EPOLL_CTL, poller.fileno(), EPOLL_CTL_ADD, descriptor, event)
        if not result.error:
            assert poller.poll(DEADLINE)
        return result


def _fionread(call: Call, descriptor: int) -> Result:
    return call(Sys.IOCTL, descriptor, 0x541B, bytes(4))


def _name(number: Sys) -> Callable[[Call, int], Result]:
    return lambda call, descriptor: call(number, descriptor, bytes(32), length_of(bytes(32)))


def _async(call: Call, descriptor: int) -> Result:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    result = call(Sys.FCNTL, descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return result


LOOKS: dict[str, Callable[[Call, int], Result]] = {
    "poll": _poll,
    "select": _select,
    "epoll_ctl": _epoll_ctl,
    "ioctl FIONREAD": _fionread,
    "getsockname": _name(Sys.GETSOCKNAME),
    "getpeername": _name(Sys.GETPEERNAME),
    "fcntl O_ASYNC": _async,
}


@pytest.mark.parametrize("how", LOOKS)
def test_looks(faults: Faults, each: World, how: str, request: pytest.FixtureRequest) -> None:
    with each.connected() as pair:

        def act(call: Call) -> None:
            pair.peer.sendall(DATA[:100])
            assert pair.tls.recv(1, socket.MSG_PEEK) == DATA[:1]
            LOOKS[how](call, pair.tls.fileno())
            pair.goes_on(received=DATA[:100])

        faults.each(titled("", request), act)


@pytest.mark.parametrize("how", ["poll", "epoll_ctl", "ioctl FIONREAD"])
def test_looks_behind_a_ticket(faults: Faults, world: World, how: str) -> None:
    ticket = b"\4" + (1000).to_bytes(3, "big") + bytes(1000)

    def act(call: Call) -> None:
        with world.connected() as pair:
            pair.send_record(TICKET, ticket)
            pair.peer.sendall(DATA[:100])
            LOOKS[how](call, pair.tls.fileno())
            pair.goes_on(received=DATA[:100])

    faults.each(f"{how} behind a ticket", act)


def test_shutdown(faults: Faults, either: World, request: pytest.FixtureRequest) -> None:
    def act(call: Call) -> None:
        with either.connected() as pair:
            pair.tls.sendall(DATA)
            result = call(Sys.SHUTDOWN, pair.tls.fileno(), socket.SHUT_WR)
            if result.error:
                pair.tls.shutdown(socket.SHUT_WR)
            data, in_order = pair.peer_reads_to_the_end()
            assert data == DATA
            assert in_order or not either.has_records, f"fault {call.nth}: {result}"
            pair.peer.sendall(MARK)
            assert pair.tls.recv(len(MARK)) == MARK

    faults.each(titled("shutdown", request), act, lasting=False)


def test_close(faults: Faults, either: World, request: pytest.FixtureRequest) -> None:
    def act(call: Call) -> None:
        with either.connected() as pair:
            pair.tls.sendall(DATA)
            call(Sys.CLOSE, pair.tls.detach())
            data, _ = pair.peer_reads_to_the_end()
            assert data == DATA

    faults.each(titled("close of a connection", request), act, lasting=False)


def test_close_of_what_the_worker_knows(faults: Faults, world: World) -> None:
    """It is told of the end, whatever fails."""

    def new(call: Call) -> None:
        with world.new() as sock:
            number = get_id(sock)
            call(Sys.CLOSE, sock.detach())
        while world.worker.closed.get(timeout=DEADLINE) != number:
            pass

    def listening(call: Call) -> None:
        with world.listening() as listener, ExitStack() as opened:
            world.client_of(listener, opened)
            number = get_id(listener)
            call(Sys.CLOSE, listener.detach())
        while world.worker.closed.get(timeout=DEADLINE) != number:
            pass

    faults.each("close of a new socket", new)
    faults.each("close of a listening socket", listening)
