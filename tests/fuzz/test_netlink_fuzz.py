# SPDX-License-Identifier: BSD-3-Clause
"""Whatever is sent to the netlink family: each message has its answer, none that is forbidden or
another's is taken, and the connections of programs go on.

FUZZ_MESSAGES is how many each test sends.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.wire import Attribute, Command, TlsOption
from tests.fuzz.fake import Program, Workers, zoo
from tests.fuzz.kcov import Kcov, share
from tests.fuzz.netlink import WORKERS_OWN, Mutator, Targets, Verdict, Volley
from tests.fuzz.seeds import seed_of_run
from tests.peers import hostile
from tests.peers.hostile import serving
from tests.system.daemon import PARAMETERS, written
from tests.system.hostname import host_address, host_socket
from tests.system.netlink import Raw, u32
from tests.system.program import (
    NOBODY,
    Address,
    await_child,
    connect,
    echo,
    get_bytes,
    get_id,
    libc,
    raw_connect,
    set_text,
    so_error,
    start_child,
    tls_socket,
)
from tests.system.server import SOON, check_served, listening

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.daemon import Daemon, Transport
    from tests.system.server import Measured

# Both tests of the second kind together send as many again.
MESSAGES = int(os.environ.get("FUZZ_MESSAGES", "60000"))

# In one datagram.
VOLLEY = 25

RMEM_MAX = Path("/proc/sys/net/core/rmem_max")

pytestmark = pytest.mark.timeout(1800)


class Game:
    """Workers and a program, both of which a test plays, and messages in between."""

    def __init__(self, stack: ExitStack, seed: int) -> None:
        self.workers = stack.enter_context(Workers())
        self.program = Program()
        stack.callback(self.program.end)
        stack.callback(self._close_all)
        self.zoo = stack.enter_context(zoo(self.workers.senders))
        self.server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.server.settimeout(SOON)
        self.mutator = Mutator(seed, leaves=False)
        self.random = random.Random(seed)  # noqa: S311 -- is to be repeated
        # Sockets of the program that connect, or are connected by what was sent.
        self.connecting: list[socket.socket] = []
        # Listening ones, and their endpoints.
        self.listening: list[tuple[socket.socket, socket.socket]] = []
        self.plain: list[socket.socket] = []  # TCP connections that come of both
        self.scenes: tuple[Callable[[], None], ...] = (
            self.make,
            self.set_option,
            self.get_option,
            self.connect,
            self.connect_host,
            self.listen,
            self.visit,
            self.close_one,
            self.use,
            self.finish,
        )

    @property
    def sent(self) -> int:
        """How many messages there were."""
        return sum(volley.count for volley in self.workers.senders)

    def _close_all(self) -> None:
        for one in (*self.connecting, *self.plain, *sum(self.listening, ())):
            one.close()

    def shoot(self) -> None:
        """Send a few datagrams, as anybody."""
        for _ in range(self.random.randrange(1, 4)):
            sender = self.random.choice((*self.workers.workers, *self.workers.senders))
            with ExitStack() as stack:
                pair = [stack.enter_context(one) for one in socket.socketpair()]
                own = (*self.connecting, *self.plain, *pair, *pair)
                targets = self.workers.targets([*self.zoo, *(one.fileno() for one in own)])
                volley = [self.mutator.message(targets) for _ in range(VOLLEY)]
                self.workers.fire(sender, volley)
        if self.random.random() < 0.1:
            message = self.mutator.message(Targets())
            wrong = self.random.choice((0, 1, 15, 17 + len(message.body), 1 << 31, 0xFFFFFFFF))
            self.workers.others[0].lie(message, wrong)
        self.workers.drop_received()

    def call(
        self, call: Callable[[], object], *, quiet: bool = False
    ) -> tuple[object, socket.socket | None]:
        """Let the program make a call, and shoot while it waits, unless `quiet`.

        Returns what the call did, and the endpoint of a listen.
        """
        endpoint = None
        error = 0
        self.program.start(call)
        while (asked := self.workers.await_request(self.program)) is not None:
            if not quiet:
                self.shoot()
            if asked not in self.workers.pending:
                command, found = self.workers.errors[asked]
                if command != Command.CONNECT:
                    error = found
                continue
            command = self.workers.pending[asked][0]
            if command == Command.CONNECT:
                continue  # which is left to wait
            if command == Command.LISTEN:
                endpoint = self.workers.endpoint(asked)
            value = u32(Attribute.VALUE, 0x0304) if command == Command.GETSOCKOPT else b""
            assert self.workers.complete(asked, value) == 0
        result = self.program.result()
        if error:
            assert isinstance(result, OSError), f"{result!r}; it was answered {error}"
            assert result.errno == error, f"{result}; it was answered {error}"
        return result, endpoint

    def made(self, *, quiet: bool = True, host: bool = False) -> socket.socket | None:
        """Have the program make a TLS socket, if nothing that was sent prevents it."""
        make = host_socket if host else lambda: tls_socket(host=None)
        found, _ = self.call(make, quiet=quiet)
        return found if isinstance(found, socket.socket) else None

    def make(self) -> None:
        """Make a socket."""
        sock = self.made(quiet=False)
        if sock is not None:
            sock.close()

    def set_option(self) -> None:
        """Set an option, in one piece or several."""
        size = self.random.choice((10, 50_000))
        value = f"-----BEGIN {'x' * size}"
        with self._new() as sock:
            self.call(lambda: set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, value))

    def get_option(self) -> None:
        """Ask for an option that the module does not know itself."""
        with self._new() as sock:
            self.call(lambda: get_bytes(sock, TlsOption.TLS_VERSION_MAX))

    def _new(self) -> socket.socket:
        sock = self.made()
        assert sock is not None, "no socket was made, though nothing else was sent"
        return sock

    def connect(self) -> None:
        """Begin to connect to an address."""
        sock = self._new()
        sock.settimeout(0)
        target = Address(*self.server.getsockname())
        self.call(lambda: raw_connect(sock, target))
        self.connecting.append(sock)
        self.plain.append(self.server.accept()[0])

    def connect_host(self) -> None:
        """Begin to connect to a host, with several endpoints."""
        sock = self.made(host=True)
        assert sock is not None
        sock.settimeout(0)
        address = host_address("host.test", 443)
        self.call(lambda: libc.connect(sock.fileno(), address, len(address)))
        self.connecting.append(sock)

    def listen(self) -> None:
        """Bind and listen."""
        sock = self._new()
        bound, _ = self.call(lambda: sock.bind(("127.0.0.1", 0)))
        if bound is None:
            listens, endpoint = self.call(lambda: sock.listen(4))
            if listens is None and endpoint is not None:
                sock.settimeout(0)
                self.listening.append((sock, endpoint))
                return
        sock.close()

    def visit(self) -> None:
        """Bring connections to a listening socket, or what is not one."""
        if not self.listening:
            return
        sock, endpoint = self.random.choice(self.listening)
        for _ in range(2):
            self.plain.append(socket.create_connection(sock.getsockname(), SOON))
            self.plain.append(endpoint.accept()[0])
        self.shoot()
        with suppress(OSError):
            while True:
                with sock.accept()[0] as accepted:
                    accepted.settimeout(0)
                    _use(accepted)

    def close_one(self) -> None:
        """Close a socket, and aim at it still."""
        for held in (self.connecting, self.plain):
            if held:
                held.pop(self.random.randrange(len(held))).close()
        if self.listening:
            for one in self.listening.pop():
                one.close()
        self.shoot()

    def use(self) -> None:
        """Read and write, whatever has become of the sockets."""
        for sock in self.connecting:
            _use(sock)
        self.shoot()

    def finish(self) -> None:
        """Connect and use a connection as if nothing was."""
        sock = self._new()
        sock.settimeout(0)
        target = Address(*self.server.getsockname())
        self.call(lambda: raw_connect(sock, target), quiet=True)
        self.plain.append(self.server.accept()[0])
        request = next(reversed(self.workers.pending))
        with sock:
            if self.random.random() < 0.5:
                assert self.workers.complete(request, error=errno.EPROTO) == 0
                assert so_error(sock) == errno.EPROTO
                return
            with self.workers.connect(request) as relayed:
                sock.send(b"through")
                assert relayed.recv(7) == b"through"
                self.shoot()
                relayed.send(b"and back")
                assert sock.recv(8) == b"and back"

    def trim(self) -> None:
        """Close the oldest of what has become many."""
        for held in (self.connecting, self.plain):
            while len(held) > 8:
                held.pop(0).close()
        while len(self.listening) > 2:
            for one in self.listening.pop(0):
                one.close()
        self.workers.take_in()


def _use(sock: socket.socket) -> None:
    """Read and write without waiting: read(2) and recvmsg(2) return by different ways."""
    for call in (
        lambda: sock.send(b"data"),
        lambda: os.read(sock.fileno(), 100),
        lambda: sock.recv(100),
        lambda: os.write(sock.fileno(), b"data"),
        lambda: so_error(sock),
    ):
        with suppress(OSError):
            call()


@pytest.mark.usefixtures("no_daemon")
def test_workers_and_others_send_anything(stack: ExitStack, measured: Measured) -> None:
    seed = seed_of_run()
    measured("netlink fuzzing, FUZZ_SEED", str(seed))
    game = Game(stack, seed)
    kcov = Kcov()
    stack.callback(kcov.close)
    start = time.monotonic()
    count = 0
    while game.sent < MESSAGES:
        count += 1
        game.random.choice(game.scenes)()
        game.trim()
        kcov.take()
    took = time.monotonic() - start
    outcomes = sum((volley.outcomes for volley in game.workers.senders), Counter())
    measured(
        "messages of workers and others",
        f"{game.sent} in {count} scenes, {game.sent / took:.0f}/s; {_listed(outcomes)}",
    )
    if kcov.reached:
        measured("places in the module that messages reached", share(kcov.reached))


def _listed(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in outcomes.most_common())


class Steady:
    """Sockets that a daemon serves, and that nothing that is sent may touch."""

    def __init__(
        self, stack: ExitStack, pki: Pki, echo_server: Server, silent: Peer, asking: Volley
    ) -> None:
        self.pki = pki
        self.echo_server = echo_server
        self.silent = silent
        self.connected = stack.enter_context(connect(echo_server))
        self.listener = stack.enter_context(listening(pki.ecdsa))
        self.connecting = stack.enter_context(tls_socket())
        self.connecting.settimeout(0)
        assert raw_connect(self.connecting, silent) == errno.EINPROGRESS
        with tls_socket() as closed:
            self.sockets = [
                get_id(one) for one in (self.connected, self.listener.sock, self.connecting, closed)
            ]
        self.request = _pending(asking)

    def check(self) -> None:
        """Check that all is as it was, and that new connections are made."""
        assert raw_connect(self.connecting, self.silent) == errno.EALREADY
        echo(self.connected, b"goes on")
        with connect(self.echo_server) as sock:
            echo(sock, b"a new one")
        check_served(self.listener, self.pki.root)


def _pending(asking: Volley) -> int:
    """Find the one request that is pending, by what another is told of it."""
    for number in range(1, 1 << 20):
        error = asking.ask(Command.ENDPOINT, u32(Attribute.REQUEST, number)).error
        if error == errno.EPERM:
            return number
        assert error == errno.ENOENT
    raise AssertionError("no request is pending")


def test_strangers_send_anything_to_a_daemon_that_serves(
    stack: ExitStack,
    any_daemon: Daemon,
    transport: Transport,
    echo_server: Server,
    pki: Pki,
    measured: Measured,
) -> None:
    # One connect() waits from the beginning to the end.
    any_daemon.ensure(transport, "--handshake-timeout", "3600")
    stack.enter_context(written(PARAMETERS / "connect_timeout_ms", 3_600_000))
    seed = seed_of_run()
    measured("netlink fuzzing, FUZZ_SEED", str(seed))
    with Raw() as raw, serving(hostile.silent) as silent:
        volley = Volley(raw, forced=True)
        steady = Steady(stack, pki, echo_server, silent, volley)
        descriptors = stack.enter_context(zoo([volley]))
        targets = Targets([steady.request], steady.sockets, descriptors)
        start = time.monotonic()
        # Room for all that comes of a datagram, for one who can't force it.
        stack.enter_context(written(RMEM_MAX, 1 << 23))
        child = start_child(lambda: _send(targets, seed + 1), user=NOBODY)
        mutator = Mutator(seed)
        while volley.count < MESSAGES // 4:
            for _ in range(40):
                _strange(volley, mutator, targets)
            steady.check()
        assert await_child(child) == 0
        steady.check()
        took = time.monotonic() - start
        measured(
            f"messages of strangers, {transport}",
            f"{MESSAGES // 2}, {MESSAGES / 2 / took:.0f}/s; {_listed(volley.outcomes)}",
        )


def _send(targets: Targets, seed: int) -> None:
    """Send messages as one without rights, who is shown no socket of root's."""
    mutator = Mutator(seed)
    with Raw() as raw:
        volley = Volley(raw, forced=False)
        while volley.count < MESSAGES // 4:
            for verdict in _strange(volley, mutator, targets):
                assert verdict.message.command != Command.SOCKET_GET or not verdict.replies


def _strange(volley: Volley, mutator: Mutator, targets: Targets) -> list[Verdict]:
    """Send a datagram as one who is no worker, and check that nothing of it was done."""
    verdicts = volley.fire([mutator.message(targets) for _ in range(VOLLEY)])
    for verdict in verdicts:
        if verdict.error == 0 and not verdict.message.idle:
            assert verdict.message.command not in WORKERS_OWN, verdict.message.story
            assert verdict.message.command != Command.REGISTER, verdict.message.story
    return verdicts
