# SPDX-License-Identifier: BSD-3-Clause
"""Key derivation, against published vectors and against OpenSSL's own records."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from ssad import keys
from ssad.handshake import ServerHandshake
from ssad.keys import Aead, KernelKeys, Suite, TrafficKey
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.records import split
from ssad.settings import AUTH_NONE, AUTH_REQUIRED, Settings
from tests.peers.pki import HOST, SITE, Identity, Pki
from tests.unit.memory_client import MemoryClient, client_context, listen, serve, settings_of
from tests.unit.memory_server import MemoryServer, context, shake_hands, start

CIPHERS = [
    (TLS_1_3, "TLS_AES_128_GCM_SHA256", Aead.AES_128_GCM),
    (TLS_1_3, "TLS_AES_256_GCM_SHA384", Aead.AES_256_GCM),
    (TLS_1_3, "TLS_CHACHA20_POLY1305_SHA256", Aead.CHACHA20_POLY1305),
    (TLS_1_2, "ECDHE-ECDSA-AES128-GCM-SHA256", Aead.AES_128_GCM),
    (TLS_1_2, "ECDHE-ECDSA-AES256-GCM-SHA384", Aead.AES_256_GCM),
    (TLS_1_2, "ECDHE-ECDSA-CHACHA20-POLY1305", Aead.CHACHA20_POLY1305),
]


def test_tls13_keys_are_those_of_rfc_8448() -> None:
    """The application traffic keys of the simple 1-RTT handshake (section 3)."""
    client = bytes.fromhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
    server = bytes.fromhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")

    found = keys.tls13(Suite(Aead.AES_128_GCM, hashes.SHA256()), client, server)

    assert found == KernelKeys(
        TLS_1_3,
        Aead.AES_128_GCM,
        send=TrafficKey(
            bytes.fromhex("17422dda596ed5d9acd890e3c63f5051"),
            bytes.fromhex("5b78923dee08579033e523d9"),
            sequence=0,
        ),
        receive=TrafficKey(
            bytes.fromhex("9f02283b6c9c07efc26bb9f2ac92e356"),
            bytes.fromhex("cf782b88dd83549aadf1e984"),
            sequence=0,
        ),
    )


@pytest.mark.parametrize(
    ("algorithm", "secret", "seed", "output"),
    [
        (
            hashes.SHA256(),
            "9bbe436ba940f017b17652849a71db35",
            "a0ba9f936cda311827a6f796ffd5198c",
            (
                "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a6b301791e90d35c9c9a46b4e"
                "14baf9af0fa022f7077def17abfd3797c0564bab4fbc91666e9def9b97fce34f796789baa48082d122ee42c5"
                "a72e5a5110fff70187347b66"
            ),
        ),
        (
            hashes.SHA384(),
            "b80b733d6ceefcdc71566ea48e5567df",
            "cd665cf6a8447dd6ff8b27555edb7465",
            (
                "7b0c18e9ced410ed1804f2cfa34a336a1c14dffb4900bb5fd7942107e81c83cde9ca0faa60be9fe34f82b123"
                "3c9146a0e534cb400fed2700884f9dc236f80edd8bfa961144c9e8d792eca722a7b32fc3d416d473ebc2c5fd"
                "4abfdad05d9184259b5bf8cd4d90fa0d31e2dec479e4f1a26066f2eea9a69236a3e52655c9e9aee691c8f3a2"
                "6854308d5eaa3be85e0990703d73e56f"
            ),
        ),
    ],
    ids=["SHA-256", "SHA-384"],
)
def test_tls12_prf_gives_the_known_output(
    algorithm: hashes.HashAlgorithm, secret: str, seed: str, output: str
) -> None:
    """The vectors that circulate in the TLS working group, "100 bytes" and "148 bytes"."""
    expected = bytes.fromhex(output)

    found = keys.prf(
        algorithm, bytes.fromhex(secret), b"test label", bytes.fromhex(seed), len(expected)
    )

    assert found == expected


@pytest.mark.parametrize(("version", "cipher", "aead"), CIPHERS)
def test_keys_open_what_the_server_sends_and_seal_what_it_accepts(
    pki: Pki, version: int, cipher: str, aead: Aead
) -> None:
    # Arrange
    server = MemoryServer(context(pki.ecdsa))
    settings = Settings(
        host_name=HOST, version_min=version, version_max=version, trusted_ciphers=(cipher,)
    )
    found = shake_hands(start(pki, settings), server).keys
    assert found is not None
    server.output()  # session tickets, the first records under the key in TLS 1.3
    tickets = 2 if version == TLS_1_3 else 0

    # Act
    server.connection.send(b"from the server")
    (record,) = split(server.output())
    received = _open(found, record, tickets)
    server.connection.bio_write(_seal(found, b"from the client"))
    sent = server.connection.recv(100)

    # Assert
    assert (found.version, found.aead) == (version, aead)
    assert received == b"from the server"
    assert sent == b"from the client"


def test_tls12_gcm_never_repeats_a_nonce(pki: Pki) -> None:
    """The kernel goes on behind the explicit nonce of the client's Finished."""
    # Arrange
    server = MemoryServer(context(pki.ecdsa, version=TLS_1_2))
    client = start(pki)
    first_flight = client.start()
    second_flight = b"".join(map(client.receive_record, split(server.answer(first_flight))))
    finished = split(second_flight)[-1]

    # Act
    for record in split(server.answer(second_flight)):
        client.receive_record(record)

    # Assert
    assert client.result.keys is not None
    (used,) = struct.unpack_from("!Q", finished, 5)
    (following,) = struct.unpack("!Q", client.result.keys.send.nonce[4:])
    assert following == (used + 1) % 2**64


