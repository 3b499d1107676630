# SPDX-License-Identifier: BSD-3-Clause
"""Clients and servers that no one here wrote: each client meets a TLS socket that listens, and
servers that know of nothing but sockets serve TLS."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS, TlsOption
from tests.peers import clients, servers
from tests.peers.clients import Target
from tests.peers.pki import HOST, SITE
from tests.system.program import set_text
from tests.system.server import facts_in, listening, served, tell_facts

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.peers.pki import Pki
    from tests.peers.servers import Version
    from tests.system.daemon import Transport
    from tests.system.server import Fact, TlsListener

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBERS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}

# Clients that take long to start are met with one version.
SLOW: dict[clients.Name, Version] = {"wget": "TLSv1.2", "node": "TLSv1.3"}
MATRIX = [
    (name, version)
    for name in clients.ALL
    for version in servers.VERSIONS
    if SLOW.get(name, version) == version
]


@pytest.fixture
def listener(pki: Pki, transport: Transport) -> Iterator[TlsListener]:
    """Give a server that tells each client what it knows of the connection."""
    assert transport

    def choose(sock: socket.socket) -> None:
        set_text(sock, TlsOption.TLS_ALPN, "h2,http/1.1")

    with (
        listening(pki.ecdsa, pki.rsa, pki.site, pki.wild, prepare=choose) as made,
        served(made, tell_facts),
    ):
        yield made


def fetch(name: clients.Name, target: Target) -> dict[str, Fact]:
    """Have a client fetch the page; return what the server knew."""
    return facts_in(clients.ALL[name](target))


@pytest.mark.parametrize(("name", "version"), MATRIX)
def test_a_client_fetches_a_page(
    listener: TlsListener, pki: Pki, transport: Transport, name: clients.Name, version: Version
) -> None:
    found = fetch(name, Target(listener.port, pki.root, version))
    assert found["transport"] == transport
    assert found["version"] == NUMBERS[version]
    assert found["resumed"] == 0
    assert found["identity"] == ""
    assert found["name"] == ("" if name == "wget" else HOST)
    if name in {"curl_http2", "httpx"}:
        assert found["alpn"] == "h2"
    if name == "curl":
        assert found["alpn"] == "http/1.1"


@pytest.mark.parametrize("transport", ["ktls"], indirect=True)
@pytest.mark.parametrize("name", ["curl", "openssl", "gnutls"])
def test_a_client_gets_the_certificate_of_the_name_that_it_asks_for(
    listener: TlsListener, pki: Pki, name: clients.Name
) -> None:
    # Each verifies that the certificate is for that name.
    for host in (HOST, SITE, "any.wild.test"):
        assert fetch(name, Target(listener.port, pki.root, name=host))["name"] == host


@pytest.mark.parametrize("transport", ["ktls"], indirect=True)
def test_clients_say_what_alpn_has_chosen(listener: TlsListener, pki: Pki) -> None:
    target = Target(listener.port, pki.root)
    said = clients.openssl(target, "-alpn", "other,http/1.1")
    assert b"ALPN protocol: http/1.1" in said
    said = clients.gnutls(target, "--alpn", "http/1.1")
    assert facts_in(said)["alpn"] == "http/1.1"
    assert b"http/1.1" in said.partition(b'{"transport"')[0]


@pytest.mark.parametrize("transport", ["ktls"], indirect=True)
@pytest.mark.parametrize("name", ["curl", "openssl", "gnutls"])
def test_a_client_that_does_not_trust_us_is_not_served(
    listener: TlsListener, pki: Pki, name: clients.Name
) -> None:
    target = Target(listener.port, pki.unknown_root)
    if name == "curl":
        with pytest.raises(AssertionError, match="certificate"):
            clients.curl(target)
    else:
        assert b'{"transport"' not in clients.ALL[name](target)


@contextmanager
def program(pki: Pki, log: Path, *command: str | Path) -> Iterator[int]:
    """Run a server that takes a port, a chain and a key; give the port."""
    port = servers.free_port()
    arguments = [str(port), str(pki.ecdsa.chain), str(pki.ecdsa.key)]
    with servers.running([*command, *arguments], [port], log, cwd=log.parent):
        yield port


@pytest.mark.usefixtures("transport")
class TestServers:
    """Servers that know no TLS."""

    def test_the_http_server_of_python(self, pki: Pki, logs: Path) -> None:
        page = b"A page of Python's own server.\n" * 5000
        (logs.parent / "page").write_bytes(page)
        with program(pki, logs, sys.executable, EXAMPLES / "server.py") as port:
            for version in servers.VERSIONS:
                url = f"https://127.0.0.1:{port}/page"
                command = ["curl", "-sS", "--cacert", str(pki.root)]
                command += ["--tls-max", version.removeprefix("TLSv"), url]
                assert clients.run(command) == page
        assert logs.read_text().count('"GET /page HTTP/1.1" 200') == 2

    def test_an_echo_server_in_c(
        self, pki: Pki, logs: Path, request: pytest.FixtureRequest
    ) -> None:
        built = request.getfixturevalue("clients") / "example-server"
        with program(pki, logs, built) as port:
            check_echo(Target(port, pki.root))
        # And when it can't serve, it can say why.
        command = [str(built), str(port), str(pki.ecdsa.chain), str(pki.rsa.key)]
        run = subprocess.run(command, check=False, capture_output=True, text=True)
        assert run.returncode == 1
        assert "TLS_PRIVATE_KEY" in run.stderr

    def test_socat(self, pki: Pki, logs: Path) -> None:
        port = servers.free_port()
        with servers.running(["socat", *socat_server(pki, port)], [port], logs):
            check_echo(Target(port, pki.root))


def socat_server(pki: Pki, port: int) -> list[str]:
    """Return the arguments that make socat an echo server; to it all is numbers and bytes."""
    address = f"x{port:04x}7f000001{'0' * 16}"
    options = [
        f"setsockopt-listen={IPPROTO_TLS}:{option}:x{str(path).encode().hex()}"
        for option, path in (
            (TlsOption.TLS_CERTIFICATE_CHAIN.value, pki.ecdsa.chain),
            (TlsOption.TLS_PRIVATE_KEY.value, pki.ecdsa.key),
        )
    ]
    listen = ",".join([f"SOCKET-LISTEN:2:{IPPROTO_TLS}:{address}", "fork", *options])
    return [listen, "EXEC:cat"]


def check_echo(target: Target) -> None:
    """Check that a server echoes, to several clients at once and of both versions."""
    data = bytes(range(256)) * 300
    made = [
        clients.connect(clients.context(target.root, version), target)
        for version in servers.VERSIONS
    ]
    for client in made:
        client.sendall(data)
    for client in made:
        received = b""
        while len(received) < len(data):
            received += client.recv(1 << 16)
        assert received == data
        client.close()
