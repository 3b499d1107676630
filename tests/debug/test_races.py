# SPDX-License-Identifier: BSD-3-Clause
"""Two calls at once, where it matters which comes first. One waits in the middle of the module, at
a place that a debug build has for this, until the other is done: so each race is run, and has the
one outcome that it is to have."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.exits import Exit
from tests.peers import clients, hostile, tls_peer
from tests.peers.clients import Target
from tests.peers.hostile import serving
from tests.system.daemon import await_condition, workers
from tests.system.netns import is_gone, namespace
from tests.system.program import (
    await_child,
    begin,
    connect,
    echo,
    receive_all,
    refused,
    start_child,
    tls_socket,
)
from tests.system.server import DEADLINE, listening
from tests.system.test_daemon_death import Caller
from tests.system.test_listen_stop import STOPS, forget
from tests.system.test_module import load, remove
from tests.system.test_namespaces import canary

if TYPE_CHECKING:
    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.conftest import Peers
    from tests.system.daemon import Daemon

WINDOW = Path("/sys/module/ssa/parameters/window")
LATE = WINDOW.with_name("window_late")
INITSTATE = Path("/sys/module/ssa/initstate")
INSIDE = "ssa_window"

# Seconds for the start of a daemon, and of two at once.
START = 400.0

pytestmark = pytest.mark.timeout(180)


@contextmanager
def window(place: str) -> Iterator[None]:
    """Let calls wait at this place of the module, as long as the context lasts."""
    if not WINDOW.exists():
        pytest.skip("the module is not built for this: SSA_DEBUG=y")
    late = LATE.read_text()
    WINDOW.write_text(place)
    try:
        yield
    finally:
        WINDOW.write_text("none")
    assert LATE.read_text() == late, "a call did not wait for as long as the test raced with it"


def inside() -> list[int]:
    """Return the processes that wait there now."""
    found = []
    for stack in Path("/proc").glob("[0-9]*/stack"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if INSIDE in stack.read_text():
                found.append(int(stack.parent.name))
    return found


def await_inside(*pids: int) -> None:
    """Wait until these processes wait there, and no other."""
    await_condition(f"{pids} are in the window", lambda: sorted(inside()) == sorted(pids))


def await_one_inside() -> None:
    """Wait until a process waits there."""
    await_condition("a process is in the window", lambda: len(inside()) == 1, START)


@contextmanager
def starting(daemon: Daemon) -> Iterator[subprocess.Popen[bytes]]:
    """Start a daemon that has one worker, and end it if the test does not."""
    command = [*daemon.command(), "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def what_it_said(process: subprocess.Popen[bytes]) -> str:
    """Return what a process that has ended wrote to its standard error."""
    assert process.stderr is not None
    return process.stderr.read().decode()


def until_closed(connection: tls_peer.TlsConnection, peer: Peer) -> None:
    """Be a server that tells when its client leaves."""
    hostile.read_until_closed(connection.raw)
    peer.report("left")


class TestAConnectThatSucceeds:
    """The worker has completed it, and the socket does not know yet."""

    def test_and_is_closed(self, daemon: Daemon, peers: Peers) -> None:
        with peers(until_closed) as peer:
            sock = tls_socket()
            with window("completing"):
                begin(sock, peer)
                await_inside(daemon.worker_pid)
                sock.close()
            peer.await_report("left")

    @pytest.mark.parametrize("give_up", [forget, lambda sock: sock.shutdown(socket.SHUT_RDWR)])
    def test_and_is_given_up(
        self, daemon: Daemon, peers: Peers, give_up: Callable[[socket.socket], object]
    ) -> None:
        with peers(until_closed) as peer, tls_socket() as sock:
            with window("completing"):
                begin(sock, peer)
                await_inside(daemon.worker_pid)
                give_up(sock)
            peer.await_report("left")
            refused(errno.ECONNABORTED, lambda: sock.connect((peer.address, peer.port)))
            refused(errno.ENOTCONN, sock.getpeername)

    def test_and_its_worker_is_killed(self, any_daemon: Daemon, echo_server: Server) -> None:
        any_daemon.ensure("ktls")
        with tls_socket() as sock:
            with window("completing"):
                caller = Caller(lambda: sock.connect((echo_server.address, echo_server.port)))
                worker = any_daemon.worker_pid
                await_inside(worker)
                os.kill(worker, signal.SIGKILL)
            caller.ended(0)
            echo(sock, b"needs no worker")
        await_condition(
            "the next worker is there", lambda: bool({*any_daemon.worker_pids} - {worker})
        )

    def test_and_its_program_is_killed(self, daemon: Daemon, peers: Peers) -> None:
        with peers(until_closed) as peer:

            def wait_for_it() -> None:
                with tls_socket() as sock:
                    WINDOW.write_text("completing")
                    sock.connect((peer.address, peer.port))

            with window("none"):
                program = start_child(wait_for_it)
                await_inside(daemon.worker_pid)
                os.kill(program, signal.SIGKILL)
                assert await_child(program) == -signal.SIGKILL
            peer.await_report("left")


@pytest.mark.usefixtures("transport")
class TestShutdown:
    """Against calls that are at the data."""

    @pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
    def test_a_recv_that_has_begun_ends(self, echo_server: Server, how: int) -> None:
        received = []
        with connect(echo_server) as sock:
            with window("receiving"):
                caller = Caller(lambda: received.append(sock.recv(1)))
                caller.await_blocked(INSIDE)
                sock.shutdown(how)
            caller.ended(0)
        assert received == [b""]

    def test_nothing_is_sent_behind_close_notify(self, echo_server: Server) -> None:
        with connect(echo_server) as sock:
            sock.sendall(b"before")
            with window("shutting"):
                caller = Caller(lambda: sock.shutdown(socket.SHUT_WR))
                caller.await_blocked(INSIDE)
                refused(errno.EPIPE, lambda: sock.send(b"behind"))
            caller.ended(0)
            assert receive_all(sock) == b"before"


def test_a_second_shutdown_does_not_overtake_close_notify(
    any_daemon: Daemon, echo_server: Server
) -> None:
    any_daemon.ensure("ktls")
    with connect(echo_server) as sock:
        with window("notifying"):
            first = Caller(lambda: sock.shutdown(socket.SHUT_WR))
            first.await_blocked(INSIDE)
            second = Caller(lambda: sock.shutdown(socket.SHUT_WR))
            second.await_blocked("ssa_transport_shutdown")
        first.ended(0)
        second.ended(0)
        assert receive_all(sock) == b""


class TestAListener:
    """Its end, against the connections that come to it."""

    @pytest.mark.parametrize("stop", [*STOPS, lambda sock: sock.close()])
    def test_ends_before_a_connection_is_in_its_queue(
        self, daemon: Daemon, pki: Pki, stop: Callable[[socket.socket], object]
    ) -> None:
        trust = clients.context(pki.root)
        with (
            listening(pki.ecdsa) as listener,
            window("bringing"),
            # Its side of the handshake is done before the server's is.
            clients.connect(trust, Target(listener.port, pki.root)) as client,
        ):
            await_inside(daemon.worker_pid)
            stop(listener.sock)
            WINDOW.write_text("none")
            with suppress(ConnectionError, ssl.SSLError):
                assert client.recv(1) == b""

    @pytest.mark.parametrize("stop", STOPS)
    def test_ends_and_what_accept_has_taken_lives(
        self, daemon: Daemon, pki: Pki, stop: Callable[[socket.socket], object]
    ) -> None:
        taken = []
        trust = clients.context(pki.root)
        assert daemon.worker_pid
        with (
            listening(pki.ecdsa) as listener,
            clients.connect(trust, Target(listener.port, pki.root)) as client,
        ):
            listener.await_readable()
            with window("accepting"):
                caller = Caller(lambda: taken.append(listener.sock.accept()[0]))
                caller.await_blocked(INSIDE)
                stop(listener.sock)
            caller.ended(0)
            with taken[0] as server:
                server.sendall(b"mine")
                assert client.recv(4) == b"mine"

    def test_loses_its_worker_and_what_accept_has_taken_lives(
        self, any_daemon: Daemon, pki: Pki
    ) -> None:
        any_daemon.ensure("ktls")
        taken = []
        trust = clients.context(pki.root)
        with (
            listening(pki.ecdsa) as listener,
            clients.connect(trust, Target(listener.port, pki.root)) as client,
        ):
            listener.await_readable()
            with window("accepting"):
                caller = Caller(lambda: taken.append(listener.sock.accept()[0]))
                caller.await_blocked(INSIDE)
                any_daemon.kill()
            caller.ended(0)
            with taken[0] as server:
                server.sendall(b"mine")
                assert client.recv(4) == b"mine"


@pytest.mark.usefixtures("daemon")
class TestANetworkNamespace:
    """It ends with the last process in it, or with the last socket."""

    def test_whose_only_process_is_killed_in_socket(self) -> None:
        with namespace() as here:
            canary(here, "race0")

            def open_there() -> None:
                with here.entered(), tls_socket():
                    pass

            with window("opening"):
                program = start_child(open_there)
                await_inside(program)
                here.delete()
                os.kill(program, signal.SIGKILL)
                assert not is_gone("race0")
            assert await_child(program) == -signal.SIGKILL
            await_condition("the namespace is gone", lambda: is_gone("race0"))

    def test_whose_only_process_is_killed_while_its_connect_is_completed(
        self, daemon: Daemon, pki: Pki
    ) -> None:
        with namespace() as here:
            canary(here, "race1")

            def connect_there() -> None:
                script = tls_peer.tls(pki.ecdsa, until_closed)
                with here.entered(), serving(script) as peer, tls_socket() as sock:
                    WINDOW.write_text("completing")
                    sock.connect((peer.address, peer.port))

            with window("none"):
                program = start_child(connect_there)
                await_inside(daemon.worker_pid)
                here.delete()
                os.kill(program, signal.SIGKILL)
                assert await_child(program) == -signal.SIGKILL
                assert not is_gone("race1")
            await_condition("the namespace is gone", lambda: is_gone("race1"))

    def test_whose_socket_a_forked_process_goes_on_with(self, daemon: Daemon, pki: Pki) -> None:
        def answer(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send(connection.receive(4))
            connection.await_close_notify()

        with namespace() as here:
            canary(here, "race2")
            with ExitStack() as opened:
                with here.entered():
                    peer = opened.enter_context(serving(tls_peer.tls(pki.ecdsa, answer)))
                    sock = opened.enter_context(tls_socket())

                def use() -> None:
                    assert select.select([], [sock], [], DEADLINE)[1]
                    sock.settimeout(DEADLINE)
                    echo(sock, b"mine")

                with window("completing"):
                    begin(sock, peer)
                    await_inside(daemon.worker_pid)
                    program = start_child(use)
                    sock.close()
                    here.delete()
                assert await_child(program) == 0
            await_condition("the namespace is gone", lambda: is_gone("race2"))


class TestRemovingTheModule:
    """It does not go before the last that runs in it."""

    def test_while_the_last_socket_is_closed(self, any_daemon: Daemon) -> None:
        any_daemon.ensure()
        sock = tls_socket()
        any_daemon.stop()
        with window("closing"):
            caller = Caller(sock.close)
            caller.await_blocked(INSIDE)
            assert not remove()
        caller.ended(0)
        assert remove()
        load()

    def test_while_the_last_worker_leaves(self, any_daemon: Daemon) -> None:
        any_daemon.ensure()
        worker = any_daemon.worker_pid
        with any_daemon.ending() as daemon:
            with window("leaving"):
                daemon.send_signal(signal.SIGTERM)
                await_inside(worker)
                assert not workers()
                assert not remove()
            assert daemon.wait(DEADLINE) == Exit.DONE
        assert remove()
        load()

    @pytest.mark.long
    def test_while_a_worker_wants_to_be_registered(self, any_daemon: Daemon) -> None:
        any_daemon.stop()
        with ExitStack() as started:
            with window("registering"):
                daemon = started.enter_context(starting(any_daemon))
                await_one_inside()
                removal = started.enter_context(subprocess.Popen(["rmmod", "ssa"]))
                await_condition("it is being removed", lambda: "going" in INITSTATE.read_text())
            assert daemon.wait(DEADLINE) == Exit.FAILED
            assert "No such device" in what_it_said(daemon)
            assert removal.wait(DEADLINE) == 0
        load()


class TestTwoDaemons:
    """One is the daemon, and the other says so."""

    @pytest.mark.long
    def test_started_at_once(self, any_daemon: Daemon) -> None:
        any_daemon.stop()
        with ExitStack() as started:
            with window("registering"):
                two = [started.enter_context(starting(any_daemon)) for _ in range(2)]
                await_condition("both register", lambda: len(inside()) == len(two), START)
            await_condition("one gives up", lambda: any(each.poll() is not None for each in two))
            (winner,) = [each for each in two if each.poll() is None]
            (loser,) = [each for each in two if each is not winner]
            assert loser.returncode == Exit.RUNNING_ALREADY
            assert f"pid {winner.pid}" in what_it_said(loser)
            assert [worker["daemon"] for worker in workers()] == [winner.pid]
            tls_socket().close()
            winner.terminate()
            assert winner.wait(DEADLINE) == Exit.DONE
