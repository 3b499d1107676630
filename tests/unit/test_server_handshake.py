# SPDX-License-Identifier: BSD-3-Clause
"""The server's handshake, played against OpenSSL's client in memory."""

from __future__ import annotations

import errno
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from OpenSSL import SSL

from ssad import records
from ssad.alerts import Alert
from ssad.context import ServerContexts
from ssad.errors import HandshakeError, Refused
from ssad.handshake import ServerHandshake
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.settings import AUTH_NONE, AUTH_OPTIONAL, AUTH_REQUIRED, Settings
from tests.peers.pki import ALIAS, CLIENT, HOST, SITE, Identity, Pki
from tests.unit.memory_client import (
    MemoryClient,
    client_context,
    listen,
    serve,
    settings_of,
)

_Edwards = ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | _Edwards

VERSIONS = [TLS_1_2, TLS_1_3]
TLS_1_1 = 0x0302


def certificate(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.chain.read_bytes())


def shown(contexts: ServerContexts, name: str | bytes, **client: object) -> x509.Certificate | None:
    """Return the certificate that a client is shown that asks for a name."""
    made = MemoryClient(client_context(**client), name=name)  # type: ignore[arg-type]
    serve(contexts, made)
    return made.certificate


def refused(contexts: ServerContexts, client: MemoryClient) -> str:
    """Let a handshake fail and return the sentence."""
    with pytest.raises(HandshakeError) as caught:
        serve(contexts, client)
    assert caught.value.errno == errno.EPROTO
    assert caught.value.text.endswith(".")
    return caught.value.text


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_a_client_that_verifies_is_content(pki: Pki, version: int, kind: str) -> None:
    identity: Identity = getattr(pki, kind)
    client = MemoryClient(client_context(version=version, trusted=pki.root))

    result = serve(listen(settings_of(identity)), client)

    assert result.version == version
    assert result.cipher == client.connection.get_cipher_name()
    assert result.server_name == HOST
    assert (result.alpn, result.peer_identity, result.peer_chain) == ("", "", b"")
    assert not result.resumed
    assert result.keys is not None
    chain = client.connection.get_peer_cert_chain(as_cryptography=True)
    assert chain == x509.load_pem_x509_certificates(identity.chain.read_bytes())


def test_a_server_has_nothing_to_say_first(pki: Pki) -> None:
    assert ServerHandshake(listen(settings_of(pki.ecdsa))).start() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_after_the_handshake_is_taken(pki: Pki, version: int) -> None:
    client = MemoryClient(client_context(version=version))
    result = serve(listen(settings_of(pki.ecdsa)), client)
    client.connection.send(b"first data")

    result.connection.bio_write(client.output())

    assert result.connection.recv(100) == b"first data"


# --- names ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(pki: Pki) -> ServerContexts:
    """A listener with three names, the first and the second in both kinds."""
    return listen(settings_of(pki.ecdsa, pki.rsa, pki.site, pki.wild, pki.site_rsa))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "identity"),
    [
        (HOST, "ecdsa"),
        (ALIAS, "ecdsa"),
        (SITE, "site"),
        ("SITE.Test", "site"),
        ("any.wild.test", "wild"),
        ("xn--bcher-kva.wild.test", "wild"),
        ("wild.test", "ecdsa"),
        ("two.labels.wild.test", "ecdsa"),
        ("*.wild.test", "ecdsa"),
        ("unknown.test", "ecdsa"),
        ("192.0.2.1", "ecdsa"),
        (b"\xff.test", "ecdsa"),
        ("", "ecdsa"),
    ],
)
def test_a_name_gets_its_certificate_and_any_other_the_first(
    pki: Pki, several: ServerContexts, version: int, name: str | bytes, identity: str
) -> None:
    assert shown(several, name, version=version) == certificate(getattr(pki, identity))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("SITE.Test", SITE),
        ("site.test.", SITE),
        ("unknown.test", "unknown.test"),
        ("xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("", ""),
        ("192.0.2", ""),
        ("a..b", ""),
        ("a b", ""),
        (b"\xff.test", ""),
    ],
)
def test_the_name_asked_for_is_told_if_it_is_one(
    several: ServerContexts, asked: str | bytes, name: str
) -> None:
    assert serve(several, MemoryClient(name=asked)).server_name == name


