# SPDX-License-Identifier: BSD-3-Clause
"""OpenSSL contexts and connections, set up as settings and policy say.

OpenSSL reports through callbacks that a context has once for all its connections. What they say of
one connection is kept in its Notes.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from ssad import identity, verification
from ssad.errors import HandshakeError
from ssad.policy import Policy
from ssad.settings import Settings

_ENABLE_PARTIAL_WRITE = 0x1  # SSL_MODE_ENABLE_PARTIAL_WRITE of openssl/ssl.h
_FATAL = 2  # level of an alert

_lib = Binding.lib


@dataclass(slots=True, eq=False)
class Notes:
    """What OpenSSL's callbacks said of one connection."""

    wanted: str | identity.Address
    trust: str  # where trusted certificates come from
    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)  # by their keylog labels
    verified: bool = False
    refusal: str = ""  # why the peer's certificates were refused
    alert_sent: int | None = None  # fatal ones
    alert_received: int | None = None


@dataclass(frozen=True, slots=True)
class _TrustStore:
    """A file of trusted certificates, in the state in which it is now."""

    path: Path
    state: tuple[int, int, int]


def client_connection(
    settings: Settings, policy: Policy, remote: identity.Address
) -> SSL.Connection:
    """Make a connection for a handshake over memory. Its app data is its Notes.

    Raises HandshakeError if there is nothing to verify the peer's certificates with, Refused if
    the settings contradict each other.
    """
    wanted = identity.wanted(settings.host_name, remote)
    trust = str(policy.trust_store)
    if settings.trusted is not None:
        trust = "TLS_TRUSTED_PEER_CERTIFICATES"
    connection = SSL.Connection(client_context(settings, policy), None)
    connection.set_app_data(Notes(wanted, trust))
    connection.set_connect_state()
    _expect(connection, wanted)
    if isinstance(wanted, str):
        # RFC 6066, 3: addresses are not permitted.
        connection.set_tlsext_host_name(wanted.encode("ascii"))
    if settings.alpn:
        connection.set_alpn_protos([name.encode("ascii") for name in settings.alpn])
    return connection


def client_context(settings: Settings, policy: Policy) -> SSL.Context:
    """Return a context for client connections. Raises HandshakeError and Refused as above."""
    settings.check(policy)
    if settings.trusted is None:
        trusted: bytes | _TrustStore = _trust_store(policy.trust_store)
    elif policy.program_trust:
        trusted = settings.trusted
    else:
        raise HandshakeError(
            errno.EPROTO, "The policy does not let programs choose whom they trust."
        )
    low, high = settings.versions(policy)
    parameters = (low, high, settings.ciphers12(policy), settings.ciphers13(policy), trusted)
    if settings.private_key is None or settings.chain is None:
        return _shared_context(*parameters)
    # A private key is not kept beyond its socket, so this context is for one connection.
    context = _new_context(*parameters)
    certificate, *issuers = x509.load_pem_x509_certificates(settings.chain)
    context.use_certificate(certificate)
    for issuer in issuers:
        context.add_extra_chain_cert(issuer)
    key = load_pem_private_key(settings.private_key, password=None)
    try:
        context.use_privatekey(key)  # type: ignore[arg-type]
    except (SSL.Error, TypeError) as error:
        raise HandshakeError(
            errno.EPROTO, "TLS_PRIVATE_KEY is of a kind that TLS has no use for."
        ) from error
    return context


def _trust_store(path: Path) -> _TrustStore:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    return _TrustStore(path, (status.st_ino, status.st_size, status.st_mtime_ns))


def _unusable(path: Path, why: str) -> HandshakeError:
    return HandshakeError(
        errno.EPROTO,
        f"The trust store {path} can't be used: {why}. No certificate can be verified without it; "
        "install the package ca-certificates or name another file in the policy.",
    )


