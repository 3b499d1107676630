# SPDX-License-Identifier: BSD-3-Clause
"""Sessions of clients that come back: with whom they can go on, and for how long."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ssad.context import ServerContexts, TicketContexts
from ssad.errors import HandshakeError
from ssad.handshake import ServerHandshake
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.records import HEADER_LENGTH, body_length
from ssad.settings import AUTH_NONE, AUTH_OPTIONAL, AUTH_REQUIRED, Settings
from tests.peers.pki import CLIENT, HOST, SITE, Identity, Pki
from tests.unit.memory_client import (
    MemoryClient,
    client_context,
    listen,
    serve,
    settings_of,
)

VERSIONS = [TLS_1_2, TLS_1_3]


@pytest.fixture(scope="module")
def tickets() -> TicketContexts:
    return TicketContexts(Policy())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [HOST, SITE])
def test_a_client_that_comes_back_resumes_its_session(pki: Pki, version: int, name: str) -> None:
    contexts = listen(settings_of(pki.ecdsa, pki.site))
    client = MemoryClient(client_context(version=version), name=name)
    first = serve(contexts, client)

    second = serve(contexts, client.again(name))

    assert (first.resumed, second.resumed) == (False, True)
    assert second.server_name == name
    assert (second.version, second.cipher) == (first.version, first.cipher)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("level", [AUTH_OPTIONAL, AUTH_REQUIRED])
def test_a_client_that_comes_back_is_the_same(pki: Pki, version: int, level: int) -> None:
    contexts = listen(settings_of(pki.ecdsa, request_peer_auth=level), Policy(trust_store=pki.root))
    client = MemoryClient(client_context(version=version, identity=pki.client))
    serve(contexts, client)

    result = serve(contexts, client.again())

    assert result.resumed
    assert result.peer_identity == f"CN={CLIENT}"
    own = x509.load_pem_x509_certificate(pki.client.chain.read_bytes())
    assert result.peer_chain == own.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_certificate_that_expired_meanwhile_is_refused(
    pki: Pki, version: int, tmp_path: Path
) -> None:
    last = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=5)
    identity = _client_until(pki, tmp_path, last)
    settings = settings_of(
        pki.ecdsa, request_peer_auth=AUTH_REQUIRED, trusted=identity.chain.read_bytes()
    )
    contexts = listen(settings)
    client = MemoryClient(client_context(version=version, identity=identity))
    serve(contexts, client)
    while dt.datetime.now(dt.UTC) <= last:
        time.sleep(0.05)

    with pytest.raises(HandshakeError, match="CN=brief expired on") as caught:
        serve(contexts, client.again())

    assert caught.value.errno == errno.EPROTO


def _client_until(pki: Pki, directory: Path, last: dt.datetime) -> Identity:
    """Make a client with a self-signed certificate that expires."""
    key = load_pem_private_key(pki.client.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "brief")])
    made = x509.CertificateBuilder(
        name, name, key.public_key(), 1, last - dt.timedelta(days=1), last
    ).sign(key, hashes.SHA256())
    identity = Identity(directory / "brief.pem", directory / "brief.key")
    identity.chain.write_bytes(made.public_bytes(Encoding.PEM))
    identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return identity


@pytest.mark.parametrize("version", VERSIONS)
def test_a_listener_with_the_same_settings_goes_on(
    pki: Pki, tickets: TicketContexts, version: int
) -> None:
    """As another worker has it that serves the same socket."""
    client = MemoryClient(client_context(version=version))
    serve(listen(settings_of(pki.ecdsa), tickets=tickets), client)

    assert serve(listen(settings_of(pki.ecdsa), tickets=tickets), client.again()).resumed


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "change",
    ["uid", "certificate", "authentication", "trust", "trust store", "ALPN", "versions", "ciphers"],
)
def test_a_listener_that_is_not_alike_begins_anew(
    pki: Pki, tickets: TicketContexts, version: int, change: str, tmp_path: Path
) -> None:
    # Arrange
    store = tmp_path / "store.pem"
    store.write_bytes(pki.root.read_bytes())
    policy = Policy(trust_store=store)
    settings = settings_of(pki.ecdsa, request_peer_auth=AUTH_OPTIONAL)
    if change == "versions":
        settings.request_peer_auth = AUTH_NONE
    other, uid = replace(settings), 1000
    match change:
        case "uid":
            uid = 1001
        case "certificate":
            other.identities += settings_of(pki.site).identities
        case "authentication":
            other.request_peer_auth = AUTH_NONE
        case "trust":
            other.trusted = pki.root.read_bytes()
        case "ALPN":
            other.alpn = ("h2",)
        case "versions":
            other.version_min = other.version_max = version
        case "ciphers":
            other.trusted_ciphers = policy.cipher_names()[:-1]
    client = MemoryClient(client_context(version=version, identity=pki.client))
    contexts = listen(settings, policy, tickets)
    serve(contexts, client)
    if change == "trust store":
        store.write_bytes(pki.root.read_bytes() + pki.unknown_root.read_bytes())

    # Act
    result = serve(listen(other, policy, tickets, uid), client.again())

    # Assert
    assert not result.resumed
    assert serve(contexts, client.again()).resumed


@pytest.mark.parametrize("version", VERSIONS)
def test_another_daemon_begins_anew(pki: Pki, version: int) -> None:
    client = MemoryClient(client_context(version=version))
    serve(listen(settings_of(pki.ecdsa)), client)

    assert not serve(listen(settings_of(pki.ecdsa)), client.again()).resumed


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_ends_after_its_time(pki: Pki, version: int) -> None:
    contexts = listen(settings_of(pki.ecdsa), Policy(session_timeout=1))
    client = MemoryClient(client_context(version=version))
    serve(contexts, client)
    again = client.again()
    time.sleep(2.1)  # OpenSSL counts whole seconds

    assert not serve(contexts, again).resumed


# --- several processes ----------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_processes_that_were_forked_take_each_others_tickets(pki: Pki, version: int) -> None:
    tickets = TicketContexts(Policy())
    settings = settings_of(pki.ecdsa, pki.site)
    client = ssl.create_default_context(cafile=pki.root)
    client.minimum_version = client.maximum_version = ssl.TLSVersion(version)
    session = None
    reused = []

    for _ in range(3):
        with (
            _worker(settings, tickets) as connection,
            client.wrap_socket(connection, server_hostname=SITE, session=session) as tls,
        ):
            assert tls.recv(100) == f"served {SITE}, resumed: {tls.session_reused}".encode()
            reused.append(tls.session_reused)
            session = tls.session

    assert reused == [False, True, True]


@contextlib.contextmanager
def _worker(settings: Settings, tickets: TicketContexts) -> Iterator[socket.socket]:
    """Fork a process that serves one connection, and give the client's end."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _serve_and_exit(theirs, settings, tickets)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        assert os.waitpid(child, 0)[1] == 0


