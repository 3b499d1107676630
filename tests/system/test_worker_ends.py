# SPDX-License-Identifier: BSD-3-Clause
"""A worker ends at each step of each operation: by SIGKILL, as the module sees that, or in order.

The workers are the test's own, so that a step is exact: what one is asked, and what it says. The
operation is repeated, with the end at the first step, at the second, and so on, until it is through
before that.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Literal

import pytest

from ssad import ktls
from ssad.keys import Aead, KernelKeys, TrafficKey
from ssad.policy import TLS_1_2, TLS_1_3
from ssad.wire import Attribute, Command, TlsOption, Transport
from tests.system.daemon import await_condition, socket_count, workers
from tests.system.hostname import connect_to
from tests.system.netlink import Raw, attributes, string, u32, u64
from tests.system.netlink import attribute as value_of
from tests.system.program import get_number, name_of, receive_exactly, set_text, tls_socket

if TYPE_CHECKING:
    from tests.peers.pki import Pki

# Far less than the module's own time-outs, so that it must be the end that ends a call.
SOON = 8.0

LOOPBACK = "127.0.0.1"
MAIN = u32(Attribute.DAEMON, os.getpid())
FACTS = u32(Attribute.VERSION, TLS_1_3) + string(Attribute.CIPHER, "TLS_AES_128_GCM_SHA256")

# The same for both directions: it is nobody's secret.
_KEY = TrafficKey(bytes(16), bytes(12), 0)
KEYS = KernelKeys(TLS_1_2, Aead.AES_128_GCM, _KEY, _KEY)

How = Literal["dies", "leaves"]


class Ended(Exception):
    """The worker is to end here."""


class Staff:
    """So many workers, of which the one that comes to a certain step ends."""

    def __init__(self, count: int, how: How = "dies", end_at: int = -1) -> None:
        self._lock = threading.Lock()
        self._how = how
        self._end_at = end_at
        self._steps: list[str] = []
        self._threads: list[threading.Thread] = []
        self._workers: list[Worker] = []
        self._errors: list[BaseException] = []
        for _ in range(count):
            self.hire()

    def stay(self) -> str | None:
        """Let nobody end from now on. Returns the step at which one did."""
        with self._lock:
            ended = self._steps[self._end_at] if 0 <= self._end_at < len(self._steps) else None
            self._end_at = -1
            return ended

    def hire(self) -> None:
        """Let another one register and work."""
        worker = Worker(self)
        self._workers.append(worker)
        self._threads.append(threading.Thread(target=self._run, args=[worker]))
        self._threads[-1].start()

    def step(self, worker: Worker, what: str) -> None:
        """A worker is about to do something, or has done it."""
        # To the end: nobody is hired when stay() has returned, or dismiss() would miss that one.
        with self._lock:
            self._steps.append(what)
            if len(self._steps) - 1 != self._end_at:
                return
            if self._how == "dies":
                worker.close()
                self.hire()
                raise Ended
            self.hire()
            worker.leave()

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except Ended:
            pass
        except BaseException as error:  # noqa: BLE001 -- for the test to raise
            self._errors.append(error)
        finally:
            worker.close()

    def dismiss(self) -> None:
        """End all."""
        self.stay()
        for worker in list(self._workers):
            worker.stop()
        for thread in list(self._threads):
            thread.join(SOON)
            assert not thread.is_alive()
        assert self._errors == []


class Worker:
    """A worker that does what it is asked; its connections carry plain bytes, or are kernel TLS of
    known keys."""

    def __init__(self, staff: Staff) -> None:
        self._staff = staff
        self._raw = Raw()
        answer = self._raw.request(Command.REGISTER, MAIN)
        assert answer.error == 0, str(answer)
        self._wake, self._woken = socket.socketpair()
        self._held = ExitStack()
        self._listening: dict[int, socket.socket] = {}
        self._leaving = False

    def stop(self) -> None:
        """Let it end."""
        with suppress(OSError):
            self._woken.send(b"x")

    def close(self) -> None:
        """All its files are closed, as when its process is killed; the netlink socket first."""
        self._raw.socket.close()
        self._held.close()
        for held in (self._wake, self._woken, *self._listening.values()):
            held.close()

    def leave(self) -> None:
        """Begin to leave: others are there."""
        self._leaving = True
        self._owed()

    def _owed(self) -> int:
        answer = self._raw.request(Command.LEAVE)
        assert answer.error == 0, str(answer)
        for listener in self._listening.values():
            listener.close()
        self._listening.clear()
        return number_in(dict(attributes(answer.replies[0][1])), Attribute.PENDING)

    def run(self) -> None:
        """Work until stop(), or until it may leave."""
        while True:
            if self._raw.has_unasked:
                self._handle(*self._raw.unasked())
                continue
            files = [self._raw.socket, self._wake, *self._listening.values()]
            ready = select.select(files, [], [], 0.02 if self._leaving else None)[0]
            if self._wake in ready:
                return
            for socket_id, listener in list(self._listening.items()):
                if listener in ready:
                    self._accept(socket_id, listener)
            if self._raw.socket in ready:
                self._handle(*self._raw.unasked())
            elif self._leaving and not ready and self._owed() == 0:
                return

    def _handle(self, number: int, asked: dict[int, bytes]) -> None:
        command = Command(number)
        self._staff.step(self, f"is asked {command.name}")
        request = asked.get(Attribute.REQUEST, b"")
        match command:
            case Command.CLOSE:
                listener = self._listening.pop(
                    struct.unpack("=Q", asked[Attribute.SOCKET])[0], None
                )
                if listener is not None:
                    listener.close()
            case Command.CONNECT:
                self._connect(request, asked)
            case Command.LISTEN:
                self._listen(request, struct.unpack("=Q", asked[Attribute.SOCKET])[0])
            case Command.GETSOCKOPT:
                self._complete(request, value_of(Attribute.VALUE, struct.pack("=I", TLS_1_3)))
            case _:
                if request:
                    self._complete(request)

    def _complete(self, request: bytes, *more: bytes) -> None:
        body = value_of(Attribute.REQUEST, request) + u32(Attribute.ERROR, 0) + b"".join(more)
        answer = self._raw.request(Command.COMPLETE, body)
        assert answer.error in (0, errno.ENOENT), str(answer)
        self._staff.step(self, "has completed it")

    def _endpoint(self, request: bytes, index: int = 0) -> socket.socket | None:
        """Get an endpoint of a request, unless the program has given up."""
        body = value_of(Attribute.REQUEST, request) + u32(Attribute.ENDPOINT, index)
        answer = self._raw.request(Command.ENDPOINT, body)
        if answer.error == errno.ENOENT:
            return None
        assert answer.error == 0, str(answer)
        found = number_in(dict(attributes(answer.replies[0][1])), Attribute.FD)
        endpoint = self._held.enter_context(socket.socket(fileno=found))
        self._staff.step(self, "has the endpoint")
        return endpoint

    def _channel(self) -> bytes:
        _ours, theirs = (self._held.enter_context(end) for end in socket.socketpair())
        return (
            u32(Attribute.TRANSPORT, Transport.CHANNEL) + u32(Attribute.FD, theirs.fileno()) + FACTS
        )

    def _connect(self, request: bytes, asked: dict[int, bytes]) -> None:
        # A connect to a name has several, of which the last is as good as any.
        index = number_in(asked, Attribute.ENDPOINTS) - 1 if Attribute.ENDPOINTS in asked else 0
        endpoint = self._endpoint(request, index)
        if endpoint is None:
            return
        if Attribute.HOST_NAME in asked:
            endpoint.settimeout(0)
            with suppress(BlockingIOError):
                endpoint.connect((LOOPBACK, number_in(asked, Attribute.PORT)))
        assert select.select([], [endpoint], [], SOON)[1]
        if endpoint.getpeername()[1] in KTLS_PORTS:
            ktls.install(endpoint, KEYS)
            transport = u32(Attribute.TRANSPORT, Transport.KTLS) + FACTS
        else:
            transport = self._channel()
        self._complete(request, u32(Attribute.ENDPOINT, index), transport)
        endpoint.close()

    def _listen(self, request: bytes, socket_id: int) -> None:
        endpoint = self._endpoint(request)
        if endpoint is None:
            return
        listener = socket.socket(fileno=endpoint.detach())
        listener.settimeout(0)
        # Before it is completed: who leaves in between has to stop accepting.
        self._listening[socket_id] = listener
        self._complete(request)

    def _accept(self, socket_id: int, listener: socket.socket) -> None:
        try:
            endpoint, _ = listener.accept()
        except BlockingIOError:  # another one was faster
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._listening.pop(socket_id).close()  # the program has closed its own
            return
        with endpoint:
            self._staff.step(self, "has accepted")
            body = u64(Attribute.SOCKET, socket_id) + u32(Attribute.ERROR, 0)
            fd = u32(Attribute.ENDPOINT_FD, endpoint.fileno())
            answer = self._raw.request(Command.ACCEPTED, body + fd + self._channel())
            assert answer.error in (0, errno.ENOENT), str(answer)
        self._staff.step(self, "has brought it")


# Of servers that listen now, whose connections get kernel TLS.
KTLS_PORTS: set[int] = set()


def number_in(carried: dict[int, bytes], number: Attribute) -> int:
    """Return an attribute's 32-bit number."""
    return int(struct.unpack("=I", carried[number])[0])