@pytest.mark.parametrize(
    ("name", "rsa", "ecdsa"), [(HOST, "rsa", "ecdsa"), (SITE, "site_rsa", "site")]
)
def test_the_kind_is_the_one_that_the_client_can_verify(
    pki: Pki, several: ServerContexts, name: str, rsa: str, ecdsa: str
) -> None:
    for version in VERSIONS:
        for sigalgs, identity in (("RSA-PSS+SHA256", rsa), ("ECDSA+SHA256", ecdsa)):
            found = shown(several, name, version=version, sigalgs=sigalgs, trusted=pki.root)
            assert found == certificate(getattr(pki, identity))
    for kind, identity in (("RSA", rsa), ("ECDSA", ecdsa)):
        cipher = f"ECDHE-{kind}-AES128-GCM-SHA256"
        found = shown(several, name, version=TLS_1_2, ciphers=cipher)
        assert found == certificate(getattr(pki, identity))


def test_the_first_may_be_a_wildcard(pki: Pki) -> None:
    contexts = listen(settings_of(pki.wild, pki.site))

    assert shown(contexts, "a.wild.test") == certificate(pki.wild)
    assert shown(contexts, SITE) == certificate(pki.site)
    assert shown(contexts, HOST) == certificate(pki.wild)


def test_an_exact_name_comes_before_a_wildcard(pki: Pki, tmp_path: Path) -> None:
    one = _issue(pki, tmp_path, "one.wild.test")
    contexts = listen(settings_of(pki.wild, one))

    assert shown(contexts, "one.wild.test") == certificate(one)
    assert shown(contexts, "two.wild.test") == certificate(pki.wild)


def test_each_certificate_has_its_own_chain(pki: Pki, tmp_path: Path) -> None:
    """OpenSSL's call for more certificates makes one chain of them for all kinds."""
    own = _issue(pki, tmp_path, HOST)
    contexts = listen(settings_of(pki.rsa, own))
    for sigalgs, length in (("RSA-PSS+SHA256", 2), ("ECDSA+SHA256", 1)):
        client = MemoryClient(client_context(sigalgs=sigalgs))
        serve(contexts, client)
        assert len(client.connection.get_peer_cert_chain() or ()) == length