def _new_context(
    low: int, high: int, ciphers12: str, ciphers13: str, trusted: bytes | _TrustStore
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(low)
    context.set_max_proto_version(high)
    if ciphers12:
        context.set_cipher_list(ciphers12.encode("ascii"))
    if ciphers13:
        context.set_tls13_ciphersuites(ciphers13.encode("ascii"))
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # One call for many records spares most of Python's share of the work.
    context.clear_mode(_ENABLE_PARTIAL_WRITE)
    _load_trusted(context, trusted)
    context.set_verify(SSL.VERIFY_PEER, _on_verify)
    context.set_keylog_callback(_on_keylog)
    context.set_info_callback(_on_info)
    return context


# Loading a system's trust store takes milliseconds, and most sockets want the same context.
_shared_context = functools.lru_cache(maxsize=32)(_new_context)


def _load_trusted(context: SSL.Context, trusted: bytes | _TrustStore) -> None:
    store = cast("crypto.X509Store", context.get_cert_store())  # OpenSSL makes one for each context
    # Whatever is in the store is trusted, whether or not it signed itself.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    if isinstance(trusted, _TrustStore):
        try:
            context.load_verify_locations(str(trusted.path))
        except SSL.Error as error:
            raise _unusable(trusted.path, "it holds no readable PEM certificate") from error
        return
    for certificate in x509.load_pem_x509_certificates(trusted):
        store.add_cert(crypto.X509.from_cryptography(certificate))


def _expect(connection: SSL.Connection, wanted: str | identity.Address) -> None:
    """Let OpenSSL itself check the peer's identity (X509_VERIFY_PARAM_set_flags(3)).

    `_on_verify` checks it as well, but what it refuses reaches the peer as the alert
    internal_error; what OpenSSL refuses as bad_certificate. pyOpenSSL has no call for it.
    """
    parameters = _lib.SSL_get0_param(connection._ssl)
    _lib.X509_VERIFY_PARAM_set_hostflags(
        parameters,
        _lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | _lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT,
    )
    if isinstance(wanted, str):
        name = wanted.encode("ascii")
        accepted = _lib.X509_VERIFY_PARAM_set1_host(parameters, name, len(name))
    else:
        address = wanted.packed
        accepted = _lib.X509_VERIFY_PARAM_set1_ip(parameters, address, len(address))
    if not accepted:
        raise HandshakeError(errno.EPROTO, f"OpenSSL does not take {wanted} as a peer's name.")


def attach(connection: SSL.Connection, endpoint: socket.socket) -> None:
    """Let a connection that did its handshake over memory go on over a socket.

    It must have read whatever it was given, and its output must have been sent. Memory costs four
    copies of every byte on its way out and three on its way in, which is more than the encryption.
    pyOpenSSL has no call for it: this is what its constructor does when it is given a socket.
    """
    if not _lib.SSL_set_fd(connection._ssl, endpoint.fileno()):
        raise MemoryError
    connection._socket = endpoint
    # OpenSSL has freed these; pyOpenSSL knows by None that there are none.
    connection._into_ssl = connection._from_ssl = None


def _on_verify(
    connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int
) -> bool:
    """OpenSSL found something wrong (not ok), or has checked one certificate of the chain."""
    notes: Notes = connection.get_app_data()
    try:
        notes.refusal = _refusal(notes, certificate.to_cryptography(), code, depth, ok=bool(ok))
    except identity.UNREADABLE as error:
        notes.refusal = f"A certificate of the peer's chain can't be read: {error}."
    if depth == 0:
        notes.verified = not notes.refusal
    return not notes.refusal


def _refusal(
    notes: Notes, certificate: x509.Certificate, code: int, depth: int, *, ok: bool
) -> str:
    mismatch = code in verification.IDENTITY_MISMATCHES
    if not ok and not mismatch:
        return verification.sentence(verification.Fault(code, depth, certificate), notes.trust)
    if depth > 0:
        return ""
    if not verification.signs(certificate):
        fault = verification.Fault(SSL.X509VerificationCodes.ERR_INVALID_PURPOSE, 0, certificate)
        return verification.sentence(fault, notes.trust)
    return verification.wrong_identity(certificate, notes.wanted, refused=mismatch)


def _on_keylog(connection: SSL.Connection, line: bytes) -> None:
    """Keep a secret, "LABEL client-random secret" (SSL_CTX_set_keylog_callback(3))."""
    label, _, secret = line.decode("ascii").split(" ")
    connection.get_app_data().secrets[label] = bytes.fromhex(secret)


def _on_info(connection: SSL.Connection, where: int, code: int) -> None:
    """Keep the numbers of fatal alerts (SSL_CTX_set_info_callback(3))."""
    if where & SSL.SSL_CB_ALERT and code >> 8 == _FATAL:
        notes: Notes = connection.get_app_data()
        if where & SSL.SSL_CB_READ:
            notes.alert_received = code & 0xFF
        else:
            notes.alert_sent = code & 0xFF
