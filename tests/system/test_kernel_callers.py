# SPDX-License-Identifier: BSD-3-Clause
"""Users of TLS sockets inside the kernel. The module in examples/kernel does what they do: its
client waits by upcalls only, its server is told of connections by one and then uses calls that
wait."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.wire import SocketState
from tests.peers import clients, servers, tls_peer
from tests.peers.clients import Target
from tests.peers.hostile import serving
from tests.peers.pki import HOST
from tests.peers.servers import free_port
from tests.system.daemon import await_condition, socket_count, sockets
from tests.system.program import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.hostile import Peer
    from tests.peers.pki import Identity, Pki
    from tests.peers.servers import Nginx
    from tests.system.daemon import Daemon, Transport
    from tests.system.program import Address

NAME = "tls_example"
DEBUG = Path("/sys/kernel/debug")
SERVED = b"This page was served by the kernel.\n"


def command(**parameters: object) -> list[str]:
    """Return what loads the module, which is done when it has fetched its page or listens."""
    return ["modprobe", NAME, *(f"{name}={value}" for name, value in parameters.items())]


@contextmanager
def loaded(**parameters: object) -> Iterator[None]:
    """Have the module loaded."""
    subprocess.run(command(**parameters), check=True)
    try:
        yield
    finally:
        subprocess.run(["rmmod", NAME], check=True)


def check_fails(text: str, **parameters: object) -> None:
    """Check that the module can't be loaded, for this reason."""
    done = subprocess.run(command(**parameters), check=False, capture_output=True, text=True)
    assert done.returncode != 0, "it should not have been loaded"
    assert text in done.stderr


def fetched(**parameters: object) -> bytes:
    """Return what the module gets from a server, its head included."""
    with loaded(**parameters):
        assert socket_count() == 0, "its socket should be released"
        return (DEBUG / NAME / "page").read_bytes()


@pytest.fixture(autouse=True)
def debugfs() -> None:
    """Have the file system that shows the page."""
    if not os.path.ismount(DEBUG):
        subprocess.run(["mount", "-t", "debugfs", "debugfs", str(DEBUG)], check=True)


def site(identity: Identity) -> dict[str, object]:
    """Return the parameters with which the module serves."""
    return {"serve": free_port(), "chain": identity.chain, "key": identity.key}


@pytest.mark.usefixtures("transport")
def test_a_page_is_fetched_without_a_call_that_waits(web: Nginx) -> None:
    page = os.urandom(1 << 18)
    (web.root / "large").write_bytes(page)
    port = web.ports["ecdsa", None]
    got = fetched(get="127.0.0.1", port=port, host=HOST, path="/large")
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert got.endswith(b"\r\n\r\n" + page)


def test_what_a_full_buffer_held_up_goes_on_when_there_is_room(
    transport: Transport, web: Nginx
) -> None:
    port = web.ports["ecdsa", None]
    path = web.root / f"stored-{transport}"
    got = fetched(get="127.0.0.1", port=port, host=HOST, path=f"/{path.name}", put=1 << 20)
    assert got.startswith(b"HTTP/1.1 201 Created\r\n")
    assert path.read_bytes() == bytes(1 << 20)


@pytest.mark.usefixtures("daemon")
def test_data_that_comes_with_the_handshake_is_not_slept_through(pki: Pki) -> None:
    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        connection.send(b"unasked")
        connection.close_notify()
        # Closed with the request unread, it would be reset.
        connection.await_close_notify()

    with serving(tls_peer.tls(pki.ecdsa, act)) as peer:
        assert fetched(get=peer.address, port=peer.port, host=HOST) == b"unasked"


def test_a_page_is_served(transport: Transport, pki: Pki) -> None:
    parameters = site(pki.ecdsa)
    port = int(str(parameters["serve"]))
    with loaded(**parameters):
        (listener,) = sockets()
        assert listener["state"] == SocketState.LISTENING
        assert (listener["comm"], listener["uid"]) == ("modprobe", 0)
        with ThreadPoolExecutor(4) as visitors:
            pages = list(visitors.map(lambda _: clients.curl(Target(port, pki.root)), range(8)))
        assert pages == [SERVED] * 8, transport
        # Its socket holds the module as a program's does.
        assert subprocess.run(["rmmod", "ssa"], check=False, capture_output=True).returncode != 0
        assert clients.curl(Target(port, pki.root)) == SERVED
        with socket.socket() as other:
            refused(errno.EADDRINUSE, lambda: other.bind(("127.0.0.1", port)))


@pytest.mark.usefixtures("daemon")
def test_a_client_that_is_not_accepted_yet_goes_with_the_listener(pki: Pki) -> None:
    parameters = site(pki.ecdsa)
    port = int(str(parameters["serve"]))
    subprocess.run(command(**parameters), check=True)
    with ExitStack() as opened:
        # The one that is served says nothing, so that others have to wait.
        target = Target(port, pki.root)
        context = clients.context(pki.root)
        served, *waiting = [
            opened.enter_context(clients.connect(context, target)) for _ in range(3)
        ]
        await_condition("all are connected", lambda: socket_count() == 4)
        with subprocess.Popen(["rmmod", NAME]) as removing:
            # It has begun, and waits for who is served.
            await_condition("the module goes", lambda: not (DEBUG / NAME).exists())
            served.close()
            assert removing.wait(60) == 0
        for client in waiting:
            assert client.recv(1) == b"", "it should be told of the end"


@pytest.mark.usefixtures("daemon")
def test_a_refused_server_is_told_by_connect(pki: Pki, logs: Path) -> None:
    with servers.openssl(pki.wrong_host, logs, "-www") as server:
        check_fails("Protocol error", get=server.address, port=server.port, host=HOST)
    check_fails("Connection refused", get="127.0.0.1", port=free_port(), host=HOST)
    check_fails("Invalid argument", serve=free_port(), chain=pki.ecdsa.key, key=pki.ecdsa.key)
    check_fails("Is a directory", serve=free_port(), chain="/etc", key=pki.ecdsa.key)
    assert socket_count() == 0


@pytest.mark.usefixtures("no_daemon")
def test_without_a_daemon_there_is_no_socket(pki: Pki) -> None:
    check_fails("Operation canceled", get="127.0.0.1", host=HOST)
    check_fails("Operation canceled", **site(pki.ecdsa))


@pytest.mark.usefixtures("daemon")
def test_a_release_ends_a_connect_under_way(void: Address) -> None:
    with subprocess.Popen(command(get=void.address, port=void.port, host=HOST)) as loading:
        await_condition(
            "it connects",
            lambda: [entry["state"] for entry in sockets()] == [SocketState.CONNECTING],
        )
        loading.send_signal(signal.SIGINT)
        assert loading.wait(60) != 0
    assert socket_count() == 0


def test_a_listener_outlives_its_daemon(any_daemon: Daemon, pki: Pki) -> None:
    any_daemon.ensure()
    parameters = site(pki.ecdsa)
    port = int(str(parameters["serve"]))
    with loaded(**parameters):
        any_daemon.kill()
        any_daemon.ensure()
        assert clients.curl(Target(port, pki.root)) == SERVED