def _issue(pki: Pki, directory: Path, name: str, key: _Key | None = None) -> Identity:
    """Make a self-signed certificate for a name."""
    key_ = key or load_pem_private_key(pki.ecdsa.key.read_bytes(), None)
    assert isinstance(key_, _Key)
    good = certificate(pki.ecdsa)
    subject = x509.Name([])
    made = (
        x509.CertificateBuilder(
            subject,
            subject,
            key_.public_key(),
            1,
            good.not_valid_before_utc,
            good.not_valid_after_utc,
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(key_, None if isinstance(key_, _Edwards) else hashes.SHA256())
    )
    identity = Identity(directory / "chain.pem", directory / "key.pem")
    identity.chain.write_bytes(made.public_bytes(Encoding.PEM))
    identity.key.write_bytes(key_.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return identity


def test_a_listener_may_close_while_a_handshake_is_under_way(pki: Pki) -> None:
    contexts = listen(settings_of(pki.ecdsa, pki.site))
    server = ServerHandshake(contexts)
    gone = weakref.ref(contexts)
    del contexts

    client = MemoryClient(name=SITE)
    serve(server, client)
    del server

    assert client.certificate == certificate(pki.site)
    assert gone() is None  # and its private keys with it


# --- versions, ciphers, protocols -----------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_settings_restrict_versions(pki: Pki, version: int) -> None:
    settings = settings_of(pki.ecdsa, version_min=version, version_max=version)

    assert serve(listen(settings), MemoryClient()).version == version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [HOST, SITE])
def test_settings_restrict_ciphers_and_their_order_decides(
    pki: Pki, version: int, name: str
) -> None:
    trusted = (
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_GCM_SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
    )
    contexts = listen(settings_of(pki.ecdsa, pki.site, trusted_ciphers=trusted))
    client = MemoryClient(client_context(version=version), name=name)

    assert serve(contexts, client).cipher == trusted[0 if version == TLS_1_3 else 2]


@pytest.mark.parametrize("name", [HOST, SITE])
@pytest.mark.parametrize(
    ("alpn", "offered", "chosen"),
    [
        (("h2", "http/1.1"), ("http/1.1", "h2"), "h2"),
        (("h2", "http/1.1"), ("other", "http/1.1"), "http/1.1"),
        (("h2",), (), ""),
        ((), ("h2",), ""),
    ],
)
def test_the_first_protocol_of_ours_that_is_offered_is_chosen(
    pki: Pki, name: str, alpn: tuple[str, ...], offered: tuple[str, ...], chosen: str
) -> None:
    client = MemoryClient(name=name, alpn=offered)

    result = serve(listen(settings_of(pki.ecdsa, pki.site, alpn=alpn)), client)

    assert result.alpn == chosen
    assert client.connection.get_alpn_proto_negotiated() == chosen.encode()


@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_common_protocol_the_client_is_refused(pki: Pki, version: int) -> None:
    client = MemoryClient(client_context(version=version), alpn=("smtp", "x"))

    text = refused(listen(settings_of(pki.ecdsa, alpn=("h2", "http/1.1"))), client)

    assert text == (
        "The client speaks none of the protocols of TLS_ALPN (h2, http/1.1); it offered smtp, x."
    )
    assert client.alert == Alert.NO_APPLICATION_PROTOCOL


def test_a_long_list_of_protocols_is_not_quoted_whole(pki: Pki) -> None:
    client = MemoryClient(alpn=[f"p{number}" for number in range(100)])

    text = refused(listen(settings_of(pki.ecdsa, alpn=("h2",))), client)

    assert text.endswith("p6, p7, 92 more.")


# --- client certificates --------------------------------------------------------------------


def listen_to_clients(pki: Pki, level: int, **others: object) -> ServerContexts:
    settings = settings_of(pki.ecdsa, pki.site, request_peer_auth=level, **others)
    return listen(settings, Policy(trust_store=pki.root))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("level", [AUTH_OPTIONAL, AUTH_REQUIRED])
@pytest.mark.parametrize("name", [HOST, SITE])
def test_a_good_client_is_known(pki: Pki, version: int, level: int, name: str) -> None:
    context = client_context(version=version, identity=pki.client)

    result = serve(listen_to_clients(pki, level), MemoryClient(context, name=name))

    assert result.peer_identity == f"CN={CLIENT}"
    assert result.peer_chain == pki.client.chain.read_bytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_certificate_that_is_not_asked_for_is_not_sent(pki: Pki, version: int) -> None:
    client = MemoryClient(client_context(version=version, identity=pki.client_expired))

    result = serve(listen_to_clients(pki, AUTH_NONE), client)

    assert (result.peer_identity, result.peer_chain) == ("", b"")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_optional_certificate_may_be_missing(pki: Pki, version: int) -> None:
    client = MemoryClient(client_context(version=version))

    result = serve(listen_to_clients(pki, AUTH_OPTIONAL), client)

    assert (result.peer_identity, result.peer_chain) == ("", b"")


@pytest.mark.parametrize(
    ("version", "alert"),
    [(TLS_1_2, Alert.HANDSHAKE_FAILURE), (TLS_1_3, Alert.CERTIFICATE_REQUIRED)],
)
def test_a_required_certificate_may_not_be_missing(pki: Pki, version: int, alert: Alert) -> None:
    client = MemoryClient(client_context(version=version))

    text = refused(listen_to_clients(pki, AUTH_REQUIRED), client)

    assert text == "The client sent no certificate; TLS_REQUEST_PEER_AUTH wants one."
    assert client.alert == alert


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("level", [AUTH_OPTIONAL, AUTH_REQUIRED])
@pytest.mark.parametrize(
    ("name", "words", "alert"),
    [
        ("client_expired", f"CN={CLIENT} expired on", Alert.CERTIFICATE_EXPIRED),
        ("client_unknown_ca", "CN=Unknown Root, an unknown authority", Alert.UNKNOWN_CA),
        (
            "client_not_for_clients",
            (
                f"CN={CLIENT} is not for TLS clients (key usage digitalSignature; extended key "
                "usage serverAuth); the policy wants the key usage digitalSignature and the "
                "extended key usage clientAuth."
            ),
            Alert.UNSUPPORTED_CERTIFICATE,
        ),
        ("self_signed", f"CN={HOST} is self-signed", Alert.UNKNOWN_CA),
        ("missing_intermediate", "issued by CN=Test Intermediate, whose", Alert.UNKNOWN_CA),
    ],
)
def test_a_bad_client_certificate_is_refused_with_a_sentence_and_an_alert(
    pki: Pki, version: int, level: int, name: str, words: str, alert: Alert
) -> None:
    client = MemoryClient(client_context(version=version, identity=getattr(pki, name)))

    text = refused(listen_to_clients(pki, level), client)

    assert words in text
    assert client.alert == alert


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [HOST, SITE])
def test_a_program_can_trust_a_root_of_its_own(pki: Pki, version: int, name: str) -> None:
    trusted = pki.unknown_root.read_bytes()
    contexts = listen_to_clients(pki, AUTH_REQUIRED, trusted=trusted)
    known = client_context(version=version, identity=pki.client_unknown_ca)
    unknown = client_context(version=version, identity=pki.client)

    serve(contexts, MemoryClient(known, name=name))

    text = refused(contexts, MemoryClient(unknown, name=name))
    assert "TLS_TRUSTED_PEER_CERTIFICATES" in text


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("trust", ["root of the program", "leaf", "policy"])
def test_clients_are_told_the_authorities_that_the_program_trusts(
    pki: Pki, version: int, trust: str
) -> None:
    values = {
        "root of the program": pki.unknown_root.read_bytes(),
        "leaf": pki.client.chain.read_bytes(),
        "policy": None,
    }
    contexts = listen_to_clients(pki, AUTH_OPTIONAL, trusted=values[trust])
    client = MemoryClient(client_context(version=version))

    serve(contexts, client)

    names = [name.CN for name in client.connection.get_client_ca_list()]
    assert names == (["Unknown Root"] if trust == "root of the program" else [])


