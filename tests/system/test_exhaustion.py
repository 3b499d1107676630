# SPDX-License-Identifier: BSD-3-Clause
"""What runs out, or stands still: descriptors, memory, room in a queue, the disk, a daemon that is
stopped, a resolver that is slow, a clock that jumps. Calls end, what can go on does, and all is
well afterwards."""

from __future__ import annotations

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
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.peers import clients, hostile, servers
from tests.peers.clients import Target
from tests.peers.hostile import serving
from tests.peers.pki import HOST
from tests.system.daemon import PARAMETERS, Daemon, await_condition, socket_count, written
from tests.system.hostname import connect_to, host_socket
from tests.system.program import (
    NOBODY,
    begin,
    connect,
    echo,
    in_child,
    libc,
    name_of,
    refused,
    so_error,
    tls_error,
    tls_socket,
)
from tests.system.server import DEADLINE, SOON, check_served, listening
from tests.system.test_client_sessions import visit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.peers.pki import Pki
    from tests.peers.servers import Server, Version

pytestmark = pytest.mark.long

# Longer than the module waits for an answer, on a guest that is slow.
REQUEST_TIMEOUT = 10
BOUNDED = REQUEST_TIMEOUT + SOON

# Of a control group: room for a process, and for some sockets.
CGROUP_MEMORY = 16 << 20


@pytest.fixture
def daemon(any_daemon: Daemon) -> Iterator[Daemon]:
    """Have a daemon run that hands connections to the kernel. What a test has done to it goes with
    it."""
    any_daemon.ensure("ktls")
    yield any_daemon
    any_daemon.thaw()
    any_daemon.stop()


class Calls:
    """Calls in threads of their own: 0 or the errno of each, in the order in which they ended."""

    def __init__(self, count: int, call: Callable[[int], object]) -> None:
        self.results: list[int] = []
        self._call = call
        self._threads = [threading.Thread(target=self._run, args=[i]) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        try:
            self._call(number)
        except OSError as error:
            self.results.append(error.errno or -1)
        else:
            self.results.append(0)

    def ended(self, within: float) -> list[int]:
        """Check that all end in time, in seconds."""
        end = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
            assert not thread.is_alive(), "a call hangs"
        return self.results


def for_ever(call: Callable[[], object]) -> None:
    """Call again and again, until it fails."""
    while True:
        call()


class TestDescriptors:
    """There are no more file descriptors."""

    @contextmanager
    def limited(self, daemon: Daemon) -> Iterator[None]:
        """Let the worker open no more."""
        pid = daemon.worker_pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        lowest = min(set(range(len(used) + 1)) - used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    def test_of_the_daemon_for_connects(self, daemon: Daemon, echo_server: Server) -> None:
        with connect(echo_server) as before:
            with self.limited(daemon):
                with tls_socket() as sock:
                    refused(
                        errno.ECANCELED,
                        lambda: sock.connect((echo_server.address, echo_server.port)),
                    )
                    assert "ssad" in tls_error(sock)
                echo(before, b"goes on")
            with connect(echo_server) as sock:
                echo(sock, b"well")

    def test_of_the_daemon_for_clients(self, daemon: Daemon, pki: Pki) -> None:
        start = len(daemon.said())
        with listening(pki.ecdsa) as listener:
            with self.limited(daemon):
                waiting = socket.create_connection((listener.address, listener.port))
                await_condition(
                    "it says that it has none",
                    lambda: "accepted for a moment" in daemon.said()[start:],
                )
                assert not listener.readable()
            waiting.close()
            check_served(listener, pki.root)

    def test_of_the_program(self, daemon: Daemon) -> None:
        assert daemon.worker_pid

        def use_up() -> None:
            with socket.socket() as probe:
                lowest = probe.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 20, lowest + 20))
            made: list[socket.socket] = []
            refused(errno.EMFILE, lambda: for_ever(lambda: made.append(tls_socket(host=None))))
            assert len(made) == 20
            assert socket_count_of(made) == 20

        assert in_child(use_up) == 0
        await_condition("no socket is left", lambda: socket_count() == 0)


