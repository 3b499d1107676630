# SPDX-License-Identifier: BSD-3-Clause
"""ssad restart: a new program in the place of the one that runs, and no call fails."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Self

import pytest
from click.testing import CliRunner, Result

from ssad import reloads
from ssad.cli import main
from ssad.exits import Exit
from ssad.wire import TlsOption
from tests.peers import clients, hostile
from tests.peers.clients import Target
from tests.peers.hostile import serving
from tests.peers.pki import HOST
from tests.peers.tls_peer import TlsConnection
from tests.system.daemon import await_condition, workers
from tests.system.program import (
    connect,
    echo,
    get_number,
    receive_exactly,
    refused,
    set_number,
    tls_error,
    tls_socket,
)
from tests.system.server import (
    DEADLINE,
    Measured,
    check_served,
    echo_all,
    listening,
    served,
    tcp_connections,
    worker_pids,
)
from tests.system.test_cli import ROOT, SSAD
from tests.system.test_server_restarts import Load, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.daemon import Daemon, Transport

__all__ = ["measured"]

# Two programs are loaded, one after the other, on a guest that is slow.
pytestmark = pytest.mark.timeout(400)

TLS_1_3 = 0x0304


def command(*arguments: str) -> Result:
    """Run a command in this process, for to start Python takes seconds here."""
    return CliRunner().invoke(main, arguments)


def leaving() -> set[int]:
    """Return the process ids of the workers that leave."""
    return {worker["pid"] for worker in workers() if worker["leaving"]}


class Restarts:
    """The daemon under test, and a policy file that it was started with."""

    def __init__(self, daemon: Daemon, path: Path) -> None:
        self._daemon = daemon
        self.path = path
        self.write("")

    def write(self, text: str) -> None:
        """Write the whole policy file."""
        self.path.write_text(text)
        self.path.chmod(0o644)

    def start(self, transport: Transport = "ktls", count: int = 1) -> None:
        """Have a daemon run with so many workers."""
        # What is under way waits until two programs are loaded.
        options = ("--handshake-timeout", "290", "--config", str(self.path))
        self._daemon.ensure(transport, *options, worker_count=count)

    def __call__(self) -> set[int]:
        """Restart; return the old workers' process ids."""
        main, old, left = self._daemon.pid, set(worker_pids()), leaving()
        run = command("restart")
        assert run.exit_code == Exit.DONE, run.output
        assert self._daemon.pid == main
        assert {worker["daemon"] for worker in workers()} == {main}
        new = {worker["pid"] for worker in workers() if not worker["leaving"]} - old
        assert len(new) == len(old - left)
        return old

    @staticmethod
    def await_left(old: set[int]) -> None:
        """Wait until the old workers have ended."""
        await_condition("the old workers have left", lambda: not old & set(worker_pids()))


@pytest.fixture
def restart(any_daemon: Daemon, directory: Path) -> Iterator[Restarts]:
    """Give the daemon; it is another one after the test."""
    yield Restarts(any_daemon, directory / "restart.toml")
    any_daemon.stop()