def test_without_a_trust_store_clients_are_not_listened_to(pki: Pki, tmp_path: Path) -> None:
    settings = settings_of(pki.ecdsa, request_peer_auth=AUTH_OPTIONAL)
    policy = Policy(trust_store=tmp_path / "none.pem")

    with pytest.raises(HandshakeError, match=r"none\.pem can't be used"):
        listen(settings, policy)

    listen(replace(settings, request_peer_auth=AUTH_NONE), policy)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "server", "words", "alert"),
    [
        (
            {"version": TLS_1_1, "ciphers": "ALL:@SECLEVEL=0"},
            {},
            (
                "The client offers no TLS version that may be used here, TLS 1.1 at most; "
                "the policy wants TLS 1.2 to TLS 1.3."
            ),
            Alert.PROTOCOL_VERSION,
        ),
        (
            {"version": TLS_1_2},
            {"version_min": TLS_1_3},
            "may be used here, TLS 1.2 at most; the policy wants TLS 1.3.",
            Alert.PROTOCOL_VERSION,
        ),
        (
            {"version": TLS_1_3},
            {"version_max": TLS_1_2},
            "The client offers no TLS version that may be used here; the policy wants TLS 1.2.",
            Alert.PROTOCOL_VERSION,
        ),
        (
            {"version": TLS_1_2, "ciphers": "ECDHE-RSA-AES128-GCM-SHA256"},
            {},
            "(no shared cipher); what may be used here is TLS 1.2 to TLS 1.3 with the ciphers TLS_",
            Alert.HANDSHAKE_FAILURE,
        ),
        (
            {"version": TLS_1_3, "sigalgs": "RSA-PSS+SHA256"},
            {},
            "and a certificate with a key for ECDSA.",
            Alert.HANDSHAKE_FAILURE,
        ),
    ],
    ids=["TLS 1.1", "TLS 1.2", "TLS 1.3", "cipher", "signature"],
)
def test_a_client_with_nothing_in_common_is_refused(
    pki: Pki, client: dict[str, object], server: dict[str, object], words: str, alert: Alert
) -> None:
    made = MemoryClient(client_context(**client))  # type: ignore[arg-type]

    text = refused(listen(settings_of(pki.ecdsa, **server)), made)

    assert words in text
    assert made.alert == alert


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("identity", "alert"),
    [("unknown_ca", "unknown_ca (48)"), ("expired", "certificate_expired (45)")],
)
def test_a_client_that_refuses_the_certificate_is_understood(
    pki: Pki, version: int, identity: str, alert: str
) -> None:
    client = MemoryClient(client_context(version=version, trusted=pki.root))

    text = refused(listen(settings_of(getattr(pki, identity))), client)

    assert text == f"The client refused the server's certificate with the alert {alert}."


