# SPDX-License-Identifier: BSD-3-Clause
"""Socket options of the level IPPROTO_TLS, and what other levels may not do to a TLS socket."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS, TlsOption
from tests.peers import servers
from tests.peers.pki import ALIAS, HOST
from tests.system.daemon import sockets
from tests.system.program import (
    NOBODY,
    SOL_TLS,
    Address,
    connect,
    get_id,
    get_number,
    get_text,
    in_child,
    libc,
    refused,
    set_number,
    set_text,
    tls_error,
    tls_socket,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.peers.pki import Pki
    from tests.peers.servers import Nginx, Server
    from tests.system.daemon import Daemon, Transport

pytestmark = pytest.mark.usefixtures("daemon")

TRUSTED = TlsOption.TLS_TRUSTED_PEER_CERTIFICATES
TLS_1_2, TLS_1_3 = 0x0303, 0x0304

MEGABYTE = 1 << 20


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """Give a new TLS socket."""
    with tls_socket() as made:
        yield made


class TestTrust:
    """TLS_TRUSTED_PEER_CERTIFICATES: a path or PEM."""

    @pytest.mark.parametrize("how", ["path", "PEM"])
    def test_exactly_these_are_trusted(
        self, sock: socket.socket, pki: Pki, logs: Path, web: Nginx, how: str
    ) -> None:
        store = pki.unknown_root
        set_text(sock, TRUSTED, str(store) if how == "path" else store.read_text())
        with servers.openssl(pki.unknown_ca, logs, "-www") as server:
            sock.connect((server.address, server.port))
        with tls_socket() as other:
            set_text(other, TRUSTED, str(store))
            address = ("127.0.0.1", web.ports["ecdsa", None])
            refused(errno.EPROTO, lambda: other.connect(address))
            assert "unknown authority" in tls_error(other) or "lacks" in tls_error(other)

    def test_a_file_is_read_with_the_rights_of_the_caller(
        self, sock: socket.socket, directory: Path, pki: Pki
    ) -> None:
        secret = directory / "secret.pem"
        secret.write_bytes(pki.root.read_bytes())
        secret.chmod(0o600)

        def ask() -> None:
            with tls_socket() as own:
                refused(errno.EACCES, lambda: set_text(own, TRUSTED, str(secret)))
                set_text(own, TRUSTED, str(pki.root))

        assert in_child(ask, user=NOBODY) == 0
        set_text(sock, TRUSTED, str(secret))

    def test_a_file_is_sought_where_the_caller_is(
        self, sock: socket.socket, pki: Pki, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(pki.directory)
        set_text(sock, TRUSTED, "root.pem")

    def test_a_100_mb_certificate_is_too_long(self, sock: socket.socket, tmp_path: Path) -> None:
        path = tmp_path / "large.pem"
        with path.open("wb") as file:
            file.truncate(100 * MEGABYTE)
        refused(errno.EMSGSIZE, lambda: set_text(sock, TRUSTED, str(path)))
        refused(errno.EMSGSIZE, lambda: set_text(sock, TRUSTED, "x" * (2 * MEGABYTE)))

    def test_only_regular_files_are_read(self, sock: socket.socket, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        refused(errno.EINVAL, lambda: set_text(sock, TRUSTED, str(fifo)))
        refused(errno.EISDIR, lambda: set_text(sock, TRUSTED, str(tmp_path)))
        refused(errno.EINVAL, lambda: set_text(sock, TRUSTED, "/dev/zero"))
        refused(errno.ENOENT, lambda: set_text(sock, TRUSTED, str(tmp_path / "none")))
        empty = tmp_path / "empty"
        empty.touch()
        refused(errno.EINVAL, lambda: set_text(sock, TRUSTED, str(empty)))

    def test_what_is_no_certificate_is_refused_with_the_reason(
        self, sock: socket.socket, tmp_path: Path
    ) -> None:
        path = tmp_path / "text"
        path.write_text("no certificate")
        refused(errno.EINVAL, lambda: set_text(sock, TRUSTED, str(path)))
        assert "certificate" in tls_error(sock)

    def test_a_large_store_is_taken(self, sock: socket.socket, pki: Pki, logs: Path) -> None:
        one = pki.root.read_text()
        set_text(sock, TRUSTED, one * (MEGABYTE // 2 // len(one)))
        with servers.openssl(pki.ecdsa, logs, "-www") as server:
            sock.connect((server.address, server.port))


class TestTightening:
    """A program can be stricter than the policy, not laxer."""

    @pytest.mark.parametrize("wanted", [TLS_1_2, TLS_1_3])
    def test_the_version(self, sock: socket.socket, echo_server: Server, wanted: int) -> None:
        set_number(sock, TlsOption.TLS_VERSION_MAX, wanted)
        set_number(sock, TlsOption.TLS_VERSION_MIN, wanted)
        assert get_number(sock, TlsOption.TLS_VERSION_MAX) == wanted
        sock.connect((echo_server.address, echo_server.port))
        assert get_number(sock, TlsOption.TLS_VERSION_CONN) == wanted

    def test_a_server_below_the_version_is_refused(self, sock: socket.socket, web: Nginx) -> None:
        set_number(sock, TlsOption.TLS_VERSION_MIN, TLS_1_3)
        offer = servers.Offer("TLSv1.2", "AES-128-GCM")
        address = ("127.0.0.1", web.ports["ecdsa", offer])
        refused(errno.EPROTO, lambda: sock.connect(address))
        assert "protocol_version" in tls_error(sock)

    @pytest.mark.parametrize(
        ("option", "value", "error"),
        [
            (TlsOption.TLS_VERSION_MIN, 0x0302, errno.EINVAL),
            (TlsOption.TLS_VERSION_MAX, 0x0300, errno.EINVAL),
            (TlsOption.TLS_VERSION_MIN, 0x0305, errno.EINVAL),
        ],
    )
    def test_a_version_that_is_too_old_or_unknown(
        self, sock: socket.socket, option: TlsOption, value: int, error: int
    ) -> None:
        refused(error, lambda: set_number(sock, option, value))
        assert option.name in tls_error(sock)

    def test_versions_that_contradict_each_other(self, sock: socket.socket) -> None:
        set_number(sock, TlsOption.TLS_VERSION_MAX, TLS_1_2)
        refused(errno.EINVAL, lambda: set_number(sock, TlsOption.TLS_VERSION_MIN, TLS_1_3))

    @pytest.mark.parametrize(
        "cipher", ["TLS_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"]
    )
    def test_the_ciphers(self, sock: socket.socket, echo_server: Server, cipher: str) -> None:
        set_text(sock, TlsOption.TLS_TRUSTED_CIPHERS, cipher)
        assert get_text(sock, TlsOption.TLS_TRUSTED_CIPHERS) == cipher
        sock.connect((echo_server.address, echo_server.port))
        assert get_text(sock, TlsOption.TLS_CHOSEN_CIPHER) == cipher

    def test_a_disabled_cipher_is_not_used(self, sock: socket.socket, pki: Pki, logs: Path) -> None:
        offer = servers.Offer("TLSv1.3", "AES-128-GCM")
        set_text(sock, TlsOption.TLS_DISABLE_CIPHER, offer.suite("ecdsa"))
        with servers.openssl(pki.ecdsa, logs, "-www", offer=offer) as server:
            refused(errno.EPROTO, lambda: sock.connect((server.address, server.port)))

    @pytest.mark.parametrize(
        ("cipher", "error"),
        [
            ("AES128-SHA", errno.EPROTO),
            ("ECDHE-RSA-AES128-SHA256", errno.EPROTO),
            ("NO-SUCH-CIPHER", errno.EINVAL),
        ],
    )
    def test_a_cipher_that_the_policy_does_not_have(
        self, sock: socket.socket, cipher: str, error: int
    ) -> None:
        refused(error, lambda: set_text(sock, TlsOption.TLS_TRUSTED_CIPHERS, cipher))
        assert cipher in tls_error(sock)


class TestStates:
    """Options have their time."""

    def test_before_a_connection_there_are_no_facts(self, sock: socket.socket) -> None:
        for option in (
            TlsOption.TLS_TRANSPORT,
            TlsOption.TLS_CHOSEN_CIPHER,
            TlsOption.TLS_PEER_IDENTITY,
            TlsOption.TLS_PEER_CERTIFICATE_CHAIN,
            TlsOption.TLS_ALPN,
        ):
            refused(errno.EOPNOTSUPP, lambda option=option: get_text(sock, option))  # type: ignore[misc]
        refused(errno.EOPNOTSUPP, lambda: get_number(sock, TlsOption.TLS_VERSION_CONN))

    def test_with_a_connection_settings_are_fixed(self, echo_server: Server) -> None:
        with connect(echo_server) as sock:
            refused(errno.EOPNOTSUPP, lambda: set_text(sock, TlsOption.TLS_HOSTNAME, "x.test"))
            refused(errno.EOPNOTSUPP, lambda: set_number(sock, TlsOption.TLS_VERSION_MIN, TLS_1_3))
            refused(errno.EOPNOTSUPP, lambda: sock.connect(("127.0.0.1", 1)))

    def test_the_id_is_the_sockets_own(self, sock: socket.socket) -> None:
        with tls_socket() as other:
            assert get_id(sock) != get_id(other)
            assert {entry["socket"] for entry in sockets()} == {get_id(sock), get_id(other)}


@pytest.mark.parametrize("key", ["rsa", "ecdsa"])
def test_a_connection_tells_its_facts(web: Nginx, pki: Pki, transport: Transport, key: str) -> None:
    offer = servers.Offer("TLSv1.3", "AES-256-GCM")
    with connect(Address("127.0.0.1", web.ports[key, offer]), host=ALIAS) as sock:
        assert get_text(sock, TlsOption.TLS_HOSTNAME) == ALIAS
        assert get_text(sock, TlsOption.TLS_TRANSPORT) == transport
        assert get_number(sock, TlsOption.TLS_VERSION_CONN) == TLS_1_3
        assert get_text(sock, TlsOption.TLS_CHOSEN_CIPHER) == offer.suite(key)
        assert get_text(sock, TlsOption.TLS_PEER_IDENTITY) == f"CN={HOST}"
        assert get_number(sock, TlsOption.TLS_RESUMED_SESSION) == 0
        chain = get_text(sock, TlsOption.TLS_PEER_CERTIFICATE_CHAIN)
        identity = pki.rsa if key == "rsa" else pki.ecdsa
        assert chain.startswith(identity.chain.read_text())
        assert tls_error(sock) == ""


def test_a_protocol_is_chosen(pki: Pki, logs: Path, sock: socket.socket) -> None:
    set_text(sock, TlsOption.TLS_ALPN, "h2,http/1.1")
    with servers.openssl(pki.ecdsa, logs, "-www", "-alpn", "http/1.1") as server:
        sock.connect((server.address, server.port))
        assert get_text(sock, TlsOption.TLS_ALPN) == "http/1.1"


@pytest.mark.parametrize(
    "name", ["", "a..b", "-a.test", "a" * 64 + ".test", "a b.test", "a\nb.test", "127.1"]
)
def test_a_name_that_is_none_is_refused(sock: socket.socket, name: str) -> None:
    refused(errno.EINVAL, lambda: set_text(sock, TlsOption.TLS_HOSTNAME, name))
    assert get_text(sock, TlsOption.TLS_HOSTNAME) == HOST


def test_a_name_that_is_too_long_is_refused(sock: socket.socket) -> None:
    refused(errno.EMSGSIZE, lambda: set_text(sock, TlsOption.TLS_HOSTNAME, "a." * 127 + "test"))


class TestArguments:
    """What the system calls check themselves."""

    def call(
        self, sock: socket.socket, name: str, option: int, value: object, length: object
    ) -> int:
        """Call setsockopt or getsockopt of the C library; return 0 or the errno."""
        function = getattr(libc, name)
        if function(sock.fileno(), IPPROTO_TLS, option, value, length) == 0:
            return 0
        return ctypes.get_errno()

    def test_unknown_options(self, sock: socket.socket) -> None:
        for option in (0, 84, 86, 129, 131, 1000, -1, 2**31 - 1):
            assert self.call(sock, "setsockopt", option, b"1234", 4) == errno.ENOPROTOOPT
            room = ctypes.c_int(4)
            buffer = ctypes.create_string_buffer(4)
            got = self.call(sock, "getsockopt", option, buffer, ctypes.byref(room))
            assert got == errno.ENOPROTOOPT

    def test_options_that_can_only_be_got_or_set(self, sock: socket.socket) -> None:
        refused(errno.ENOPROTOOPT, lambda: set_number(sock, TlsOption.TLS_ID, 1))
        refused(errno.ENOPROTOOPT, lambda: set_text(sock, TlsOption.TLS_ERROR, "none"))
        refused(errno.ENOPROTOOPT, lambda: set_text(sock, TlsOption.TLS_TRANSPORT, "ktls"))
        refused(errno.ENOPROTOOPT, lambda: get_text(sock, TlsOption.TLS_PRIVATE_KEY))

    def test_bad_pointers(self, sock: socket.socket) -> None:
        nowhere = ctypes.c_void_p(1)
        room = ctypes.byref(ctypes.c_int(100))
        name, error = TlsOption.TLS_HOSTNAME, TlsOption.TLS_ERROR
        assert self.call(sock, "setsockopt", name, nowhere, 10) == errno.EFAULT
        assert self.call(sock, "setsockopt", TRUSTED, nowhere, 100) == errno.EFAULT
        assert self.call(sock, "getsockopt", error, nowhere, room) == errno.EFAULT
        buffer = ctypes.create_string_buffer(100)
        assert self.call(sock, "getsockopt", error, buffer, nowhere) == errno.EFAULT

    def test_wrong_lengths(self, sock: socket.socket) -> None:
        version, name = TlsOption.TLS_VERSION_MIN, TlsOption.TLS_HOSTNAME
        for length in (0, 1, 3, 5, 8):
            assert self.call(sock, "setsockopt", version, bytes(8), length) == errno.EINVAL
        assert self.call(sock, "setsockopt", name, b"", 0) == errno.EINVAL
        assert self.call(sock, "setsockopt", name, b"a\0b\0", 4) == errno.EINVAL

    def test_a_string_needs_no_nul_to_be_set(self, sock: socket.socket) -> None:
        sock.setsockopt(IPPROTO_TLS, TlsOption.TLS_HOSTNAME, b"bare.test")
        assert get_text(sock, TlsOption.TLS_HOSTNAME) == "bare.test"

    def test_too_little_room_tells_how_much_is_needed(self, sock: socket.socket) -> None:
        room = ctypes.c_int(3)
        buffer = ctypes.create_string_buffer(b"...", 3)
        got = self.call(sock, "getsockopt", TlsOption.TLS_HOSTNAME, buffer, ctypes.byref(room))
        assert got == errno.EMSGSIZE
        assert room.value == len(HOST) + 1
        assert buffer.raw == b"..."
        room = ctypes.c_int(-1)
        got = self.call(sock, "getsockopt", TlsOption.TLS_HOSTNAME, buffer, ctypes.byref(room))
        assert got == errno.EINVAL


class TestOtherLevels:
    """What is TCP's goes to the endpoint; what would break TLS is refused."""

    def test_tcp_options_reach_the_endpoint(self, echo_server: Server, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
        sock.connect((echo_server.address, echo_server.port))
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x10
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        assert info[0] == 1  # TCP_ESTABLISHED

    @pytest.mark.parametrize("connected", [False, True], ids=["new", "connected"])
    def test_keys_can_neither_be_read_nor_set(
        self, echo_server: Server, sock: socket.socket, *, connected: bool
    ) -> None:
        if connected:
            sock.connect((echo_server.address, echo_server.port))
        tcp_ulp, tls_tx, tls_rx = 31, 1, 2
        with pytest.raises(OSError, match="Errno"):
            sock.setsockopt(socket.IPPROTO_TCP, tcp_ulp, b"tls")
        for name in (tls_tx, tls_rx):
            with pytest.raises(OSError, match="Errno"):
                sock.getsockopt(SOL_TLS, name, 40)
            with pytest.raises(OSError, match="Errno"):
                sock.setsockopt(SOL_TLS, name, bytes(40))

    def test_sizes_and_times_are_kept(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 1 << 17
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == IPPROTO_TLS
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


def test_tearing_down_a_connection_leaves_a_closed_socket(echo_server: Server) -> None:
    unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
    with connect(echo_server) as sock:
        assert libc.connect(sock.fileno(), unspecified, len(unspecified)) == 0
        refused(errno.ENOTCONN, lambda: sock.send(b"never"))
        refused(errno.EOPNOTSUPP, lambda: sock.connect((echo_server.address, echo_server.port)))


def test_the_daemon_never_opens_a_path_of_a_program(
    sock: socket.socket, daemon: Daemon, tmp_path: Path
) -> None:
    # tmp_path is root's alone, and the daemon is not root.
    store = tmp_path / "store.pem"
    store.write_bytes(daemon.trust_store.read_bytes())
    store.chmod(0o600)
    set_text(sock, TRUSTED, str(store))