def _serve_and_exit(sock: socket.socket, settings: Settings, tickets: TicketContexts) -> None:
    code = 1
    try:
        server = ServerHandshake(ServerContexts(settings, Policy(), tickets, 1000))
        server.start()
        while not server.done:
            header = sock.recv(HEADER_LENGTH, socket.MSG_WAITALL)
            body = sock.recv(body_length(header), socket.MSG_WAITALL)
            sock.sendall(server.receive_record(header + body))
        result = server.result
        result.connection.send(f"served {result.server_name}, resumed: {result.resumed}".encode())
        sock.sendall(server.pending_output())
        sock.recv(1)
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "changed",
    [
        {"program_trust": False},
        {"verify_depth": 9},
        {"session_timeout": 60},
        {"crl": True},
        {"ciphers13": "TLS_AES_256_GCM_SHA384", "ciphers12": "ECDHE-ECDSA-AES256-GCM-SHA384"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_session_does_not_outlive_the_policy_it_began_under(
    pki: Pki, version: int, changed: dict[str, Any]
) -> None:
    policy = Policy(trust_store=pki.root)
    settings = settings_of(pki.ecdsa, request_peer_auth=AUTH_OPTIONAL)
    tickets = TicketContexts(policy)
    client = MemoryClient(client_context(version=version, identity=pki.client))
    serve(listen(settings, policy, tickets), client)

    other = replace(policy, **changed)
    tickets.apply(other)
    client = client.again()
    changed_over = serve(listen(settings, other, tickets), client)
    again = serve(listen(settings, other, tickets), client.again())

    # With revocation to check, the client's issuers are needed each time: there are no sessions.
    resumable = not (other.ocsp or other.crl)
    assert (changed_over.resumed, again.resumed) == (False, resumable)


def test_a_session_of_a_version_that_is_allowed_no_more_is_refused(pki: Pki) -> None:
    tickets = TicketContexts(Policy())
    client = MemoryClient(client_context(version=TLS_1_2))
    serve(listen(settings_of(pki.ecdsa), Policy(), tickets), client)

    other = Policy(version_min=TLS_1_3)
    tickets.apply(other)

    with pytest.raises(HandshakeError, match=r"the policy wants TLS 1\.3"):
        serve(listen(settings_of(pki.ecdsa), other, tickets), client.again())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_goes_on_under_a_policy_that_says_nothing_of_sessions(
    pki: Pki, version: int
) -> None:
    tickets = TicketContexts(Policy())
    client = MemoryClient(client_context(version=version))
    serve(listen(settings_of(pki.ecdsa), Policy(), tickets), client)

    other = Policy(close_timeout=1, transport="channel", handshakes_total=1)
    tickets.apply(other)

    assert serve(listen(settings_of(pki.ecdsa), other, tickets), client.again()).resumed


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("depth", [0, 1])
def test_the_policy_bounds_the_depth_of_clients_chains(pki: Pki, version: int, depth: int) -> None:
    policy = Policy(trust_store=pki.root)
    tickets = TicketContexts(policy)
    settings = settings_of(pki.ecdsa, request_peer_auth=AUTH_REQUIRED)
    client = MemoryClient(client_context(version=version, identity=pki.client))
    serve(listen(settings, policy, tickets), client)

    # One certificate is between the client's and the trusted one.
    policy = replace(policy, verify_depth=depth)
    tickets.apply(policy)
    client = MemoryClient(client_context(version=version, identity=pki.client))
    if depth:
        assert serve(listen(settings, policy, tickets), client).peer_identity == f"CN={CLIENT}"
    else:
        with pytest.raises(HandshakeError, match=r"trust\.depth"):
            serve(listen(settings, policy, tickets), client)
