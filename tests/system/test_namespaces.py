# SPDX-License-Identifier: BSD-3-Clause
"""One daemon serves all network namespaces: addresses, conflicts and traffic of a socket are those
of the namespace that it was made in, which goes when its last socket is closed."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.peers import clients, tls_peer
from tests.peers.clients import Target
from tests.peers.hostile import serving
from tests.peers.servers import free_port
from tests.system.daemon import await_condition, sockets
from tests.system.netns import cookie, is_gone, namespace
from tests.system.program import Address, connect, echo, get_id, refused, tls_socket
from tests.system.server import echo_all, listening, served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.system.daemon import Daemon, Transport
    from tests.system.netns import Namespace
    from tests.system.server import TlsListener

PORT = 4433

# Of the two ends of a cable between two namespaces; RFC 5737: no host has them.
HERE, THERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def near() -> Iterator[Namespace]:
    """Make a namespace."""
    with namespace() as made:
        yield made


@pytest.fixture
def far() -> Iterator[Namespace]:
    """Make another namespace."""
    with namespace() as made:
        yield made


@contextmanager
def echoing(pki: Pki, address: str = "127.0.0.1") -> Iterator[TlsListener]:
    """Have a TLS socket of this namespace listen at PORT, and echo."""
    with listening(pki.ecdsa, address=address, port=PORT) as listener, served(listener, echo_all):
        yield listener


def canary(home: Namespace, name: str) -> None:
    """Have a device here that goes when a namespace does."""
    subprocess.run(
        ["ip", "link", "add", name, "type", "veth", "peer", "name", "end", "netns", home.name],
        check=True,
    )


def test_one_port_is_many_in_as_many_namespaces(
    transport: Transport, pki: Pki, near: Namespace, far: Namespace, stack: ExitStack
) -> None:
    cookies = set()
    for home in (near, far, None):
        with ExitStack() as inside:
            if home is not None:
                inside.enter_context(home.entered())
            listener = stack.enter_context(echoing(pki))
            assert listener.sock.getsockname() == ("127.0.0.1", PORT)
            # The port is taken here, and here alone.
            with tls_socket() as second:
                refused(errno.EADDRINUSE, lambda: second.bind(("127.0.0.1", PORT)))
            sock = stack.enter_context(connect(Address("127.0.0.1", PORT)))
            echo(sock, f"over {transport}".encode())
            assert sock.getpeername() == ("127.0.0.1", PORT)
            cookies |= {cookie(sock), cookie(listener.sock)}
    assert len(cookies) == 3
    # Told as well of those that were accepted.
    output = subprocess.check_output(["ssad", "ls", "--json"])
    told = [entry["netns_cookie"] for entry in json.loads(output)]
    assert sorted(told) == sorted([*cookies] * 3)


@pytest.mark.usefixtures("daemon")
def test_a_socket_stays_in_the_namespace_it_was_made_in(
    pki: Pki, near: Namespace, stack: ExitStack
) -> None:
    with near.entered():
        sock, other = stack.enter_context(tls_socket()), stack.enter_context(tls_socket())
        stack.enter_context(echoing(pki))
    found = {entry["socket"]: entry["netns_cookie"] for entry in sockets()}
    assert found[get_id(sock)] == cookie(sock)
    # Called from here, where that port is free and nobody listens.
    refused(errno.EADDRINUSE, lambda: other.bind(("127.0.0.1", PORT)))
    sock.connect(("127.0.0.1", PORT))
    echo(sock, b"at home")


@pytest.mark.usefixtures("daemon")
def test_namespaces_reach_each_other_by_what_connects_them(
    pki: Pki, near: Namespace, far: Namespace
) -> None:
    near.ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far.name)
    for home, address in ((near, HERE), (far, THERE)):
        home.ip("address", "add", f"{address}/24", "dev", "cable")
        home.ip("link", "set", "dev", "cable", "up")
    for home in (near, far):
        show = ["ip", "-n", home.name, "link", "show", "dev", "cable"]
        await_condition(
            "the cable works",
            lambda show=show: b"state UP" in subprocess.check_output(show),  # type: ignore[misc]
        )
    seen: list[object] = []

    def act(connection: socket.socket) -> None:
        seen.append((connection.getsockname(), connection.getpeername()[0]))
        echo_all(connection)

    with (
        ExitStack() as opened,
        tls_socket() as outside,
    ):
        with near.entered():
            listener = opened.enter_context(listening(pki.ecdsa, address=HERE, port=PORT))
            opened.enter_context(served(listener, act))
        with far.entered():
            sock = opened.enter_context(connect(Address(HERE, PORT)))
        echo(sock, b"across")
        assert sock.getsockname()[0] == THERE
        assert seen == [((HERE, PORT), THERE)]
        # From here there is no way.
        with pytest.raises(OSError, match=r"unreachable|refused|route"):
            outside.connect((HERE, PORT))


def test_a_namespace_goes_with_the_last_of_its_sockets(
    transport: Transport, pki: Pki, near: Namespace, stack: ExitStack
) -> None:
    canary(near, "canary0")
    with near.entered():
        listener = stack.enter_context(echoing(pki))
        sock = stack.enter_context(connect(listener))
        unused = stack.enter_context(tls_socket())
    near.delete()
    echo(sock, f"alive over {transport}".encode())
    unused.connect(("127.0.0.1", PORT))
    echo(unused, b"alive")
    assert not is_gone("canary0")
    stack.close()
    await_condition("the namespace is gone", lambda: is_gone("canary0"))


def test_a_namespace_outlives_the_daemon_that_has_its_sockets(
    any_daemon: Daemon, pki: Pki, near: Namespace, stack: ExitStack
) -> None:
    any_daemon.ensure()
    canary(near, "canary1")
    with near.entered():
        listener = stack.enter_context(echoing(pki))
        sock = stack.enter_context(tls_socket())
    near.delete()
    any_daemon.kill()
    any_daemon.ensure()
    sock.connect(("127.0.0.1", listener.port))
    echo(sock, b"served by the next")
    stack.close()
    await_condition("the namespace is gone", lambda: is_gone("canary1"))


@pytest.mark.usefixtures("daemon")
def test_a_socket_of_the_kernel_is_in_the_namespace_of_its_user(pki: Pki, near: Namespace) -> None:
    canary(near, "canary2")
    port = free_port()
    parameters = [f"serve={port}", f"chain={pki.ecdsa.chain}", f"key={pki.ecdsa.key}"]
    with near.entered():
        subprocess.run(["modprobe", "tls_example", *parameters], check=True)
    try:
        target = Target(port, pki.root)
        with near.entered():
            assert clients.curl(target) == b"This page was served by the kernel.\n"
        with tls_socket() as outside:
            refused(errno.ECONNREFUSED, lambda: outside.connect(("127.0.0.1", port)))
            (listener,) = [entry for entry in sockets() if entry["comm"] == "modprobe"]
            assert listener["netns_cookie"] != cookie(outside)
        # Its endpoint, which the daemon has too, holds the namespace.
        near.delete()
        assert not is_gone("canary2")
    finally:
        subprocess.run(["rmmod", "tls_example"], check=True)
    await_condition("the namespace is gone", lambda: is_gone("canary2"))


@pytest.mark.usefixtures("daemon")
def test_a_handshake_under_way_goes_on_without_the_name(pki: Pki, near: Namespace) -> None:
    canary(near, "canary3")

    def script(raw: socket.socket, peer: Peer) -> None:
        peer.report("accepted")
        peer.go_on.wait(60)
        connection = tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.3")
        connection.handshake()
        connection.send(connection.receive(4))
        connection.await_close_notify()

    with ExitStack() as opened:
        with near.entered():
            peer = opened.enter_context(serving(script))
            sock = opened.enter_context(tls_socket())
        sock.settimeout(0)
        refused(errno.EINPROGRESS, lambda: sock.connect((peer.address, peer.port)))
        peer.await_report("accepted")
        near.delete()
        peer.go_on.set()
        sock.settimeout(60)
        await_condition("it is connected", lambda: state_is(sock, "CONNECTED"))
        echo(sock, b"done")
    await_condition("the namespace is gone", lambda: is_gone("canary3"))


def state_is(sock: socket.socket, name: str) -> bool:
    """Ask the module for the state of a socket."""
    (state,) = [entry["state"] for entry in sockets() if entry["socket"] == get_id(sock)]
    return state.name == name
