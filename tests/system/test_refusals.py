# SPDX-License-Identifier: BSD-3-Clause
"""Bad servers are refused, and TLS_ERROR says why."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
from OpenSSL import SSL

from ssad.wire import TlsOption
from tests.peers import hostile, servers, tls_peer
from tests.peers.hostile import Script, serving
from tests.peers.pki import HOST, OTHER_HOST
from tests.system.program import (
    Address,
    Listener,
    refused,
    set_text,
    so_error,
    tls_error,
    tls_socket,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from tests.peers.pki import Pki
    from tests.peers.servers import Nginx, Version

pytestmark = pytest.mark.usefixtures("daemon")


def check_refused(
    server: Listener, words: Sequence[str], *, error: int = errno.EPROTO, host: str | None = HOST
) -> None:
    """Check that a connect fails with `error`, for a reason that is told in `words`; and what
    holds for every failure: the socket says so once, and can't be used any more."""
    family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
    with tls_socket(family, host) as sock:
        refused(error, lambda: sock.connect((server.address, server.port)))
        text = tls_error(sock)
        assert all(word in text for word in words), f"{words} should be in: {text}"
        assert text.endswith((".", "?")), f"no sentence: {text}"
        assert so_error(sock) == 0, "connect() has returned the error, so it is not told again"
        refused(errno.EBADFD, lambda: sock.send(b"never"))
        refused(errno.ENOTCONN, sock.getpeername)
        refused(errno.EBADFD, lambda: sock.connect((server.address, server.port)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("expired", [f"CN={HOST}", "expired on"]),
        ("not_yet_valid", [f"CN={HOST}", "not valid before"]),
        ("self_signed", [f"CN={HOST}", "self-signed"]),
        ("unknown_ca", ["CN=Unknown Root", "unknown authority"]),
        ("wrong_host", [OTHER_HOST, f"wants one for {HOST}"]),
        ("missing_intermediate", ["CN=Test Intermediate", "did not send"]),
        ("issued_by_leaf", ["CN=No Authority", "not a certificate authority"]),
        ("client_only", ["clientAuth", "serverAuth"]),
        ("wrong_key_usage", ["cRLSign", "digitalSignature"]),
    ],
)
@pytest.mark.parametrize("version", servers.VERSIONS)
def test_a_bad_certificate_is_refused(
    pki: Pki, name: str, words: list[str], version: Version
) -> None:
    if name == "wrong_key_usage":
        version = "TLSv1.3"  # with TLS 1.2 OpenSSL as a server does not use it in the first place
    heard: list[SSL.Error] = []

    def listen(raw: socket.socket, peer: hostile.Peer) -> None:
        try:
            tls_peer.TlsConnection(raw, getattr(pki, name), version).handshake()
        except SSL.Error as error:
            heard.append(error)
        peer.report("over")

    with serving(listen) as peer:
        check_refused(peer, words)
        peer.await_report("over")
    # Verified before the handshake counts as finished: the server learns of it by an alert.
    assert "alert" in str(heard[0]), f"the server heard {heard[0]!r}"


@pytest.mark.parametrize(("name", "found"), [("wrong_host", OTHER_HOST), ("no_address", HOST)])
def test_an_address_that_the_certificate_lacks_is_refused(
    pki: Pki, logs: Path, name: str, found: str
) -> None:
    with servers.openssl(getattr(pki, name), logs, "-www") as server:
        check_refused(server, [found, "wants one for 127.0.0.1"], host=None)


def test_an_ipv6_address_that_the_certificate_lacks_is_refused(pki: Pki, logs: Path) -> None:
    with servers.openssl(pki.no_address, logs, "-www", address="::1") as server:
        check_refused(server, [HOST, "wants one for ::1"], host=None)


@pytest.mark.parametrize("option", ["-tls1", "-tls1_1"])
def test_a_server_with_old_versions_only_is_refused(pki: Pki, logs: Path, option: str) -> None:
    options = ("-www", option, "-cipher", "ALL:@SECLEVEL=0")
    with servers.openssl(pki.rsa, logs, *options) as server:
        check_refused(server, ["protocol_version"])


