# SPDX-License-Identifier: BSD-3-Clause
"""TLS_CONTEXT: a socket takes over what was set on another one of the same user."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS, TlsOption
from tests.peers import clients, servers
from tests.peers.clients import Target
from tests.peers.pki import HOST
from tests.system.daemon import workers
from tests.system.program import (
    NOBODY,
    get_bytes,
    get_id,
    get_number,
    get_text,
    in_child,
    libc,
    receive_all,
    refused,
    set_bytes,
    set_number,
    set_text,
    tls_error,
    tls_socket,
)
from tests.system.server import listening, served
from tests.system.test_cli import ssad

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.pki import Pki
    from tests.peers.servers import Nginx
    from tests.system.daemon import Daemon, Transport

pytestmark = pytest.mark.usefixtures("daemon")

CONTEXT = TlsOption.TLS_CONTEXT
TRUSTED = TlsOption.TLS_TRUSTED_PEER_CERTIFICATES
CHECKS = (TlsOption.TLS_REVOCATION_CHECKS, TlsOption.TLS_OCSP_CHECKS, TlsOption.TLS_CRL_CHECKS)


def take(sock: socket.socket, number: int) -> None:
    """Take over the settings of the socket with this number."""
    set_bytes(sock, CONTEXT, struct.pack("=Q", number))


def fetch(sock: socket.socket) -> None:
    """Fetch a page, and with it the tickets that come before."""
    sock.sendall(b"GET /page HTTP/1.0\r\n\r\n")
    assert receive_all(sock).startswith(b"HTTP/1.1 200")


def greet(sock: socket.socket) -> None:
    """Say something to a client."""
    sock.sendall(b"hello")


def context_of(sock: socket.socket) -> int:
    """Return whose settings a socket has."""
    return int(struct.unpack("=Q", get_bytes(sock, CONTEXT))[0])


def test_a_new_list_of_ciphers_leaves_nothing_of_the_old_one() -> None:
    first, second = "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"
    with tls_socket() as donor, tls_socket() as sock:
        for option, value in (
            (TlsOption.TLS_TRUSTED_CIPHERS, f"{first}:{second}"),
            (TlsOption.TLS_DISABLE_CIPHER, first),
            (TlsOption.TLS_TRUSTED_CIPHERS, f"{first}:{second}"),
            (TlsOption.TLS_DISABLE_CIPHER, second),
            (TlsOption.TLS_TRUSTED_CIPHERS, first),
        ):
            set_text(donor, option, value)
        take(sock, get_id(donor))
        assert get_text(sock, TlsOption.TLS_TRUSTED_CIPHERS) == first


def test_all_settings_are_taken_over(pki: Pki, logs: Path, any_daemon: Daemon) -> None:
    with (
        servers.openssl(pki.unknown_ca, logs, "-www", "-alpn", "http/1.0") as server,
        tls_socket() as donor,
        tls_socket(host="other.test") as sock,
    ):
        assert context_of(sock) == get_id(sock)
        set_text(donor, TRUSTED, str(pki.unknown_root))
        set_text(donor, TlsOption.TLS_ALPN, "http/1.0")
        set_number(donor, TlsOption.TLS_SESSION_REUSE, 1)
        take(sock, get_id(donor))
        assert context_of(sock) == get_id(donor)
        assert get_text(sock, TlsOption.TLS_HOSTNAME) == HOST
        # What is set later is each one's own.
        set_text(donor, TlsOption.TLS_HOSTNAME, "another.test")
        assert get_text(sock, TlsOption.TLS_HOSTNAME) == HOST
        # The module tells all of it to a worker that is new.
        any_daemon.kill_worker()
        any_daemon.ensure()
        sock.connect((server.address, server.port))
        assert get_text(sock, TlsOption.TLS_ALPN) == "http/1.0"
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"\nNew, " in receive_all(sock)
        sock.shutdown(socket.SHUT_RDWR)  # the server has one client at a time
        # The one that is connected now gives them further, and the sessions with them.
        with tls_socket(host=None) as third:
            take(third, get_id(sock))
            assert get_number(third, TlsOption.TLS_SESSION_REUSE) == 1
            third.connect((server.address, server.port))
            assert get_number(third, TlsOption.TLS_RESUMED_SESSION) == 1
            third.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"\nReused, " in receive_all(third)


def test_settings_outlive_the_one_they_were_set_on(pki: Pki) -> None:
    donor = tls_socket(host=None)
    set_text(donor, TlsOption.TLS_CERTIFICATE_CHAIN, str(pki.ecdsa.chain))
    set_text(donor, TlsOption.TLS_PRIVATE_KEY, str(pki.ecdsa.key))
    number = get_id(donor)

    def close_donor(sock: socket.socket) -> None:
        take(sock, number)
        donor.close()
        refused(errno.ENOENT, lambda: take(sock, number))

    # It listens with the key that was taken over.
    with listening(prepare=close_donor) as listener, served(listener, greet):
        with clients.connect(
            clients.context(pki.root, "TLSv1.3"), Target(listener.port, pki.root)
        ) as client:
            assert client.version() == "TLSv1.3"
            assert clients.receive_all(client) == b"hello"
        with tls_socket(host=None) as other:
            take(other, get_id(listener.sock))
            assert context_of(other) == get_id(listener.sock)


def test_nobody_takes_another_users(web: Nginx) -> None:
    with tls_socket() as donor:
        number = get_id(donor)

        def steal() -> None:
            with tls_socket() as own:
                refused(errno.ENOENT, lambda: take(own, number))
                said = tls_error(own)
                refused(errno.ENOENT, lambda: take(own, 1 << 40))
                assert said.replace(str(number), "N") == tls_error(own).replace(str(1 << 40), "N")
                # Nor with a socket that was passed on.
                refused(errno.ENOENT, lambda: take(passed, number))
                refused(errno.ENOENT, lambda: take(passed, get_id(own)))

        with tls_socket() as passed:
            assert in_child(steal, user=NOBODY) == 0
            take(passed, number)

            # Nor does root take those of others, or of what it was before.
            def lower() -> None:
                os.setresuid(NOBODY, NOBODY, 0)
                with tls_socket() as lowered:
                    refused(errno.ENOENT, lambda: take(lowered, number))
                    os.setresuid(0, 0, 0)
                    refused(errno.ENOENT, lambda: take(lowered, number))
                    with tls_socket() as mine:
                        refused(errno.ENOENT, lambda: take(mine, get_id(lowered)))

            assert in_child(lower) == 0

        def elsewhere() -> None:
            libc.unshare(0x40000000)  # CLONE_NEWNET
            with tls_socket() as own:
                refused(errno.ENOENT, lambda: take(own, number))

        assert in_child(elsewhere) == 0
        # None of it has changed anything.
        donor.connect(("127.0.0.1", web.ports["ecdsa", None]))


@pytest.mark.parametrize("version", [0x0303, 0x0304], ids=["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("transport", ["ktls", "channel"])
def test_the_sessions_are_found_whichever_worker_has_them(
    any_daemon: Daemon, web: Nginx, transport: Transport, version: int
) -> None:
    any_daemon.ensure(transport, worker_count=2)
    target = "127.0.0.1", web.ports["ecdsa", None]
    with tls_socket() as donor:
        set_number(donor, TlsOption.TLS_SESSION_REUSE, 1)
        set_number(donor, TlsOption.TLS_VERSION_MAX, version)
        donor.connect(target)
        fetch(donor)
        for _ in range(4):
            # However many sockets there are where it begins.
            with tls_socket(host=None), tls_socket(host=None), tls_socket(host=None) as sock:
                take(sock, get_id(donor))
                sock.connect(target)
                assert get_number(sock, TlsOption.TLS_RESUMED_SESSION) == 1
                fetch(sock)
        assert len(any_daemon.worker_pids) == 2


def test_without_sessions_to_resume_sockets_are_spread(any_daemon: Daemon) -> None:
    any_daemon.ensure("ktls", worker_count=2)
    with tls_socket() as donor, tls_socket() as one, tls_socket() as two, tls_socket() as three:
        for sock in (one, two, three):
            take(sock, get_id(donor))
        assert [worker["sockets"] for worker in workers()] == [2, 2]
        # Those that have changed to the worker of the first are not known to the other any more.
        set_number(donor, TlsOption.TLS_SESSION_REUSE, 1)
        for sock in (one, two, three):
            take(sock, get_id(donor))
        assert sorted(worker["sockets"] for worker in workers()) == [0, 4]


def test_what_is_refused_in_part_changes_nothing(any_daemon: Daemon, directory: Path) -> None:
    policy = directory / "other.toml"
    policy.write_text("")
    policy.chmod(0o644)
    any_daemon.ensure("ktls", "--config", str(policy))
    with tls_socket() as sock, tls_socket(host="other.test") as donor:
        set_number(donor, TlsOption.TLS_OCSP_CHECKS, 1)
        set_number(donor, TlsOption.TLS_VERSION_MAX, 0x0303)
        before = [get_number(sock, option) for option in CHECKS]
        policy.write_text('[tls]\nversion_min = "1.3"\n')
        assert ssad("reload").returncode == 0
        # The check is taken over first, and then the version refused.
        refused(errno.EPROTO, lambda: take(sock, get_id(donor)))
        assert [get_number(sock, option) for option in CHECKS] == before
        assert get_text(sock, TlsOption.TLS_HOSTNAME) == HOST
        assert context_of(sock) == get_id(sock)


def test_errors_change_nothing(pki: Pki) -> None:
    with tls_socket() as sock, tls_socket(host="other.test") as donor:
        for number in (0, 1 << 32, (1 << 64) - 1):
            refused(errno.ENOENT, lambda n=number: take(sock, n))  # type: ignore[misc]
        for length in (0, 4, 7, 9, 16):
            refused(errno.EINVAL, lambda n=length: set_bytes(sock, CONTEXT, bytes(n)))  # type: ignore[misc]
        assert libc.setsockopt(sock.fileno(), IPPROTO_TLS, CONTEXT, None, 8) == -1
        assert ctypes.get_errno() == errno.EFAULT
        small = ctypes.c_uint(4)
        assert (
            libc.getsockopt(sock.fileno(), IPPROTO_TLS, CONTEXT, bytes(8), ctypes.byref(small))
            == -1
        )
        assert ctypes.get_errno() == errno.EINVAL
        assert context_of(sock) == get_id(sock)
        take(sock, get_id(sock))  # which it has
        assert get_text(sock, TlsOption.TLS_HOSTNAME) == HOST
        take(sock, get_id(donor))
        take(donor, get_id(sock))  # in a circle
        # One that has failed still has settings; it takes none any more.
        refused(errno.ECONNREFUSED, lambda: sock.connect(("127.0.0.1", servers.free_port())))
        refused(errno.EOPNOTSUPP, lambda: take(sock, get_id(donor)))
        take(donor, get_id(sock))
        assert get_text(donor, TlsOption.TLS_HOSTNAME) == "other.test"

    with listening(pki.ecdsa) as listener:
        target = Target(listener.port, pki.root)
        trust = clients.context(pki.root, "TLSv1.3")
        accepted: list[socket.socket] = []
        thread = threading.Thread(target=lambda: accepted.append(listener.accept()))
        thread.start()
        with clients.connect(trust, target):
            thread.join()
            with accepted[0], tls_socket() as sock:
                refused(errno.EINVAL, lambda: take(sock, get_id(accepted[0])))
                assert "accepted" in tls_error(sock)
                assert context_of(accepted[0]) == get_id(accepted[0])
                refused(errno.EOPNOTSUPP, lambda: take(accepted[0], get_id(sock)))


def test_without_a_daemon_the_settings_stay(no_daemon: Daemon, pki: Pki) -> None:
    no_daemon.ensure()
    with tls_socket() as sock, tls_socket(host="other.test") as donor:
        set_text(donor, TRUSTED, str(pki.root))
        no_daemon.stop()
        refused(errno.ECANCELED, lambda: take(sock, get_id(donor)))
        assert get_text(sock, TlsOption.TLS_HOSTNAME) == HOST
        assert context_of(sock) == get_id(sock)
        no_daemon.ensure()
        take(sock, get_id(donor))
        assert get_text(sock, TlsOption.TLS_HOSTNAME) == "other.test"


def test_both_ways_at_once() -> None:
    with tls_socket(host="one.test") as one, tls_socket(host="two.test") as two:
        failures: list[BaseException] = []

        def cross(sock: socket.socket, other: socket.socket, name: str) -> None:
            try:
                for _ in range(15):
                    take(sock, get_id(other))
                    set_text(sock, TlsOption.TLS_HOSTNAME, name)
                    # Gone before, while or after its settings are taken.
                    short = tls_socket(host=name)
                    closer = threading.Thread(target=short.close)
                    number = get_id(short)
                    closer.start()
                    try:
                        take(sock, number)
                    except OSError as error:
                        assert error.errno == errno.ENOENT  # noqa: PT017 - or none at all
                    closer.join()
            except BaseException as error:  # noqa: BLE001 - for the test to raise
                failures.append(error)

        threads = [
            threading.Thread(target=cross, args=args)
            for args in ((one, two, "one.test"), (two, one, "two.test"), (one, two, "three.test"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert get_text(one, TlsOption.TLS_HOSTNAME) in {"one.test", "two.test", "three.test"}