def record(kind: int, body: bytes) -> bytes:
    return bytes((kind, 3, 3)) + len(body).to_bytes(2) + body


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"GET /", "The client spoke plain HTTP, not TLS"),
        (b"SSH-2", "The client sent something other than TLS, beginning with 'SSH-2'."),
        (b"\x80\x2e\x01\x03\x01", "something other than TLS, beginning with 80 2e 01 03 01."),
        (record(records.ALERT, bytes((2, 80))), "The client broke the TLS protocol"),
        (record(records.HANDSHAKE, b"\x63\0\0\0"), "The client broke the TLS protocol"),
        (record(records.APPLICATION_DATA, b"data"), "The client broke the TLS protocol"),
        (record(records.HANDSHAKE, bytes(16385)), "The client sent a TLS record with more than"),
        (record(records.HANDSHAKE, bytes(16641))[:5], "a TLS record of 16641 bytes"),
    ],
)
def test_a_client_that_does_not_do_as_the_protocol_wants_is_refused(
    pki: Pki, sent: bytes, words: str
) -> None:
    server = ServerHandshake(listen(settings_of(pki.ecdsa)))
    server.start()

    with pytest.raises(HandshakeError) as caught:
        server.receive_record(sent)

    assert caught.value.errno == errno.EPROTO
    assert words in caught.value.text


@pytest.mark.parametrize(
    ("alert", "number", "words"),
    [
        (bytes((2, 80)), errno.EPROTO, "The client refused the handshake with the alert internal"),
        (bytes((1, 0)), errno.ECONNABORTED, "The peer closed the connection in the middle"),
    ],
    ids=["fatal", "close_notify"],
)
def test_an_alert_in_the_middle_is_understood(
    pki: Pki, alert: bytes, number: int, words: str
) -> None:
    server = ServerHandshake(listen(settings_of(pki.ecdsa)))
    client = MemoryClient(client_context(version=TLS_1_2))
    assert server.receive_record(client.answer(b""))

    with pytest.raises(HandshakeError) as caught:
        server.receive_record(record(records.ALERT, alert))

    assert caught.value.errno == number
    assert words in caught.value.text


@pytest.mark.parametrize("version", VERSIONS)
def test_a_forged_finished_is_refused(pki: Pki, version: int) -> None:
    server = ServerHandshake(listen(settings_of(pki.ecdsa)))
    client = MemoryClient(client_context(version=version))
    answer = server.receive_record(client.answer(b""))
    *flight, finished = records.split(client.answer(answer))
    for one in flight:
        server.receive_record(one)

    with pytest.raises(HandshakeError, match="bad_record_mac") as caught:
        server.receive_record(finished[:-1] + bytes([finished[-1] ^ 1]))

    assert caught.value.errno == errno.EPROTO
    assert not server.done


def test_renegotiation_is_refused(pki: Pki) -> None:
    client = MemoryClient(client_context(version=TLS_1_2))
    result = serve(listen(settings_of(pki.ecdsa)), client)
    client.connection.renegotiate()

    result.connection.bio_write(client.answer(b""))
    with pytest.raises(SSL.WantReadError):
        result.connection.recv(1)
    client.connection.bio_write(result.connection.bio_read(1000))

    with pytest.raises(SSL.Error, match="no renegotiation"):
        client.connection.do_handshake()


def test_listening_wants_a_certificate() -> None:
    with pytest.raises(Refused, match="needs a certificate") as caught:
        listen(Settings())

    assert caught.value.errno == errno.EINVAL


def test_a_key_that_openssl_finds_too_weak_is_refused(pki: Pki, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - which is the point
    weak = _issue(pki, tmp_path, HOST, key)

    with pytest.raises(Refused) as caught:
        listen(settings_of(weak))

    assert caught.value.errno == errno.EINVAL
    assert caught.value.text == (
        f"OpenSSL does not take the certificate of DNS:{HOST} with its RSA key: ee key too small."
    )


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey])
def test_edwards_curves_are_served_beside_others(
    pki: Pki, key: type[_Edwards], tmp_path: Path
) -> None:
    own = _issue(pki, tmp_path, HOST, key.generate())
    contexts = listen(settings_of(pki.ecdsa, own))

    assert shown(contexts, HOST, sigalgs="ed25519:ed448") == certificate(own)
    assert shown(contexts, HOST, sigalgs="ECDSA+SHA256") == certificate(pki.ecdsa)
