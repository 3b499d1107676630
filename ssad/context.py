# SPDX-License-Identifier: BSD-3-Clause
"""OpenSSL contexts and connections, set up as settings and policy say.

OpenSSL reports through callbacks that a context has once for all its connections. What they say of
one connection is kept in its Notes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import functools
import hashlib
import itertools
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from ssad import identity, trust, verification
from ssad.checks import Rules
from ssad.credentials import Identity
from ssad.errors import HandshakeError, Refused
from ssad.policy import KEYS, TLS_1_2, TLS_1_3, Policy
from ssad.revocation import staple_fault
from ssad.settings import (
    AUTH_NONE,
    AUTH_OPTIONAL,
    AUTH_REQUIRED,
    Settings,
    parse_host_name,
)
from ssad.trust import TrustStore

# openssl/ssl.h: SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_MODE_NO_AUTO_CHAIN, SSL_OP_PRIORITIZE_CHACHA.
_AUTO_RETRY = 0x4  # SSL_MODE_AUTO_RETRY, likewise
_ENABLE_PARTIAL_WRITE = 0x1
_NO_AUTO_CHAIN = 0x8
_PRIORITIZE_CHACHA = 1 << 21
_CA_NAMES_MAX = 16384  # bytes of names sent to a client; its hint is not worth more
_VERIFY_MODES = {
    AUTH_NONE: SSL.VERIFY_NONE,
    AUTH_OPTIONAL: SSL.VERIFY_PEER,
    AUTH_REQUIRED: SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT,
}
# Tables of the policy that say who may resume a session: it is not resumed under another policy.
_OF_SESSIONS = {"tls", "trust", "sessions", "revocation"}
_FATAL = 2  # level of an alert

_lib = Binding.lib


@dataclass(slots=True, eq=False)
class Notes:
    """What OpenSSL's callbacks said of one connection."""

    wanted: str | identity.Address | None  # None: a client, which may be anyone
    trust: str  # where trusted certificates come from
    rules: Rules  # how the peer's certificates are checked for revocation
    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)  # by their keylog labels
    verified: bool = False
    stapled: bool = False  # the server has proved that its certificate is not revoked
    refusal: str = ""  # why the peer's certificates were refused
    alert_sent: int | None = None  # fatal ones
    alert_received: int | None = None


def client_connection(
    settings: Settings, policy: Policy, remote: identity.Address
) -> SSL.Connection:
    """Make a connection for a handshake over memory. Its app data is its Notes.

    Raises HandshakeError if there is nothing to verify the peer's certificates with, Refused if
    the settings contradict each other.
    """
    wanted = identity.wanted(settings.host_name, remote)
    connection = SSL.Connection(client_context(settings, policy), None)
    rules = settings.checks.rules(policy)
    connection.set_app_data(Notes(wanted, trust.source(settings, policy), rules))
    connection.set_connect_state()
    _expect(connection, wanted)
    if rules.stapled:
        connection.request_ocsp()
    if isinstance(wanted, str):
        # RFC 6066, 3: addresses are not permitted.
        connection.set_tlsext_host_name(wanted.encode("ascii"))
    if settings.alpn:
        connection.set_alpn_protos([name.encode("ascii") for name in settings.alpn])
    return connection


def client_context(settings: Settings, policy: Policy) -> SSL.Context:
    """Return a context for client connections. Raises HandshakeError and Refused as above."""
    settings.check(policy)
    trusted = trust.trusted(settings, policy)
    low, high = settings.versions(policy)
    ciphers = settings.ciphers12(policy), settings.ciphers13(policy)
    parameters = (low, high, *ciphers, trusted, policy.verify_depth)
    if not settings.identities:
        return _shared_client_context(*parameters)
    # A private key is not kept beyond its socket, so this context is for one connection.
    context = _new_client_context(*parameters)
    for one in _first_of_each_kind(settings.identities):
        _use(context, one)
    return context