def socket_count_of(made: list[socket.socket]) -> int:
    """Count the sockets, with one descriptor less for asking."""
    made.pop().close()
    return socket_count() + 1


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Make a control group that has little memory (cgroups(7), version 2)."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", root], check=True)
    (root / "cgroup.subtree_control").write_text("+memory")
    made = root / "little"
    made.mkdir()
    (made / "memory.max").write_text(str(CGROUP_MEMORY))
    try:
        yield made
    finally:
        # What a test that failed has left there.
        for pid in (made / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                (root / "cgroup.procs").write_text(pid)
        made.rmdir()


class TestMemory:
    """There is no more memory, for the worker or for a program."""

    def test_of_a_control_group(self, daemon: Daemon, cgroup: Path, echo_server: Server) -> None:
        # A socket costs more than 4 KiB, so it can't have as many.
        most = CGROUP_MEMORY >> 12
        assert daemon.worker_pid

        def use_up() -> None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (most + 20, most + 20))
            made = [tls_socket(host=None) for _ in range(most)]
            raise AssertionError(f"it has {len(made)} sockets")

        with connect(echo_server) as held:
            assert in_child(use_up) == -signal.SIGKILL
            assert "oom_kill 1\n" in (cgroup / "memory.events").read_text()
            echo(held, b"goes on")
        await_condition("no socket is left", lambda: socket_count() == 0)
        with connect(echo_server) as sock:
            echo(sock, b"well")

    def test_of_the_worker(self, daemon: Daemon, cgroup: Path, echo_server: Server) -> None:
        worker = daemon.worker_pid
        with connect(echo_server) as held, ExitStack() as opened:
            waiting = [opened.enter_context(tls_socket()) for _ in range(20)]
            daemon.freeze()
            for sock in waiting:
                begin(sock, echo_server)
            # What it has stays its own, and it gets no more.
            (cgroup / "memory.max").write_text("0")
            (cgroup / "cgroup.procs").write_text(str(worker))
            daemon.thaw()
            failed = 0
            for sock in waiting:
                assert select.select([], [sock], [], DEADLINE)[1], "the connect does not end"
                if error := so_error(sock):
                    assert error == errno.ECANCELED, name_of(error)
                    assert tls_error(sock).endswith(".")
                    failed += 1
            assert failed, "it had memory for all of them"
            assert "oom_kill 1\n" in (cgroup / "memory.events").read_text()
            echo(held, b"goes on")
        await_condition("another is there", lambda: bool({*daemon.worker_pids} - {worker}))
        with connect(echo_server) as sock:
            echo(sock, b"well")


def netlink_of(pid: int) -> socket.socket:
    """Return a descriptor of our own of a worker's netlink socket (pidfd_getfd(2))."""
    end = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if not str(entry.readlink()).startswith("socket:"):
                continue
            number = libc.syscall(438, end, int(entry.name), 0)
            assert number >= 0, os.strerror(ctypes.get_errno())
            found = socket.socket(fileno=number)
            if found.family == socket.AF_NETLINK:
                return found
            found.close()
    finally:
        os.close(end)
    raise AssertionError("the worker has no netlink socket")


class TestNetlinkBuffer:
    """A worker that does not read, and has room for a few messages only."""

    @pytest.fixture
    def cramped(self, daemon: Daemon) -> Daemon:
        """Have a worker with a receive buffer for some twenty requests."""
        with netlink_of(daemon.worker_pid) as netlink:
            netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        return daemon

    def test_no_close_is_lost(self, cramped: Daemon, pki: Pki) -> None:
        with ExitStack() as opened:
            for _ in range(50):
                opened.enter_context(listening(pki.ecdsa))
            held = len(cramped.descriptors())
            cramped.freeze()
            begun = time.monotonic()
        assert time.monotonic() - begun < SOON, "a close waited for the daemon"
        assert socket_count() == 0
        cramped.thaw()
        # It closes the endpoint of each of them.
        await_condition(
            "it has heard of each close", lambda: len(cramped.descriptors()) <= held - 50, 30
        )

    def test_calls_are_answered_or_end(self, cramped: Daemon, echo_server: Server) -> None:
        cramped.freeze()
        flood = Calls(100, lambda _: tls_socket(host=None).close())
        results = flood.ended(within=BOUNDED)
        assert {name_of(one) for one in results} <= {"ECANCELED", "ENOBUFS"}
        assert socket_count() == 0
        cramped.thaw()
        with connect(echo_server) as sock:
            echo(sock, b"well")

    def test_calls_that_wait_for_room_get_it(self, cramped: Daemon, echo_server: Server) -> None:
        # Room is what they wait for here, however long that takes.
        with written(PARAMETERS / "request_timeout_ms", 150_000):
            cramped.freeze()
            flood = Calls(100, lambda _: connect(echo_server).close())
            await_condition("they are under way", lambda: socket_count() == 100)
            cramped.thaw()
            assert flood.ended(within=120) == [0] * 100

    def test_no_accepted_connection_is_lost(self, cramped: Daemon, pki: Pki) -> None:
        trust = clients.context(pki.root)
        with listening(pki.ecdsa) as listener, ExitStack() as opened:
            target = Target(listener.port, pki.root)
            met: list[socket.socket] = []

            def visit_it(_: int) -> None:
                client = clients.connect(trust, target)
                met.append(client)
                client.sendall(b"kept")

            cramped.freeze()
            visitors = Calls(20, visit_it)
            thrown = Calls(20, lambda _: tls_socket(host=None).close())
            cramped.thaw()
            assert visitors.ended(within=120) == [0] * 20
            thrown.ended(within=60)
            for client in met:
                opened.enter_context(client)
            for _ in met:
                accepted = opened.enter_context(listener.accept())
                assert accepted.recv(4, socket.MSG_WAITALL) == b"kept"


