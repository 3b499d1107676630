# SPDX-License-Identifier: BSD-3-Clause
"""The client's handshake, played against OpenSSL's server in memory."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtensionOID
from OpenSSL import SSL

from ssad import records
from ssad.alerts import Alert
from ssad.errors import HandshakeError
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.records import split
from ssad.settings import Settings
from tests.peers.pki import ADDRESSES, ALIAS, HOST, OTHER_HOST, Identity, Pki
from tests.unit.memory_client import settings_of
from tests.unit.memory_server import MemoryServer, context, shake_hands, start

VERSIONS = [TLS_1_2, TLS_1_3]
TLS_1_1 = 0x0302
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_a_good_server_is_accepted(pki: Pki, version: int, kind: str) -> None:
    identity: Identity = getattr(pki, kind)
    server = MemoryServer(context(identity, version=version))

    result = shake_hands(start(pki), server)

    assert result.version == version
    assert result.cipher == server.connection.get_cipher_name()
    assert result.peer_identity == f"CN={HOST}"
    assert result.alpn == ""
    assert not result.resumed
    assert result.keys is not None
    chain = x509.load_pem_x509_certificates(result.peer_chain)
    assert chain == x509.load_pem_x509_certificates(identity.chain.read_bytes())
    assert server.connection.get_servername() == HOST.encode()


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_after_the_handshake_is_taken(pki: Pki, version: int) -> None:
    """What comes behind the server's last message decrypts with the connection, still unread."""
    server = MemoryServer(context(pki.ecdsa, version=version))
    result = shake_hands(start(pki), server)
    server.connection.send(b"first data")

    result.connection.bio_write(server.output())

    assert result.connection.recv(100) == b"first data"


@pytest.mark.parametrize("remote", ADDRESSES)
def test_without_host_name_the_address_is_verified_and_no_name_is_sent(
    pki: Pki, remote: str
) -> None:
    server = MemoryServer(context(pki.ecdsa))

    client = start(pki, Settings(), remote=ipaddress.ip_address(remote))
    shake_hands(client, server)

    assert server.connection.get_servername() is None


def test_an_address_as_host_name_is_verified_and_not_sent(pki: Pki) -> None:
    server = MemoryServer(context(pki.ecdsa))
    elsewhere = ipaddress.ip_address("192.0.2.99")

    shake_hands(start(pki, Settings(host_name="127.0.0.1"), remote=elsewhere), server)

    assert server.connection.get_servername() is None


@pytest.mark.parametrize(
    ("offered", "known", "chosen"),
    [
        (("h2", "http/1.1"), ("http/1.1",), "http/1.1"),
        (("h2",), (), ""),
        ((), ("h2",), ""),
    ],
)
def test_a_protocol_is_chosen(
    pki: Pki, offered: tuple[str, ...], known: Sequence[str], chosen: str
) -> None:
    server = MemoryServer(context(pki.ecdsa, alpn=known))

    result = shake_hands(start(pki, Settings(host_name=HOST, alpn=offered)), server)

    assert result.alpn == chosen


def test_a_protocol_that_was_not_offered_is_refused(pki: Pki) -> None:
    server = MemoryServer(context(pki.ecdsa, alpn=("smtp",)))

    with pytest.raises(HandshakeError) as caught:
        shake_hands(start(pki, Settings(host_name=HOST, alpn=("h2",))), server)

    assert caught.value.errno == errno.EPROTO


def test_settings_restrict_versions_and_ciphers(pki: Pki) -> None:
    cipher = "ECDHE-RSA-CHACHA20-POLY1305"
    settings = Settings(host_name=HOST, version_max=TLS_1_2, trusted_ciphers=(cipher,))

    result = shake_hands(start(pki, settings), MemoryServer(context(pki.rsa)))

    assert (result.version, result.cipher) == (TLS_1_2, cipher)


def test_a_cipher_that_the_kernel_lacks_has_no_kernel_keys(pki: Pki) -> None:
    cipher = "TLS_AES_128_CCM_SHA256"
    policy = Policy(trust_store=pki.root, ciphers13=cipher)

    result = shake_hands(
        start(pki, policy=policy), MemoryServer(context(pki.ecdsa, ciphers13=cipher))
    )

    assert (result.cipher, result.keys) == (cipher, None)


