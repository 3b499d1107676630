# SPDX-License-Identifier: BSD-3-Clause
"""A worker ends at each step of each operation: by SIGKILL, as the module sees that, or in order.

An operation alone is repeated, with the end at the first step, at the second, and so on, until it
is through before that. Under a load of all operations at once one ends at each kind of step.
"""

from __future__ import annotations

import errno
import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Self

import pytest

from ssad import ktls
from ssad.policy import TLS_1_3
from ssad.wire import Command, TlsOption
from tests.peers.hostile import read_until_closed, serving
from tests.system.daemon import await_condition, socket_count, workers
from tests.system.hostname import connect_to
from tests.system.program import get_number, name_of, receive_exactly, set_text, tls_socket
from tests.system.staff import KEYS, KTLS_PORTS, LOOPBACK, SOON, Staff

if TYPE_CHECKING:
    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.system.staff import How

DATA = random.Random(501).randbytes(20_000)  # noqa: S311 -- wants to be the same each time


class World:
    """What operations need beside a TLS socket."""

    def __init__(self, port: int, pki: Pki) -> None:
        self.server = LOOPBACK, port
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


def transfer(world: World, sock: socket.socket) -> None:
    sock.connect(world.server)
    sock.sendall(DATA)
    assert receive_exactly(sock, len(DATA)) == DATA


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
def ktls_at(port: int) -> Iterator[None]:
    """Let what listens at this port have connections over kernel TLS."""
    KTLS_PORTS.add(port)
    try:
        yield
    finally:
        KTLS_PORTS.remove(port)


@contextmanager
def ktls_connection() -> Iterator[Callable[[], None]]:
    """Have a connection over kernel TLS; give what checks that it is as ever."""
    with socket.create_server((LOOPBACK, 0)) as server:
        staff = Staff(1)
        try:
            with ktls_at(server.getsockname()[1]):
                sock = tls_socket(host=None)
                sock.connect(server.getsockname())
        finally:
            staff.dismiss()
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


def await_others(count: int) -> None:
    """Wait until so many workers are there to stay."""
    await_condition(
        "there are others", lambda: sum(not one["leaving"] for one in workers()) == count
    )


@pytest.mark.usefixtures("no_daemon")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("how", ["dies", "leaves"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_at_each_step(pki: Pki, name: str, how: How, count: int) -> None:
    results: list[str] = []
    with ktls_connection() as check_ktls, socket.create_server((LOOPBACK, 0)) as server:
        world = World(server.getsockname()[1], pki)
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
                await_others(count)
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


_REQUESTS = [
    Command.SOCKET,
    Command.SETSOCKOPT,
    Command.GETSOCKOPT,
    Command.BIND,
    Command.CONNECT,
    Command.LISTEN,
]
STEPS = [
    *(f"is asked {command.name}" for command in [*_REQUESTS, Command.CLOSE]),
    *(f"has the endpoint of {command.name}" for command in (Command.CONNECT, Command.LISTEN)),
    *(f"has completed {command.name}" for command in _REQUESTS),
    "has accepted",
    "has brought it",
]


def echo_over_ktls(raw: socket.socket, _peer: Peer) -> None:
    """Be a peer that sends back what it gets."""
    ktls.install(raw, KEYS)
    while data := raw.recv(len(DATA)):
        raw.sendall(data)


class Load:
    """All operations at once, transfers, and clients of a listener that stays: each again and
    again, in a thread of its own."""

    def __init__(self, pki: Pki) -> None:
        self._pki = pki
        self._opened = ExitStack()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self.rounds: Counter[str] = Counter()  # that went well
        self.canceled: Counter[str] = Counter()  # operations whose worker was gone
        self.lost = 0  # clients of the listener whom nobody served
        self.failed: list[str] = []  # whatever else went wrong

    def __enter__(self) -> Self:
        silent = self._opened.enter_context(serving(lambda raw, _: read_until_closed(raw)))
        echoing = self._opened.enter_context(serving(echo_over_ktls))
        self._opened.enter_context(ktls_at(echoing.port))
        listener = self._opened.enter_context(tls_socket(host=None))
        listener.bind((LOOPBACK, 0))
        self._opened.enter_context(ktls_at(listener.getsockname()[1]))
        listener.listen(16)
        world, transfers = (World(peer.port, self._pki) for peer in (silent, echoing))
        for name, operation in OPERATIONS.items():
            self._start(name, partial(self._operate, name, operation, world))
        self._start("transfer", partial(self._operate, "transfer", transfer, transfers))
        self._start("client", partial(self._come, listener))
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(4 * SOON)
        assert not any(thread.is_alive() for thread in self._threads), "a call hangs"
        self._opened.close()

    def await_more(self) -> None:
        """Wait until each has gone well, from its beginning to its end."""
        seen = self.rounds.copy()
        # One may have been under way.
        await_condition(
            "all goes on",
            lambda: (
                bool(self.failed)
                or all(self.rounds[thread.name] > seen[thread.name] + 1 for thread in self._threads)
            ),
        )
        assert self.failed == []

    def _start(self, name: str, act: Callable[[], bool]) -> None:
        self._threads.append(threading.Thread(name=name, target=self._run, args=[name, act]))
        self._threads[-1].start()

    def _run(self, name: str, act: Callable[[], bool]) -> None:
        try:
            while not self._stopped.is_set():
                self.rounds[name] += act()
        except (OSError, AssertionError) as error:
            self.failed.append(f"{name}: {error!r}")

    def _operate(
        self, name: str, operation: Callable[[World, socket.socket], None], world: World
    ) -> bool:
        try:
            with tls_socket(host=None) as sock:
                operation(world, sock)
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
            self.canceled[name] += 1
            return False
        return True

    def _come(self, listener: socket.socket) -> bool:
        """Be a client and the program that serves it."""
        with socket.create_connection(listener.getsockname(), SOON) as client:
            try:
                ktls.install(client, KEYS)
                client.sendall(b"served?")
            except OSError:
                self.lost += 1  # by now
                return False
            ready = select.select([client, listener], [], [], SOON)[0]
            assert ready, "the listener is lost"
            if listener not in ready:
                self.lost += 1
                return False
            with listener.accept()[0] as accepted:
                assert accepted.getpeername() == client.getsockname()
                assert receive_exactly(accepted, 7) == b"served?"
        return True


@pytest.mark.usefixtures("no_daemon")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("how", ["dies", "leaves"])
def test_at_each_step_under_load(pki: Pki, how: How, count: int) -> None:
    with ktls_connection() as check_ktls:
        staff = Staff(count, how)
        try:
            with Load(pki) as load:
                for step in STEPS:
                    load.await_more()
                    staff.end_at(step)
                    await_others(count)
                    check_ktls()
                load.await_more()
        finally:
            staff.dismiss()
    print(f"rounds: {load.rounds}\ncanceled: {load.canceled}\nlost clients: {load.lost}")
    assert load.failed == []
    if how == "leaves":
        assert not load.canceled
        assert load.lost == 0
    else:
        # A worker accepts one at a time, and it is closed with the worker if it has not brought it.
        assert load.lost <= 1
    await_condition("no TLS socket is left", lambda: socket_count() == 0)
