# SPDX-License-Identifier: BSD-3-Clause
"""Servers that no one here wrote, with every version, key and cipher, on both transports, reached
by programs that hold nothing but a socket."""

from __future__ import annotations

import errno
import itertools
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest

from ssad.wire import IPPROTO_TLS, TlsOption
from tests.peers import servers, tls_peer
from tests.peers.hostile import Peer, serving
from tests.peers.pki import ALIAS, HOST, Pki
from tests.peers.servers import CIPHERS, VERSIONS, Nginx, Offer, Server
from tests.system.conftest import PAGE
from tests.system.daemon import Transport
from tests.system.program import (
    Address,
    Listener,
    connect,
    get_number,
    get_text,
    receive_all,
    refused,
    tls_error,
)

Key = Literal["rsa", "ecdsa"]
Kind = Literal["nginx", "openssl", "gnutls"]

OFFERS = [Offer(version, cipher) for version, cipher in itertools.product(VERSIONS, CIPHERS)]
NUMBERS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
REQUEST = f"GET /page HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode()


class Servers:
    """The servers of the matrix, each started when it is first asked for."""

    def __init__(self, pki: Pki, web: Nginx, directory: Path, stack: ExitStack) -> None:
        self._identities = {"rsa": pki.rsa, "ecdsa": pki.ecdsa}
        self._web = web
        self._directory = directory
        self._stack = stack
        self._started: dict[tuple[Kind, Key, Offer], Server] = {}

    def find(self, kind: Kind, key: Key, offer: Offer) -> Listener:
        """Return the address of a server that serves HTTP."""
        if kind == "nginx":
            return Address("127.0.0.1", self._web.ports[key, offer])
        if (kind, key, offer) not in self._started:
            identity, log = self._identities[key], self._directory / f"{kind}.log"
            started = (
                # -WWW serves the files of its directory.
                servers.openssl(identity, log, "-WWW", offer=offer, cwd=self._web.root)
                if kind == "openssl"
                else servers.gnutls(identity, log, offer=offer)
            )
            self._started[kind, key, offer] = self._stack.enter_context(started)
        return self._started[kind, key, offer]


@pytest.fixture(scope="module")
def matrix(pki: Pki, web: Nginx, directory: Path) -> Iterator[Servers]:
    """Hold the servers of the matrix."""
    with ExitStack() as stack:
        yield Servers(pki, web, directory, stack)


@pytest.fixture(params=OFFERS, ids=lambda offer: f"{offer.version}-{offer.cipher}")
def offer(request: pytest.FixtureRequest) -> Offer:
    """Give each version and cipher in turn."""
    found: Offer = request.param
    return found


def check_page(kind: Kind, answer: bytes) -> None:
    """Check that an answer is a server's page, from its beginning to its end."""
    assert answer.startswith(b"HTTP/1.")
    if kind == "gnutls":  # it has a page of its own, which names the connection
        assert answer.rstrip().endswith(b"</HTML>")
    else:
        assert answer.endswith(b"\r\n\r\n" + PAGE)


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("key", ["rsa", "ecdsa"])
@pytest.mark.parametrize("kind", ["nginx", "openssl", "gnutls"])
class TestFetchesAPage:
    """A page is fetched, over what the server offers."""

    def test_with_python(
        self, matrix: Servers, kind: Kind, key: Key, offer: Offer, transport: Transport
    ) -> None:
        with connect(matrix.find(kind, key, offer)) as sock:
            sock.sendall(REQUEST)
            check_page(kind, receive_all(sock))
            assert get_text(sock, TlsOption.TLS_TRANSPORT) == transport
            assert get_number(sock, TlsOption.TLS_VERSION_CONN) == NUMBERS[offer.version]
            assert get_text(sock, TlsOption.TLS_CHOSEN_CIPHER) == offer.suite(key)

    def test_with_c(
        self, matrix: Servers, kind: Kind, key: Key, offer: Offer, clients: Path
    ) -> None:
        server = matrix.find(kind, key, offer)
        command = [str(clients / "fetch"), server.address, str(server.port), HOST, "/page"]
        check_page(kind, subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    def test_with_socat(self, matrix: Servers, kind: Kind, key: Key, offer: Offer) -> None:
        server = matrix.find(kind, key, offer)
        # It knows no TLS socket, so it is told numbers: 2 is AF_INET, and the address is what
        # follows sa_family. It sets no host name: the certificate carries the address.
        address = f"x{server.port:04x}{socket.inet_aton(server.address).hex()}"
        target = f"SOCKET-CONNECT:2:{IPPROTO_TLS}:{address}{'0' * 16}"
        command = ["socat", "-t60", "-", target]
        run = subprocess.run(command, check=True, input=REQUEST, stdout=subprocess.PIPE)
        check_page(kind, run.stdout)


@pytest.mark.usefixtures("transport")
def test_reaches_a_server_over_ipv6(pki: Pki, logs: Path, web: Nginx) -> None:
    with (
        servers.openssl(pki.ecdsa, logs, "-WWW", address="::1", cwd=web.root) as server,
        connect(server) as sock,
    ):
        assert sock.getpeername()[:2] == ("::1", server.port)
        sock.sendall(REQUEST)
        check_page("openssl", receive_all(sock))


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_without_a_host_name_the_certificate_must_carry_the_address(
    pki: Pki, logs: Path, web: Nginx, address: str
) -> None:
    with (
        servers.openssl(pki.ecdsa, logs, "-WWW", address=address, cwd=web.root) as server,
        connect(server, host=None) as sock,
    ):
        sock.sendall(REQUEST)
        check_page("openssl", receive_all(sock))


@pytest.mark.usefixtures("daemon")
def test_a_host_name_is_sent_to_the_server(pki: Pki) -> None:
    def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
        peer.report(connection.server_name)

    with serving(tls_peer.tls(pki.ecdsa, act)) as peer, connect(peer, host=ALIAS):
        peer.await_report(ALIAS)


@pytest.mark.usefixtures("daemon")
def test_a_socket_that_connected_has_no_error_text(web: Nginx) -> None:
    with connect(Address("127.0.0.1", web.ports["ecdsa", None])) as sock:
        assert tls_error(sock) == ""


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (socket.SOCK_DGRAM, errno.EPROTONOSUPPORT),
        (socket.SOCK_SEQPACKET, errno.ESOCKTNOSUPPORT),
    ],
    ids=["datagram", "seqpacket"],
)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_only_a_stream_can_be_a_tls_socket(family: int, kind: int, error: int) -> None:
    refused(error, lambda: socket.socket(family, kind, IPPROTO_TLS))
