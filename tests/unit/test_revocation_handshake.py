# SPDX-License-Identifier: BSD-3-Clause
"""Revocation in the middle of a handshake: staples, whom to check when, and alerts."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from OpenSSL import SSL

from ssad.alerts import Alert
from ssad.checks import Checks
from ssad.errors import HandshakeError
from ssad.handshake import ClientHandshake, ServerHandshake
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.records import split
from ssad.settings import AUTH_OPTIONAL, AUTH_REQUIRED, Settings
from tests.peers.authority import MUST_STAPLE, Authority
from tests.peers.pki import HOST, SITE, Identity, Pki
from tests.unit.memory_client import MemoryClient, client_context, listen, serve, settings_of
from tests.unit.memory_server import LOCALHOST, MemoryServer, context, shake_hands, start

VERSIONS = [TLS_1_2, TLS_1_3]
# A cipher that TLS 1.2 encrypts nothing with before the alert, and all of TLS 1.3's.
CIPHERS = [
    (TLS_1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (TLS_1_3, "TLS_AES_128_GCM_SHA256"),
    (TLS_1_3, "TLS_AES_256_GCM_SHA384"),
    (TLS_1_3, "TLS_CHACHA20_POLY1305_SHA256"),
]
ONLINE = Checks(crl=True)
BAD_STATUS = Alert.BAD_CERTIFICATE_STATUS_RESPONSE


@pytest.fixture(scope="module")
def ca(pki: Pki) -> Authority:
    return Authority.load(pki.intermediate)


def leaf_of(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.chain.read_bytes())


def stapling(identity: Identity, response: bytes, version: int) -> MemoryServer:
    """Make a server that staples."""
    made = context(identity, version=version)
    made.set_ocsp_server_callback(lambda *_: response)
    return MemoryServer(made)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_good_staple_is_noted(pki: Pki, ca: Authority, version: int) -> None:
    response = ca.ocsp(leaf_of(pki.ecdsa))
    server = stapling(pki.ecdsa, response, version)
    client = start(pki, Settings(host_name=HOST, checks=Checks(ocsp_stapled=True, ocsp=True)))
    shake_hands(client, server)
    peer = client.unchecked_peer(1000)
    assert peer is not None
    assert peer.stapled


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("status", "words"),
    [(ocsp.OCSPCertStatus.REVOKED, "was revoked on"), (ocsp.OCSPCertStatus.UNKNOWN, "unknown to")],
)
def test_a_staple_that_says_no_is_refused_with_an_alert(
    pki: Pki, ca: Authority, version: int, status: ocsp.OCSPCertStatus, words: str
) -> None:
    server = stapling(pki.ecdsa, ca.ocsp(leaf_of(pki.ecdsa), status), version)
    with pytest.raises(HandshakeError) as caught:
        shake_hands(start(pki), server)
    assert caught.value.errno == errno.EPROTO
    assert words in caught.value.text
    assert server.alert == BAD_STATUS


@pytest.mark.parametrize("version", VERSIONS)
def test_no_staple_is_refused_where_there_has_to_be_one(
    pki: Pki, ca: Authority, tmp_path: Path, version: int
) -> None:
    key = Authority.load(pki.ecdsa).key
    certificate = ca.issue(MUST_STAPLE, key=key)
    identity = ca.identity(tmp_path, certificate, pki.ecdsa.key)
    server = MemoryServer(context(identity, version=version))
    with pytest.raises(HandshakeError, match="RFC 7633"):
        shake_hands(start(pki), server)
    assert server.alert == BAD_STATUS
    shake_hands(start(pki), stapling(identity, ca.ocsp(certificate), version))
    wanted = Settings(host_name=HOST, checks=Checks(ocsp_stapled=True))
    server = MemoryServer(context(pki.ecdsa, version=version))
    with pytest.raises(HandshakeError, match="TLS_OCSP_STAPLED_CHECKS wants one"):
        shake_hands(start(pki, wanted), server)
    assert server.alert == BAD_STATUS


def test_where_the_policy_has_no_use_for_staples_none_is_asked_for(pki: Pki, ca: Authority) -> None:
    response = ca.ocsp(leaf_of(pki.ecdsa), ocsp.OCSPCertStatus.REVOKED)
    policy = Policy(trust_store=pki.root, ocsp_stapled=False)
    shake_hands(start(pki, policy=policy), stapling(pki.ecdsa, response, TLS_1_3))


@pytest.mark.parametrize(("version", "cipher"), CIPHERS)
def test_a_client_checks_before_its_last_flight_and_tells_the_server(
    pki: Pki, version: int, cipher: str
) -> None:
    ciphers = {"ciphers13" if version == TLS_1_3 else "ciphers": cipher}
    server = MemoryServer(context(pki.ecdsa, version=version, **ciphers))
    client = start(pki, Settings(host_name=HOST, checks=ONLINE))
    peer = None
    flight = client.start()
    while peer is None:
        for record in split(server.answer(flight)):
            flight = client.receive_record(record)
            if flight:
                peer = client.unchecked_peer(1000)
    server.take(client.alert(Alert.CERTIFICATE_REVOKED))
    assert server.alert == Alert.CERTIFICATE_REVOKED
    assert client.unchecked_peer(1000) is None
    subjects = [certificate.subject.rfc4514_string() for certificate in peer.chain]
    assert subjects == [f"CN={HOST}", "CN=Test Intermediate", "CN=Test Root"]
    assert (peer.stapled, peer.own_trust) == (False, False)


@pytest.mark.parametrize(("version", "cipher"), CIPHERS)
def test_a_server_checks_before_it_is_done_and_tells_the_client(
    pki: Pki, version: int, cipher: str
) -> None:
    settings = settings_of(
        pki.ecdsa,
        request_peer_auth=AUTH_REQUIRED,
        trusted=pki.root.read_bytes(),
        checks=ONLINE,
        trusted_ciphers=(cipher,),
    )
    server = ServerHandshake(listen(settings))
    client = MemoryClient(client_context(version=version, identity=pki.client))
    flight, answer = b"", b""
    peer = None
    while peer is None:
        for record in split(client.answer(answer)):
            assert peer is None
            flight += server.receive_record(record)
            if flight or server.done:
                peer = server.unchecked_peer(1000)
        answer, flight = flight, b""
    client.take(server.alert(Alert.CERTIFICATE_UNKNOWN))
    assert client.alert == Alert.CERTIFICATE_UNKNOWN
    assert [c.subject.rfc4514_string() for c in peer.chain][1:] == [
        "CN=Test Intermediate",
        "CN=Test Root",
    ]
    assert peer.own_trust


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_without_a_certificate_has_nothing_to_check(pki: Pki, version: int) -> None:
    settings = settings_of(
        pki.ecdsa,
        request_peer_auth=AUTH_OPTIONAL,
        trusted=pki.root.read_bytes(),
        checks=ONLINE,
    )
    server = ServerHandshake(listen(settings))
    serve(server, MemoryClient(client_context(version=version)))
    assert server.unchecked_peer(1000) is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("checks", [Checks(), ONLINE])
def test_who_is_checked_online_shows_the_certificate_each_time(
    pki: Pki, version: int, checks: Checks
) -> None:
    settings = settings_of(
        pki.ecdsa,
        request_peer_auth=AUTH_REQUIRED,
        trusted=pki.root.read_bytes(),
        checks=checks,
    )
    contexts = listen(settings)
    client = MemoryClient(client_context(version=version, identity=pki.client))
    serve(contexts, client)
    server = ServerHandshake(contexts)
    result = serve(server, client.again())
    assert result.resumed is not checks.crl
    peer = server.unchecked_peer(1000)
    assert peer is None or len(peer.chain) == 3
    assert (peer is None) is not checks.crl


def test_a_session_without_the_issuer_can_not_be_checked(pki: Pki) -> None:
    trusted = pki.intermediate.chain.read_bytes()  # which the server does not send
    settings = Settings(host_name=HOST, trusted=trusted, checks=ONLINE)
    server = context(pki.missing_intermediate, version=TLS_1_2)
    client = start(pki, settings)
    first = shake_hands(client, MemoryServer(server)).connection
    peer = client.unchecked_peer(1000)
    assert peer is not None
    assert len(peer.chain) == 2
    first.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)
    session = first.get_session()
    assert session is not None
    again = start(pki, settings)
    again._connection.set_session(session)
    again._notes.verified = True  # as if sessions were taken up again
    assert shake_hands(again, MemoryServer(server)).resumed
    with pytest.raises(HandshakeError, match="does not have its issuer"):
        again.unchecked_peer(1000)


def _asking(version: int, **others: str) -> tuple[SSL.Context, list[bytes]]:
    """Make the context of a client that asks for a staple; they go into the list."""
    found: list[bytes] = []
    made = client_context(version=version, **others)  # type: ignore[arg-type]

    def take(_connection: SSL.Connection, response: bytes, _data: None) -> bool:
        found.append(response)
        return True

    made.set_ocsp_client_callback(take)
    return made, found


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_staples_the_response_to_the_certificate_that_it_shows(
    pki: Pki, ca: Authority, version: int
) -> None:
    identities = (pki.ecdsa, pki.rsa, pki.site)
    contexts = listen(settings_of(*identities))
    staples = {leaf_of(one): ca.ocsp(leaf_of(one)) for one in identities}
    for name, sigalgs in ((HOST, "ECDSA+SHA256"), (HOST, "RSA-PSS+SHA256"), (SITE, "")):
        asking, found = _asking(version, sigalgs=sigalgs)
        for _ in range(2):
            client = MemoryClient(asking, name=name)
            client.connection.request_ocsp()
            serve(contexts, client)
            contexts.staples |= {
                one.public_bytes(Encoding.DER): response for one, response in staples.items()
            }
        assert client.certificate is not None
        assert found[-1] == staples[client.certificate]
    # It was there only once it had been fetched, and only for those who asked.
    asking, found = _asking(version)
    serve(listen(settings_of(pki.ecdsa)), MemoryClient(asking))
    assert found in ([], [b""])


def test_the_rules_are_those_of_the_socket_and_the_policy(pki: Pki) -> None:
    policy = Policy(trust_store=pki.root, ocsp=True)
    client = ClientHandshake(
        replace(Settings(host_name=HOST), trusted=pki.root.read_bytes(), checks=ONLINE),
        policy,
        LOCALHOST,
    )
    shake_hands(client, MemoryServer(context(pki.ecdsa)))
    peer = client.unchecked_peer(1000)
    assert peer is not None
    assert (peer.rules.ocsp, peer.rules.crl, peer.own_trust) == (True, True, True)