class Outgoing:
    """Programs that connect again and again, and programs that stay connected, in threads."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self.connected = 0
        self.settled = 0
        self.exchanges = 0
        self.failed: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=[self._come]) for _ in range(3)]
        self._threads += [threading.Thread(target=self._run, args=[self._stay]) for _ in range(2)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        await_condition("the load is on", lambda: self.connected > 5 and self.settled == 2)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in self._threads), "a call hangs"

    def _run(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, AssertionError) as error:
            self.failed.append(error)

    def _come(self) -> None:
        while not self._stop.is_set():
            with tls_socket() as sock:
                # Known to one worker; the next one may have to be told of it.
                set_number(sock, TlsOption.TLS_VERSION_MIN, TLS_1_3)
                sock.bind(("127.0.0.1", 0))
                assert get_number(sock, TlsOption.TLS_VERSION_MIN) == TLS_1_3
                sock.connect((self._server.address, self._server.port))
                echo(sock, b"load")
            self.connected += 1
            self._stop.wait(0.05)  # so that the rest of the guest gets its turn

    def _stay(self) -> None:
        with connect(self._server) as sock:
            echo(sock, b"there?")
            self.settled += 1
            while not self._stop.wait(0.05):
                echo(sock, b"still there?" * 1000)
                self.exchanges += 1


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("carried", ["ktls", "channel"])
def test_no_connection_fails_under_load(
    restart: Restarts,
    pki: Pki,
    echo_server: Server,
    measured: Measured,
    carried: Transport,
    count: int,
) -> None:
    restart.start(carried, count)
    with listening(pki.ecdsa) as listener, served(listener, echo_all):
        with Load(listener, pki) as incoming, Outgoing(echo_server) as outgoing:
            start = time.monotonic()
            old = restart()
            took = time.monotonic() - start
            seen = len(incoming.times), outgoing.connected, incoming.exchanges, outgoing.exchanges
            await_condition(
                "the load goes on",
                lambda: (
                    len(incoming.times) > seen[0] + 5
                    and outgoing.connected > seen[1] + 5
                    and incoming.exchanges > seen[2] + 5
                    and outgoing.exchanges > seen[3] + 5
                ),
            )
            gap = max(
                later - sooner
                for sooner, later in zip(incoming.times, incoming.times[1:], strict=False)
            )
        assert outgoing.failed == []
        assert incoming.noticed == []
        assert incoming.broken == 0
    restart.await_left(old)
    measured(
        f"a restart under load, {carried}, {count} workers",
        f"{took:.0f} s; {len(incoming.times)} clients came and {outgoing.connected} connects were "
        f"made, none failed; longest time without a client that was served: {gap:.2f} s",
    )


class TestWhatIsThere:
    """What exists when the workers change."""

    def test_sockets_go_on_in_every_state(
        self, restart: Restarts, pki: Pki, echo_server: Server
    ) -> None:
        restart.start()
        with (
            listening(pki.ecdsa) as listener,
            connect(echo_server) as connected,
            tls_socket() as new,
            serving(hostile.silent) as silent,
            tls_socket() as connecting,
        ):
            set_number(new, TlsOption.TLS_VERSION_MIN, TLS_1_3)
            connecting.settimeout(0)
            refused(errno.EINPROGRESS, lambda: connecting.connect((silent.address, silent.port)))
            silent.await_report("hello")
            made = tcp_connections(listener.port, 3)
            check_served(listener, pki.root)  # they are in the worker's hands, in order
            old = restart()
            # It has not finished: the old worker is still at it.
            await_condition("the old worker is leaving", lambda: leaving() == old)
            # Handshakes that the old worker has begun, and new ones.
            trust = clients.context(pki.root)
            for raw in made:
                raw.settimeout(DEADLINE)
                with (
                    trust.wrap_socket(raw, server_hostname=HOST) as client,
                    listener.accept() as accepted,
                ):
                    assert accepted.getpeername() == client.getsockname()
                    accepted.sendall(b"served")
                    assert client.recv(6) == b"served"
            check_served(listener, pki.root)
            echo(connected, b"untouched")
            assert get_number(new, TlsOption.TLS_VERSION_MIN) == TLS_1_3
            new.connect((echo_server.address, echo_server.port))
            echo(new, b"well")
            assert leaving() == old
            connecting.close()
            restart.await_left(old)
        check = json.loads(command("status", "--json").output)
        assert [worker["leaving"] for worker in check["workers"]] == [False]

    def test_a_connect_under_way_succeeds(self, restart: Restarts, pki: Pki) -> None:
        def script(raw: socket.socket, peer: Peer) -> None:
            connection = TlsConnection(raw, pki.ecdsa, "TLSv1.2")
            last = connection.handshake(stop_before_flight=1)
            peer.report("half way")
            assert peer.go_on.wait(DEADLINE * 5)
            raw.sendall(last)
            connection.send(b"well")
            connection.await_close_notify()

        restart.start()
        with serving(script) as peer, tls_socket() as sock:
            caller = threading.Thread(target=sock.connect, args=[(peer.address, peer.port)])
            caller.start()
            peer.await_report("half way")
            old = restart()
            peer.go_on.set()
            caller.join(DEADLINE)
            assert receive_exactly(sock, 4) == b"well"
            restart.await_left(old)

    def test_channels_are_relayed_until_they_end(
        self, restart: Restarts, pki: Pki, echo_server: Server
    ) -> None:
        restart.start("channel")
        with listening(pki.ecdsa) as listener:
            trust = clients.context(pki.root)
            with (
                connect(echo_server) as sock,
                clients.connect(trust, Target(listener.port, pki.root)) as client,
                listener.accept() as accepted,
            ):
                old = restart()
                echo(sock, b"after" * 10000)
                client.sendall(b"question")
                assert receive_exactly(accepted, 8) == b"question"
                assert leaving() == old
                second = restart()
                assert old < second
                echo(sock, b"after the second one")
                assert leaving() >= old
            restart.await_left(second)
            check_served(listener, pki.root)

    def test_channels_end_when_the_policy_gives_them_no_more_time(
        self, restart: Restarts, echo_server: Server
    ) -> None:
        restart.start("channel")
        restart.write("[deadlines]\nleave = 1\n")
        with connect(echo_server) as sock:
            old = restart()
            refused(errno.ECONNRESET, lambda: sock.recv(1))
            assert "stopped" in tls_error(sock)
            restart.await_left(old)


class TestRefused:
    """What stops a restart, and leaves all as it was."""

    def test_a_faulty_policy(self, restart: Restarts, echo_server: Server) -> None:
        restart.start()
        before = worker_pids()
        restart.write("[tls]\nversion_min = 1.3\n")
        run = command("restart")
        assert run.exit_code == Exit.FAILED
        fault = "tls.version_min: wanted a string, found the float 1.3"
        assert run.output.splitlines() == [
            "ssad: The old workers go on.",
            "The policy can't be used.",
            f'{restart.path}:2: {fault}; allowed: "1.2", "1.3".',
        ]
        assert worker_pids() == before
        with connect(echo_server) as sock:
            echo(sock, b"well")
        restart.write("")
        restart.await_left(restart())

    def test_a_second_restart_meanwhile(self, restart: Restarts, any_daemon: Daemon) -> None:
        restart.start()
        old = set(worker_pids())
        with subprocess.Popen([*SSAD, "restart"], cwd=ROOT) as first:

            def is_restarting() -> bool:
                told = reloads.read(any_daemon.pid)
                return told is not None and told.restarting

            await_condition("the first one has begun", is_restarting)
            run = command("restart")
            assert run.exit_code == Exit.RUNNING_ALREADY
            assert "under way already" in run.output
            assert first.wait(DEADLINE * 5) == Exit.DONE
        restart.await_left(old)

    @pytest.mark.usefixtures("no_daemon")
    def test_no_daemon(self) -> None:
        assert command("restart").exit_code == Exit.NOT_RUNNING