class TicketContexts:
    """What session tickets are encrypted with; processes that share it accept each other's.

    OpenSSL makes the keys of tickets with a context, gives no access to them through
    cryptography, and uses those of the context that a connection was made with, even if the
    connection goes on with another one (SSL_set_SSL_CTX of ssl/ssl_lib.c). So connections are made
    with contexts of this object, which has to be made before the processes that share it fork.

    These of a connection's properties stay what they are in the first context: versions, options,
    modes, the timeout of sessions, whether, how and to what depth the peer is verified. The rest
    comes with the other context: certificates, ciphers, trust, callbacks, the session id context.
    """

    def __init__(self, policy: Policy) -> None:
        self._contexts = {
            (versions, level): _base_context(versions, level)
            for versions in ((TLS_1_2, TLS_1_2), (TLS_1_2, TLS_1_3), (TLS_1_3, TLS_1_3))
            for level in _VERIFY_MODES
        }
        self.apply(policy)

    def apply(self, policy: Policy) -> None:
        """Let connections that are made from now on go by another policy. The keys stay, for the
        session id context tells apart the sessions of different policies."""
        for context in self._contexts.values():
            # pyOpenSSL lets nobody change a context that has made a connection. These two are
            # looked at when another one is made, or a session begins (SSL_CTX_set_timeout(3),
            # SSL_CTX_set_verify_depth(3)).
            _lib.SSL_CTX_set_timeout(context._context, policy.session_timeout)
            _lib.SSL_CTX_set_verify_depth(context._context, policy.verify_depth)

    def set_lifetime(self, versions: tuple[int, int], request_peer_auth: int, seconds: int) -> None:
        """Say how long sessions may be resumed that begin before this is called anew.

        Listeners that are alike but for that share a context, so it is to be said before each step
        of a handshake: OpenSSL looks at it when it has read the ClientHello.
        """
        # Not through pyOpenSSL, which lets no context be changed that is used. OpenSSL minds
        # threads only here, and there is one.
        context = self._contexts[versions, request_peer_auth]
        _lib.SSL_CTX_set_timeout(context._context, seconds)

    def connection(
        self, context: SSL.Context, versions: tuple[int, int], request_peer_auth: int
    ) -> SSL.Connection:
        """Make a server's connection over memory that goes on with `context`.

        `versions`: the lowest and the highest; `request_peer_auth`: as Settings has it.
        """
        connection = SSL.Connection(self._contexts[versions, request_peer_auth], None)
        # Before anything is received, so that sessions are looked up in the right id context.
        connection.set_context(context)
        connection.set_accept_state()
        return connection


class ServerContexts:
    """The contexts of a listener, one for each set of certificates that a name can ask for.

    A name that no certificate covers, or none at all, gets the first certificate.
    """

    def __init__(
        self, settings: Settings, policy: Policy, tickets: TicketContexts, uid: int
    ) -> None:
        """`uid` is the owner of the listener; nobody else's listener takes its tickets.

        Raises Refused (EINVAL) if there is no certificate or OpenSSL takes none of them,
        HandshakeError if there is nothing to verify clients' certificates with.
        """
        settings.check_listen(policy)
        self.settings = settings
        self.policy = policy
        self.versions = settings.versions(policy)
        self._tickets = tickets
        self._trust = trust.source(settings, policy)
        self._rules = settings.checks.rules(policy)
        self.staples: dict[bytes, bytes] = {}  # OCSP responses, by the certificates in DER
        trusted = None
        if settings.request_peer_auth != AUTH_NONE:
            trusted = trust.trusted(settings, policy)
        make = _ContextMaker(settings, policy, trusted, uid, self.staples)
        first = settings.identities[0]
        alike = (_covering(make.by_name, name) for name in _names(first)[:1])
        default = _first_of_each_kind((first, *itertools.chain.from_iterable(alike)))
        self._context = make.default(default)

    def connection(self) -> SSL.Connection:
        """Make a connection for a handshake over memory. Its app data is its Notes."""
        connection = self._tickets.connection(
            self._context, self.versions, self.settings.request_peer_auth
        )
        connection.set_app_data(Notes(None, self._trust, self._rules))
        if self._rules.online and self.settings.request_peer_auth != AUTH_NONE:
            # A ticket has no room for the issuers, without whom nobody can be asked: the client
            # has to show its certificates each time. pyOpenSSL has no call for it.
            _lib.SSL_set_options(connection._ssl, SSL.OP_NO_TICKET)
        return connection

    def prepare_step(self) -> None:
        """To be called before each step of a handshake."""
        self._tickets.set_lifetime(
            self.versions,
            self.settings.request_peer_auth,
            self.settings.session_lifetime(self.policy),
        )