def test_a_program_can_trust_a_root_of_its_own(pki: Pki) -> None:
    settings = Settings(host_name=HOST, trusted=pki.unknown_root.read_bytes())

    shake_hands(start(pki, settings), MemoryServer(context(pki.unknown_ca)))

    with pytest.raises(HandshakeError, match="TLS_TRUSTED_PEER_CERTIFICATES"):
        shake_hands(start(pki, settings), MemoryServer(context(pki.ecdsa)))


@pytest.mark.parametrize("name", ["self_signed", "missing_intermediate"])
def test_a_program_can_trust_one_very_certificate(pki: Pki, name: str) -> None:
    identity: Identity = getattr(pki, name)
    settings = Settings(host_name=HOST, trusted=identity.chain.read_bytes())

    shake_hands(start(pki, settings), MemoryServer(context(identity)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_certificate_is_shown_when_asked_for(pki: Pki, version: int) -> None:
    server = MemoryServer(context(pki.ecdsa, version=version, client_root=str(pki.root)))

    shake_hands(start(pki, settings_of(pki.client, host_name=HOST)), server)

    own, *issuers = x509.load_pem_x509_certificates(pki.client.chain.read_bytes())
    assert server.connection.get_peer_certificate(as_cryptography=True) == own
    # A server gets the issuers alone (SSL_get_peer_cert_chain(3)).
    assert server.connection.get_peer_cert_chain(as_cryptography=True) == issuers


@pytest.mark.parametrize("kind", ["RSA", "ECDSA"])
def test_the_client_certificate_is_of_the_kind_that_the_server_knows(pki: Pki, kind: str) -> None:
    sigalgs = {"RSA": b"RSA-PSS+SHA256", "ECDSA": b"ECDSA+SHA256"}[kind]
    # What it accepts is what it signs with as well, so it has a certificate of that kind.
    server_context = context(getattr(pki, kind.lower()), version=TLS_1_3)
    server_context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    assert Binding.lib.SSL_CTX_set1_sigalgs_list(server_context._context, sigalgs)
    server = MemoryServer(server_context)

    shake_hands(start(pki, settings_of(pki.ecdsa, pki.rsa, host_name=HOST)), server)

    shown = server.connection.get_peer_certificate(as_cryptography=True)
    wanted: Identity = getattr(pki, kind.lower())
    assert shown == x509.load_pem_x509_certificate(wanted.chain.read_bytes())


REFUSED = [
    ("expired", "expired on", Alert.CERTIFICATE_EXPIRED),
    ("not_yet_valid", "is not valid before", Alert.BAD_CERTIFICATE),
    ("self_signed", "is self-signed; the policy wants", Alert.UNKNOWN_CA),
    ("unknown_ca", "ends with CN=Unknown Root, an unknown authority", Alert.UNKNOWN_CA),
    ("wrong_host", f"is for {OTHER_HOST}, 192.0.2.1; the policy wants one", Alert.BAD_CERTIFICATE),
    (
        "missing_intermediate",
        "issued by CN=Test Intermediate, whose certificate the peer did not send",
        Alert.UNKNOWN_CA,
    ),
    ("issued_by_leaf", "CN=No Authority issued another one", Alert.UNKNOWN_CA),
    ("client_only", "extended key usage clientAuth", Alert.UNSUPPORTED_CERTIFICATE),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "words", "alert"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_a_bad_certificate_is_refused_with_a_sentence_and_an_alert(
    pki: Pki, version: int, name: str, words: str, alert: Alert
) -> None:
    server = MemoryServer(context(getattr(pki, name), version=version))

    with pytest.raises(HandshakeError) as caught:
        shake_hands(start(pki), server)

    assert caught.value.errno == errno.EPROTO
    assert words in caught.value.text
    assert caught.value.text.endswith(".")
    assert server.alert == alert


def test_a_wrong_key_usage_is_refused(pki: Pki) -> None:
    server = MemoryServer(context(pki.wrong_key_usage, version=TLS_1_3))

    with pytest.raises(HandshakeError, match="key usage cRLSign") as caught:
        shake_hands(start(pki), server)

    assert caught.value.errno == errno.EPROTO
    assert server.alert == Alert.UNSUPPORTED_CERTIFICATE


def test_a_certificate_that_can_not_be_read_is_refused(pki: Pki, tmp_path: Path) -> None:
    """OpenSSL is content with alternative names that are no list of names."""
    identity, certificate = _issue(
        pki, tmp_path, x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x04\0")
    )
    settings = Settings(host_name=HOST, trusted=certificate)

    with pytest.raises(HandshakeError) as caught:
        shake_hands(start(pki, settings), MemoryServer(context(identity)))

    assert caught.value.errno == errno.EPROTO
    assert f"CN={HOST}" in caught.value.text


def test_a_key_that_may_not_sign_is_refused(pki: Pki, tmp_path: Path) -> None:
    """keyEncipherment was for a key exchange that no suite of ours has; OpenSSL lets it pass."""
    usage = dict.fromkeys(USAGES, False) | {"key_encipherment": True}
    identity, certificate = _issue(pki, tmp_path, x509.KeyUsage(**usage))
    settings = Settings(host_name=HOST, trusted=certificate)

    with pytest.raises(HandshakeError, match="key usage keyEncipherment") as caught:
        shake_hands(start(pki, settings), MemoryServer(context(identity)))

    assert caught.value.errno == errno.EPROTO


def _issue(pki: Pki, directory: Path, extension: x509.ExtensionType) -> tuple[Identity, bytes]:
    """Make a server that shows a self-signed certificate with one extension; return that too."""
    identity = Identity(directory / "chain.pem", pki.rsa.key)
    key = load_pem_private_key(identity.key.read_bytes(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    good = x509.load_pem_x509_certificate(pki.rsa.chain.read_bytes())
    builder = (
        x509.CertificateBuilder()
        .subject_name(good.subject)
        .issuer_name(good.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(good.not_valid_before_utc)
        .not_valid_after(good.not_valid_after_utc)
        .add_extension(extension, critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    identity.chain.write_bytes(certificate)
    return identity, certificate


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("ecdsa", Settings(host_name=OTHER_HOST), OTHER_HOST),
        ("ecdsa", Settings(host_name="192.0.2.1"), "192.0.2.1"),
        ("no_address", Settings(), "127.0.0.1"),
        ("no_address", Settings(host_name="127.0.0.1"), "127.0.0.1"),
    ],
)
def test_another_identity_is_refused(pki: Pki, name: str, settings: Settings, wanted: str) -> None:
    server = MemoryServer(context(getattr(pki, name)))

    with pytest.raises(HandshakeError) as caught:
        shake_hands(start(pki, settings), server)

    assert caught.value.errno == errno.EPROTO
    assert f"is for {HOST}, {ALIAS}" in caught.value.text
    assert f"the policy wants one for {wanted}." in caught.value.text
    assert server.alert == Alert.BAD_CERTIFICATE


@pytest.mark.parametrize(
    ("server_context", "words"),
    [
        (
            {"version": TLS_1_1, "ciphers": "ALL:@SECLEVEL=0"},
            (
                "refused all TLS versions offered, with the alert protocol_version (70); "
                "the policy wants TLS 1.2 to TLS 1.3."
            ),
        ),
        (
            {"version": TLS_1_2, "ciphers": "ECDHE-ECDSA-AES128-SHA"},
            "with the alert handshake_failure (40): most likely it has no cipher in common",
        ),
    ],
    ids=["TLS 1.1", "no common cipher"],
)
def test_what_the_peer_refuses_is_told(
    pki: Pki, server_context: dict[str, object], words: str
) -> None:
    server = MemoryServer(context(pki.ecdsa, **server_context))  # type: ignore[arg-type]

    with pytest.raises(HandshakeError) as caught:
        shake_hands(start(pki), server)

    assert caught.value.errno == errno.EPROTO
    assert words in caught.value.text


def record(kind: int, body: bytes) -> bytes:
    return bytes((kind, 3, 3)) + len(body).to_bytes(2) + body


def server_hello(version: int) -> bytes:
    body = version.to_bytes(2) + bytes(32) + b"\0" + b"\xc0\x2b" + b"\0"
    return record(records.HANDSHAKE, b"\x02" + len(body).to_bytes(3) + body)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (record(records.ALERT, bytes((2, 40))), "with the alert handshake_failure (40)"),
        (record(records.ALERT, bytes((2, 71))), "with the alert insufficient_security (71)"),
        (record(records.ALERT, bytes((2, 112))), "does not know the host name asked for"),
        (record(records.ALERT, bytes((2, 120))), "none of the protocols of TLS_ALPN"),
        (record(records.ALERT, bytes((2, 42))), "refused the client's certificate with the alert"),
        (record(records.ALERT, bytes((2, 80))), "with the alert internal_error (80)"),
        (record(records.ALERT, bytes((2, 200))), "with the alert number 200"),
        (server_hello(0x0301), "answered with TLS 1.0; the policy wants TLS 1.2 to TLS 1.3"),
        (server_hello(0x0302), "answered with TLS 1.1; the policy wants TLS 1.2 to TLS 1.3"),
        (record(records.HANDSHAKE, b"\x63\0\0\0"), "The peer broke the TLS protocol"),
        (record(records.APPLICATION_DATA, b"data"), "The peer broke the TLS protocol"),
        (record(records.HANDSHAKE, bytes(16385)), "more than 16384 bytes"),
        (record(records.HANDSHAKE, bytes(16641))[:5], "a TLS record of 16641 bytes"),
        (b"HTTP/", "plain HTTP"),
        (b"220 m", "something other than TLS"),
    ],
)
def test_a_peer_that_does_not_do_as_the_protocol_wants_is_refused(
    pki: Pki, answer: bytes, words: str
) -> None:
    client = start(pki)
    client.start()

    with pytest.raises(HandshakeError) as caught:
        client.receive_record(answer)

    assert caught.value.errno == errno.EPROTO
    assert words in caught.value.text


def test_a_record_that_is_too_long_gets_its_alert(pki: Pki) -> None:
    """RFC 8446, 5.2: MUST terminate the connection with a "record_overflow" alert."""
    client = start(pki)
    client.start()

    with pytest.raises(HandshakeError):
        client.receive_record(record(records.HANDSHAKE, bytes(16641))[:5])

    assert client.pending_output()[-2:] == bytes((2, Alert.RECORD_OVERFLOW))


def test_a_peer_that_says_that_it_closes_has_aborted(pki: Pki) -> None:
    client = start(pki)
    client.start()

    with pytest.raises(HandshakeError, match="closed the connection") as caught:
        client.receive_record(record(records.ALERT, bytes((1, Alert.CLOSE_NOTIFY))))

    assert caught.value.errno == errno.ECONNABORTED


@pytest.mark.parametrize("version", VERSIONS)
def test_a_forged_finished_is_refused(pki: Pki, version: int) -> None:
    server = MemoryServer(context(pki.ecdsa, version=version))
    client = start(pki)
    *flight, finished = split(server.answer(client.start()))
    if version == TLS_1_2:  # the server's Finished is in its second flight
        output = b"".join(map(client.receive_record, [*flight, finished]))
        *flight, finished = split(server.answer(output))
    for record_ in flight:
        client.receive_record(record_)

    with pytest.raises(HandshakeError, match="bad_record_mac") as caught:
        client.receive_record(finished[:-1] + bytes([finished[-1] ^ 1]))

    assert caught.value.errno == errno.EPROTO
    assert not client.done


def test_the_result_of_an_unfinished_handshake_is_not_given(pki: Pki) -> None:
    client = start(pki)

    with pytest.raises(RuntimeError):
        _ = client.result


def test_renegotiation_is_not_offered(pki: Pki) -> None:
    result = shake_hands(start(pki), MemoryServer(context(pki.ecdsa, version=TLS_1_2)))

    with pytest.raises(SSL.Error, match="no renegotiation"):
        result.connection.renegotiate()


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_the_policy_bounds_the_depth_of_servers_chains(pki: Pki, version: int) -> None:
    # One certificate is between the server's and the trusted one.
    for depth in (10, 1):
        policy = Policy(trust_store=pki.root, verify_depth=depth)
        shake_hands(start(pki, policy=policy), MemoryServer(context(pki.ecdsa, version=version)))
    policy = Policy(trust_store=pki.root, verify_depth=0)
    with pytest.raises(HandshakeError) as caught:
        shake_hands(start(pki, policy=policy), MemoryServer(context(pki.ecdsa, version=version)))
    assert "trust.depth" in caught.value.text