class World:
    """What operations need beside a TLS socket."""

    def __init__(self, listener: socket.socket, pki: Pki) -> None:
        self.server = listener.getsockname()
        self.long_value = pki.root.read_text() * 100


def make_socket(_: World, sock: socket.socket) -> None:
    """Has been done."""
    assert sock.fileno() != -1


def set_long_value(world: World, sock: socket.socket) -> None:
    set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, world.long_value)


def get_value(_: World, sock: socket.socket) -> None:
    assert get_number(sock, TlsOption.TLS_VERSION_MIN) == TLS_1_3


def bind(_: World, sock: socket.socket) -> None:
    sock.bind((LOOPBACK, 0))


def connect(world: World, sock: socket.socket) -> None:
    set_text(sock, TlsOption.TLS_HOSTNAME, "a.test")
    sock.connect(world.server)


def connect_by_name(world: World, sock: socket.socket) -> None:
    connect_to(sock, "localhost", world.server[1])


def listen(_: World, sock: socket.socket) -> None:
    bind(_, sock)
    sock.listen(4)


def accept(world: World, sock: socket.socket) -> None:
    listen(world, sock)
    done = threading.Event()

    def come() -> None:
        # One that a worker has accepted and not brought is lost with it.
        while not done.is_set():
            with suppress(OSError), socket.create_connection(sock.getsockname(), SOON) as client:
                client.settimeout(SOON)
                client.recv(1)

    client = threading.Thread(target=come)
    client.start()
    try:
        sock.settimeout(SOON)
        sock.accept()[0].close()
    finally:
        done.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        client.join()