class _ContextMaker:
    """Makes the contexts of a listener."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        trusted: bytes | TrustStore | None,
        uid: int,
        staples: dict[bytes, bytes],
    ) -> None:
        self._settings = settings
        self._staple = _stapler(staples)
        self._policy = policy
        self._trusted = trusted
        self._store: crypto.X509Store | None = None
        self._session_id = _session_id(settings, policy, trusted, uid)
        self._made: dict[frozenset[int], SSL.Context | None] = {}  # by the identities' id()s
        self.by_name: dict[str, list[Identity]] = {}
        for one in settings.identities:
            for name in _names(one):
                self.by_name.setdefault(name, []).append(one)

    def default(self, identities: tuple[Identity, ...]) -> SSL.Context:
        """Make the context that connections begin with, which finds the others by name."""
        # Names that stay with it have no context, or else it would refer to itself, and its
        # private keys would outlive the listener until the next garbage collection.
        self._made[frozenset(map(id, identities))] = None
        contexts = {name: self._context(_covering(self.by_name, name)) for name in self.by_name}
        context = self._new(identities)
        context.set_tlsext_servername_callback(_name_chooser(contexts))
        return context

    def _context(self, identities: tuple[Identity, ...]) -> SSL.Context | None:
        key = frozenset(map(id, identities))
        if key not in self._made:
            self._made[key] = self._new(identities)
        return self._made[key]

    def _new(self, identities: tuple[Identity, ...]) -> SSL.Context:
        settings, policy = self._settings, self._policy
        low, high = settings.versions(policy)
        context = _new_context(
            SSL.TLS_SERVER_METHOD,
            low,
            high,
            settings.ciphers12(policy),
            settings.ciphers13(policy),
        )
        context.set_session_id(self._session_id)
        context.set_ocsp_server_callback(self._staple)
        for one in identities:
            _use(context, one)
        if settings.alpn:
            context.set_alpn_select_callback(_alpn_chooser(settings.alpn))
        self._trust(context)
        return context

    def _trust(self, context: SSL.Context) -> None:
        if self._trusted is None:
            return
        if self._store is None:
            trust.load(context, self._trusted)
            self._store = trust.store_of(context)
        else:
            # A system's trust store is worth sharing. pyOpenSSL has no call for it.
            _lib.X509_STORE_up_ref(self._store._store)
            _lib.SSL_CTX_set_cert_store(context._context, self._store._store)
        if isinstance(self._trusted, bytes):
            _send_names(context, x509.load_pem_x509_certificates(self._trusted))


def _base_context(versions: tuple[int, int], level: int) -> SSL.Context:
    context = _new_context(SSL.TLS_SERVER_METHOD, *versions)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | _PRIORITIZE_CHACHA)
    context.set_verify(_VERIFY_MODES[level], _on_verify)
    return context


def _session_id(
    settings: Settings, policy: Policy, trusted: bytes | TrustStore | None, uid: int
) -> bytes:
    """Return what tells apart the sessions of listeners that are not alike.

    A resumed session is not verified anew, so whatever could make a difference counts.
    """
    alike = (
        uid,
        trusted,
        settings.request_peer_auth,
        [one.chain for one in settings.identities],
        settings.alpn,
        settings.versions(policy),
        settings.ciphers(policy),
        *(getattr(policy, name) for name, key in KEYS.items() if key.table in _OF_SESSIONS),
        settings.checks.rules(policy),
        settings.session_lifetime(policy),
    )
    return hashlib.sha256(repr(alike).encode()).digest()


def _covering(by_name: dict[str, list[Identity]], name: str) -> tuple[Identity, ...]:
    """Return those that are for a name, one of each kind: with this very name if there is one,
    else with a wildcard."""
    return _first_of_each_kind(
        one for form in (name, _wildcard(name)) for one in by_name.get(form, ())
    )


def _wildcard(name: str) -> str:
    """Return the wildcard that stands for a name (RFC 9525, 6.3). A client may be pickier."""
    return f"*.{name.partition('.')[2]}"


def _names(one: Identity) -> list[str]:
    return [*map(str.lower, one.names.dns), *map(str, one.names.addresses)]


def _first_of_each_kind(identities: Iterable[Identity]) -> tuple[Identity, ...]:
    """Return what one context can hold: OpenSSL knows one certificate for each kind of key."""
    found: dict[str, Identity] = {}
    for one in identities:
        found.setdefault(one.kind, one)
    return tuple(found.values())


def _name_chooser(contexts: dict[str, SSL.Context | None]) -> Callable[[SSL.Connection], None]:
    """Return a callback that gives a connection the context of the name that is asked for."""

    def choose(connection: SSL.Connection) -> None:
        name = server_name(connection)
        found = contexts.get(name if name in contexts else _wildcard(name))
        if found is not None:
            connection.set_context(found)

    return choose


def _stapler(staples: dict[bytes, bytes]) -> Callable[[SSL.Connection, None], bytes]:
    """Return a callback that gives a connection the OCSP response to the certificate it shows."""

    def staple(connection: SSL.Connection, _data: None) -> bytes:
        certificate = connection.get_certificate() if staples else None
        if certificate is None:
            return b""
        return staples.get(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate), b"")

    return staple


def _alpn_chooser(
    alpn: tuple[str, ...],
) -> Callable[[SSL.Connection, list[bytes]], bytes]:
    """Return a callback that chooses the first of our protocols that is offered (RFC 7301, 3.2)."""
    known = [name.encode("ascii") for name in alpn]

    def choose(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
        for name in known:
            if name in offered:
                return name
        # The client gets the alert no_application_protocol, and the handshake raises this.
        raise HandshakeError(
            errno.EPROTO,
            "The client speaks none of the protocols of TLS_ALPN "
            f"({', '.join(alpn)}); it offered {_protocols(offered)}.",
        )

    return choose


def _protocols(offered: list[bytes]) -> str:
    shown = [name.decode("ascii", "replace") for name in offered[:8]]
    if len(offered) > len(shown):
        shown.append(f"{len(offered) - len(shown)} more")
    return ", ".join(shown)


def server_name(connection: SSL.Connection) -> str:
    """Return the name that a client asked a server for, in lower-case A-labels. Empty if there is
    none, or something else than a host name (RFC 6066, 3)."""
    with contextlib.suppress(UnicodeDecodeError, Refused):
        name = (connection.get_servername() or b"").decode("ascii")
        return parse_host_name(name) if name else ""
    return ""


def resumed(connection: SSL.Connection) -> bool:
    """Tell whether the handshake resumed an earlier session. pyOpenSSL has no call for it."""
    return bool(_lib.SSL_session_reused(connection._ssl))


def verified_before(connection: SSL.Connection) -> bool:
    """Tell whether the peer of a resumed session was found to be in order when it began."""
    return resumed(connection) and _lib.SSL_get_verify_result(connection._ssl) == 0  # X509_V_OK


def is_current_session(connection: SSL.Connection, session: SSL.Session) -> bool:
    """Tell whether a session is still the connection's; each ticket of TLS 1.3 makes it another."""
    return bool(_lib.SSL_get_session(connection._ssl) == session._session)