@pytest.mark.parametrize("way", ["full", "resumed", "with a client certificate"])
@pytest.mark.parametrize(("version", "cipher", "aead"), CIPHERS)
def test_a_servers_keys_open_what_the_client_sends_and_seal_what_it_accepts(
    pki: Pki, version: int, cipher: str, aead: Aead, way: str
) -> None:
    # Arrange
    settings = settings_of(
        pki.ecdsa,
        trusted_ciphers=(cipher,),
        request_peer_auth=AUTH_REQUIRED if way == "with a client certificate" else AUTH_NONE,
    )
    contexts = listen(settings, Policy(trust_store=pki.root))
    client = MemoryClient(client_context(identity=pki.client))
    result = serve(contexts, client)
    if way == "resumed":
        client = client.again()
        result = serve(contexts, client)
    found = result.keys
    assert found is not None

    # Act
    client.connection.send(b"from the client")
    (record,) = split(client.output())
    received = _open(found, record, 0)
    client.connection.bio_write(_seal(found, b"from the server"))
    sent = client.connection.recv(100)

    # Assert
    assert result.resumed == (way == "resumed")
    assert (found.version, found.aead) == (version, aead)
    assert received == b"from the client"
    assert sent == b"from the server"


def test_session_tickets_may_need_several_records_each(pki: Pki, tmp_path: Path) -> None:
    """A ticket holds the client's certificate, and a record no more than 16 KiB."""
    # Arrange
    identity = _client_with_a_long_certificate(pki, tmp_path)
    settings = settings_of(
        pki.ecdsa, request_peer_auth=AUTH_REQUIRED, trusted=identity.chain.read_bytes()
    )
    client = MemoryClient(client_context(version=TLS_1_3, identity=identity))

    # Act
    found = serve(listen(settings), client).keys
    assert found is not None
    client.connection.bio_write(_seal(found, b"from the server"))

    # Assert
    assert found.send.sequence == 4
    assert client.connection.recv(100) == b"from the server"


