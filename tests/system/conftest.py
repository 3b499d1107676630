# SPDX-License-Identifier: BSD-3-Clause
"""What the system tests stand on: the module, a daemon, a PKI and servers.

They run as root in a virtual machine. Servers live as long as the run, and the daemon as long as
no test ends it or wants another transport, for starting programs is slow there.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from ssad.link import FamilyMissing
from tests.peers import pki as pki_module
from tests.peers import servers, tls_peer
from tests.peers.hostile import Peer, serving
from tests.peers.pki import Pki
from tests.peers.servers import Version
from tests.peers.tls_peer import Act
from tests.system.daemon import SLOWNESS, Daemon, Transport, await_condition, socket_count
from tests.system.program import Address

# Seconds for one test, in a guest that is 15 to 20 times slower than its host.
TIMEOUT = 180

PAGE = b"A page, fetched over TLS.\n" * 100


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test its time, and let the daemon change its transport only once."""
    for item in items:
        marker = item.get_closest_marker("timeout")
        seconds = TIMEOUT if marker is None else marker.args[0]
        item.add_marker(pytest.mark.timeout(seconds * SLOWNESS), append=False)
    items.sort(key=_wants_channel)


def _wants_channel(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    return call is not None and call.params.get("transport") == "channel"


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Give a directory that everybody can read: servers and the daemon do not run as root."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="session")
def pki(directory: Path) -> Pki:
    """Make the certificates."""
    return pki_module.create(directory / "pki")


@pytest.fixture(scope="session")
def clients(directory: Path) -> Path:
    """Find the C clients, built by `make -C tests/peers` before the guest was booted."""
    built = Path(__file__).parents[2] / "build/peers"
    if not (built / "echo").exists():
        built = directory / "clients"
        subprocess.run(
            ["make", "-s", "-C", Path(__file__).parents[1] / "peers", f"O={built}"], check=True
        )
    return built


@pytest.fixture(scope="session")
def web(pki: Pki, directory: Path) -> Iterator[servers.Nginx]:
    """Run nginx, with /page to fetch."""
    place = directory / "nginx"
    place.mkdir()
    with servers.nginx({"rsa": pki.rsa, "ecdsa": pki.ecdsa}, place) as nginx:
        (nginx.root / "page").write_bytes(PAGE)
        yield nginx


@pytest.fixture(scope="session")
def echo_server(pki: Pki, directory: Path, clients: Path) -> Iterator[servers.Server]:
    """Run a server that echoes each byte, to many clients at once."""
    place = directory / "stunnel"
    place.mkdir()
    with servers.stunnel(pki.ecdsa, place, clients / "echo") as server:
        yield server


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Path]:
    """Give a file for what a test's own server says, shown if the test fails."""
    path = tmp_path / "server.log"
    yield path
    if path.exists():
        print(path.read_text(errors="replace"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test opens."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture(scope="session", autouse=True)
def module() -> None:
    """Load the module."""
    subprocess.run(["modprobe", "ssa"], check=True)


@pytest.fixture(scope="session")
def any_daemon(pki: Pki, directory: Path) -> Iterator[Daemon]:
    """Hold the one daemon, running or not."""
    held = Daemon(pki.root, directory / "daemon.log")
    yield held
    held.stop()


@pytest.fixture
def daemon(any_daemon: Daemon) -> Daemon:
    """Have a daemon run; the test does not depend on the transport."""
    any_daemon.ensure()
    return any_daemon


@pytest.fixture
def no_daemon(any_daemon: Daemon) -> Daemon:
    """Have no daemon run."""
    any_daemon.stop()
    return any_daemon


@pytest.fixture(params=["ktls", "channel"])
def transport(request: pytest.FixtureRequest, any_daemon: Daemon) -> Transport:
    """Have a daemon run, with each transport in turn."""
    wanted: Transport = request.param
    any_daemon.ensure(wanted)
    return wanted


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check after every test that no TLS socket is left, and nothing of one in the daemon."""
    held: Daemon | None = None
    if "any_daemon" in request.fixturenames:
        held = request.getfixturevalue("any_daemon")
    start = len(held.said()) if held is not None and held.log.exists() else 0
    yield
    if held is not None and held.log.exists():
        print(held.said()[start:])
    try:
        await_condition("no TLS socket is left", lambda: socket_count() == 0, deadline=30)
    except FamilyMissing:
        return  # the test has removed the module
    if held is not None:
        held.await_idle()


@pytest.fixture
def void() -> Iterator[Address]:
    """Have a host that takes every packet and never answers."""
    make = [
        "link add void0 type dummy",
        "address add 192.0.2.1/24 dev void0",
        "link set void0 up",
        "neighbour replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev void0",
    ]
    for command in make:
        subprocess.run(["ip", *command.split()], check=True)
    yield Address("192.0.2.2", 443)
    subprocess.run(["ip", "link", "del", "void0"], check=True)


class Peers:
    """Makes servers that do the handshake and then act."""

    def __init__(self, pki: Pki) -> None:
        self._pki = pki

    def __call__(self, act: Act, version: Version = "TLSv1.3") -> AbstractContextManager[Peer]:
        return serving(tls_peer.tls(self._pki.ecdsa, act, version))


@pytest.fixture
def peers(pki: Pki) -> Peers:
    """Make servers."""
    return Peers(pki)
