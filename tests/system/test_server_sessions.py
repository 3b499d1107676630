# SPDX-License-Identifier: BSD-3-Clause
"""Clients that come again resume their session, whichever worker they meet."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from ssad.wire import TlsOption
from tests.peers import clients, servers
from tests.peers.clients import Target
from tests.peers.pki import CLIENT
from tests.system.daemon import await_condition, workers
from tests.system.program import get_number, get_text, receive_exactly, set_number, set_text
from tests.system.server import (
    Visits,
    await_workers,
    facts_in,
    listening,
    served,
    tell_facts,
    worker_pids,
)

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.peers.pki import Pki
    from tests.peers.servers import Version
    from tests.system.daemon import Daemon
    from tests.system.server import TlsListener


class Guest:
    """A client that keeps its session for the next time."""

    def __init__(self, pki: Pki, version: Version, *, known: bool = False) -> None:
        self._root = pki.root
        self._trust = clients.context(pki.root, version, pki.client if known else None)
        self._session: ssl.SSLSession | None = None

    def visit(self, listener: TlsListener) -> tuple[bool, socket.socket]:
        """Connect and exchange data both ways; return whether the session was resumed, as both
        ends say, and the accepted socket, which is closed."""
        target = Target(listener.port, self._root)
        with clients.connect(self._trust, target, session=self._session) as client:
            with listener.accept() as accepted:
                resumed = get_number(accepted, TlsOption.TLS_RESUMED_SESSION)
                self.identity = get_text(accepted, TlsOption.TLS_PEER_IDENTITY)
                client.sendall(b"question")
                assert receive_exactly(accepted, 8) == b"question"
                accepted.sendall(b"answer" * 5000)
            assert clients.receive_all(client) == b"answer" * 5000
            assert bool(resumed) == bool(client.session_reused)
            self._session = client.session
        return bool(resumed), accepted


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("version", servers.VERSIONS)
def test_a_session_is_resumed_again_and_again(pki: Pki, version: Version) -> None:
    with listening(pki.ecdsa) as listener:
        guest = Guest(pki, version)
        assert [guest.visit(listener)[0] for _ in range(3)] == [False, True, True]


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("version", servers.VERSIONS)
def test_who_has_shown_a_certificate_is_known_again(pki: Pki, version: Version) -> None:
    def ask(sock: socket.socket) -> None:
        set_number(sock, TlsOption.TLS_REQUEST_PEER_AUTH, 2)
        set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, str(pki.root))

    with listening(pki.ecdsa, prepare=ask) as listener:
        guest = Guest(pki, version, known=True)
        for resumed in (False, True):
            assert guest.visit(listener)[0] == resumed
            assert guest.identity == f"CN={CLIENT}"


@pytest.mark.usefixtures("daemon")
class TestRealClients:
    """They say themselves that they have resumed."""

    @pytest.mark.parametrize("version", servers.VERSIONS)
    def test_openssl(self, pki: Pki, tmp_path: Path, version: Version) -> None:
        session = tmp_path / "session"
        with listening(pki.ecdsa) as listener, served(listener, tell_facts):
            target = Target(listener.port, pki.root, version)
            first = clients.openssl(target, "-sess_out", session)
            second = clients.openssl(target, "-sess_in", session)
        assert b"\nNew, " in first
        assert facts_in(first)["resumed"] == 0
        assert b"\nReused, " in second
        assert facts_in(second)["resumed"] == 1

    def test_openssl_that_connects_six_times(self, pki: Pki) -> None:
        # It asks for nothing in between: in TLS 1.2 the ticket comes with the handshake.
        with listening(pki.ecdsa) as listener, served(listener, tell_facts):
            said = clients.openssl(Target(listener.port, pki.root, "TLSv1.2"), "-reconnect")
        assert said.count(b"\nNew, ") == 1
        assert said.count(b"\nReused, ") >= 5

    @pytest.mark.parametrize("version", servers.VERSIONS)
    def test_gnutls(self, pki: Pki, version: Version) -> None:
        with listening(pki.ecdsa) as listener, served(listener, tell_facts):
            target = Target(listener.port, pki.root, version)
            said = clients.gnutls(target, "--resume", "--waitresumption")
        assert b"This is a resumed session" in said
        assert facts_in(said)["resumed"] == 1


class TestManyWorkers:
    """The tickets of one worker are good for the others."""

    def share(self, sock: socket.socket) -> None:
        """Have several listeners share a port."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    @pytest.mark.parametrize("version", servers.VERSIONS)
    def test_whichever_worker_a_connection_meets(
        self, any_daemon: Daemon, pki: Pki, stack: ExitStack, version: Version
    ) -> None:
        any_daemon.ensure("ktls", worker_count=2)
        await_workers(2)
        first = stack.enter_context(listening(pki.ecdsa, prepare=self.share))
        others = [
            stack.enter_context(listening(pki.ecdsa, port=first.port, prepare=self.share))
            for _ in range(3)
        ]
        assert all(worker["sockets"] for worker in workers()), "a worker has nothing to do"
        # Each connection meets one of them; which one is the kernel's choice.
        target = Target(first.port, pki.root)
        guests = Visits([first, *others])
        trust = clients.context(pki.root, version)
        session: ssl.SSLSession | None = None
        resumed = []
        for _ in range(24):
            with clients.connect(trust, target, session=session) as client:
                with guests.accept() as accepted:
                    accepted.sendall(b"hello")
                assert clients.receive_all(client) == b"hello"
                resumed.append(bool(client.session_reused))
                session = client.session
        assert len(guests.met) > 1, "one listener was met only"
        assert resumed == [False] + [True] * 23

    def test_when_the_listeners_worker_has_died(self, any_daemon: Daemon, pki: Pki) -> None:
        any_daemon.ensure("ktls", worker_count=2)
        await_workers(2)
        with listening(pki.ecdsa) as listener:
            guests = {version: Guest(pki, version) for version in servers.VERSIONS}
            for guest in guests.values():
                assert not guest.visit(listener)[0]
            before = worker_pids()
            (pid,) = [worker["pid"] for worker in workers() if worker["sockets"]]
            os.kill(pid, signal.SIGKILL)
            await_condition("the worker is gone", lambda: pid not in worker_pids())
            for version, guest in guests.items():
                assert guest.visit(listener)[0], version
            await_workers(len(before))
        any_daemon.stop()  # its workers are not those that it was started with

    def test_after_another_daemon_it_is_a_full_handshake(
        self, any_daemon: Daemon, pki: Pki
    ) -> None:
        any_daemon.ensure("ktls")
        with listening(pki.ecdsa) as listener:
            guest = Guest(pki, "TLSv1.3")
            guest.visit(listener)
            any_daemon.stop()
            any_daemon.ensure("ktls")
            # Its keys are gone with it: nobody who steals the next one's can read old tickets.
            assert [guest.visit(listener)[0] for _ in range(2)] == [False, True]