@pytest.mark.parametrize(
    "options",
    [
        ("-tls1_2", "-cipher", "AES128-GCM-SHA256"),  # no forward secrecy
        ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA256"),  # no authenticated encryption
        ("-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"),
    ],
    ids=["no forward secrecy", "no authenticated encryption", "an odd one"],
)
def test_a_server_without_a_common_cipher_is_refused(
    pki: Pki, logs: Path, options: tuple[str, ...]
) -> None:
    with servers.openssl(pki.rsa, logs, "-www", *options) as server:
        check_refused(server, ["handshake_failure"])


def test_a_plain_http_server_is_named_as_such(web: Nginx) -> None:
    check_refused(Address("127.0.0.1", web.plain_port), ["plain HTTP"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (hostile.GARBAGE, ["other than TLS", hostile.GARBAGE[:5].hex(" ")]),
        (hostile.SMTP_BANNER, ["other than TLS", "220 m"]),
        (hostile.OVERSIZED_PLAIN, ["record", "16384"]),
        (hostile.OVERSIZED_HEADER, ["record", "16640"]),
        (hostile.EMPTY_RECORDS, ["record"]),
        (hostile.record(tls_peer.ALERT, bytes((2, 40))), ["handshake_failure (40)"]),
        (hostile.record(tls_peer.ALERT, b""), ["alert"]),
        (hostile.record(hostile.APPLICATION_DATA, b"data"), ["TLS"]),
        (hostile.record(tls_peer.HANDSHAKE, b"\x02\0\0\x04oops"), ["TLS"]),
    ],
    ids=[
        "garbage",
        "another protocol",
        "16 KiB and 1",
        "longer than any record",
        "empty records",
        "an alert",
        "an empty alert",
        "data before the handshake",
        "a ServerHello that is none",
    ],
)
def test_what_is_no_handshake_is_refused(data: bytes, words: list[str]) -> None:
    with serving(hostile.answer(data)) as peer:
        check_refused(peer, words)


@pytest.mark.parametrize(
    ("script", "word"),
    [
        (hostile.close_after_hello, "closed"),
        (hostile.reset_after_hello, "reset"),
    ],
    ids=["close", "reset"],
)
def test_a_peer_that_leaves_after_the_hello_aborts(script: Script, word: str) -> None:
    with serving(script) as peer:
        check_refused(peer, [word, "in the middle"], error=errno.ECONNABORTED)


@pytest.mark.parametrize(("version", "flight"), [("TLSv1.2", 0), ("TLSv1.2", 1), ("TLSv1.3", 0)])
@pytest.mark.parametrize("sent", [0, 3, 5, 100, -1], ids="after {} bytes".format)
def test_a_peer_that_leaves_within_a_flight_aborts(
    pki: Pki, version: Version, flight: int, sent: int
) -> None:
    def script(raw: socket.socket, _peer: hostile.Peer) -> None:
        connection = tls_peer.TlsConnection(raw, pki.ecdsa, version)
        output = connection.handshake(stop_before_flight=flight)
        raw.sendall(output[:sent])

    with serving(script) as peer:
        check_refused(peer, ["in the middle"], error=errno.ECONNABORTED)


def test_a_flipped_bit_in_the_handshake_is_refused(pki: Pki) -> None:
    def script(raw: socket.socket, _peer: hostile.Peer) -> None:
        connection = tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.3")
        output = bytearray(connection.handshake(stop_before_flight=0))
        output[-1] ^= 1
        raw.sendall(output)
        hostile.read_until_closed(raw)

    with serving(script) as peer:
        check_refused(peer, ["TLS"])


def test_a_socket_can_be_made_to_trust_what_the_policy_does_not(
    pki: Pki, logs: Path, stack: ExitStack
) -> None:
    server = stack.enter_context(servers.openssl(pki.unknown_ca, logs, "-www"))
    sock = stack.enter_context(tls_socket())
    set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, str(pki.unknown_root))
    sock.connect((server.address, server.port))


def test_a_refused_socket_does_not_disturb_the_next(pki: Pki, logs: Path) -> None:
    with serving(hostile.answer(hostile.GARBAGE)) as peer:
        check_refused(peer, ["other than TLS"])
    with servers.openssl(pki.ecdsa, logs, "-www") as server, tls_socket() as sock:
        sock.connect((server.address, server.port))
