# SPDX-License-Identifier: BSD-3-Clause
"""Workers and daemons come and go, listeners stay: no client that TCP had let in is lost, and who
is connected over kernel TLS notices nothing."""

from __future__ import annotations

import errno
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from ssad.wire import EventKind, TlsOption
from tests.peers import clients
from tests.peers.clients import Target
from tests.peers.pki import CLIENT, HOST, SITE
from tests.system.daemon import await_condition, workers
from tests.system.program import (
    get_id,
    get_text,
    receive_exactly,
    refused,
    set_number,
    set_text,
)
from tests.system.server import (
    DEADLINE,
    SOON,
    Events,
    Measured,
    await_queued,
    await_workers,
    check_served,
    close_all,
    echo_all,
    listeners,
    listening,
    served,
    tcp_connections,
    worker_pids,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.pki import Pki
    from tests.system.daemon import Daemon, Transport
    from tests.system.server import TlsListener

LOOPBACK = "127.0.0.1"


class Workers:
    """The workers of the daemon under test, which one kills."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._count = 0

    def start(self, count: int, transport: Transport = "ktls") -> None:
        """Have a daemon run with so many workers."""
        self._daemon.ensure(transport, worker_count=count)
        await_workers(count)
        self._count = count

    @staticmethod
    def of_listener() -> int:
        """Wait until one worker has a socket; return its process id."""
        found: list[int] = []

        def one_has() -> bool:
            found[:] = [worker["pid"] for worker in workers() if worker["sockets"]]
            return len(found) == 1

        await_condition("one worker has a socket", one_has)
        return found[0]

    @staticmethod
    def kill(*pids: int) -> None:
        """Kill workers, and wait until the module knows."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await_condition("they are gone", lambda: not set(pids) & set(worker_pids()))

    @staticmethod
    def freeze(*pids: int) -> None:
        """Stop workers with SIGSTOP: from then on they do nothing."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            stat = Path(f"/proc/{pid}/stat")
            await_condition(
                "it is stopped",
                lambda stat=stat: stat.read_text().rpartition(")")[2].split()[0] == "T",  # type: ignore[misc]
            )

    def await_all(self) -> None:
        """Wait until there are as many as at the start."""
        await_workers(self._count)


@pytest.fixture
def staff(any_daemon: Daemon) -> Iterator[Workers]:
    """Give the workers; the daemon is another one after the test, since its workers are."""
    yield Workers(any_daemon)
    any_daemon.stop()


@pytest.fixture
def measured(
    capsys: pytest.CaptureFixture[str], record_testsuite_property: Callable[[str, object], None]
) -> Measured:
    """Print and record what is measured."""
    return Measured(capsys, record_testsuite_property)


class TestOneDies:
    """A worker is killed; another one, or its successor, serves the listener."""

    @pytest.mark.parametrize("count", [1, 2])
    def test_the_listener_is_served_again(
        self, staff: Workers, pki: Pki, measured: Measured, count: int
    ) -> None:
        staff.start(count)
        with listening(pki.ecdsa) as listener:
            check_served(listener, pki.root)
            gaps = []
            for _ in range(2):
                start = time.monotonic()
                staff.kill(staff.of_listener())
                check_served(listener, pki.root)
                gaps.append(time.monotonic() - start)
                staff.await_all()
        measured(
            f"from the death of a worker to a client that was served, {count} workers",
            ", ".join(f"{gap:.2f} s" for gap in gaps),
        )

    @pytest.mark.parametrize("count", [1, 2])
    def test_what_tcp_had_let_in_is_not_lost(
        self, staff: Workers, pki: Pki, stack: ExitStack, count: int
    ) -> None:
        staff.start(count)
        with listening(pki.ecdsa, backlog=64) as listener:
            check_served(listener, pki.root)
            pid = staff.of_listener()
            staff.freeze(pid)
            made = [stack.enter_context(raw) for raw in tcp_connections(listener.port, 20)]
            staff.kill(pid)
            check_all_served(listener, pki, made, stack)

    def test_settings_are_kept(self, staff: Workers, pki: Pki) -> None:
        def prepare(sock: socket.socket) -> None:
            set_text(sock, TlsOption.TLS_ALPN, "h2,http/1.1")
            set_number(sock, TlsOption.TLS_REQUEST_PEER_AUTH, 2)
            set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, str(pki.root))
            set_number(sock, TlsOption.TLS_VERSION_MIN, 0x0304)

        staff.start(1)
        trust = clients.context(pki.root, identity=pki.client, alpn=["http/1.1"])
        with listening(pki.ecdsa, pki.site, prepare=prepare) as listener:
            staff.kill(staff.of_listener())
            for name in (SITE, HOST):
                target = Target(listener.port, pki.root, name=name)
                with clients.connect(trust, target), listener.accept() as accepted:
                    assert get_text(accepted, TlsOption.TLS_HOSTNAME) == name
                    assert get_text(accepted, TlsOption.TLS_ALPN) == "http/1.1"
                    assert get_text(accepted, TlsOption.TLS_PEER_IDENTITY) == f"CN={CLIENT}"
            with pytest.raises(ssl.SSLError):  # noqa: SIM117 -- as the handshake or the read fails
                with clients.connect(
                    clients.context(pki.root), Target(listener.port, pki.root)
                ) as client:
                    client.recv(1)
            staff.await_all()

    def test_handshakes_under_way_end_at_once(self, staff: Workers, pki: Pki) -> None:
        staff.start(1)
        with listening(pki.ecdsa) as listener:
            made = tcp_connections(listener.port, 5)
            try:
                # It is theirs when it has taken them off TCP's queue: it does so in order.
                check_served(listener, pki.root)
                staff.kill(staff.of_listener())
                for raw in made:
                    raw.settimeout(SOON)
                    with suppress(ConnectionResetError):
                        assert raw.recv(1) == b""
            finally:
                close_all(made)
            check_served(listener, pki.root)
            staff.await_all()

    @pytest.mark.parametrize("transport", ["ktls", "channel"])
    def test_connections(self, staff: Workers, pki: Pki, transport: Transport) -> None:
        staff.start(1, transport)
        trust = clients.context(pki.root)
        with listening(pki.ecdsa) as listener:
            target = Target(listener.port, pki.root)
            with (
                clients.connect(trust, target) as first,
                listener.accept() as accepted,
                clients.connect(trust, target) as second,
            ):
                await_queued(get_id(listener.sock), 1)  # nobody has accepted the second one
                staff.kill(*worker_pids())
                with listener.accept() as queued:
                    if transport == "ktls":
                        for client, sock in ((first, accepted), (second, queued)):
                            client.sendall(b"question")
                            assert receive_exactly(sock, 8) == b"question"
                            sock.sendall(b"answer")
                            assert client.recv(6) == b"answer"
                    else:
                        refused(errno.ECONNRESET, lambda: accepted.recv(1))
                        refused(errno.ECONNRESET, lambda: queued.recv(1))
            check_served(listener, pki.root)
            staff.await_all()

    def test_a_full_queue_stays_full_and_is_not_forgotten(
        self, staff: Workers, pki: Pki, stack: ExitStack
    ) -> None:
        staff.start(1)
        trust = clients.context(pki.root)
        with listening(pki.ecdsa, backlog=1) as listener:
            target = Target(listener.port, pki.root)
            made = [stack.enter_context(clients.connect(trust, target)) for _ in range(2)]
            await_queued(get_id(listener.sock), 2)
            staff.kill(*worker_pids())
            staff.await_all()

            def come() -> None:
                with clients.connect(trust, target) as client:
                    assert client.recv(1) == b""

            late = threading.Thread(target=come)
            late.start()
            ports = set()
            for _ in range(3):
                with listener.accept() as accepted:
                    ports.add(accepted.getpeername()[1])
            late.join()
            assert {client.getsockname()[1] for client in made} < ports


def check_all_served(
    listener: TlsListener, pki: Pki, made: list[socket.socket], stack: ExitStack
) -> None:
    """Do the handshake over TCP connections that exist, and check that each is accepted."""
    trust = clients.context(pki.root)
    ports = set()
    for raw in made:
        raw.settimeout(DEADLINE)
        ports.add(raw.getsockname()[1])
        client = stack.enter_context(trust.wrap_socket(raw, server_hostname=HOST))
        with listener.accept() as accepted:
            assert accepted.getpeername() == client.getsockname()
            accepted.sendall(b"served")
            assert client.recv(6) == b"served"
    assert len(ports) == len(made)


class TestNone:
    """There is no daemon at all for a while."""

    @pytest.mark.parametrize("end", ["stopped", "killed"])
    def test_accept_waits_for_the_next_one(
        self, any_daemon: Daemon, pki: Pki, stack: ExitStack, end: str
    ) -> None:
        any_daemon.ensure("ktls")
        with listening(pki.ecdsa) as listener:
            check_served(listener, pki.root)
            any_daemon.stop() if end == "stopped" else any_daemon.kill()
            await_workers(0)
            assert [entry["socket"] for entry in listeners()] == [get_id(listener.sock)]
            listener.sock.settimeout(0)
            refused(errno.EAGAIN, listener.sock.accept)
            listener.sock.settimeout(None)
            accepted: list[socket.socket] = []
            acceptor = threading.Thread(target=lambda: accepted.append(listener.sock.accept()[0]))
            acceptor.start()
            raw = stack.enter_context(socket.create_connection((LOOPBACK, listener.port), DEADLINE))
            any_daemon.ensure("ktls")
            with clients.context(pki.root).wrap_socket(raw, server_hostname=HOST) as client:
                acceptor.join(DEADLINE)
                assert not acceptor.is_alive()
                with accepted[0]:
                    accepted[0].sendall(b"served")
                    assert client.recv(6) == b"served"

    def test_it_can_be_closed(self, any_daemon: Daemon, pki: Pki) -> None:
        any_daemon.ensure("ktls")
        with listening(pki.ecdsa) as listener:
            raw = socket.create_connection((LOOPBACK, listener.port), DEADLINE)
            any_daemon.kill()
        with raw, suppress(ConnectionResetError):
            assert raw.recv(1) == b""
        address = (LOOPBACK, listener.port)
        refused(errno.ECONNREFUSED, lambda: socket.create_connection(address, DEADLINE))

    def test_the_next_one_may_use_the_other_transport(self, any_daemon: Daemon, pki: Pki) -> None:
        any_daemon.ensure("ktls")
        with listening(pki.ecdsa) as listener:
            any_daemon.ensure("channel")
            trust = clients.context(pki.root)
            with (
                clients.connect(trust, Target(listener.port, pki.root)),
                listener.accept() as accepted,
            ):
                assert get_text(accepted, TlsOption.TLS_TRANSPORT) == "channel"


class TestManyWorkers:
    """ssad start --workers."""

    def test_listeners_are_spread(self, staff: Workers, pki: Pki, stack: ExitStack) -> None:
        staff.start(4)
        made = [stack.enter_context(listening(pki.ecdsa)) for _ in range(8)]
        before = {worker["pid"]: worker["sockets"] for worker in workers()}
        assert sum(before.values()) == 8
        assert all(before.values()), before
        victim = next(iter(before))
        staff.kill(victim)
        for listener in made:
            check_served(listener, pki.root)
        await_condition(
            "all have a worker", lambda: sum(worker["sockets"] for worker in workers()) == 8
        )
        staff.await_all()
        assert victim not in worker_pids()

    def test_all_die_at_once(self, staff: Workers, pki: Pki, stack: ExitStack) -> None:
        staff.start(4)
        made = [stack.enter_context(listening(pki.ecdsa)) for _ in range(4)]
        staff.kill(*worker_pids())
        for listener in made:
            check_served(listener, pki.root)
        staff.await_all()


class Load:
    """Clients that come, and clients that stay, in threads."""

    def __init__(self, listener: TlsListener, pki: Pki) -> None:
        self._target = Target(listener.port, pki.root)
        self._trust = clients.context(pki.root)
        self._stop = threading.Event()
        self.times: list[float] = []  # when a client that came had been served
        self.broken = 0  # clients that came while a worker died
        self.settled = 0  # those who stay, once they are served
        self.exchanges = 0  # of theirs
        self.noticed: list[BaseException] = []
        self._threads = [threading.Thread(target=self._stay) for _ in range(2)]
        self._threads += [threading.Thread(target=self._come) for _ in range(3)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        await_condition(
            "the load is on", lambda: len(self.times) > 5 and self.settled == 2, DEADLINE
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _stay(self) -> None:
        try:
            with clients.connect(self._trust, self._target) as client:
                client.sendall(b"there?")
                assert client.recv(6) == b"there?"
                self.settled += 1
                while not self._stop.wait(0.01):
                    client.sendall(b"still there?")
                    assert client.recv(12) == b"still there?"
                    self.exchanges += 1
        except (OSError, AssertionError) as error:
            self.noticed.append(error)

    def _come(self) -> None:
        while not self._stop.is_set():
            try:
                with clients.connect(self._trust, self._target) as client:
                    client.sendall(b"load")
                    assert client.recv(4) == b"load"
            except OSError:  # cut off in the middle of its handshake
                self.broken += 1
                time.sleep(0.01)
            else:
                self.times.append(time.monotonic())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [1, 4])
def test_workers_are_killed_under_load(
    staff: Workers, pki: Pki, measured: Measured, count: int
) -> None:
    staff.start(count)
    gaps = []
    with listening(pki.ecdsa) as listener, served(listener, echo_all):
        with Load(listener, pki) as load:
            for _ in range(3):
                staff.kill(staff_of(listener))
                killed = time.monotonic()
                await_condition(
                    "it is served again",
                    lambda killed=killed: load.times[-1] > killed + 0.05,  # type: ignore[misc]
                )
                gaps.append(next(at for at in load.times if at > killed) - killed)
                staff.await_all()
            before = load.exchanges
            await_condition("those who stay go on", lambda: load.exchanges > before + 5)
        assert load.noticed == []
        # Each death cuts off no more than those whose handshake was under way.
        assert load.broken <= 3 * 3
    measured(
        f"gap after a worker's death under load, {count} workers",
        ", ".join(f"{gap * 1000:.0f} ms" for gap in gaps)
        + f"; {load.broken} of {len(load.times)} clients were cut off",
    )


def staff_of(listener: TlsListener) -> int:
    """Return a worker that has sockets: over kernel TLS these are listeners only."""
    assert listeners()[0]["socket"] == get_id(listener.sock)
    return Workers.of_listener()


@pytest.mark.timeout(300)
def test_the_whole_daemon_is_killed_under_load(
    any_daemon: Daemon, pki: Pki, measured: Measured
) -> None:
    any_daemon.ensure("ktls")
    with listening(pki.ecdsa) as listener, served(listener, echo_all):
        with Load(listener, pki) as load:
            killed = time.monotonic()
            any_daemon.kill()
            any_daemon.ensure("ktls")
            started = time.monotonic()
            await_condition("it is served again", lambda: load.times[-1] > started)
            first = next(at for at in load.times if at > started)
            before = load.exchanges
            await_condition("those who stay go on", lambda: load.exchanges > before + 5)
        assert load.noticed == []
    measured(
        "the daemon killed and started again under load",
        f"{started - killed:.1f} s without one, served {(first - started) * 1000:.0f} ms later",
    )


class TestClosing:
    """close() of a listener, whatever goes on."""

    def test_with_handshakes_under_way_and_a_full_queue(
        self, transport: Transport, pki: Pki, stack: ExitStack
    ) -> None:
        assert transport
        trust = clients.context(pki.root)
        with Events() as events, listening(pki.ecdsa, backlog=3) as listener:
            target = Target(listener.port, pki.root)
            silent = [stack.enter_context(raw) for raw in tcp_connections(listener.port, 3)]
            queued = [stack.enter_context(clients.connect(trust, target)) for _ in range(4)]
            await_queued(get_id(listener.sock), 4)
            waiting = stack.enter_context(
                socket.create_connection((LOOPBACK, listener.port), DEADLINE)
            )
            start = time.monotonic()
            listener.sock.close()
            assert time.monotonic() - start < SOON
            for raw in [*silent, waiting]:
                raw.settimeout(SOON)
                with suppress(ConnectionResetError):
                    assert raw.recv(1) == b""
            for client in queued:
                client.settimeout(SOON)
                # Nobody has seen them: the end may be one without close_notify.
                with suppress(ConnectionError, ssl.SSLError):
                    assert client.recv(1) == b""
            events.wait_for(EventKind.CLOSED)
        address = (LOOPBACK, listener.port)
        refused(errno.ECONNREFUSED, lambda: socket.create_connection(address, DEADLINE))

    @pytest.mark.usefixtures("daemon")
    def test_again_and_again_under_load(self, pki: Pki) -> None:
        stop = threading.Event()

        def visit() -> None:
            trust = clients.context(pki.root)
            while not stop.is_set():
                with (
                    suppress(OSError),
                    clients.connect(trust, Target(port, pki.root)) as client,
                ):
                    client.recv(1)

        with listening(pki.ecdsa) as first:
            port = first.port
        visitors = [threading.Thread(target=visit) for _ in range(4)]
        for visitor in visitors:
            visitor.start()
        try:
            for _ in range(5):
                with listening(pki.ecdsa, port=port, prepare=reuse) as listener:
                    listener.await_readable()
                    listener.sock.accept()[0].close()
        finally:
            stop.set()
            for visitor in visitors:
                visitor.join(DEADLINE)
        assert not any(visitor.is_alive() for visitor in visitors)

    def test_while_the_worker_is_frozen(self, any_daemon: Daemon, pki: Pki) -> None:
        any_daemon.ensure("ktls")
        with listening(pki.ecdsa) as listener:
            check_served(listener, pki.root)
            pids = worker_pids()
            Workers.freeze(*pids)
            made = tcp_connections(listener.port, 3)
            start = time.monotonic()
            listener.sock.close()
            assert time.monotonic() - start < SOON, "close() should not wait for it"
            address = (LOOPBACK, listener.port)
            refused(errno.ECONNREFUSED, lambda: socket.create_connection(address, DEADLINE))
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for raw in made:
            raw.settimeout(DEADLINE)
            with raw, suppress(ConnectionResetError):
                assert raw.recv(1) == b""
        with listening(pki.ecdsa) as listener:
            check_served(listener, pki.root)


def reuse(sock: socket.socket) -> None:
    """Take a port that has just been used."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