def _new_context(
    method: int, low: int, high: int, ciphers12: str = "", ciphers13: str = ""
) -> SSL.Context:
    """Make a context with what clients and servers have in common. No cipher: OpenSSL's own."""
    context = SSL.Context(method)
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
    # A chain is sent as it was given, not completed from the trust store.
    context.set_mode(_NO_AUTO_CHAIN)
    context.set_keylog_callback(_on_keylog)
    context.set_info_callback(_on_info)
    return context


def _new_client_context(
    low: int, high: int, ciphers12: str, ciphers13: str, trusted: bytes | TrustStore, depth: int
) -> SSL.Context:
    context = _new_context(SSL.TLS_CLIENT_METHOD, low, high, ciphers12, ciphers13)
    trust.load(context, trusted)
    context.set_verify(SSL.VERIFY_PEER, _on_verify)
    context.set_verify_depth(depth)
    context.set_ocsp_client_callback(_on_staple)
    return context


# Loading a system's trust store takes milliseconds, and most sockets want the same context.
_shared_client_context = functools.lru_cache(maxsize=32)(_new_client_context)


def _use(context: SSL.Context, one: Identity) -> None:
    """Let a context show a certificate. Raises Refused with EINVAL if OpenSSL does not take it."""
    try:
        # From a file, since pyOpenSSL's other call makes a chain that all certificates share.
        with open(os.memfd_create("chain"), "w+b", buffering=0) as file:  # noqa: PTH123
            file.write(one.chain)
            context.use_certificate_chain_file(f"/proc/self/fd/{file.fileno()}")
        key = load_pem_private_key(
            one.private_key, password=None, unsafe_skip_rsa_key_validation=True
        )
        context.use_privatekey(key)  # type: ignore[arg-type]
    except SSL.Error as error:
        own = x509.load_pem_x509_certificate(one.chain)
        reasons = ", ".join(reason for *_, reason in error.args[0]) or "no reason given"
        raise Refused(
            errno.EINVAL,
            f"OpenSSL does not take the certificate of {identity.subject(own)} "
            f"with its {one.kind} key: {reasons}.",
        ) from error


