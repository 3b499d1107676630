# SPDX-License-Identifier: BSD-3-Clause
"""Many connections at once, and one connection in many hands."""

from __future__ import annotations

import collections
import errno
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from ssad.wire import TlsOption
from tests.peers import hostile, tls_peer
from tests.peers.hostile import serving
from tests.peers.pki import HOST
from tests.system.daemon import socket_count
from tests.system.program import (
    await_child,
    connect,
    echo,
    get_id,
    get_text,
    in_child,
    name_of,
    raw_connect,
    receive_exactly,
    refused,
    set_text,
    start_child,
    tls_socket,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server

pytestmark = pytest.mark.usefixtures("transport")

DEADLINE = 60.0


def in_threads(count: int, act: Callable[[int], None]) -> None:
    """Run `act` in `count` threads at the same time; raise what one of them raised."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait()
            act(number)
        except (OSError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.timeout(300)
def test_200_connects_at_once_from_processes_and_threads(
    echo_server: Server, clients: Path
) -> None:
    run = subprocess.run(
        [str(clients / "storm"), "20", "10", echo_server.address, str(echo_server.port), HOST],
        check=False,
        capture_output=True,
    )
    assert run.stdout == b"200\n", run.stderr.decode()


@pytest.mark.timeout(300)
def test_200_connects_that_do_not_wait_from_one_thread(
    echo_server: Server, stack: ExitStack
) -> None:
    sockets = [stack.enter_context(tls_socket()) for _ in range(200)]
    for sock in sockets:
        sock.settimeout(0)
        assert raw_connect(sock, echo_server) == errno.EINPROGRESS
    for number, sock in enumerate(sockets):
        sock.settimeout(150)  # what the daemon has for its handshakes, which all end together
        sock.sendall(number.to_bytes(4, "big"))  # waits for the connection
    for number, sock in enumerate(sockets):
        assert int.from_bytes(receive_exactly(sock, 4), "big") == number
    assert len({get_id(sock) for sock in sockets}) == len(sockets)


def test_bad_peers_do_not_disturb_good_ones(echo_server: Server) -> None:
    def act(number: int) -> None:
        if number % 3 == 0:
            with connect(echo_server) as sock:
                echo(sock, b"good")
        elif number % 3 == 1:
            with tls_socket() as sock:
                refused(errno.EPROTO, lambda: sock.connect((garbage.address, garbage.port)))
        else:
            with tls_socket() as sock:
                sock.settimeout(0)
                raw_connect(sock, silent)

    with (
        serving(hostile.answer(hostile.GARBAGE)) as garbage,
        serving(hostile.silent) as silent,
    ):
        in_threads(30, act)


def test_many_threads_connect_one_socket_once(echo_server: Server) -> None:
    results: list[int] = []
    with tls_socket() as sock:
        in_threads(8, lambda _: results.append(raw_connect(sock, echo_server)))
        counts = collections.Counter(results)
        assert counts == {0: 1, errno.EOPNOTSUPP: 7}, [name_of(result) for result in results]
        echo(sock, b"connected")


def test_many_threads_set_options_of_one_socket(echo_server: Server) -> None:
    def act(number: int) -> None:
        for _ in range(5):
            name = f"host{number}.test"
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            set_text(sock, TlsOption.TLS_HOSTNAME, name)
            assert get_text(sock, TlsOption.TLS_HOSTNAME).startswith("host")

    with tls_socket() as sock:
        in_threads(8, act)
        set_text(sock, TlsOption.TLS_HOSTNAME, HOST)
        sock.connect((echo_server.address, echo_server.port))
        echo(sock, b"well")


def test_many_threads_share_one_connection(echo_server: Server) -> None:
    writers, size, rounds = 8, 1000, 40
    received: collections.Counter[int] = collections.Counter()
    lock = threading.Lock()
    left = writers * size * rounds

    def act(number: int) -> None:
        nonlocal left
        if number < writers:
            for _ in range(rounds):
                sock.sendall(bytes((number,)) * size)
            return
        while True:
            with lock:
                # None asks for what another asks for already: it would wait in vain.
                want = min(size // 2, left)
                left -= want
            if not want:
                return
            data = receive_exactly(sock, want)
            with lock:
                received.update(data)

    with connect(echo_server) as sock:
        in_threads(writers * 2, act)
    assert received == dict.fromkeys(range(writers), size * rounds)


def test_closing_while_others_read(pki: Pki) -> None:
    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        connection.await_close_notify()

    def read(sock: socket.socket) -> None:
        # Nothing, or the reset that TCP answers to what comes after a shutdown, or no socket.
        with suppress(OSError):
            assert sock.recv(1) == b""

    with serving(tls_peer.tls(pki.ecdsa, act)) as peer:
        for _ in range(5):
            sock = connect(peer)
            readers = [threading.Thread(target=read, args=[sock]) for _ in range(4)]
            for reader in readers:
                reader.start()
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            for reader in readers:
                reader.join(DEADLINE)
                assert not reader.is_alive()


def test_a_child_shares_the_connection(echo_server: Server) -> None:
    with connect(echo_server) as sock:
        assert in_child(lambda: echo(sock, b"from the child")) == 0
        echo(sock, b"from the parent, after the child closed it")


def test_a_child_can_go_on_alone(echo_server: Server) -> None:
    ours, theirs = socket.socketpair()

    def go_on() -> None:
        theirs.recv(1)
        echo(sock, b"alone")

    with ours, theirs:
        with connect(echo_server) as sock:
            child = start_child(go_on)
        ours.send(b"closed")
        assert await_child(child) == 0


def test_a_child_can_connect_what_the_parent_made(echo_server: Server) -> None:
    with tls_socket() as sock:
        assert in_child(lambda: sock.connect((echo_server.address, echo_server.port))) == 0
        echo(sock, b"connected by the child")


def test_a_duplicate_is_the_same_socket(echo_server: Server) -> None:
    with connect(echo_server) as sock:
        with sock.dup() as other:
            assert get_id(other) == get_id(sock)
            echo(other, b"through the duplicate")
        echo(sock, b"through the first, after the duplicate was closed")
        assert socket_count() == 1


def test_a_descriptor_can_be_passed_to_another_process(echo_server: Server) -> None:
    ours, theirs = socket.socketpair()

    def use() -> None:
        _data, descriptors, _flags, _address = socket.recv_fds(theirs, 1, 1)
        with socket.socket(fileno=descriptors[0]) as sock:
            echo(sock, b"by another process")

    with ours, theirs:
        with connect(echo_server) as sock:
            socket.send_fds(ours, [b"."], [sock.fileno()])
        # Closed here, but on its way: the connection lives.
        assert socket_count() == 1
        assert in_child(use) == 0


def test_another_program_inherits_it(echo_server: Server) -> None:
    code = (
        "import socket, sys\n"
        "sock = socket.socket(fileno=int(sys.argv[1]))\n"
        "sock.sendall(b'inherited')\n"
        "assert sock.recv(9, socket.MSG_WAITALL) == b'inherited'\n"
    )
    with connect(echo_server) as sock:
        number = str(sock.fileno())
        subprocess.run([sys.executable, "-c", code, number], check=True, pass_fds=[sock.fileno()])
        echo(sock, b"and still ours")