def _client_with_a_long_certificate(pki: Pki, directory: Path) -> Identity:
    key = load_pem_private_key(pki.client.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    good = x509.load_pem_x509_certificate(pki.client.chain.read_bytes())
    names = x509.SubjectAlternativeName([x509.DNSName(f"{n:060}.test") for n in range(300)])
    certificate = (
        x509.CertificateBuilder(
            good.subject,
            good.subject,
            key.public_key(),
            1,
            good.not_valid_before_utc,
            good.not_valid_after_utc,
        )
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = directory / "long.pem"
    chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    return Identity(chain, pki.client.key)


def test_a_server_may_have_to_ask_for_another_key_share(pki: Pki) -> None:
    """HelloRetryRequest (RFC 8446, 4.1.4) adds a flight on each side."""
    context = client_context(version=TLS_1_3, groups="brainpoolP512r1tls13:X25519")
    client = MemoryClient(context, name=SITE)
    server = ServerHandshake(listen(settings_of(pki.ecdsa, pki.site)))
    retry = server.receive_record(client.answer(b""))

    client.take(retry)
    found = serve(server, client).keys
    assert found is not None
    client.connection.bio_write(_seal(found, b"from the server"))

    assert client.certificate == x509.load_pem_x509_certificate(pki.site.chain.read_bytes())
    assert hashlib.sha256(b"HelloRetryRequest").digest() in retry
    assert client.connection.recv(100) == b"from the server"


@pytest.mark.parametrize("resumed", [False, True])
def test_a_tls12_server_never_repeats_a_nonce_of_gcm(
    pki: Pki,
    resumed: bool,  # noqa: FBT001 - a case of the test
) -> None:
    """The server's Finished comes last in a full handshake, before the client's if resumed."""
    # Arrange
    contexts = listen(settings_of(pki.ecdsa))
    client = MemoryClient(client_context(version=TLS_1_2))
    if resumed:
        serve(contexts, client)
        client = client.again()
    server = ServerHandshake(contexts)
    sent: list[bytes] = []

    # Act
    answer = b""
    while not server.done:
        answer = b"".join(map(server.receive_record, split(client.answer(answer))))
        sent += split(answer)

    # Assert
    assert server.result.resumed == resumed
    assert server.result.keys is not None
    (used,) = struct.unpack_from("!Q", sent[-1], 5)
    (following,) = struct.unpack("!Q", server.result.keys.send.nonce[4:])
    assert following == (used + 1) % 2**64


@pytest.mark.parametrize(
    "cipher",
    [
        "TLS_AES_128_CCM_SHA256",
        "ECDHE-ECDSA-AES128-CCM",
        "ECDHE-RSA-AES128-SHA256",
        "ECDHE-RSA-CAMELLIA256-SHA384",
        "ECDHE-ECDSA-ARIA128-GCM-SHA256",
        "",
    ],
)
def test_other_ciphers_are_not_for_the_kernel(cipher: str) -> None:
    assert keys.suite(cipher) is None


def test_no_key_is_shown() -> None:
    found = keys.tls13(Suite(Aead.AES_128_GCM, hashes.SHA256()), bytes(32), bytes(32))

    shown = repr(found)

    assert repr(found.send.key) not in shown
    assert repr(found.send.nonce) not in shown


def _cipher(aead: Aead, key: TrafficKey) -> AESGCM | ChaCha20Poly1305:
    return ChaCha20Poly1305(key.key) if aead is Aead.CHACHA20_POLY1305 else AESGCM(key.key)


def _nonce(key: TrafficKey, sequence: int) -> bytes:
    """RFC 8446, 5.3; RFC 7905, 2."""
    return (int.from_bytes(key.nonce) ^ sequence).to_bytes(12)


def _tls12_header(sequence: int, kind: int, length: int) -> bytes:
    """What TLS 1.2 authenticates beside the data (RFC 5246, 6.2.3.3)."""
    return struct.pack("!QBHH", sequence, kind, TLS_1_2, length)


def _open(found: KernelKeys, record: bytes, skipped: int) -> bytes:
    """Decrypt the record of application data that follows `skipped` others, as the kernel does."""
    key = found.receive
    sequence = key.sequence + skipped
    cipher = _cipher(found.aead, key)
    header, body = record[:5], record[5:]
    if found.version == TLS_1_3:
        return cipher.decrypt(_nonce(key, sequence), body, header).rstrip(b"\0")[:-1]
    if found.aead is Aead.CHACHA20_POLY1305:
        return cipher.decrypt(
            _nonce(key, sequence), body, _tls12_header(sequence, record[0], len(body) - 16)
        )
    return cipher.decrypt(
        key.nonce[:4] + body[:8], body[8:], _tls12_header(sequence, record[0], len(body) - 24)
    )


def _seal(found: KernelKeys, data: bytes) -> bytes:
    """Make the first record of application data, as the kernel does."""
    key = found.send
    cipher = _cipher(found.aead, key)
    if found.version == TLS_1_3:
        header = struct.pack("!BHH", 23, TLS_1_2, len(data) + 17)
        return header + cipher.encrypt(_nonce(key, key.sequence), data + b"\x17", header)
    associated = _tls12_header(key.sequence, 23, len(data))
    if found.aead is Aead.CHACHA20_POLY1305:
        body = cipher.encrypt(_nonce(key, key.sequence), data, associated)
    else:
        body = key.nonce[4:] + cipher.encrypt(key.nonce, data, associated)
    return struct.pack("!BHH", 23, TLS_1_2, len(body)) + body