OPERATIONS = {
    "socket": make_socket,
    "setsockopt": set_long_value,
    "getsockopt": get_value,
    "bind": bind,
    "connect": connect,
    "connect by name": connect_by_name,
    "listen": listen,
    "accept": accept,
}


@contextmanager
def ktls_connection() -> Iterator[Callable[[], None]]:
    """Have a connection over kernel TLS; give what checks that it is as ever."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        KTLS_PORTS.add(port)
        staff = Staff(1)
        try:
            sock = tls_socket(host=None)
            sock.connect(server.getsockname())
        finally:
            staff.dismiss()
            KTLS_PORTS.remove(port)
        peer, _ = server.accept()
    with sock, peer:
        ktls.install(peer, KEYS)

        def check() -> None:
            for one, other in ((sock, peer), (peer, sock)):
                one.sendall(b"as ever")
                assert receive_exactly(other, 7) == b"as ever"

        check()
        yield check


def call(world: World, operation: Callable[[World, socket.socket], None]) -> int:
    """Make a socket and do the operation; return 0 or the errno. It must not hang."""
    result = [-1]

    def run() -> None:
        try:
            with tls_socket(host=None) as sock:
                operation(world, sock)
        except TimeoutError:
            pass
        except OSError as error:
            result[0] = error.errno or -1
        else:
            result[0] = 0

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(3 * SOON)
    assert not thread.is_alive(), "the call hangs"
    assert result[0] != -1, "the call was not answered"
    return result[0]


@pytest.mark.usefixtures("no_daemon")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("how", ["dies", "leaves"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_at_each_step(pki: Pki, name: str, how: How, count: int) -> None:
    results: list[str] = []
    with ktls_connection() as check_ktls, socket.create_server((LOOPBACK, 0)) as server:
        world = World(server, pki)
        ended: str | None = "nothing yet"
        while ended is not None:
            staff = Staff(count, how, len(results))
            try:
                result = call(world, OPERATIONS[name])
                ended = staff.stay()
                results.append(f"{ended}: {name_of(result)}")
                if how == "leaves" or ended is None:
                    assert result == 0, results
                else:
                    assert result in (0, errno.ECANCELED), results
                # Others serve a socket that is made now, and what was there goes on.
                await_condition(
                    "there are others",
                    lambda: sum(not one["leaving"] for one in workers()) == count,
                )
                assert call(world, OPERATIONS[name]) == 0, results
                check_ktls()
                if how == "leaves" and ended is not None:
                    await_condition(
                        "it has left", lambda: not any(one["leaving"] for one in workers())
                    )
            finally:
                staff.dismiss()
    print("\n".join(results))
    assert len(results) > 1
    await_condition("no TLS socket is left", lambda: socket_count() == 0)
