# SPDX-License-Identifier: BSD-3-Clause
"""A daemon with several workers: sockets are spread over them, and one's death is its own."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.system.daemon import await_condition, workers
from tests.system.program import connect, echo, refused, tls_socket

if TYPE_CHECKING:
    import socket

    from tests.peers.servers import Server
    from tests.system.daemon import Daemon


@pytest.fixture
def two(any_daemon: Daemon) -> Daemon:
    """Have a daemon run that has two workers and relays connections."""
    any_daemon.ensure("channel", worker_count=2)
    return any_daemon


def await_replacement(daemon: Daemon, dead: int) -> None:
    """Wait until another worker has taken the place of one that died."""
    await_condition(
        "two workers are registered",
        lambda: len(daemon.worker_pids) == 2 and dead not in daemon.worker_pids,
    )


@pytest.mark.usefixtures("two")
def test_sockets_are_spread_over_the_workers() -> None:
    with tls_socket(), tls_socket(), tls_socket(), tls_socket():
        assert [worker["sockets"] for worker in workers()] == [2, 2]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_is_replaced(
    two: Daemon, echo_server: Server, number: signal.Signals
) -> None:
    main = two.pid
    worker = two.worker_pids[0]
    os.kill(worker, number)
    await_replacement(two, worker)
    assert two.pid == main
    with connect(echo_server) as one, connect(echo_server) as other:
        echo(one, b"well")
        echo(other, b"well")


def test_the_connections_of_other_workers_go_on(two: Daemon, echo_server: Server) -> None:
    with connect(echo_server) as one, connect(echo_server) as other:
        echo(one, b"before")
        echo(other, b"before")
        # Which of them it served is for the module to choose.
        dead = two.worker_pids[0]
        two.kill_worker(dead)
        ended = [sock for sock in (one, other) if not goes_on(sock)]
        assert len(ended) == 1
        refused(errno.EPIPE, lambda: ended[0].send(b"after"))
        await_replacement(two, dead)


def goes_on(sock: socket.socket) -> bool:
    """Tell whether a connection still echoes."""
    try:
        echo(sock, b"after")
    except (ConnectionResetError, BrokenPipeError):
        return False
    return True


def test_a_socket_whose_worker_died_goes_on_with_another(two: Daemon, echo_server: Server) -> None:
    with tls_socket() as sock:
        (dead,) = [worker["pid"] for worker in workers() if worker["sockets"]]
        two.kill_worker(dead)
        sock.connect((echo_server.address, echo_server.port))
        echo(sock, b"well")
        await_replacement(two, dead)


def test_all_workers_die_with_the_main_process(two: Daemon) -> None:
    with two.ending() as main:
        main.kill()
        main.wait()
        await_condition("no worker is left", lambda: not workers(), deadline=20)
