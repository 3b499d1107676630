# SPDX-License-Identifier: BSD-3-Clause
"""Without a daemon every call that needs one fails at once, and nothing is weakened."""

from __future__ import annotations

import errno
import socket
import time
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS, TlsOption
from tests.peers.pki import HOST
from tests.system.program import (
    echo,
    get_id,
    get_number,
    get_text,
    refused,
    set_number,
    set_text,
    tls_error,
    tls_socket,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from tests.peers.servers import Server
    from tests.system.daemon import Daemon

# What was asked for; a guest without KVM takes a few milliseconds.
AT_ONCE = 0.1


def canceled_at_once(call: Callable[[], object]) -> None:
    """Check that `call` fails with ECANCELED, and how long that takes."""
    took: list[float] = []  # the best of some, for a virtual CPU can stand still
    while len(took) < 10 and (not took or min(took) >= AT_ONCE):
        start = time.monotonic()
        refused(errno.ECANCELED, call)
        took.append(time.monotonic() - start)
    assert min(took) < AT_ONCE, f"it took {min(took):.3f} s"


@pytest.mark.usefixtures("no_daemon")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_socket_cannot_be_made(family: int) -> None:
    canceled_at_once(lambda: socket.socket(family, socket.SOCK_STREAM, IPPROTO_TLS))


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_every_call_that_needs_it_fails_at_once(
    any_daemon: Daemon, echo_server: Server, stack: ExitStack, end: str
) -> None:
    any_daemon.ensure()
    sock = stack.enter_context(tls_socket())
    to_connect = stack.enter_context(tls_socket())
    not_to_wait = stack.enter_context(tls_socket())
    any_daemon.stop() if end == "stopped" else any_daemon.kill()

    canceled_at_once(lambda: set_text(sock, TlsOption.TLS_HOSTNAME, "other.test"))
    canceled_at_once(lambda: set_number(sock, TlsOption.TLS_VERSION_MIN, 0x0304))
    canceled_at_once(lambda: get_number(sock, TlsOption.TLS_VERSION_MIN))
    canceled_at_once(lambda: sock.bind(("127.0.0.1", 0)))
    canceled_at_once(lambda: to_connect.connect((echo_server.address, echo_server.port)))
    not_to_wait.settimeout(0)
    canceled_at_once(lambda: not_to_wait.connect((echo_server.address, echo_server.port)))

    # What the kernel knows itself is there.
    assert get_id(sock) > 0
    assert get_text(sock, TlsOption.TLS_HOSTNAME) == HOST
    assert sock.getsockname()[1] == 0
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert "ssad" in tls_error(to_connect), "it should say what to do"

    # And the next daemon will do.
    any_daemon.ensure()
    for orphan in (sock, to_connect):
        orphan.connect((echo_server.address, echo_server.port))
        echo(orphan, b"as if nothing had been")


@pytest.mark.usefixtures("no_daemon")
def test_other_sockets_do_not_care(echo_server: Server) -> None:
    with socket.create_connection((echo_server.address, echo_server.port)) as plain:
        assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP
    refused(errno.EPROTONOSUPPORT, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 206))
