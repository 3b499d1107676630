# SPDX-License-Identifier: BSD-3-Clause
"""The examples: in every language the ordinary socket calls fetch a page, and say why not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import servers
from tests.peers.pki import HOST, OTHER_HOST, Pki
from tests.peers.servers import Nginx
from tests.system.conftest import PAGE

EXAMPLES = Path(__file__).parents[2] / "examples"
# Built before the guest was booted, as tests/peers/Makefile says; the others are run as they are.
COMPILED = {"client.c": "client-c", "client.go": "client-go", "client.rs": "client-rs"}
CLIENTS = sorted(path.name for path in EXAMPLES.glob("client.*"))


@pytest.fixture(scope="module", autouse=True)
def host_has_an_address() -> Iterator[None]:
    """Let programs look HOST up."""
    hosts = Path("/etc/hosts")
    before = hosts.read_text()
    hosts.write_text(f"{before}\n127.0.0.1 {HOST}\n")
    yield
    hosts.write_text(before)


def fetch(client: str, clients: Path, port: int) -> subprocess.CompletedProcess[bytes]:
    """Run an example; return what it printed."""
    program = clients / COMPILED[client] if client in COMPILED else EXAMPLES / client
    command = [str(program), HOST, str(port)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("client", CLIENTS)
def test_a_program_fetches_a_page(web: Nginx, clients: Path, client: str) -> None:
    (web.root / "index.html").write_bytes(PAGE)
    done = fetch(client, clients, web.ports["ecdsa", None])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"HTTP/1.1 200 OK\r\n")
    assert done.stdout.endswith(b"\r\n\r\n" + PAGE)
    assert done.stderr == b""


@pytest.mark.usefixtures("daemon")
def test_every_program_says_why_a_server_is_refused(pki: Pki, logs: Path, clients: Path) -> None:
    with servers.openssl(pki.wrong_host, logs, "-www") as server:
        for client in CLIENTS:
            done = fetch(client, clients, server.port)
            said = done.stderr.decode()
            assert done.returncode != 0, client
            assert done.stdout == b"", client
            assert "protocol error" in said.lower(), client
            # socat has no way to ask for TLS_ERROR.
            assert client == "client.sh" or f"wants one for {HOST}" in said, client
            assert client == "client.sh" or OTHER_HOST in said, client


def test_every_program_is_short() -> None:
    for client in CLIENTS:
        assert len((EXAMPLES / client).read_text().splitlines()) < 25, client
