# SPDX-License-Identifier: BSD-3-Clause
"""What can fail while the module acts on a command of the daemon does: the daemon hears of it, can
send the command again, and the program never knows."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import socket
import struct
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from ssad.wire import AF_HOSTNAME, IPPROTO_TLS, Attribute, Command, TlsOption
from tests.debug.faults import FILE, PORT, Call, Faults, titled
from tests.debug.worker import Faulted, Netlink, Worker
from tests.debug.world import BOTH, WORLDS, Pair, World, address, port_of
from tests.system import options
from tests.system.daemon import await_condition, workers
from tests.system.netlink import Answer, attributes, string, u32, u64
from tests.system.program import get_id, libc, tls_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = pytest.mark.timeout(180)

MAIN = u32(Attribute.DAEMON, os.getpid())


def tell(call: Call, error: int) -> None:
    """Let the table have what the module answered, if it did."""
    assert call.result is not None
    if not call.result.error:
        call.result = dataclasses.replace(call.result, error=error)


@contextmanager
def faulted(worker: Worker, command: Command, call: Call) -> Iterator[None]:
    """Have the worker send its next such command with a fault."""
    worker.faulted = faulted = Faulted(command, call)
    yield
    tell(call, faulted.answer().error)
    worker.faulted = None


@pytest.mark.usefixtures("alone")
def test_register(faults: Faults) -> None:
    def act(call: Call) -> None:
        with Netlink() as netlink:
            netlink.fault = call
            answer = netlink.request(Command.REGISTER, MAIN)
            tell(call, answer.error)
            registered = bool(workers())
            assert registered or answer.error
            again = netlink.request(Command.REGISTER, MAIN)
            assert again.error == (errno.EBUSY if registered else 0), str(again)
        assert not workers()

    faults.each("REGISTER", act)


def _socket(world: World, _opened: ExitStack) -> Callable[[], None]:
    return lambda: world.new().close()


def _setsockopt(world: World, opened: ExitStack) -> Callable[[], None]:
    sock = opened.enter_context(world.new())
    value = struct.pack("=I", 1)
    option = TlsOption.TLS_SESSION_REUSE
    return lambda: _well(libc.setsockopt(sock.fileno(), IPPROTO_TLS, option, value, len(value)))


def _getsockopt(world: World, opened: ExitStack) -> Callable[[], None]:
    sock = opened.enter_context(world.new())
    return lambda: _well(options.raw_get(sock, TlsOption.TLS_TRUSTED_CIPHERS, 100)[0])


def _bind(world: World, opened: ExitStack) -> Callable[[], None]:
    sock = opened.enter_context(world.new())
    local = address(socket.AF_INET, 0)
    return lambda: _well(libc.bind(sock.fileno(), local, len(local)))


def _well(result: int) -> None:
    assert result == 0, ctypes.get_errno()


OF_A_CALL = {
    "SOCKET": _socket,
    "SETSOCKOPT": _setsockopt,
    "GETSOCKOPT": _getsockopt,
    "BIND": _bind,
}


@pytest.mark.parametrize("request_", OF_A_CALL)
def test_complete(faults: Faults, world: World, request_: str) -> None:
    def act(call: Call) -> None:
        with ExitStack() as opened:
            ask = OF_A_CALL[request_](world, opened)
            with faulted(world.worker, Command.COMPLETE, call):
                ask()

    faults.each(f"COMPLETE of {request_}", act)


def _refused_setsockopt(
    _world: World, sock: socket.socket, _opened: ExitStack
) -> Callable[[], int]:
    value = struct.pack("=I", 1)
    option = TlsOption.TLS_SESSION_REUSE
    return lambda: libc.setsockopt(sock.fileno(), IPPROTO_TLS, option, value, len(value))


def _refused_listen(_world: World, sock: socket.socket, _opened: ExitStack) -> Callable[[], int]:
    sock.bind(("127.0.0.1", 0))
    return lambda: libc.listen(sock.fileno(), 8)


def _refused_connect(world: World, sock: socket.socket, opened: ExitStack) -> Callable[[], int]:
    remote = address(socket.AF_INET, port_of(opened.enter_context(world.listener())))
    return lambda: libc.connect(sock.fileno(), remote, len(remote))


REFUSED = {
    "SETSOCKOPT": _refused_setsockopt,
    "LISTEN": _refused_listen,
    "CONNECT": _refused_connect,
}
WORDS = "The worker will have none of it."


@pytest.mark.parametrize("request_", REFUSED)
def test_complete_with_an_error_and_its_sentence(
    faults: Faults, world: World, request_: str
) -> None:
    def act(call: Call) -> None:
        with ExitStack() as opened:
            sock = opened.enter_context(world.new())
            ask = REFUSED[request_](world, sock, opened)
            world.worker.refusal = errno.EPROTO, WORDS
            with faulted(world.worker, Command.COMPLETE, call):
                assert ask() == -1
                assert ctypes.get_errno() == errno.EPROTO
            world.worker.refusal = None
            assert tls_error(sock) == WORDS

    faults.each(f"COMPLETE of {request_}, with an error", act)


@pytest.mark.parametrize("command", [Command.ENDPOINT, Command.COMPLETE], ids=lambda one: one.name)
@pytest.mark.parametrize("named", [socket.AF_INET, AF_HOSTNAME], ids=["numeric", "by name"])
def test_of_a_connect(
    faults: Faults,
    either: World,
    command: Command,
    named: int,
    request: pytest.FixtureRequest,
) -> None:
    def act(call: Call) -> None:
        with ExitStack() as opened:
            listener = opened.enter_context(either.listener())
            sock = opened.enter_context(either.new())
            remote = address(named, port_of(listener))
            with faulted(either.worker, command, call):
                _well(libc.connect(sock.fileno(), remote, len(remote)))
            Pair(sock, either.peer_of(listener, opened)).goes_on()

    faults.each(titled("connect:", request), act, FILE)


@pytest.mark.parametrize("command", [Command.ENDPOINT, Command.COMPLETE], ids=lambda one: one.name)
def test_of_a_listen(faults: Faults, world: World, command: Command) -> None:
    def act(call: Call) -> None:
        with world.new() as sock, ExitStack() as opened:
            sock.bind(("127.0.0.1", 0))
            with faulted(world.worker, command, call):
                failed = libc.listen(sock.fileno(), 8) != 0
            if failed:
                # TCP itself could not listen, which the worker has no part in.
                assert command == Command.COMPLETE
                assert ctypes.get_errno() in FILE | PORT
                sock.listen(8)
            client = world.client_of(sock, opened)
            accepted, _ = sock.accept()
            with accepted:
                Pair(accepted, client).goes_on()

    faults.each(f"listen: {command.name}", act, FILE | PORT)


@pytest.mark.parametrize("family", BOTH.values(), ids=BOTH)
def test_accepted(
    faults: Faults, either: World, family: int, request: pytest.FixtureRequest
) -> None:
    with either.listening(family) as listener:

        def act(call: Call) -> None:
            with ExitStack() as opened:
                with faulted(either.worker, Command.ACCEPTED, call):
                    client = either.client_of(listener, opened)
                accepted, _ = listener.accept()
                with accepted:
                    Pair(accepted, client).goes_on()

        faults.each(titled("ACCEPTED", request), act)


def test_end_of_stream(faults: Faults, worker: Worker) -> None:
    world = World(worker, *WORLDS["channel"])
    with world.connected() as pair:
        body = u64(Attribute.SOCKET, get_id(pair.tls)) + u32(Attribute.ERROR, errno.EPROTO)
        end = body + string(Attribute.TEXT, "The peer has gone.")

        def act(call: Call) -> None:
            with faulted(worker, Command.END_OF_STREAM, call):
                assert worker.do(Command.END_OF_STREAM, end).error == 0

        faults.each("END_OF_STREAM", act)
        pair.peer.close()
        with pytest.raises(OSError, match="Protocol error"):
            pair.tls.recv(1)
        assert tls_error(pair.tls) == "The peer has gone."


def owed(answer: Answer) -> int:
    """Return what a worker that leaves is told that it has to wait for."""
    assert answer.error == 0, str(answer)
    found = dict(attributes(answer.replies[0][1]))
    return int(struct.unpack("=I", found[Attribute.PENDING])[0])


def test_leave(faults: Faults, world: World) -> None:
    def act(call: Call) -> None:
        with ExitStack() as opened:
            # The one that stays has this, so that the next goes to the other.
            opened.enter_context(world.listening())
            with Worker() as leaving:
                listener = opened.enter_context(world.listening())
                assert [one["sockets"] for one in workers()] == [1, 1]
                with faulted(leaving, Command.LEAVE, call):
                    assert leaving.do(Command.LEAVE, b"").error == 0
                assert [bool(one["leaving"]) for one in workers()] == [False, True]
                await_condition(
                    "the other has taken over",
                    lambda: owed(leaving.do(Command.LEAVE, b"")) == 0,
                )
                await_condition(
                    "it is counted", lambda: [one["sockets"] for one in workers()] == [2, 0]
                )
            client = world.client_of(listener, opened)
            accepted, _ = listener.accept()
            with accepted:
                Pair(accepted, client).goes_on()

    faults.each("LEAVE", act)


@pytest.mark.parametrize(
    "command",
    [Command.MODULE_GET, Command.WORKER_GET, Command.SOCKET_GET],
    ids=lambda one: one.name,
)
def test_questions(faults: Faults, world: World, command: Command) -> None:
    dump = command != Command.MODULE_GET
    with world.connected(), world.listening():

        def act(call: Call) -> None:
            with Netlink() as netlink:
                netlink.fault = call
                answer = netlink.request(command, dump=dump)
                tell(call, answer.error)
                if not answer.error:
                    assert answer.replies
            # With a socket of its own: netlink keeps a dump for which it has had no memory, and
            # goes on with it when something else is read (netlink_recvmsg() in Linux's source).
            with Netlink() as netlink:
                assert netlink.request(command, dump=dump).replies

        faults.each(command.name, act)