def _send_names(context: SSL.Context, trusted: list[x509.Certificate]) -> None:
    """Tell clients whose certificates are wanted (RFC 8446, 4.2.4), if names can tell it.

    They are names of issuers: a trusted certificate that is no issuer can't be told.
    """
    if not all(identity.is_authority(c) or c.issuer == c.subject for c in trusted):
        return
    if sum(len(certificate.subject.public_bytes()) for certificate in trusted) > _CA_NAMES_MAX:
        return
    for certificate in trusted:
        context.add_client_ca(certificate)


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
    # Else one read of ours goes on for as long as the peer sends tickets or KeyUpdates.
    _lib.SSL_clear_mode(connection._ssl, _AUTO_RETRY)
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
    peer: Literal["server", "client"] = "client" if notes.wanted is None else "server"
    mismatch = code in verification.IDENTITY_MISMATCHES
    if not ok and not mismatch:
        fault = verification.Fault(code, depth, certificate)
        return verification.sentence(fault, notes.trust, peer)
    if depth > 0:
        return ""
    if not verification.signs(certificate):
        fault = verification.Fault(SSL.X509VerificationCodes.ERR_INVALID_PURPOSE, 0, certificate)
        return verification.sentence(fault, notes.trust, peer)
    if notes.wanted is None:
        return ""
    return verification.wrong_identity(certificate, notes.wanted, refused=mismatch)


def _on_staple(connection: SSL.Connection, response: bytes, _data: None) -> bool:
    """OpenSSL has verified the server's chain. Without a stapled response, this one is empty.

    What is refused here reaches the server as the alert bad_certificate_status_response.
    """
    notes: Notes = connection.get_app_data()
    if resumed(connection):
        return True  # nothing is stapled, and what was has been checked when the session began
    chain = connection.get_verified_chain(as_cryptography=True) or []
    now = dt.datetime.now(dt.UTC)
    notes.refusal, notes.stapled = staple_fault(response, chain, notes.rules, now)
    return not notes.refusal


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
