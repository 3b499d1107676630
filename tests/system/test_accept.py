# SPDX-License-Identifier: BSD-3-Clause
"""accept(), in all the ways that a program may call and await it."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import resource
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from ssad.wire import IPPROTO_TLS, TlsOption
from tests.peers import clients
from tests.peers.clients import Target
from tests.peers.pki import HOST, SITE
from tests.system.daemon import await_condition
from tests.system.program import (
    as_tcp,
    await_child,
    get_id,
    get_number,
    get_text,
    in_child,
    libc,
    receive_exactly,
    refused,
    signal_once_it_waits,
    start_child,
    tls_error,
    waits,
)
from tests.system.server import (
    SOON,
    await_queued,
    check_served,
    echo_all,
    listener_state,
    listening,
    reset,
    served,
    set_identity,
    text_or_none,
)

if TYPE_CHECKING:
    import types
    from collections.abc import Iterator

    from tests.peers.pki import Pki
    from tests.peers.servers import Version
    from tests.system.daemon import Transport
    from tests.system.server import TlsListener

LOOPBACK = "127.0.0.1"


@pytest.fixture
def listener(request: pytest.FixtureRequest, pki: Pki) -> Iterator[TlsListener]:
    """Give a TLS socket that listens, with the daemon that the test wants."""
    request.getfixturevalue("transport" if "transport" in request.fixturenames else "daemon")
    with listening(pki.ecdsa) as made:
        yield made


class Clients:
    """Good clients of one listener."""

    def __init__(self, listener: TlsListener, pki: Pki, stack: ExitStack) -> None:
        self._target = Target(listener.port, pki.root)
        self._trust = clients.context(pki.root)
        self._stack = stack

    def connect(self) -> ssl.SSLSocket:
        """Connect one more; it is closed at the end of the test."""
        return self._stack.enter_context(clients.connect(self._trust, self._target))


@pytest.fixture
def visitors(listener: TlsListener, pki: Pki, stack: ExitStack) -> Clients:
    """Give the clients of the listener."""
    return Clients(listener, pki, stack)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_what_is_accepted_tells_its_facts(
    transport: Transport, listener: TlsListener, pki: Pki, version: Version
) -> None:
    target = Target(listener.port, pki.root)
    with (
        clients.connect(clients.context(pki.root, version), target) as client,
        listener.accept() as accepted,
    ):
        assert accepted.getpeername() == client.getsockname()
        assert accepted.getsockname() == client.getpeername()
        assert accepted.proto == IPPROTO_TLS
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == IPPROTO_TLS
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
        assert get_text(accepted, TlsOption.TLS_TRANSPORT) == transport
        number = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}[version]
        assert get_number(accepted, TlsOption.TLS_VERSION_CONN) == number
        used = client.cipher()
        assert used is not None
        assert get_text(accepted, TlsOption.TLS_CHOSEN_CIPHER) == used[0]
        assert get_number(accepted, TlsOption.TLS_RESUMED_SESSION) == 0
        assert get_text(accepted, TlsOption.TLS_HOSTNAME) == HOST
        assert text_or_none(accepted, TlsOption.TLS_PEER_IDENTITY) == ""
        assert text_or_none(accepted, TlsOption.TLS_ALPN) == ""
        assert get_id(accepted) != get_id(listener.sock)
        assert tls_error(accepted) == ""


class TestTheAddress:
    """What accept() says of the client."""

    def test_it_is_the_clients(self, listener: TlsListener, visitors: Clients) -> None:
        client = visitors.connect()
        listener.await_readable()
        accepted, address = listener.sock.accept()
        accepted.close()
        assert address == client.getsockname()

    def test_it_is_cut_to_the_room_that_there_is(
        self, listener: TlsListener, visitors: Clients
    ) -> None:
        client = visitors.connect()
        listener.await_readable()
        buffer = ctypes.create_string_buffer(b"\xff" * 16, 16)
        room = ctypes.c_uint(4)
        number = libc.accept4(listener.sock.fileno(), buffer, ctypes.byref(room), 0)
        socket.socket(fileno=number).close()
        assert room.value == 16  # what it would take
        port = client.getsockname()[1]
        assert buffer.raw == struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + (
            b"\xff" * 12
        )

    def test_nobody_need_ask_for_it(self, listener: TlsListener, visitors: Clients) -> None:
        visitors.connect()
        listener.await_readable()
        number = libc.accept4(listener.sock.fileno(), None, None, 0)
        socket.socket(fileno=number).close()


class TestFlags:
    """accept4()."""

    @pytest.mark.parametrize(
        "flags",
        [0, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC],
        ids=["none", "nonblock", "cloexec", "both"],
    )
    def test_they_are_for_what_is_accepted(
        self, listener: TlsListener, visitors: Clients, flags: int
    ) -> None:
        visitors.connect()
        listener.await_readable()
        number = libc.accept4(listener.sock.fileno(), None, None, flags)
        assert number >= 0
        try:
            assert os.get_blocking(number) == (not flags & socket.SOCK_NONBLOCK)
            assert os.get_inheritable(number) == (not flags & socket.SOCK_CLOEXEC)
        finally:
            os.close(number)

    def test_unknown_ones_are_refused(self, listener: TlsListener) -> None:
        assert libc.accept4(listener.sock.fileno(), None, None, 1) == -1
        assert ctypes.get_errno() == errno.EINVAL

    def test_not_to_wait_is_not_inherited(self, listener: TlsListener, visitors: Clients) -> None:
        listener.sock.settimeout(0)
        visitors.connect()
        listener.await_readable()
        number = libc.accept4(listener.sock.fileno(), None, None, 0)
        try:
            assert os.get_blocking(number)
        finally:
            os.close(number)


class TestWaiting:
    """When there is nothing to accept."""

    def test_who_does_not_wait_is_told(self, listener: TlsListener) -> None:
        listener.sock.settimeout(0)
        refused(errno.EAGAIN, listener.sock.accept)

    def test_a_receive_timeout_bounds_it(self, listener: TlsListener, visitors: Clients) -> None:
        timeout = struct.pack("=qq", 0, 200_000)
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        start = time.monotonic()
        refused(errno.EAGAIN, listener.sock.accept)
        assert 0.15 < time.monotonic() - start < SOON
        visitors.connect()
        listener.await_readable()
        listener.sock.accept()[0].close()

    @pytest.mark.parametrize("restart", [False, True], ids=["interrupts", "restarts"])
    def test_a_signal(
        self, listener: TlsListener, visitors: Clients, stack: ExitStack, *, restart: bool
    ) -> None:
        def ignore(_number: int, _frame: types.FrameType | None) -> None:
            pass

        before = signal.signal(signal.SIGUSR1, ignore)
        stack.callback(signal.signal, signal.SIGUSR1, before)
        signal.siginterrupt(signal.SIGUSR1, not restart)
        later = signal_once_it_waits(visitors.connect if restart else None)
        # Python's own accept() goes on after a signal.
        number = libc.accept4(listener.sock.fileno(), None, None, 0)
        found = ctypes.get_errno()
        later.join()
        if restart:
            assert number >= 0, errno.errorcode[found]
            os.close(number)
        else:
            assert (number, found) == (-1, errno.EINTR)
            visitors.connect()
            listener.accept().close()

    def test_a_process_that_waits_can_be_killed(self, listener: TlsListener, pki: Pki) -> None:
        child = start_child(listener.sock.accept)
        await_condition("the child waits in the module", lambda: waits(child))
        os.kill(child, signal.SIGKILL)
        assert await_child(child) == -signal.SIGKILL
        check_served(listener, pki.root)


class TestReadiness:
    """poll() and its relatives on a listener."""

    def test_only_a_finished_connection_makes_it_readable(
        self, listener: TlsListener, visitors: Clients
    ) -> None:
        poll = select.poll()
        poll.register(listener.sock, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == []
        with socket.create_connection((LOOPBACK, listener.port)) as silent:
            assert poll.poll(300) == []
            visitors.connect()
            ((_, events),) = poll.poll(60_000)
            assert events & select.POLLIN
            assert not events & (select.POLLOUT | select.POLLERR | select.POLLHUP)
            listener.sock.accept()[0].close()
            assert poll.poll(0) == []
            silent.send(b"garbage")
        assert poll.poll(300) == []

    @pytest.mark.parametrize("edge", [0, select.EPOLLET], ids=["level", "edge"])
    def test_epoll(self, listener: TlsListener, visitors: Clients, edge: int) -> None:
        listener.sock.settimeout(0)
        with select.epoll() as epoll:
            epoll.register(listener.sock, select.EPOLLIN | edge)
            for _ in range(3):
                visitors.connect()
                assert epoll.poll(60) == [(listener.sock.fileno(), select.EPOLLIN)]
                assert (epoll.poll(0) == []) == bool(edge)
                listener.sock.accept()[0].close()
                assert epoll.poll(0) == []

    @pytest.mark.usefixtures("daemon")
    def test_epoll_that_was_there_before_listen(self, pki: Pki) -> None:
        with select.epoll() as epoll:

            def register(sock: socket.socket) -> None:
                set_identity(sock, pki.ecdsa)
                epoll.register(sock, select.EPOLLIN)

            with listening(prepare=register) as listener:
                target = Target(listener.port, pki.root)
                with clients.connect(clients.context(pki.root), target):
                    deadline = time.monotonic() + 60
                    while (listener.sock.fileno(), select.EPOLLIN) not in epoll.poll(1):
                        assert time.monotonic() < deadline
                    listener.sock.accept()[0].close()

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    @pytest.mark.usefixtures("transport")
    def test_an_asyncio_server(self, listener: TlsListener, pki: Pki, loop: str) -> None:

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with suppress(ConnectionError):
                    while data := await reader.read(1000):
                        writer.write(data)
                        await writer.drain()
            finally:  # be it that the server ends first
                writer.close()

        def visit() -> None:
            target = Target(listener.port, pki.root)
            trust = clients.context(pki.root)
            with ExitStack() as stack:
                made = [stack.enter_context(clients.connect(trust, target)) for _ in range(3)]
                for number, client in enumerate(made):
                    client.sendall(b"%d" % number)
                for number, client in enumerate(made):
                    assert client.recv(1) == b"%d" % number

        async def serve() -> None:
            # What asyncio makes of it has no protocol to show.
            sock = as_tcp(listener.sock.dup())
            sock.setblocking(False)  # noqa: FBT003 -- takes no keyword
            async with await asyncio.start_server(echo, sock=sock):
                await asyncio.to_thread(visit)

        if loop == "uvloop":
            uvloop.run(serve())
        else:
            asyncio.run(serve())


class TestManyHands:
    """One listener, many who accept."""

    def test_many_threads_get_one_connection_each(
        self, listener: TlsListener, visitors: Clients
    ) -> None:
        found: list[tuple[str, int]] = []

        def accept() -> None:
            accepted, address = listener.sock.accept()
            accepted.sendall(b"hello")
            accepted.close()
            found.append(address)

        threads = [threading.Thread(target=accept) for _ in range(8)]
        for thread in threads:
            thread.start()
        made = [visitors.connect() for _ in threads]
        for client in made:
            assert client.recv(5) == b"hello"
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert sorted(found) == sorted(client.getsockname() for client in made)

    def test_many_processes_get_one_connection_each(
        self, listener: TlsListener, visitors: Clients
    ) -> None:
        def serve() -> None:
            accepted, _ = listener.sock.accept()
            accepted.sendall(b"%8d" % os.getpid())
            accepted.close()

        children = [start_child(serve) for _ in range(3)]
        made = [visitors.connect() for _ in children]
        assert {int(client.recv(8)) for client in made} == set(children)
        assert [await_child(child) for child in children] == [0, 0, 0]

    def test_a_child_goes_on_alone(self, pki: Pki, listener: TlsListener) -> None:
        def serve() -> None:
            with listener.accept() as accepted:
                echo_all(accepted)

        child = start_child(serve)
        listener.sock.close()
        with clients.connect(clients.context(pki.root), Target(listener.port, pki.root)) as client:
            client.sendall(b"alone")
            assert client.recv(5) == b"alone"
            client.unwrap()
        assert await_child(child) == 0

    def test_another_program_inherits_the_listener(
        self, listener: TlsListener, visitors: Clients
    ) -> None:
        code = (
            "import socket, sys\n"
            "listener = socket.socket(fileno=int(sys.argv[1]))\n"
            "listener.accept()[0].sendall(b'activated')\n"
        )
        client = visitors.connect()
        number = listener.sock.fileno()
        subprocess.run([sys.executable, "-c", code, str(number)], check=True, pass_fds=[number])
        assert client.recv(9) == b"activated"

    @pytest.mark.usefixtures("transport")
    def test_what_is_accepted_outlives_the_listener(
        self, listener: TlsListener, visitors: Clients
    ) -> None:
        client = visitors.connect()
        with listener.accept() as accepted:
            listener.sock.close()
            client.sendall(b"still here")
            assert receive_exactly(accepted, 10) == b"still here"
            accepted.sendall(b"here too")
            assert client.recv(8) == b"here too"

    def test_without_a_free_descriptor_nothing_is_lost(
        self, listener: TlsListener, visitors: Clients
    ) -> None:
        client = visitors.connect()
        listener.await_readable()

        def accept() -> None:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with socket.socket() as probe:
                lowest = probe.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            refused(errno.EMFILE, listener.sock.accept)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            listener.sock.accept()[0].sendall(b"kept")

        assert in_child(accept) == 0
        assert client.recv(4) == b"kept"


class TestTheQueue:
    """Finished connections that nobody has accepted yet."""

    @pytest.mark.usefixtures("transport")
    def test_what_the_client_sent_before_is_there(
        self, listener: TlsListener, visitors: Clients
    ) -> None:
        made = [visitors.connect() for _ in range(3)]
        for number, client in enumerate(made):
            client.sendall(b"%d" % number)
        accepted = [listener.accept() for _ in made]
        by_port = {sock.getpeername()[1]: sock for sock in accepted}
        for number, client in enumerate(made):
            with by_port[client.getsockname()[1]] as sock:
                assert sock.recv(1) == b"%d" % number

    @pytest.mark.usefixtures("transport")
    def test_a_client_that_has_left_already(self, listener: TlsListener, visitors: Clients) -> None:
        client = visitors.connect()
        client.sendall(b"bye")
        listener.await_readable()
        client.settimeout(0)
        with pytest.raises(ssl.SSLWantReadError):
            client.unwrap()  # it does not wait for the answer
        client.close()
        with listener.accept() as accepted:
            assert receive_exactly(accepted, 3) == b"bye"
            assert accepted.recv(1) == b""

    @pytest.mark.usefixtures("transport")
    def test_a_client_that_has_reset_already(self, listener: TlsListener, pki: Pki) -> None:
        client = clients.connect(clients.context(pki.root), Target(listener.port, pki.root))
        listener.await_readable()
        reset(client)
        with listener.accept() as accepted:
            refused(errno.ECONNRESET, lambda: accepted.recv(1))
        check_served(listener, pki.root)

    @pytest.mark.parametrize("backlog", [0, 3])
    @pytest.mark.usefixtures("transport")
    def test_a_full_one_holds_the_next_back_and_loses_none(
        self, pki: Pki, stack: ExitStack, backlog: int
    ) -> None:
        with listening(pki.ecdsa, backlog=backlog) as listener:
            made: list[ssl.SSLSocket] = []
            trust = clients.context(pki.root)
            # One after the other, until one is left waiting.
            while True:
                raw = stack.enter_context(socket.create_connection((LOOPBACK, listener.port)))
                # Those for whom there is room may take their time.
                raw.settimeout(60 if len(made) < max(backlog, 1) else 2)
                try:
                    client = stack.enter_context(
                        trust.wrap_socket(raw, server_hostname=HOST, suppress_ragged_eofs=False)
                    )
                except TimeoutError:
                    break
                made.append(client)
                await_queued(get_id(listener.sock), len(made))
                assert len(made) <= backlog + 1, "the backlog does not hold the daemon back"
            assert len(made) >= max(backlog, 1)
            for client in made:
                client.settimeout(60)
                client.sendall(b"kept")
                with listener.accept() as accepted:
                    assert receive_exactly(accepted, 4) == b"kept"
                    accepted.sendall(b"well")
                    # The one that waited has left in between, or is served too.
                assert client.recv(4) == b"well"
        with listening(pki.ecdsa, backlog=backlog) as again:
            check_served(again, pki.root)

    @pytest.mark.usefixtures("daemon")
    def test_room_lets_those_in_that_waited(self, pki: Pki) -> None:
        # With all of them in TCP's hands before the first one is accepted.
        backlog, count = 2, 5
        with listening(pki.ecdsa, backlog=backlog) as listener:
            answers: list[bytes] = []

            def visit() -> None:
                target = Target(listener.port, pki.root)
                with clients.connect(clients.context(pki.root), target) as client:
                    answers.append(client.recv(5))

            threads = [threading.Thread(target=visit) for _ in range(count)]
            for thread in threads:
                thread.start()
            listener.await_readable()
            state = listener_state(get_id(listener.sock))
            assert state["queued"] <= count
            for _ in range(count):
                with listener.accept() as accepted:
                    accepted.sendall(b"hello")
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
            assert answers == [b"hello"] * count

    @pytest.mark.usefixtures("daemon")
    def test_a_longer_backlog_makes_room(self, pki: Pki) -> None:
        with listening(pki.ecdsa, backlog=0) as listener:
            connected = threading.Semaphore(0)
            stop = threading.Event()

            def visit() -> None:
                target = Target(listener.port, pki.root)
                with clients.connect(clients.context(pki.root), target):
                    connected.release()
                    stop.wait(60)

            threads = [threading.Thread(target=visit) for _ in range(4)]
            for thread in threads:
                thread.start()
            assert connected.acquire(timeout=60)
            listener.sock.listen(16)
            for _ in range(3):
                assert connected.acquire(timeout=60), "a longer backlog should let them in"
            await_queued(get_id(listener.sock), 4)
            stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("transport")
def test_50_clients_at_once_on_both_ends(listener: TlsListener, clients_in_c: Path) -> None:
    command = [str(clients_in_c / "storm"), "5", "10", LOOPBACK, str(listener.port), HOST]
    with served(listener, echo_all):
        run = subprocess.run(command, check=False, capture_output=True)
    assert run.stdout == b"50\n", run.stderr.decode()


@pytest.fixture
def clients_in_c(request: pytest.FixtureRequest) -> Path:
    """Find the C clients; here `clients` is a module."""
    found: Path = request.getfixturevalue("clients")
    return found


@pytest.mark.usefixtures("daemon")
def test_two_listeners_do_not_mix(pki: Pki) -> None:
    with listening(pki.ecdsa) as first, listening(pki.site) as second:
        trust = clients.context(pki.root)
        with (
            clients.connect(trust, Target(second.port, pki.root, name=SITE)),
            clients.connect(trust, Target(first.port, pki.root)),
            second.accept() as of_second,
            first.accept() as of_first,
        ):
            assert get_text(of_second, TlsOption.TLS_HOSTNAME) == SITE
            assert get_text(of_first, TlsOption.TLS_HOSTNAME) == HOST
            assert not first.readable()
            assert not second.readable()
