# SPDX-License-Identifier: BSD-3-Clause
"""Clients resume their sessions if they want to, and nobody else's."""

from __future__ import annotations

import errno
import struct
import time
from typing import TYPE_CHECKING

import pytest

from ssad.wire import TlsOption
from tests.peers import servers
from tests.peers.pki import ALIAS, HOST
from tests.peers.servers import Offer
from tests.peers.tls_peer import ALERT, CLOSE_NOTIFY, HANDSHAKE
from tests.system.daemon import await_condition, workers
from tests.system.program import (
    NOBODY,
    get_number,
    get_text,
    in_child,
    receive_all,
    refused,
    set_number,
    set_text,
    tls_error,
    tls_socket,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.peers.servers import Server, Version
    from tests.peers.tls_peer import TlsConnection
    from tests.system.conftest import Peers
    from tests.system.daemon import Daemon, Transport

REUSE = TlsOption.TLS_SESSION_REUSE
TTL = TlsOption.TLS_SESSION_TTL

APPLICATION_DATA = 23
PAGE = b"GET / HTTP/1.0\r\n\r\n"  # openssl s_server -www answers with what it knows


def visit(
    server: Server,
    *,
    reuse: bool = True,
    host: str = HOST,
    alpn: str = "",
    trusted: str = "",
    ttl: int | None = None,
) -> bool:
    """Connect, read what the server sends, and return whether the session was resumed, as both
    ends say."""
    with tls_socket(host=host) as sock:
        if reuse:
            set_number(sock, REUSE, 1)
        if alpn:
            set_text(sock, TlsOption.TLS_ALPN, alpn)
        if trusted:
            set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, trusted)
        if ttl is not None:
            set_number(sock, TTL, ttl)
        sock.connect((server.address, server.port))
        sock.sendall(PAGE)
        page = receive_all(sock)
        resumed = bool(get_number(sock, TlsOption.TLS_RESUMED_SESSION))
        assert (b"\nReused, " in page) == resumed
        assert (b"\nNew, " in page) != resumed
        assert get_text(sock, TlsOption.TLS_PEER_IDENTITY) == f"CN={HOST}"
        assert "BEGIN CERTIFICATE" in get_text(sock, TlsOption.TLS_PEER_CERTIFICATE_CHAIN)
    return resumed


@pytest.mark.parametrize("version", servers.VERSIONS)
def test_a_session_is_resumed_by_who_wants_it(
    transport: Transport, pki: Pki, logs: Path, version: Version
) -> None:
    offer = Offer(version, "AES-128-GCM")
    with servers.openssl(pki.ecdsa, logs, "-www", offer=offer) as server:
        assert [visit(server) for _ in range(4)] == [False, True, True, True]
        assert not visit(server, reuse=False)
        assert visit(server)
    assert workers(), transport


def test_only_a_socket_that_is_alike_resumes_it(daemon: Daemon, pki: Pki, logs: Path) -> None:
    assert daemon.worker_pids

    def stranger() -> None:
        assert [visit(server) for _ in range(2)] == [False, True]

    with servers.openssl(pki.ecdsa, logs, "-www", "-alpn", "http/1.0") as server:
        assert not visit(server)
        assert in_child(stranger, user=NOBODY) == 0
        for others in (
            {"alpn": "http/1.0"},
            {"trusted": str(pki.root)},
            {"host": ALIAS},
            {"host": "127.0.0.1"},
        ):
            assert [visit(server, **others) for _ in range(2)] == [False, True], others  # type: ignore[arg-type]
        assert visit(server)


def test_a_session_has_its_time(daemon: Daemon, pki: Pki, logs: Path) -> None:
    assert daemon.worker_pids
    with servers.openssl(pki.ecdsa, logs, "-www") as server:
        visit(server, ttl=1)
        end = time.clock_gettime(time.CLOCK_BOOTTIME) + 1
        await_condition("a second is over", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > end)
        assert not visit(server)
        assert visit(server)


