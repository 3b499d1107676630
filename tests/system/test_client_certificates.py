# SPDX-License-Identifier: BSD-3-Clause
"""Certificates of clients: asked for, verified, and told to the program; and the client's side."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import TYPE_CHECKING, Literal

import pytest

from ssad.wire import TlsOption
from tests.peers import clients, servers
from tests.peers.clients import Target
from tests.peers.pki import CLIENT
from tests.system.program import (
    echo,
    get_number,
    get_text,
    receive_exactly,
    refused,
    set_number,
    set_text,
    tls_error,
    tls_socket,
)
from tests.system.server import (
    Events,
    check_served,
    facts_in,
    listening,
    served,
    set_identity,
    tell_facts,
    text_or_none,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.pki import Identity, Pki
    from tests.peers.servers import Version
    from tests.system.server import Prepare, TlsListener

NONE, OPTIONAL, REQUIRED = 0, 1, 2

Shown = Literal[
    "nothing", "client", "client_expired", "client_unknown_ca", "client_not_for_clients"
]

# Why each is refused by a listener that looks at it.
BAD: dict[Shown, str] = {
    "client_expired": "expired",
    "client_unknown_ca": "unknown authority",
    "client_not_for_clients": "clientAuth",
}


def asking(level: int, trusted: Path | None = None) -> Prepare:
    """Return what has a listener ask for certificates."""

    def prepare(sock: socket.socket) -> None:
        set_number(sock, TlsOption.TLS_REQUEST_PEER_AUTH, level)
        if trusted is not None:
            set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, str(trusted))

    return prepare


def identity_of(pki: Pki, shown: Shown) -> Identity | None:
    """Return what a client has to show."""
    found: Identity | None = None if shown == "nothing" else getattr(pki, shown)
    return found


def check_accepted(
    listener: TlsListener, pki: Pki, shown: Shown, version: Version = "TLSv1.3"
) -> str:
    """Check that a client is served; return its identity as the program is told it."""
    trust = clients.context(pki.root, version, identity_of(pki, shown))
    with (
        clients.connect(trust, Target(listener.port, pki.root)) as client,
        listener.accept() as accepted,
    ):
        client.sendall(b"hello")
        assert receive_exactly(accepted, 5) == b"hello"
        return text_or_none(accepted, TlsOption.TLS_PEER_IDENTITY)


def check_refused(
    listener: TlsListener, pki: Pki, shown: Shown, word: str, version: Version = "TLSv1.3"
) -> None:
    """Check that a client is refused by an alert, that the program never hears of it, and those
    who watch do."""
    trust = clients.context(pki.root, version, identity_of(pki, shown))
    with Events() as events:
        with pytest.raises(ssl.SSLError, match="alert"):
            use(trust, Target(listener.port, pki.root))
        event = events.refusal()
    assert word in event["text"], event
    assert "remote_address" in event
    assert not listener.readable()


def use(trust: ssl.SSLContext, target: Target) -> None:
    """Connect and wait for an answer: in TLS 1.3 a client learns of its refusal only then."""
    with clients.connect(trust, target) as client:
        client.recv(1)


@pytest.mark.usefixtures("daemon")
class TestLevels:
    """TLS_REQUEST_PEER_AUTH."""

    @pytest.mark.parametrize("shown", ["nothing", "client", *BAD])
    def test_0_asks_nobody(self, pki: Pki, shown: Shown) -> None:
        with listening(pki.ecdsa, prepare=asking(NONE)) as listener:
            assert check_accepted(listener, pki, shown) == ""

    def test_1_takes_who_shows_none(self, pki: Pki) -> None:
        with listening(pki.ecdsa, prepare=asking(OPTIONAL)) as listener:
            assert check_accepted(listener, pki, "nothing") == ""
            assert check_accepted(listener, pki, "client") == f"CN={CLIENT}"

    def test_2_wants_one(self, pki: Pki) -> None:
        with listening(pki.ecdsa, prepare=asking(REQUIRED)) as listener:
            for version in servers.VERSIONS:
                check_refused(listener, pki, "nothing", "certificate", version)
            assert check_accepted(listener, pki, "client") == f"CN={CLIENT}"

    @pytest.mark.parametrize("level", [OPTIONAL, REQUIRED])
    def test_a_bad_one_is_refused_by_1_and_2(self, pki: Pki, level: int) -> None:
        with listening(pki.ecdsa, prepare=asking(level)) as listener:
            for shown, word in BAD.items():
                check_refused(listener, pki, shown, word)
            check_refused(listener, pki, "client_expired", "expired", "TLSv1.2")
            assert check_accepted(listener, pki, "client") == f"CN={CLIENT}"

    def test_the_value_is_checked_and_kept(self) -> None:
        option = TlsOption.TLS_REQUEST_PEER_AUTH
        with tls_socket(host=None) as sock:
            assert get_number(sock, option) == NONE
            for level in (OPTIONAL, REQUIRED, NONE):
                set_number(sock, option, level)
                assert get_number(sock, option) == level
            for level in (3, -1, 256):
                refused(errno.EINVAL, lambda level=level: set_number(sock, option, level))  # type: ignore[misc]
            assert "TLS_REQUEST_PEER_AUTH" in tls_error(sock)
            assert get_number(sock, option) == NONE


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("version", servers.VERSIONS)
def test_the_program_is_told_who_it_is(pki: Pki, version: Version) -> None:
    with listening(pki.ecdsa, prepare=asking(REQUIRED, pki.root)) as listener:
        trust = clients.context(pki.root, version, pki.client)
        with (
            clients.connect(trust, Target(listener.port, pki.root)) as client,
            listener.accept() as accepted,
        ):
            assert get_text(accepted, TlsOption.TLS_PEER_IDENTITY) == f"CN={CLIENT}"
            chain = get_text(accepted, TlsOption.TLS_PEER_CERTIFICATE_CHAIN)
            assert chain.startswith(pki.client.chain.read_text())
            client.sendall(b"known")
            assert receive_exactly(accepted, 5) == b"known"
            accepted.sendall(b"well")
            assert client.recv(4) == b"well"


@pytest.mark.usefixtures("daemon")
class TestTrust:
    """TLS_TRUSTED_PEER_CERTIFICATES of a listener: the authorities of its clients."""

    def test_exactly_these(self, pki: Pki) -> None:
        with listening(pki.ecdsa, prepare=asking(REQUIRED, pki.unknown_root)) as listener:
            assert check_accepted(listener, pki, "client_unknown_ca") == f"CN={CLIENT}"
            check_refused(listener, pki, "client", "CN=Test")

    def test_each_listener_its_own(self, pki: Pki) -> None:
        with (
            listening(pki.ecdsa, prepare=asking(REQUIRED, pki.root)) as first,
            listening(pki.ecdsa, prepare=asking(REQUIRED, pki.unknown_root)) as second,
        ):
            check_accepted(first, pki, "client")
            check_accepted(second, pki, "client_unknown_ca")
            check_refused(first, pki, "client_unknown_ca", "unknown authority")

    def test_clients_are_told_whom_it_trusts(self, pki: Pki) -> None:
        # RFC 8446, 4.2.4, and RFC 5246, 7.4.4: a client with several chooses by that.
        with listening(pki.ecdsa, prepare=asking(OPTIONAL, pki.unknown_root)) as listener:
            for version in servers.VERSIONS:
                with served(listener, tell_facts):
                    said = clients.openssl(Target(listener.port, pki.root, version))
                names = said.partition(b"Acceptable client certificate CA names")[2]
                assert b"CN = Unknown Root" in names


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("name", ["curl", "wget", "openssl", "gnutls", "node", "httpx"])
def test_real_clients_show_theirs(pki: Pki, name: clients.Name) -> None:
    with (
        listening(pki.ecdsa, prepare=asking(REQUIRED, pki.root)) as listener,
        served(listener, tell_facts),
    ):
        target = Target(listener.port, pki.root, identity=pki.client)
        assert facts_in(clients.ALL[name](target))["identity"] == f"CN={CLIENT}"


class TestOfAConnectingSocket:
    """A TLS socket shows its own."""

    @pytest.mark.usefixtures("transport")
    @pytest.mark.parametrize("version", servers.VERSIONS)
    def test_to_a_server_that_others_wrote(self, pki: Pki, logs: Path, version: Version) -> None:
        options = ("-rev", "-Verify", "3", "-verify_return_error", "-CAfile", pki.root)
        only = "-" + version.lower().replace("v", "").replace(".", "_")
        with servers.openssl(pki.ecdsa, logs, *options, only) as server:
            with tls_socket() as sock:
                set_identity(sock, pki.client)
                sock.connect((server.address, server.port))
                sock.sendall(b"drawer\n")
                assert receive_exactly(sock, 7) == b"reward\n"
            assert f"CN = {CLIENT}" in logs.read_text()

    @pytest.mark.usefixtures("daemon")
    def test_without_one_it_is_refused(self, pki: Pki, logs: Path) -> None:
        options = ("-rev", "-Verify", "3", "-CAfile", pki.root, "-tls1_2")
        with servers.openssl(pki.ecdsa, logs, *options) as server, tls_socket() as sock:
            refused(errno.EPROTO, lambda: sock.connect((server.address, server.port)))
            assert "alert" in tls_error(sock)

    @pytest.mark.usefixtures("transport")
    def test_to_a_tls_socket(self, pki: Pki) -> None:
        prepare = asking(REQUIRED, pki.root)
        with listening(pki.ecdsa, prepare=prepare) as listener, tls_socket() as sock:
            set_identity(sock, pki.client)
            sock.connect(("127.0.0.1", listener.port))
            with listener.accept() as accepted:
                assert get_text(accepted, TlsOption.TLS_PEER_IDENTITY) == f"CN={CLIENT}"
                accepted.sendall(b"hello")
                assert receive_exactly(sock, 5) == b"hello"

    @pytest.mark.usefixtures("daemon")
    def test_to_one_that_does_not_ask_it_does_no_harm(self, pki: Pki) -> None:
        def reply(sock: socket.socket) -> None:
            sock.sendall(sock.recv(16))

        with listening(pki.ecdsa) as listener, served(listener, reply), tls_socket() as sock:
            set_identity(sock, pki.client)
            sock.connect(("127.0.0.1", listener.port))
            echo(sock, b"hello")


@pytest.mark.usefixtures("daemon")
class TestTicketsAreNoWayAround:
    """A session that one listener gave does not replace the certificate that another wants."""

    @pytest.mark.parametrize("version", servers.VERSIONS)
    def test_of_a_listener_that_did_not_ask(self, pki: Pki, version: Version) -> None:
        trust = clients.context(pki.root, version)
        with (
            listening(pki.ecdsa) as lax,
            listening(pki.ecdsa, prepare=asking(REQUIRED, pki.root)) as strict,
        ):
            with clients.connect(trust, Target(lax.port, pki.root)) as client:
                with lax.accept() as accepted:
                    accepted.sendall(b"ticket")
                assert clients.receive_all(client) == b"ticket"
                session = client.session
            with pytest.raises(ssl.SSLError):  # noqa: SIM117 -- the handshake may fail or the read
                with clients.connect(
                    trust, Target(strict.port, pki.root), session=session
                ) as client:
                    client.recv(1)
            assert not strict.readable()

    def test_of_a_listener_that_trusts_others(self, pki: Pki) -> None:
        trust = clients.context(pki.root, "TLSv1.3", pki.client_unknown_ca)
        with (
            listening(pki.ecdsa, prepare=asking(REQUIRED, pki.unknown_root)) as first,
            listening(pki.ecdsa, prepare=asking(REQUIRED, pki.root)) as second,
        ):
            with clients.connect(trust, Target(first.port, pki.root)) as client:
                with first.accept() as accepted:
                    accepted.sendall(b"ticket")
                assert clients.receive_all(client) == b"ticket"
                session = client.session
            with pytest.raises(ssl.SSLError):  # noqa: SIM117
                with clients.connect(
                    trust, Target(second.port, pki.root), session=session
                ) as client:
                    client.recv(1)
            assert not second.readable()
            check_accepted(second, pki, "client")


@pytest.mark.usefixtures("daemon")
def test_a_listener_that_asks_does_not_mind_the_others(pki: Pki) -> None:
    with (
        listening(pki.ecdsa, prepare=asking(REQUIRED, pki.root)) as strict,
        listening(pki.ecdsa) as lax,
    ):
        check_served(lax, pki.root)
        check_refused(strict, pki, "nothing", "certificate")
        check_served(lax, pki.root)
