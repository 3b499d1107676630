# SPDX-License-Identifier: BSD-3-Clause
"""io_uring(7) drives TLS sockets: what it gives for them is what the calls give."""

from __future__ import annotations

import errno
import select
import socket
import ssl
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import pytest

from tests.peers import hostile
from tests.peers.clients import Target, context
from tests.peers.clients import connect as visit_from
from tests.peers.hostile import serving
from tests.system.program import address_of, receive_exactly, tls_socket
from tests.system.server import listening

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.program import Listener

# What a time limit is numbered (uring.c).
LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Completion:
    """What became of a request."""

    number: int
    result: int
    more: bool
    text: str


class Ring:
    """A process with an io_uring (tests/peers/uring.c) that has the same sockets."""

    def __init__(self, built: Path, *given: socket.socket, sqpoll: bool = False) -> None:
        self._process = subprocess.Popen(
            [built / "uring", *(["sqpoll"] if sqpoll else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=[sock.fileno() for sock in given],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # With whatever is under way.
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def submit(self, line: str) -> None:
        """Submit a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def ask(self, line: str) -> str:
        """Have something done and return the answer."""
        self.submit(line)
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def wait(self) -> Completion:
        """Wait for a completion."""
        number, result, more, *text = self.ask("wait").rstrip("\n").split(" ", 3)
        return Completion(int(number), int(result), more == "1", "".join(text))

    def wait_for(self, number: int) -> Completion:
        """Wait for the completion of one request, which must be the next."""
        completion = self.wait()
        assert completion.number == number, f"wanted number {number}: {completion}"
        return completion

    def do(self, line: str) -> int:
        """Submit a request, wait for it, and return its result."""
        self.submit(line)
        return self.wait_for(int(line.lstrip("!%").split()[1])).result

    def wait_for_both(self, *numbers: int) -> list[int]:
        """Wait for the completions of requests in any order; return the results in this one."""
        results = {}
        for _ in numbers:
            completion = self.wait()
            results[completion.number] = completion.result
        return [results[number] for number in numbers]


def connecting(number: int, sock: socket.socket, server: Listener) -> str:
    """Return the request to connect."""
    return f"connect {number} {sock.fileno()} {address_of(server).hex()}"


@pytest.mark.parametrize("sqpoll", [False, True], ids=["plain", "sqpoll"])
@pytest.mark.usefixtures("transport")
def test_a_client(echo_server: Server, clients: Path, *, sqpoll: bool) -> None:
    with tls_socket() as sock, Ring(clients, sock, sqpoll=sqpoll) as ring:
        fd = sock.fileno()
        assert ring.do(connecting(1, sock, echo_server)) == 0
        assert ring.do(f"send 2 {fd} data") == 4
        assert ring.do(f"poll 3 {fd} {select.POLLIN}") & select.POLLIN
        ring.submit(f"recv 4 {fd} 8")  # comes in two parts
        ring.submit(f"sendmsg 5 {fd} more")
        results = ring.wait_for_both(4, 5)
        assert results == [8, 4]

        # In a thread of io_uring's.
        ring.submit(f"!recvmsg 6 {fd} 5")
        ring.submit(f"!send 7 {fd} again")
        assert ring.wait_for_both(6, 7) == [5, 5]

        # What waits can be given up, and the connection is as it was.
        ring.submit(f"recv 8 {fd} 1")
        ring.submit("cancel 9 8")
        assert ring.wait_for_both(8, 9) == [-errno.ECANCELED, 0]
        ring.submit(f"@50 recv 10 {fd} 1")
        assert ring.wait_for_both(10, LIMIT) == [-errno.ECANCELED, -errno.ETIME]

        # No copy would have to be told of when it is done.
        ring.submit(f"sendzc 11 {fd} data")
        told = ring.wait_for(11)
        assert told.result == -errno.EOPNOTSUPP
        if told.more:  # that the memory is not in use comes apart
            ring.wait_for(11)

        assert ring.ask(f"register {fd}") == "0\n"
        assert ring.do("%send 12 0 file") == 4
        ring.submit("%recv 13 0 4")
        assert ring.wait_for(13).text == "file"

        ring.submit(f"poll 14 {fd} {select.POLLIN} multi")
        assert ring.do(f"send 15 {fd} x") == 1
        told = ring.wait_for(14)
        assert told.more
        assert told.result & select.POLLIN
        assert receive_exactly(sock, 1) == b"x"
        ring.submit("cancel 16 14")
        assert ring.wait_for_both(14, 16) == [-errno.ECANCELED, 0]

        ring.submit(f"recvmany 17 {fd}")
        for piece in ("one", "two", "three"):
            sock.send(piece.encode())
            told = ring.wait_for(17)
            assert (told.text, told.more) == (piece, True)
        sock.shutdown(socket.SHUT_WR)
        told = ring.wait_for(17)
        assert (told.result, told.more) == (0, False)


@pytest.mark.usefixtures("daemon")
def test_a_connect_that_fails_fails(clients: Path) -> None:
    with ExitStack() as opened:
        socks = [opened.enter_context(tls_socket()) for _ in range(8)]
        ring = opened.enter_context(Ring(clients, *socks))
        garbage = opened.enter_context(serving(hostile.answer(hostile.GARBAGE)))
        leaves = opened.enter_context(serving(hostile.close_after_hello))
        silent = opened.enter_context(serving(hostile.silent))
        with serving(hostile.silent) as nobody:
            pass
        for i, how in enumerate(("", "!")):
            garbled, left, refused = socks[3 * i : 3 * i + 3]
            assert ring.do(how + connecting(1, garbled, garbage)) == -errno.EPROTO
            assert ring.do(how + connecting(2, left, leaves)) == -errno.ECONNABORTED
            assert ring.do(how + connecting(3, refused, nobody)) == -errno.ECONNREFUSED
            assert ring.do(f"send 4 {left.fileno()} data") < 0

            hung = socks[6 + i]
            ring.submit(how + connecting(5, hung, silent))
            silent.await_report("hello")
            ring.submit("cancel 6 5")
            given_up, cancelled = ring.wait_for_both(5, 6)
            assert given_up in (-errno.ECANCELED, -errno.EINTR)
            assert cancelled in (0, -errno.EALREADY)  # the latter if a thread had to be told


def test_a_server(pki: Pki, transport: str, clients: Path) -> None:
    assert transport
    trust = context(pki.root)

    def visit(opened: ExitStack, port: int) -> ssl.SSLSocket:
        return opened.enter_context(visit_from(trust, Target(port, pki.root)))

    with (
        listening(pki.ecdsa) as listener,
        Ring(clients, listener.sock) as ring,
        ExitStack() as opened,
    ):
        fd = listener.sock.fileno()
        ring.submit(f"accept 1 {fd}")
        client = visit(opened, listener.port)
        accepted = ring.wait_for(1).result
        assert accepted > 0
        assert ring.do(f"send 2 {accepted} hello") == 5
        assert client.recv(5) == b"hello"
        ring.submit(f"recv 3 {accepted} 5")
        client.sendall(b"world")
        assert ring.wait_for(3).text == "world"
        assert ring.ask(f"close {accepted}") == "0\n"
        assert client.recv(1) == b""

        ring.submit(f"accept 4 {fd}")
        ring.submit("cancel 5 4")
        assert ring.wait_for_both(4, 5) == [-errno.ECANCELED, 0]

        ring.submit(f"accept 6 {fd} multi")
        for number in (7, 8):
            client = visit(opened, listener.port)
            told = ring.wait_for(6)
            assert told.more
            ring.submit(f"!recv {number} {told.result} 4")
            client.sendall(b"data")
            assert ring.wait_for(number).text == "data"

        # The listener stops, and so does the accepting.
        listener.sock.shutdown(socket.SHUT_RDWR)
        told = ring.wait_for(6)
        assert (told.result, told.more) == (-errno.EINVAL, False)


@pytest.mark.usefixtures("transport")
def test_its_end_leaves_nothing_behind(pki: Pki, echo_server: Server, clients: Path) -> None:
    with (
        listening(pki.ecdsa) as listener,
        serving(hostile.silent) as silent,
        tls_socket() as connected,
        tls_socket() as hung,
        Ring(clients, listener.sock, connected, hung) as ring,
    ):
        assert ring.do(connecting(1, connected, echo_server)) == 0
        ring.submit(connecting(2, hung, silent))
        ring.submit(f"recv 3 {connected.fileno()} 1")
        ring.submit(f"!recv 4 {connected.fileno()} 1")
        ring.submit(f"poll 5 {connected.fileno()} {select.POLLIN} multi")
        ring.submit(f"accept 6 {listener.sock.fileno()} multi")
        silent.await_report("hello")
    # The fixture nothing_is_left looks at what there is now.