@pytest.mark.timeout(300)
def test_a_daemon_that_is_stopped_for_a_minute(
    daemon: Daemon, echo_server: Server, pki: Pki
) -> None:
    trust = clients.context(pki.root)
    with (
        connect(echo_server) as connected,
        tls_socket() as waiting,
        tls_socket() as asked,
        listening(pki.ecdsa) as listener,
    ):
        daemon.freeze()
        end = time.monotonic() + 60
        begin(waiting, echo_server)
        begun = time.monotonic()
        for call in (
            lambda: tls_socket(host=None),
            lambda: asked.bind(("127.0.0.1", 0)),
        ):
            refused(errno.ECANCELED, call)
        assert time.monotonic() - begun < 2 * BOUNDED
        while time.monotonic() < end:
            echo(connected, b"goes on")
            assert not select.select([], [waiting], [], 1)[1], "nobody can have connected it"
        # TCP lets it in.
        target = Target(listener.port, pki.root)
        met: list[ssl.SSLSocket] = []
        client = Calls(1, lambda _: met.append(clients.connect(trust, target)))
        daemon.thaw()
        assert select.select([], [waiting], [], SOON)[1], "the connect does not end"
        assert so_error(waiting) == 0
        waiting.settimeout(None)
        echo(waiting, b"well")
        # The handshake needs no accept(). A client that left at once might be gone before its end.
        assert client.ended(within=120) == [0]
        listener.accept().close()
        met.pop().close()