def test_a_server_that_forgot_it_gets_a_full_handshake(
    daemon: Daemon, pki: Pki, logs: Path
) -> None:
    with servers.openssl(pki.ecdsa, logs, "-www") as server:
        assert not visit(server)
        command = [str(part) for part in server.process.args]  # type: ignore[union-attr]
    for option, path in (("-cert", pki.rsa.chain), ("-key", pki.rsa.key)):
        command[command.index(option) + 1] = str(path)
    with servers.running(command, [server.port], logs):
        assert not visit(server)
        assert visit(server)
        # The sessions are the worker's.
        daemon.kill_worker()
        daemon.ensure()
        assert [visit(server) for _ in range(2)] == [False, True]


def ticket(length: int) -> bytes:
    """Make a NewSessionTicket (RFC 8446, 4.6.1) with a ticket of `length` bytes."""
    body = struct.pack("!IIB", 7200, 1, 1) + b"n"
    body += struct.pack("!H", length) + bytes(length) + b"\0\0"
    return b"\x04" + len(body).to_bytes(3) + body


def test_tickets_in_any_number_and_form_do_no_harm(
    peers: Peers, transport: Transport, any_daemon: Daemon
) -> None:
    before, said = any_daemon.worker_pids, any_daemon.said()

    def act(connection: TlsConnection, _peer: Peer) -> None:
        whole = ticket(100)
        # Many in one record, one in many, one that is long, and one that makes no sense.
        connection.send_sealed(HANDSHAKE, whole * 100)
        long = ticket(20000)
        for start in range(0, len(long), 4096):
            connection.send_sealed(HANDSHAKE, long[start : start + 4096])
        for piece in (whole[:3], whole[3:50], whole[50:]):
            connection.send_sealed(HANDSHAKE, piece)
        for _ in range(50):
            connection.send_sealed(HANDSHAKE, whole)
        connection.send_sealed(APPLICATION_DATA, b"data")
        connection.send_sealed(ALERT, CLOSE_NOTIFY)
        connection.await_close_notify()

    def nonsense(connection: TlsConnection, _peer: Peer) -> None:
        for _ in range(8):
            connection.send_sealed(HANDSHAKE, b"\x04\0\0\x05wrong")
        connection.send_sealed(APPLICATION_DATA, b"data")
        connection.send_sealed(ALERT, CLOSE_NOTIFY)
        connection.await_close_notify()

    for script in (act, nonsense) if transport == "ktls" else (act,):
        with peers(script) as server, tls_socket() as sock:
            set_number(sock, REUSE, 1)
            sock.connect((server.address, server.port))
            assert get_text(sock, TlsOption.TLS_TRANSPORT) == transport
            assert receive_all(sock) == b"data"
    assert any_daemon.worker_pids == before
    assert "Traceback" not in any_daemon.said()[len(said) :]


def test_the_options(daemon: Daemon) -> None:
    assert daemon.worker_pids
    with tls_socket() as sock:
        assert get_number(sock, REUSE) == 0
        policys = get_number(sock, TTL)
        assert policys == 7200
        for option, value, number in (
            (REUSE, 2, errno.EINVAL),
            (REUSE, -1, errno.EINVAL),
            (TTL, 0, errno.EINVAL),
            (TTL, policys + 1, errno.EPROTO),
            (TTL, -1, errno.EPROTO),
        ):
            refused(number, lambda o=option, v=value: set_number(sock, o, v))  # type: ignore[misc]
            assert option.name in tls_error(sock)
        set_number(sock, TTL, 60)
        set_number(sock, REUSE, 1)
        assert (get_number(sock, TTL), get_number(sock, REUSE)) == (60, 1)
        set_number(sock, REUSE, 0)
        assert get_number(sock, REUSE) == 0
        refused(errno.EOPNOTSUPP, lambda: get_number(sock, TlsOption.TLS_RESUMED_SESSION))
        refused(errno.ENOPROTOOPT, lambda: set_number(sock, TlsOption.TLS_RESUMED_SESSION, 1))
        refused(errno.ECONNREFUSED, lambda: sock.connect(("127.0.0.1", servers.free_port())))
        refused(errno.EOPNOTSUPP, lambda: set_number(sock, REUSE, 1))
        refused(errno.EOPNOTSUPP, lambda: set_number(sock, TTL, 1))
        refused(errno.EOPNOTSUPP, lambda: get_number(sock, TTL))
        assert get_number(sock, REUSE) == 0