class Resolver:
    """A name server on the loopback device that answers for names that begin with `slow` only
    when it is told to. Every name has the address 127.0.0.1."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: set[bytes] = set()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._held: list[tuple[bytes, tuple[str, int]]] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._sock.bind(("127.0.0.1", 53))
        self._sock.settimeout(0.1)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        self._thread.join()

    def _run(self) -> None:
        while self._sock.fileno() >= 0:
            if self.go_on.is_set():
                for query, sender in self._held:
                    self._sock.sendto(answer(query), sender)
                self._held.clear()
            try:
                query, sender = self._sock.recvfrom(512)
            except TimeoutError:
                continue
            except OSError:
                return  # the context has ended
            name = query[13 : 13 + query[12]]
            self.asked.add(name)
            if name.startswith(b"slow") and not self.go_on.is_set():
                self._held.append((query, sender))
            else:
                self._sock.sendto(answer(query), sender)


def answer(query: bytes) -> bytes:
    """Answer a question of one name: 127.0.0.1 (RFC 1035, 4.1)."""
    end = query.index(b"\0", 12) + 5
    (kind,) = struct.unpack_from("!H", query, end - 4)
    found = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton("127.0.0.1")
    count = int(kind == 1)
    head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, count, 0, 0)
    return head + query[12:end] + found * count


@contextmanager
def name_server() -> Iterator[Resolver]:
    """Have the machine ask a name server of ours."""
    configured = Path("/etc/resolv.conf")
    before = configured.read_bytes()
    with Resolver() as resolver:
        configured.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:1\n")
        try:
            yield resolver
        finally:
            configured.write_bytes(before)


def test_a_slow_name_server_keeps_nobody_else_waiting(
    any_daemon: Daemon, echo_server: Server, directory: Path
) -> None:
    patient = directory / "patient.toml"
    patient.write_text("[hosts]\nresolve_timeout = 100\n")
    any_daemon.ensure("ktls", "--config", str(patient))

    def visit_slowly(number: int) -> None:
        with host_socket() as sock:
            connect_to(sock, f"slow{number}.test", echo_server.port)

    def be_many() -> None:
        # The certificate is not for these names: that tells that each was resolved.
        results = Calls(12, visit_slowly).ended(within=100)
        assert results == [errno.EPROTO] * 12, [name_of(one) for one in results]

    with name_server() as resolver:
        others = Calls(1, lambda _: exit_well(in_child(be_many, user=NOBODY)))
        await_condition("a user takes all that he can have", lambda: len(resolver.asked) == 8)
        with host_socket() as sock:
            connect_to(sock, HOST, echo_server.port)
            echo(sock, b"another user's name")
        with connect(echo_server) as sock:
            echo(sock, b"an address")
        assert len(resolver.asked) == 9
        resolver.go_on.set()
        assert others.ended(within=100) == [0]


def exit_well(status: int) -> None:
    """Raise OSError if a child did not end well."""
    if status:
        raise OSError(status, "the child failed")


def test_a_full_disk_for_its_log(any_daemon: Daemon, pki: Pki, echo_server: Server) -> None:
    any_daemon.stop()
    place = Path("/run/full")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "full", place], check=True)
    own = Daemon(pki.root, place / "daemon.log")
    try:
        own.ensure("ktls")
        with (place / "filler").open("wb", 0) as filler:
            refused(errno.ENOSPC, lambda: for_ever(lambda: filler.write(bytes(1000))))
        length = len(own.said())
        for _ in range(50):
            with serving(hostile.close_after_hello) as peer, tls_socket() as sock:
                refused(errno.ECONNABORTED, lambda: sock.connect((peer.address, peer.port)))
            if len(own.said()) == length:
                break  # what it had to say found no room
            length = len(own.said())
        else:
            raise AssertionError("the disk is not full")
        with connect(echo_server) as sock:
            echo(sock, b"well")
        with listening(pki.ecdsa) as listener:
            check_served(listener, pki.root)
        (place / "filler").unlink()
        with serving(hostile.close_after_hello) as peer, tls_socket() as sock:
            refused(errno.ECONNABORTED, lambda: sock.connect((peer.address, peer.port)))
        assert len(own.said()) > length, "it logs again"
    finally:
        own.stop()
        subprocess.run(["umount", place], check=True)
        place.rmdir()


YEAR = 366 * 86400


@contextmanager
def clock_set(seconds: float) -> Iterator[None]:
    """Have the clock of the machine jump, and back."""

    def jump(by: float) -> None:
        time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME) + by)

    jump(seconds)
    try:
        yield
    finally:
        jump(-seconds)


class TestClock:
    """The clock jumps, which certificates are judged by, and no deadline is."""

    @pytest.mark.parametrize(
        ("by", "words"), [(YEAR, "expired"), (-YEAR, "not valid before")], ids=["forward", "back"]
    )
    def test_by_a_year(
        self, daemon: Daemon, echo_server: Server, pki: Pki, by: float, words: str
    ) -> None:
        assert daemon.worker_pid
        with (
            connect(echo_server) as connected,
            listening(pki.ecdsa) as listener,
            serving(hostile.silent) as peer,
            tls_socket() as waiting,
        ):
            begin(waiting, peer)
            peer.await_report("hello")
            with clock_set(by):
                echo(connected, b"goes on")
                with tls_socket() as sock:
                    refused(
                        errno.EPROTO,
                        lambda: sock.connect((echo_server.address, echo_server.port)),
                    )
                    assert words in tls_error(sock)
                assert not select.select([], [waiting], [], 1)[1], "its deadline is not over"
            assert not select.select([], [waiting], [], 1)[1], "its deadline is not over"
            with connect(echo_server) as sock:
                echo(sock, b"well")
            check_served(listener, pki.root)

    @pytest.mark.parametrize("version", servers.VERSIONS)
    def test_no_session_outlives_its_certificate(
        self, daemon: Daemon, pki: Pki, logs: Path, version: Version
    ) -> None:
        assert daemon.worker_pid
        offer = servers.Offer(version, "AES-128-GCM")
        with servers.openssl(pki.ecdsa, logs, "-www", offer=offer) as server:
            assert [visit(server), visit(server)] == [False, True]
            for by in (YEAR, -YEAR):
                with clock_set(by):
                    refused(errno.EPROTO, lambda: visit(server))
            assert [visit(server), visit(server)] == [False, True]
